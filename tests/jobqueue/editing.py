"""Templates as a user edits them, with sizes for two cores."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpcdask.jobqueue.job_spec import PLACEHOLDER
from hpcdask.jobqueue.systems import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = Path(sys.executable).parent

_SIZES = {
    "--ntasks-per-node=4": "--ntasks-per-node=1",
    "mpiprocs=4": "mpiprocs=1",
    "--nworkers 4": "--nworkers 1",
    "-pe mpi 32": "-pe mpi 8",  # two ranks of four slots
    "--array=1-4": "--array=1-2",
    "-J 1-4": "-J 1-2",
    "-t 1-4": "-t 1-2",
}


def _why_no_mpi() -> str:
    if shutil.which("mpirun", path=str(PYTHONS)) is None:
        return "no mpirun beside this Python: pip install 'hpcdask[mpi]'"
    # Not imported: that would make this very process a rank.
    if not any((Path(folder) / "mpi4py").is_dir() for folder in sys.path):
        return "no mpi4py here: pip install 'hpcdask[mpi]'"
    return ""


#: Mark of a test that starts ranks by the mpirun of this environment.
needs_mpi = pytest.mark.skipif(bool(_why_no_mpi()), reason=_why_no_mpi())


#: In place of hpc-dask: writes down what it was called with and where, and waits for the others.
_WITNESS = """\
#!/bin/bash
cd "$(dirname "$0")"
echo "${SLURMD_NODENAME:-$(hostname)}: $*" >>called
until (($(wc -l <called) == $(<number))); do sleep 0.1; done
"""


def witness(folder: Path, number: int) -> str:
    """Make a command ``hpc-dask`` that a job calls `number` times; return the job's environment.

    `calls` tells of them.
    """
    (folder / "number").write_text(f"{number}\n")
    (folder / "hpc-dask").write_text(_WITNESS)
    (folder / "hpc-dask").chmod(0o755)
    return f'export PATH={folder}:"$PATH"'


def calls(folder: Path) -> tuple[set[str], list[str]]:
    """Hosts on which the command was called, and what it was told, sorted."""
    lines = [line.split(": ", 1) for line in (folder / "called").read_text().splitlines()]
    return {host for host, _ in lines}, sorted(words for _, words in lines)


def write_template(
    system: str, launch: str, folder: Path, edits: Mapping[str, str] | None = None
) -> str:
    """Put an edited template into `folder`, and return its name.

    It gets this Python, keeps out of the home of whoever runs the tests, and has small sizes;
    besides what `edits` has for keys becomes their values.
    """
    name = SYSTEMS[system].template_name(launch)
    text = (ROOT / "jobscripts" / name).read_text()
    root_may = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    settings = f"PYTHONPATH={ROOT} XDG_CONFIG_HOME={folder}/config {root_may}"
    environment = f'export PATH={PYTHONS}:"$PATH" {settings}'
    for old, new in {PLACEHOLDER: environment, **_SIZES, **(edits or {})}.items():
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return name
