"""``mpirun -np N hpc-dask`` and ``mpirun -np N hpc-dask run SCRIPT``."""

from __future__ import annotations

from typing import Any

import click

from hpcdask.cli import options

mpi_options = options.together(
    click.option(
        "--interface",
        metavar="NAME|LIST|GLOB|SUBNET",
        help="Network interface of all ranks: ib0, 'ib*,hsn0', 10.1.0.0/16.",
    ),
    click.option(
        "--scheduler-file",
        type=click.Path(),
        help="File to write the scheduler's address and token to, mode 0600, for other clients.",
    ),
    click.option(
        "--scheduler-port",
        default="0",
        show_default=True,
        metavar="N|FIRST:LAST",
        help="Port of the scheduler; 0 for any free one.",
    ),
    click.option(
        "--nthreads",
        type=click.IntRange(min=0),
        default=0,
        help="Threads per worker. Default: the host's CPUs / its worker ranks.",
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
        "--death-timeout",
        default="60s",
        show_default=True,
        metavar="TIME",
        help="How long a worker rank tries to reach the scheduler.",
    ),
    options.lives_of_workers,
    options.worker_ttl,
    options.allowed_failures,
    click.option(
        "--preload",
        multiple=True,
        metavar="MODULE|FILE",
        help="Import in every worker before it connects. May be repeated.",
    ),
    options.authentication,
)


def start(script: tuple[str, ...] | None, given: dict[str, Any]) -> None:
    """Take this rank's part, and exit."""
    level = given["log_level"]

    def work() -> int:
        from hpcdask.launchers.mpi import MPIOptions, launch

        scheduler = {
            "interface": given["interface"],
            "port": given["scheduler_port"],
            "scheduler_file": given["scheduler_file"],
            "token_file": given["token_file"],
            "auth": not given["no_auth"],
            "worker_ttl": given["worker_ttl"],
            "allowed_failures": given["allowed_failures"],
        }
        nanny = {
            "interface": given["interface"],
            "nthreads": given["nthreads"],
            "memory_limit": given["memory_limit"],
            "local_directory": given["local_directory"],
            "death_timeout": given["death_timeout"],
            "resources": given["resources"],
            "lifetime": given["lifetime"],
            "lifetime_stagger": given["lifetime_stagger"],
            "lifetime_restart": given["lifetime_restart"],
            "drain_timeout": given["drain_timeout"],
            "preload": given["preload"],
            "log_level": level,
        }
        return launch(MPIOptions(scheduler, nanny, given["name"], script))

    options.run("hpc-dask", level, work)


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
        raise click.NoSuchOption(script, ctx=click.get_current_context())
    start((script, *args), given)
