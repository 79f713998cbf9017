"""What is wrong on one rank's host alone ends all ranks, with one line that names it."""

from __future__ import annotations

import socket

import pytest
from mpiruns import AFTER_A_CRASH, mpirun, needs_mpi, ours

pytestmark = needs_mpi

#: Runs the command with one thing changed on the last rank.
ONE = '#!/bin/sh\n[ "$OMPI_COMM_WORLD_RANK" = 2 ] && export {change}\nexec "$@"\n'


@pytest.mark.parametrize("how", ["--mpi", "--no-mpi"])
@pytest.mark.parametrize(
    ("change", "words", "code", "expected"),
    [
        ("HPCDASK_WORKER__NTHREADS=bogus", (), 2, "'bogus'"),
        (
            'PYTHONPATH="$WITHOUT"',
            ("--worker-class", "mine.Mine"),
            2,
            "no worker class 'mine.Mine'",
        ),
    ],
)
def test_all_ranks_end_and_the_one_is_named(home, how, change, words, code, expected):
    home.file("one.sh", ONE.format(change=change)).chmod(0o755)
    (home.folder / "modules").mkdir()
    home.file("modules/mine.py", "import hpcdask\nclass Mine(hpcdask.Worker): pass\n")
    home.file("script.py", "pass\n")
    without = home.env.get("PYTHONPATH", "")
    paths = {"PYTHONPATH": f"{home.folder}/modules:{without}", "WITHOUT": without}
    words = ("hpc-dask", "run", how, *words, "script.py")
    command = mpirun(home, 3, "./one.sh", *words, **paths)
    assert command.code() == code
    [line] = ours(command)
    assert line.startswith(f"hpc-dask: rank 2 on {socket.gethostname()}: ")
    assert expected in line
    command.all_gone(AFTER_A_CRASH)
    assert not list((home.folder / ".cache").rglob("ranks-*"))


def test_ranks_that_never_come_are_named(home):
    home.file("script.py", "pass\n")
    by_hand = {"HPCDASK_RANK": "0", "HPCDASK_SIZE": "3", "HPCDASK_LAUNCH_ID": "one"}
    command = home.hpc_dask("run", "--death-timeout", "0.5s", "script.py", **by_hand)
    assert command.code() == 1
    [line] = ours(command)
    assert "rank 0 has waited 0.5 s for rank 1, 2 of 3 to come" in line
    assert not list((home.folder / ".cache").rglob("ranks-*"))
