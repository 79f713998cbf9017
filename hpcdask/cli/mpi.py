"""``mpirun -np N hpc-dask`` and ``mpirun -np N hpc-dask run SCRIPT``."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from typing import Any

import click

from hpcdask import config
from hpcdask.cli import options
from hpcdask.cli.configured import settled
from hpcdask.errors import ConfigError

_network = options.together(
    click.option(
        "--interface",
        metavar="NAME|LIST|GLOB|SUBNET",
        help="Network interface of all ranks: ib0, 'ib*,hsn0', 10.1.0.0/16.",
    ),
    click.option(
        "--scheduler-interface",
        metavar="NAME|LIST|GLOB|SUBNET",
        help="The scheduler's, if it is another one.",
    ),
    click.option(
        "--protocol",
        type=click.Choice(["tcp"]),
        default="tcp",
        show_default=True,
        help="Transport.",
    ),
    click.option(
        "--scheduler-file",
        type=click.Path(),
        help="File to write the scheduler's address and token to, mode 0600, for other clients; "
        "with --no-scheduler, the file of the running cluster.",
    ),
    click.option(
        "--scheduler-port",
        metavar="N|FIRST:LAST",
        help="Port of the scheduler. Default: one of --port-range, or any free one.",
    ),
    click.option(
        "--port-range",
        metavar="FIRST:LAST",
        help="Ports for all that listens, as a firewall lets pass. Default: any free ones.",
    ),
)

_ranks = options.together(
    click.option(
        "--scheduler-rank",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Rank that runs the scheduler.",
    ),
    click.option(
        "--exclusive-workers/--inclusive-workers",
        default=None,
        help="Whether the scheduler's rank has no worker. Default: so, if other ranks are left.",
    ),
    click.option(
        "--nworkers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Workers of each rank that has any.",
    ),
    click.option(
        "--mpi/--no-mpi",
        "use_mpi",
        default=None,
        help="Whether ranks agree by MPI or through files beside the scheduler file, else in your "
        "home. Default: by MPI, where its mpirun has started them and mpi4py is installed.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Print the role, host, interface, CPUs and memory of each rank, and exit.",
    ),
)

_workers = options.together(
    click.option(
        "--nthreads",
        type=click.IntRange(min=0),
        default=0,
        help="Threads per worker. Default: the CPUs that the job has on a host / its workers.",
    ),
    click.option(
        "--memory-limit",
        default="auto",
        show_default=True,
        help="Per worker: bytes, '4 GiB', a fraction of what the host grants, 0 for none. "
        "Told to the scheduler; nothing enforces it yet.",
    ),
    click.option(
        "--local-directory", type=click.Path(), help="Where workers make their scratch folders."
    ),
    click.option(
        "--name", default="rank", show_default=True, help="Workers are called NAME-1, NAME-2, ..."
    ),
    click.option(
        "--nanny/--no-nanny",
        default=True,
        show_default=True,
        help="Run workers in processes that are watched and replaced, or in those of the ranks.",
    ),
    click.option(
        "--worker-class",
        metavar="MODULE.CLASS",
        help="A subclass of hpcdask.Worker or hpcdask.Nanny to run.",
    ),
    click.option(
        "--worker-options", metavar="JSON", help="More parameters of that class, as an object."
    ),
    options.lives_of_workers,
    click.option(
        "--preload",
        multiple=True,
        metavar="MODULE|FILE|URL",
        help="Import in every worker before it connects. May be repeated.",
    ),
)

_life = options.together(
    click.option(
        "--death-timeout",
        default="60s",
        show_default=True,
        metavar="TIME",
        help="How long a rank waits for the others, and a worker for the scheduler.",
    ),
    click.option(
        "--shutdown-timeout",
        default="10s",
        show_default=True,
        metavar="TIME",
        help="How long the end may take; what is left then is ended by force.",
    ),
    options.dial_back,
    options.worker_ttl,
    options.allowed_failures,
    options.dashboard,
)

#: Options that are fields of `MPIOptions`, and those that are parameters of the workers.
_AS_FIELDS = (
    *("name", "scheduler_rank", "exclusive_workers", "nworkers"),
    *("nanny", "worker_class", "use_mpi"),
)
_OF_WORKERS = (
    *("interface", "nthreads", "memory_limit", "local_directory", "death_timeout", "resources"),
    *("lifetime", "lifetime_stagger", "lifetime_restart", "drain_timeout", "preload", "log_level"),
)

#: Of these options --no-scheduler could make nothing.
_OF_THE_SCHEDULER = (
    *("scheduler_port", "scheduler_interface", "scheduler_rank", "exclusive_workers"),
    *("worker_ttl", "allowed_failures", "dial_back"),
)

mpi_options = options.together(_network, _ranks, _workers, _life, options.authentication)


def start(script: tuple[str, ...] | None, given: dict[str, Any]) -> None:
    """Take this rank's part, and exit."""
    options.import_from_here()

    def work() -> int:
        from hpcdask.launchers.mpi import launch

        return launch(wanted, _meeting(given), given["dry_run"])

    def wanted() -> Any:
        try:
            given.update(settled(given))
            return _mpi_options(script, given)
        except ConfigError as exc:  # it is perhaps another rank that tells of it
            raise ConfigError(options.with_source(str(exc))) from exc

    options.run("hpc-dask", given["log_level"], work, needs_config=False)


def _meeting(given: dict[str, Any]) -> Any:
    """How the ranks meet, even if what is configured on this one is wrong."""
    from hpcdask import host as hosts
    from hpcdask.launchers.mpi import Meeting

    found = given
    with contextlib.suppress(ConfigError):
        found = {**given, **settled(given)}
    file = found["scheduler_file"]
    try:
        timeout = hosts.parse_timedelta(found["death_timeout"])
    except ConfigError:
        timeout = Meeting().timeout
    folder = os.path.dirname(os.path.abspath(file)) if file else None
    return Meeting(found["use_mpi"], folder, timeout)


def _mpi_options(script: tuple[str, ...] | None, given: dict[str, Any]) -> Any:
    from hpcdask import host as hosts
    from hpcdask.launchers.part import MPIOptions

    options.refuse_dashboard(given)
    common = {"protocol": given["protocol"]}
    access = {"token_file": given["token_file"], "auth": not given["no_auth"]}
    scheduler = {
        **common,
        **access,
        "interface": given["scheduler_interface"] or given["interface"],
        "port": given["scheduler_port"] or given["port_range"],
        "scheduler_file": given["scheduler_file"],
        "dial_back": given["dial_back"],
        "worker_ttl": given["worker_ttl"],
        "allowed_failures": given["allowed_failures"],
    }
    worker = {
        **common,
        **{name: given[name] for name in _OF_WORKERS},
        "port": given["port_range"],
        **_json_object(given["worker_options"]),
    }
    return MPIOptions(
        scheduler,
        worker,
        script=script,
        meeting_timeout=hosts.parse_timedelta(given["death_timeout"]),
        shutdown_timeout=config.current().value("mpi.shutdown-timeout", given["shutdown_timeout"]),
        with_scheduler=given.get("with_scheduler", True),
        address=given.get("scheduler_address"),
        **{name: given[name] for name in _AS_FIELDS},
    )


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as exc:
        raise ConfigError(f"--worker-options {text!r} is no JSON: {exc}") from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"--worker-options {text!r} is no JSON object, as in '{{\"port\": 9000}}'"
        )
    return value


@click.command("mpi")
@click.argument("arguments", metavar="[SCHEDULER_ADDRESS]", nargs=-1)
@click.option(
    "--scheduler/--no-scheduler",
    "with_scheduler",
    default=True,
    show_default=True,
    help="Without, all ranks are workers of the cluster at SCHEDULER_ADDRESS or --scheduler-file.",
)
@mpi_options
@options.log_level("info")
@options.print_version("hpc-dask mpi")
@click.pass_context
def mpi(context: click.Context, /, arguments: tuple[str, ...], **given: Any) -> None:
    """Start a cluster on all ranks of an mpirun or srun: the same as 'hpc-dask' alone.

    Rank 0 runs the scheduler, every other rank a worker, until
    'Client(scheduler_file=...).shutdown()', SIGTERM or Ctrl-C.
    """
    _refuse_arguments(context, arguments, given["with_scheduler"])
    if not given["with_scheduler"]:
        _refuse_what_is_the_schedulers(context)
        if not (arguments or given["scheduler_file"]):
            raise click.UsageError("--no-scheduler needs SCHEDULER_ADDRESS or --scheduler-file")
    start(None, {**given, "scheduler_address": arguments[0] if arguments else None})


def _refuse_arguments(
    context: click.Context, arguments: tuple[str, ...], with_scheduler: bool
) -> None:
    group = context.parent.command if context.parent is not None else None
    if arguments and isinstance(group, click.Group) and arguments[0] in group.commands:
        first = next(each for each in _typed(context) if each.name != "arguments")
        raise click.UsageError(f"put {first.opts[0]} behind {arguments[0]!r}")
    if len(arguments) > 1:
        raise click.UsageError(f"there is no use for {arguments[1]!r}")
    if arguments and with_scheduler:
        raise click.UsageError(
            f"{arguments[0]!r} is no command; the address of a running scheduler goes with "
            "--no-scheduler"
        )


def _typed(context: click.Context) -> list[click.Parameter]:
    """The parameters that stand on the command line, in their order."""
    by_name = {str(each.name): each for each in context.command.params}
    on_it = click.core.ParameterSource.COMMANDLINE
    return [by_name[n] for n in context.params if context.get_parameter_source(n) is on_it]


def _refuse_what_is_the_schedulers(context: click.Context) -> None:
    for each in _typed(context):
        if each.name in _OF_THE_SCHEDULER:
            raise click.UsageError(
                f"{each.opts[0]} is the scheduler's, and --no-scheduler starts none"
            )


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@mpi_options
@options.log_level("warning")  # what a run shows is the script's
@click.argument("script", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(script: str, args: tuple[str, ...], **given: Any) -> None:
    """Start a cluster on all MPI ranks, run SCRIPT as its client, and end with its exit code.

    In SCRIPT a bare 'Client()' connects to the cluster.
    """
    if script.startswith("-"):  # what click leaves of an option that it does not know
        context = click.get_current_context()
        known = [name for each in context.command.params for name in each.opts]
        alike = difflib.get_close_matches(script, known)
        raise click.NoSuchOption(script, possibilities=alike, ctx=context)
    start((script, *args), given)
