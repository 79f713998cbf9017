"""The `settings` directive: the schema of the configuration as tables.

A page that says ``{settings}`` shows every setting that there is, and ``{settings} variables`` the
variables that are no settings or are other names of some. They come from the code, so they cannot
disagree with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from hpcdask.config import jobs
from hpcdask.config.schema import SCHEMA, VARIABLES
from hpcdask.config.setting import Setting
from hpcdask.config.settling import written

#: What each section is about, in its heading.
TITLES = {
    "": "Of all",
    "scheduler": "The scheduler",
    "worker": "Workers",
    "nanny": "Nannies",
    "client": "Clients",
    "comm": "Connections",
    "jobqueue": "Jobs; SYSTEM is slurm, pbs, sge, moab, lsf, oar, htcondor, or a name of yours",
    "mpi": "Under mpirun and srun",
    "ssh": "Hosts reached by SSH",
    "admin": "Logs",
}
HEAD = ("key", "default", "what it is", "in its place")
WIDTHS = (36, 18, 50, 40)

Cell = list[nodes.Node]


class SettingsDirective(Directive):
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        return tables(self.arguments)


def tables(arguments: list[str]) -> list[nodes.Node]:
    """What the directive stands for."""
    if arguments == ["variables"]:
        return [table(("variable", "what it is"), map(variable_row, variables()), (36, 90))]
    made: list[nodes.Node] = []
    for section, settings in itertools.groupby(once(SCHEMA), lambda setting: first(setting.key)):
        title = f"{section}: {TITLES[section]}" if section else TITLES[section]
        made.append(nodes.rubric(text=title))
        made.append(table(HEAD, map(row, settings), WIDTHS))
    return made


def once(settings: Iterable[Setting]) -> Iterable[Setting]:
    """Those of batch systems once for all systems that have them."""
    return {jobs.generic(s.key): replace(s, key=jobs.generic(s.key)) for s in settings}.values()


def first(key: str) -> str:
    """The section that a key is in; empty for those that are in none."""
    return key.partition(".")[0] if "." in key else ""


def row(setting: Setting) -> list[Cell]:
    """What the table says of a setting."""
    default = "" if setting.default in (None, (), {}) else written(setting.default)
    return [
        [nodes.literal(text=setting.key)],
        [nodes.literal(text=default)] if default else [nodes.Text("")],
        [nodes.Text(f"{setting.doc} ({setting.kind.name})")],
        places(setting),
    ]


def places(setting: Setting) -> Cell:
    """Parameters and options that go before a setting."""
    words = [word.strip() for word in setting.behind.split(",") if word.strip()]
    for option in setting.options:
        command, _, name = option.partition(" ")
        words.append(f"hpc-dask {name}" if command == "mpirun" else f"hpc-dask {command} {name}")
    cell: Cell = []
    for word in words:
        cell += [nodes.literal(text=word), nodes.Text(", ")]
    return cell[:-1] or [nodes.Text("")]


def variables() -> list[tuple[str, str]]:
    """Variables that are no settings, and further names of those that are."""
    return [
        *VARIABLES.items(),
        *((name, f"As {each.variable}.") for each in SCHEMA for name in each.variables),
    ]


def variable_row(variable: tuple[str, str]) -> list[Cell]:
    """What the table says of a variable."""
    return [[nodes.literal(text=variable[0])], [nodes.Text(variable[1])]]


def table(head: Iterable[str], rows: Iterable[list[Cell]], widths: Iterable[int]) -> nodes.table:
    columns = [nodes.colspec(colwidth=width) for width in widths]
    group = nodes.tgroup("", *columns, cols=len(columns))
    group += nodes.thead("", docutils_row([[nodes.Text(text)] for text in head]))
    group += nodes.tbody("", *map(docutils_row, rows))
    return nodes.table("", group)


def docutils_row(cells: list[Cell]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("settings", SettingsDirective)
    return {"parallel_read_safe": True}
