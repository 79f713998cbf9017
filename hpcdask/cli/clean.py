"""``hpc-dask clean``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from hpcdask.cli import options
from hpcdask.errors import ConfigError, HpcdaskError

if TYPE_CHECKING:
    from hpcdask.jobqueue.survey import KnownCluster

#: Seconds for cancelled jobs to leave the queue.
_LEAVING = 120.0


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--yes", is_flag=True, help="End clusters that are alive without asking.")
@click.option("--logs", is_flag=True, help="Remove logs, too; without NAME all of ended ones.")
@options.print_version("hpc-dask clean")
def clean(names: tuple[str, ...], yes: bool, logs: bool) -> None:
    """Cancel the jobs of clusters that were left behind, and remove their folders.

    Those that are named are ended even if they are alive, once you have agreed. Only your own jobs
    are touched, by their ids. Logs stay. Ends with code 1 if something is left.
    """

    def work() -> int:
        import asyncio

        from hpcdask.jobqueue import cleaning
        from hpcdask.jobqueue.folder import ClusterFolder, cluster_folders
        from hpcdask.jobqueue.survey import survey

        folders = [ClusterFolder.find(name) for name in names] if names else cluster_folders()
        found = asyncio.run(survey(folders))
        chosen = [each for each in found if _is_to_end(each, bool(names), yes)]
        n_failed = sum(not asyncio.run(_end(each)) for each in chosen)
        if logs:
            ended = [each.folder for each in chosen] if names else list(cleaning.logs_of_ended())
            for folder in ended:
                if not folder.state_file.exists():
                    cleaning.remove_logs(folder)
                    click.echo(f"{folder.path.name}: removed its logs")
        if not chosen and not names:
            click.echo("nothing was left behind")
        return 1 if n_failed or (names and len(chosen) < len(names)) else 0

    options.run("hpc-dask clean", "error", work)


def _is_to_end(known: KnownCluster, is_named: bool, yes: bool) -> bool:
    from hpcdask.jobqueue.survey import Condition

    name, condition = known.state.name, known.condition
    if condition is Condition.LEFT:
        return True
    who = f"{name} is {condition.value}"
    if condition in (Condition.KEPT, Condition.UNKNOWN):
        who += f", by {known.state.owner}" if condition is Condition.KEPT else ""
        who += f": its owner was {known.state.owner}" if condition is Condition.UNKNOWN else ""
    if not is_named:
        click.echo(f"{who}; it is not touched unless you name it")
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"{who}, with {len(known.workers)} workers; say --yes to end it")
    return click.confirm(f"{who}, with {len(known.workers)} workers. End it?")


async def _end(known: KnownCluster) -> bool:
    """End one; say what was done, and return whether nothing is left."""
    from hpcdask.jobqueue.cleaning import end
    from hpcdask.jobqueue.clearing import in_short

    name = known.state.name
    try:
        done = await end(known, _LEAVING)
    except (HpcdaskError, OSError) as exc:
        click.echo(f"hpc-dask clean: {name}: {exc}", err=True)
        return False
    ended = in_short(done.cancelled) or "none was left"
    click.echo(f"{name}: cancelled its jobs ({ended})")
    if done.is_clear:
        return True
    for what, items in (("jobs", done.left), ("jobs of", done.unclear)):
        if items:
            trouble = f". {done.trouble}" if done.trouble else ""
            text = f"{name}: {what} {in_short(items)} may still be in the queue{trouble}"
            click.echo(f"hpc-dask clean: {text}", err=True)
    return False
