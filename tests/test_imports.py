"""Imports go inwards only: edges -> shells -> core and wire."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hpcdask"

# What each module or package at the top of hpcdask/ may import of hpcdask, itself apart.
# `_version` is a constant and open to all.
INNER = {"errors", "messages"}
ABOVE_SHELLS = INNER | {
    "scratch",
    "threads",
    "descriptors",
    "grants",
    "sizing",
    "world",
    "config",
    "core",
    "wire",
    "comm",
    "host",
    "network",
    "rendezvous",
}
#: What the shells have in common, besides what they are made of.
COMMON = {
    "service",
    "dialling",
    "peers",
    "gathering",
    "execution",
    "places",
    "sizes",
    "calls",
    "tracebacks",
    "unreadable",
    "snapshots",
    "logs",
    "pulse",
    "resources",
    "restarts",
    "worker_child",
    "worker_class",
    "feeding",
    "stdio",
    "with_dask",
    # What workers and schedulers are asked now and then.
    "inspection",
    "profiling",
    "versions",
    "hardware",
    "plugin_hooks",
    "plugin_host",
}
SHELLS = {"scheduler", "worker", "nanny"}
ABOVE_CLIENT = ABOVE_SHELLS | COMMON | SHELLS | {"hosting"}
ABOVE_EDGES = ABOVE_CLIENT | {"client", "coordination", "plugins", "collections"}
ANYTHING = None

MAY_IMPORT: dict[str, set[str] | None] = {
    "_version": set(),
    "errors": set(),
    "messages": {"errors"},
    # Of comm only how ports are written.
    "config": {"errors", "host", "resources", "trusted_files", "comm"},
    "core": INNER,
    "wire": INNER,
    "comm": INNER | {"wire", "threads", "descriptors"},
    "threads": set(),
    "trusted_files": set(),
    "descriptors": set(),
    "grants": set(),
    "scratch": set(),
    "walltime": set(),
    "host": {"errors", "grants"},
    "network": {"errors"},
    "world": {"errors", "grants", "host", "network"},
    "sizing": {"errors", "grants", "host", "world"},
    "rendezvous": {"errors", "threads", "trusted_files", "world"},
    **dict.fromkeys(COMMON, ABOVE_SHELLS | COMMON),
    # Once dask or joblib is imported, and a client or a worker is there for which that matters.
    "with_dask": {"collections", "joblib"},
    # The parts of a worker that move data, and that call actors.
    "exchange": ABOVE_SHELLS | COMMON | {"hosting"},
    "hosting": ABOVE_SHELLS | COMMON,
    # The parts of a scheduler that know who is connected with it, and answer its clients.
    "membership": ABOVE_SHELLS | COMMON | {"scheduler", "reachability"},
    "reachability": ABOVE_SHELLS | COMMON | {"scheduler"},
    "requests": ABOVE_SHELLS | COMMON | {"scheduler"},
    "scheduler_plugins": ABOVE_SHELLS | COMMON | {"scheduler"},
    **dict.fromkeys(
        SHELLS,
        ABOVE_SHELLS
        | COMMON
        | SHELLS
        | {"exchange", "membership", "requests", "scheduler_plugins", "worker_view"},
    ),
    "worker_view": ABOVE_SHELLS | COMMON | {"worker"},
    # The process that a nanny starts: a worker and its log.
    "worker_process": ABOVE_SHELLS | COMMON | {"worker"},
    # A bare Client() starts a LocalCluster; that import is within the function that does it.
    "client": ABOVE_CLIENT | {"launchers", "collections", "plugins"},
    "joblib": ABOVE_CLIENT | {"client"},
    "collections": ABOVE_CLIENT | {"client", "__init__"},
    "coordination": ABOVE_CLIENT | {"client"},
    "plugins": ABOVE_CLIENT,
    # Other names of what is elsewhere, as dask.distributed has them.
    "diagnostics": ABOVE_EDGES,
    "launchers": ANYTHING,
    "jobqueue": ABOVE_EDGES | {"launchers"},
    "dashboard": ABOVE_EDGES,
    "doctor": ABOVE_EDGES | {"launchers"},
    "cli": ANYTHING,
    "__main__": ANYTHING,
    "__init__": ANYTHING,  # the public names, from wherever they are
}

#: The clock, the network, threads, processes and files: what a pure module is told, never asks.
IMPURE = {"asyncio", "os", "socket", "subprocess", "threading", "time"}

#: What `import hpcdask` must leave to those who use it.
HEAVY = {
    "click",
    "dask",
    "distributed",
    "joblib",
    "matplotlib",
    "numpy",
    "pandas",
    "tornado",
    "yaml",
}


def row_of(path: Path) -> str:
    """The row of MAY_IMPORT for a file: its name without .py, or its package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_row(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def imported_modules(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import in a file, inside functions too.

    Imports under `if TYPE_CHECKING:` count as any other: who reads or type-checks the file
    follows them, and a core that needs the name of a shell knows too much.
    """
    # "hpcdask.core" for hpcdask/core/placement.py and for hpcdask/core/__init__.py alike.
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            if base == "hpcdask":
                # `from hpcdask import core` names a module; `from hpcdask import Client` is the
                # whole package, since it runs hpcdask/__init__.py.
                for alias in node.names:
                    yield node.lineno, f"hpcdask.{alias.name if is_row(alias.name) else '__init__'}"
            else:
                yield node.lineno, base


def outward_imports(path: Path, source: str) -> list[str]:
    """The imports of a file that its row does not allow, as lines for a person to read."""
    row = row_of(path)
    allowed = MAY_IMPORT[row]
    found = []
    for line, module in imported_modules(path, source):
        top, _, rest = module.partition(".")
        if top == "hpcdask" and allowed is not None:
            target = rest.partition(".")[0] or "__init__"
            if target not in allowed | {row, "_version"}:
                found.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
        if row in {"core", "wire"} and top in IMPURE:
            found.append(f"{path.relative_to(ROOT)}:{line} imports {module}, so it is not pure")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_is_further_in(path: Path) -> None:
    assert row_of(path) in MAY_IMPORT, f"say in MAY_IMPORT what {row_of(path)} may import"
    assert outward_imports(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/placement.py", "from hpcdask.scheduler import Scheduler"),
        ("core/placement.py", "from ..scheduler import Scheduler"),
        ("core/placement.py", "from .. import scheduler"),
        ("core/placement.py", "import hpcdask"),
        ("core/placement.py", "import hpcdask.wire.framing as framing"),
        ("core/placement.py", "def f():\n    import time"),
        ("core/__init__.py", "from ..scheduler import Scheduler"),
        ("wire/framing.py", "import os.path"),
        ("messages.py", "from .core import placement"),
        ("scheduler.py", "if TYPE_CHECKING:\n    from hpcdask.client import Client"),
        ("client/client.py", "from hpcdask import Client"),
    ],
)
def test_every_spelling_of_an_outward_import_is_found(file: str, source: str) -> None:
    assert len(outward_imports(PACKAGE / file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/placement.py", "from .scheduler_state import Task"),
        ("core/placement.py", "from hpcdask.messages import TaskFinished"),
        ("core/__init__.py", "from . import placement"),
        ("scheduler.py", "import asyncio, os\nfrom . import errors\nfrom .core import placement"),
        ("rendezvous.py", "from hpcdask._version import __version__"),
        ("cli/main.py", "from hpcdask import Client"),
    ],
)
def test_an_inward_import_is_allowed(file: str, source: str) -> None:
    assert outward_imports(PACKAGE / file, source) == []


def loaded_by(module: str) -> set[str]:
    """All modules that are there once one is imported."""
    run = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(run.stdout.split())


def test_importing_hpcdask_loads_nothing_that_is_not_used_yet() -> None:
    assert HEAVY & loaded_by("hpcdask") == set()


@pytest.mark.parametrize("module", ["hpcdask.worker_process", "hpcdask.nanny"])
def test_a_worker_starts_without_what_only_clients_say(module: str) -> None:
    messages = {name for name in loaded_by(module) if name.startswith("hpcdask.messages")}
    assert messages == {"hpcdask.messages"}
