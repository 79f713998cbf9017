"""``hpc-dask scheduler``."""

from __future__ import annotations

from typing import Any

import click

from hpcdask.cli import options
from hpcdask.cli.configured import settled


@click.command()
@click.option("--host", help="Address or name to listen on. Default: every interface.")
@click.option(
    "--port",
    default="8786",
    show_default=True,
    metavar="N|FIRST:LAST",
    help="Port to listen on; 0 for any free one, or a range to try in turn.",
)
@click.option(
    "--interface",
    metavar="NAME|LIST|GLOB|SUBNET",
    help="Network interface to listen on and advertise: ib0, 'ib*,hsn0', 10.1.0.0/16.",
)
@click.option("--contact-address", help="Address to advertise, if it is not the one listened on.")
@click.option(
    "--protocol", type=click.Choice(["tcp"]), default="tcp", show_default=True, help="Transport."
)
@click.option(
    "--scheduler-file",
    type=click.Path(),
    help="File to write our address and token to, mode 0600; workers and clients read it.",
)
@click.option(
    "--successor",
    is_flag=True,
    help="At SIGTERM end without a word, and with code 143: workers and clients then wait for "
    "another scheduler with the same --scheduler-file.",
)
@click.option("--idle-timeout", metavar="TIME", help="End after so long without tasks: 30s, 1h.")
@options.dial_back
@options.allowed_failures
@options.worker_ttl
@options.client_grace
@click.option("--pid-file", type=click.Path(), help="File to keep our process id in.")
@options.authentication
@options.log_level("info")
@options.preload
@options.print_version("hpc-dask scheduler")
def scheduler(
    pid_file: str | None, log_level: str, no_auth: bool, successor: bool, **given: Any
) -> None:
    """Start a scheduler.

    Listens on port 8786 unless told otherwise; a worker joins it with 'hpc-dask worker
    HOST:8786', or with the same --scheduler-file. Ends with code 0 on SIGTERM and SIGINT.
    """

    def work() -> None:
        from hpcdask.launchers import process
        from hpcdask.scheduler import Scheduler

        options.import_from_here()
        given.update(settled(given), preload_argv=given["preload_argv"] or None)
        service = Scheduler(auth=not no_auth, own_process=True, **given)
        with process.pid_file(pid_file), process.event_loop() as loop:
            loop.run_until_complete(
                process.serve([service], for_good=True, has_successor=successor)
            )

    options.run("hpc-dask scheduler", log_level, work)
