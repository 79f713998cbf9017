"""``hpc-dask attach``."""

from __future__ import annotations

import click

from hpcdask.cli import options


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="For programs: times in seconds.")
@options.print_version("hpc-dask attach")
def attach(name: str, as_json: bool) -> None:
    """Show one of your clusters of batch jobs, and the lines of Python to use it.

    Nothing is changed by that. Ends with code 1 if there is no way to use the cluster.
    """

    def work() -> int:
        import asyncio
        import json
        import time

        from hpcdask.jobqueue import known
        from hpcdask.jobqueue.folder import ClusterFolder
        from hpcdask.jobqueue.survey import Condition, survey

        folder = ClusterFolder.find(name)
        folder.read_state()  # or it says what is wrong with it
        found, now = asyncio.run(survey([folder])), time.time()
        for each in found:
            text = known.description(each, now)
            click.echo(json.dumps(known.as_dict(each, now), indent=2) if as_json else text)
        is_of_use = [each.is_apart or each.condition is not Condition.LEFT for each in found]
        return 0 if any(is_of_use) else 1

    options.run("hpc-dask attach", "error", work)
