"""Programs of the documentation for batch systems that the site of the other programs has not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from batch.bed import Bed
from pages import PAGES, ROOT, Block

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

#: Seconds for one program, on a machine where much else runs.
PATIENCE = 120.0
PROGRAMS = [block for page in PAGES.values() for block in page if block.system]


def test_both_are_there() -> None:
    assert {block.system for block in PROGRAMS} == {"pbs", "sge"}


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.where)
def test_a_program_runs_as_it_stands(
    request: pytest.FixtureRequest, block: Block, tmp_path: Path
) -> None:
    bed: Bed = request.getfixturevalue(block.system)
    program = tmp_path / "program.py"
    program.write_text(block.text)
    # Jobs of these systems have nothing of our environment; a user would have hpcdask installed.
    prologue = f"HPCDASK_JOBQUEUE__{block.system.upper()}__JOB_SCRIPT_PROLOGUE"
    environ = {
        **os.environ,
        **bed.env,
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        prologue: f"export PYTHONPATH={ROOT}",
    }
    done = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6\n")
    assert "running" in done.stdout
