"""``hpc-dask jobscript``: print a job script; and the options that it shares with ``submit``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from hpcdask import config
from hpcdask.cli import options
from hpcdask.cli.configured import with_section

if TYPE_CHECKING:
    from hpcdask.jobqueue.job_spec import JobSpec
    from hpcdask.jobqueue.system import BatchSystem

#: Of `hpcdask.jobqueue`, which is not imported for the sake of a help text.
_SYSTEMS = ("slurm", "pbs", "sge")
_LAUNCHES = ("mpi", "native", "cluster", "workers")


class SystemFirst(click.Command):
    """A command whose first word may be a batch system, and whose last are a script's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the system, if it is there, for an option."""
        if args and args[0] in _SYSTEMS:
            args = ["--system", *args]
        elif args and args[0].isidentifier() and not os.path.exists(args[0]):
            raise click.UsageError(
                f"{args[0]!r} is no batch system (slurm, pbs or sge), nor a script that is here",
                ctx,
            )
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show the system where it may stand."""
        return ["[slurm|pbs|sge]", *super().collect_usage_pieces(ctx)]


_shape = options.together(
    click.option(
        "--system",
        type=click.Choice(_SYSTEMS),
        help="The batch system; may be the first word instead. Default: the one that is here.",
    ),
    click.option(
        "--launch",
        type=click.Choice(_LAUNCHES),
        default="mpi",
        show_default=True,
        help="mpi: SCRIPT on a cluster that mpirun starts. native: the same by srun, pbsdsh or "
        "qrsh, without MPI. cluster: one that stays up for clients elsewhere. workers: an array of "
        "jobs with workers for a scheduler that runs already.",
    ),
    click.option(
        "--nodes",
        type=click.IntRange(min=1),
        help="Nodes of the job. Grid Engine counts slots and spreads them by the rule of --pe.  "
        "[default: 2; 1 with --launch workers]",
    ),
    click.option(
        "--tasks-per-node",
        "--workers-per-node",
        type=click.IntRange(min=1),
        help="Processes on each node; each is a worker, but for the scheduler's.  [default: 4]",
    ),
    click.option(
        "--cpus-per-task",
        type=click.IntRange(min=1),
        help="CPUs of each process, which are the threads of a worker.  [default: 4]",
    ),
    click.option(
        "--memory",
        metavar="SIZE",
        help="Of each node, as in 64GiB; 0 to ask for none. Not of Grid Engine, where sites "
        "differ.  [default: 32GiB]",
    ),
    click.option(
        "--walltime",
        metavar="H:MM:SS|TIME",
        help="How long the job may run: 12:00:00, 2-00:00:00, 90min.  [default: 00:30:00]",
    ),
    click.option(
        "--jobs",
        "count",
        type=click.IntRange(min=1),
        help="With --launch workers: jobs in the array, each of --nodes nodes.  [default: 4]",
    ),
)

_site = options.together(
    click.option("--queue", "--partition", metavar="NAME", help="Where to wait."),
    click.option(
        "--account", "--project", metavar="NAME", help="Who pays; Grid Engine's project (-P)."
    ),
    click.option("--job-name", "name", metavar="NAME", help="[default: hpcdask]"),
    click.option(
        "--output",
        metavar="FILE",
        help="The job's log, in the system's own pattern, as slurm-%j.log.",
    ),
    click.option(
        "--pe",
        "parallel_environment",
        metavar="NAME",
        help="Grid Engine's parallel environment.  [default: mpi, and smp for workers]",
    ),
    click.option(
        "--directive",
        "directives",
        multiple=True,
        metavar="TEXT",
        help="One more line for the system, as it stands behind #SBATCH, #PBS or #$. May be "
        "repeated.",
    ),
)

_cluster = options.together(
    click.option(
        "--venv",
        metavar="FOLDER",
        help="Virtual environment of the job. Default: the Python that runs this command.",
    ),
    click.option(
        "--prologue",
        multiple=True,
        metavar="LINE",
        help="Line of shell to run first on each node, as 'module load openmpi'. May be repeated.",
    ),
    click.option(
        "--interface",
        metavar="NAME|LIST|GLOB|SUBNET",
        help="Network interface of all processes: ib0, 'ib*,hsn0', 10.1.0.0/16.",
    ),
    click.option(
        "--scheduler-file",
        metavar="FILE",
        help="Where the scheduler says where it is, in a folder that all nodes see. Default: "
        "hpcdask-JOBID.json, and scheduler.json for workers, where the job is submitted.",
    ),
)

job_options = options.together(
    _shape,
    _site,
    _cluster,
    click.argument("script", required=False),
    click.argument("args", nargs=-1, type=click.UNPROCESSED),
)


@click.command(cls=SystemFirst, context_settings={"allow_interspersed_args": False})
@job_options
def jobscript(**given: Any) -> None:
    """Print a job script that runs SCRIPT with ARGS as the client of a cluster of its own.

    Without SCRIPT it takes script and arguments where it is submitted, or has a line to name them.
    """

    def work() -> None:
        from hpcdask.jobqueue.job_script import job_script

        system, job = system_and_job(given)
        click.echo(job_script(system, job), nl=False)

    options.run("hpc-dask jobscript", "warning", work)


def system_and_job(given: dict[str, Any]) -> tuple[BatchSystem, JobSpec]:
    """What the options ask for, and of whom.

    Raises
    ------
    ConfigError
        If an option has a value that it cannot have, or there is no batch system here.
    """
    from hpcdask.jobqueue.systems import SYSTEMS, detect

    given = dict(given)
    name = given.pop("system")
    system = SYSTEMS[name] if name else detect()
    section = f"jobqueue.{system.name}"
    given = with_section(given, section)
    job = replace(system.template(given.pop("launch")), **dict(_fields(given)))
    return system, replace(job, skip=config.get(f"{section}.job-directives-skip"))


def _fields(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields of a JobSpec, of those options that were given."""
    from hpcdask.host import parse_bytes, parse_walltime

    script, args = given.pop("script"), given.pop("args")
    if script is not None:
        yield "script", (script, *args)
    venv, prologue = given.pop("venv"), given.pop("prologue")
    yield "environment", (*prologue, *(_activation(venv) if venv else _this_environment()))
    readers: dict[str, Callable[[str], Any]] = {
        "memory": parse_bytes,
        "walltime": parse_walltime,
        "scheduler_file": os.path.expanduser,  # in quotes the job's shell would not
    }
    for option, value in given.items():
        if value is not None and value != ():
            yield option, readers[option](value) if option in readers else value


def _activation(venv: str) -> Iterator[str]:
    home, slash, rest = venv.partition("/")
    # A tilde that the shell has left alone means the home of whoever runs the job.
    folder = f"~/{shlex.quote(rest)}" if home == "~" and slash else shlex.quote(venv)
    yield f"source {folder}/bin/activate"


def _this_environment() -> Iterator[str]:
    """Lines that lead to the Python and the hpc-dask that run now."""
    folders = [os.path.dirname(sys.executable)]
    if os.path.basename(sys.argv[0]) == "hpc-dask":  # pip --user puts it elsewhere
        folders.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    path = ":".join(map(shlex.quote, dict.fromkeys(folders)))
    yield f'export PATH={path}:"$PATH"'
    if os.environ.get("PYTHONPATH"):
        yield f"export PYTHONPATH={shlex.quote(os.environ['PYTHONPATH'])}"
