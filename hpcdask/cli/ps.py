"""``hpc-dask ps``."""

from __future__ import annotations

import click

from hpcdask.cli import options


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs: times in seconds.")
@options.print_version("hpc-dask ps")
def ps(as_json: bool) -> None:
    """List your clusters of batch jobs: who keeps them, their workers and jobs.

    Each batch system is asked once, and each scheduler, with short time limits. STATE is 'kept' (a
    process does), 'unattended' (nobody does, but it goes on), 'left behind' or 'unknown' (its owner
    may run on another host).
    """

    def work() -> None:
        import asyncio
        import json
        import time

        from hpcdask.jobqueue import known
        from hpcdask.jobqueue.folder import cluster_folders
        from hpcdask.jobqueue.survey import survey

        found, now = asyncio.run(survey(cluster_folders())), time.time()
        if as_json:
            click.echo(json.dumps([known.as_dict(each, now) for each in found], indent=2))
        else:
            click.echo(known.table(found, now) if found else "no clusters")
            for trouble in dict.fromkeys(each.trouble for each in found if each.trouble):
                click.echo(f"hpc-dask ps: {trouble}", err=True)

    options.run("hpc-dask ps", "error", work)
