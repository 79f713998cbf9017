"""``hpc-dask config``."""

from __future__ import annotations

import json
import os

import click

from hpcdask import config as configuration
from hpcdask.cli import options
from hpcdask.config import files, jobs
from hpcdask.config.schema import BY_KEY, VARIABLES
from hpcdask.config.settling import Row, Settings, written


@click.command()
@click.argument("key", required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="For programs: times in seconds, sizes in bytes."
)
@options.print_version("hpc-dask config")
def config(key: str | None, as_json: bool) -> None:
    """Show what is configured: each setting, its value and where that comes from.

    A setting of batch systems that none of them has is shown once, as jobqueue.SYSTEM.KEY.
    With KEY, as in scheduler.worker-ttl, only that value. If a file or a variable is in error, says
    which and what was meant; the exit code is then 2.
    """

    def work() -> None:
        settings = configuration.current()
        if key is not None:
            click.echo(_one(settings, key, as_json))
        else:
            click.echo(_json(settings) if as_json else _table(settings))

    options.run("hpc-dask config", "warning", work)


def _one(settings: Settings, key: str, as_json: bool) -> str:
    value = settings.look_up(key)
    if as_json:
        return json.dumps(value, indent=2)
    texts = {row.key: row.text for row in settings.rows()}
    is_path = key in BY_KEY and BY_KEY[key].kind.is_path  # whose variables are filled in
    return written(value) if is_path else texts.get(key, written(value))


def _json(settings: Settings) -> str:
    rows = {row.key: {"value": row.value, "source": row.source} for row in settings.rows()}
    return json.dumps(rows, indent=2)


def _cells(row: Row) -> tuple[str, str, str]:
    """A row of the table. What nobody has set of batch systems is the same for all of them."""
    key = jobs.generic(row.key) if row.source == "default" else row.key
    return key, row.text, row.source


def _table(settings: Settings) -> str:
    rows = list(dict.fromkeys(map(_cells, settings.rows())))
    for variable in VARIABLES:
        if variable in os.environ:
            value = "(not shown)" if variable == "HPCDASK_TOKEN" else os.environ[variable]
            rows.append((variable, value, "the environment"))
    widths = [max(len(row[column]) for row in rows if len(row[column]) < 48) for column in (0, 1)]
    lines = [f"{key:{widths[0]}}  {text:{widths[1]}}  {source}" for key, text, source in rows]
    read = [str(path) for path in files.paths(os.environ)]
    lines += ["", f"files, the strongest first: {', '.join(read) or 'none'}"]
    lines += [f"means nothing here: {key} ({where})" for key, where in settings.foreign().items()]
    return "\n".join(lines)
