"""``hpc-dask doctor``."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from hpcdask.cli import options
from hpcdask.cli.configured import settled
from hpcdask.errors import ConfigError

if TYPE_CHECKING:
    from hpcdask.doctor.facts import Examination
    from hpcdask.doctor.options import DoctorOptions
    from hpcdask.world import World

#: Columns of a report that goes to no terminal.
_WIDTH = 100


@click.command()
@click.option(
    "--interface",
    metavar="NAME|LIST|GLOB|SUBNET",
    help="Network interface that you want to use: ib0, 'ib*,hsn0', 10.1.0.0/16. Default: all that "
    "are up are tried.",
)
@click.option(
    "--scheduler-file",
    type=click.Path(),
    help="The scheduler file that you want to use; its folder is tried.",
)
@click.option(
    "--shared-folder",
    type=click.Path(),
    help="The same, as a folder. Default: the current one.",
)
@click.option("--port-range", metavar="N|FIRST:LAST", help="Ports that you want to use.")
@click.option("--local-directory", type=click.Path(), help="Where workers would have scratch.")
@click.option(
    "--nworkers",
    type=click.IntRange(min=1),
    help="Workers that you want to start. Default: the ranks without the first, or the CPUs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all facts and findings as JSON.")
@click.option(
    "--timeout",
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long all of it may take. Ranks have half of it to come.",
)
@click.option("--fast", is_flag=True, help="Leave out the bandwidth.")
@options.log_level("error")
@options.print_version("hpc-dask doctor")
def doctor(as_json: bool, log_level: str, **given: Any) -> None:
    """Find out whether a cluster would work here, and what is in its way.

    On a login node, in a job, or on all hosts of one: 'mpirun -np N hpc-dask doctor', 'srun
    hpc-dask doctor'. Prints what would fail and what to do, then what is to be noted, then facts.
    Ends with code 1 if something would fail, else with 0.
    """

    def work() -> int:
        from hpcdask.doctor.options import checked_options
        from hpcdask.world import launched_world

        world = launched_world()
        try:
            asked = checked_options(**{**settled(given), "nworkers": given["nworkers"] or 0})
        except ConfigError:  # all ranks see the same, and one of them says it
            if world.rank == 0:
                raise
            return 0
        return _take_part(asked, world, as_json)

    options.run("hpc-dask doctor", log_level, work, needs_config=False)


def _take_part(asked: DoctorOptions, world: World, as_json: bool) -> int:
    import asyncio

    from hpcdask.doctor import run
    from hpcdask.launchers.process import event_loop, stop_signals

    async def as_the_first() -> int:
        # Some launchers give ranks a terminal of their own, whatever the user looks at.
        has_terminal = sys.stdout.isatty() and not world.launcher
        return _print(await run.examine(asked, world), as_json, has_terminal)

    async def as_another() -> int:
        if problem := await run.be_examined(asked, world):
            # Not a failure of this rank's: its launcher would then end rank 0 before that has said
            # which ranks are missing.
            click.echo(f"hpc-dask doctor: {world} on {_here()}: {problem}", err=True)
        return 0

    async def until_stopped() -> int:
        with stop_signals(for_good=True) as stopped:
            part = asyncio.ensure_future(as_the_first() if world.rank == 0 else as_another())
            first: set[asyncio.Future[Any]] = {part, stopped}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if part.done():
                return part.result()
            part.cancel()
            await asyncio.wait({part})
            return 128 + stopped.result()

    with run.certain_end(world, asked.timeout), event_loop() as loop:
        return loop.run_until_complete(until_stopped())


def _here() -> str:
    from hpcdask.network import hostname

    return hostname()


def _print(examination: Examination, as_json: bool, has_terminal: bool) -> int:
    from hpcdask.doctor.checks import check
    from hpcdask.doctor.report import document, report

    findings = [each._replace(what=options.with_source(each.what)) for each in check(examination)]
    if as_json:
        text = document(examination, findings)
    else:
        width = shutil.get_terminal_size().columns if has_terminal else _WIDTH
        colours = has_terminal and not os.environ.get("NO_COLOR")
        text = report(examination, findings, max(width, 60), colours)
    click.echo(text)
    return int(any(finding.severity == "red" for finding in findings))
