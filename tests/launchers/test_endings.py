"""However a run ends, all its ranks do, in time and with the right code: the table of docs/mpi.md.

Each test starts its runs under all launchers at the same time, and then looks at each.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess

import pytest
from batch import slurm
from mpiruns import AFTER_A_CRASH, PROMPT, Runs, needs_mpi, ours, srun
from waiting import wait_until

from hpcdask import Client

pytestmark = needs_mpi


@pytest.fixture
def runs(new_home, launchers):
    return Runs(new_home, launchers)


USES = "import os, signal, sys, time\nfrom hpcdask import Client\nclient = Client()\n"


@pytest.mark.parametrize(
    ("np", "script", "code", "err"),
    [
        (3, "", 0, []),
        (2, "raise ValueError('boom')", 1, ["ValueError: boom"]),
        (2, "sys.exit(3)", 3, []),
        (2, "client.shutdown()", 0, []),
        (
            2,
            "never = client.submit(time.sleep, 36000)\n"
            "while not any(client.processing().values()): time.sleep(0.01)",
            *(0, []),
        ),
        (3, "os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL, []),
    ],
    ids=["succeeds", "raises", "sys.exit(3)", "shutdown", "a task never returns", "killed"],
)
def test_the_exit_code_is_that_of_the_script(runs, np, script, code, err):
    runs.file("script.py", f"{USES}print(client.submit(abs, -1).result())\n{script}\n")
    runs.start(np, "run", "script.py").end(code)
    for _, command in runs.each():
        assert command.out == "1\n"
        assert ours(command)[-1:] == err
        if code == 0:
            assert command.err == ""
    runs.nothing_is_left()


STUBBORN = """\
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
future = client.submit(time.sleep, 36000)
client.wait_for_workers(2, timeout=30)
print("runs", flush=True)
time.sleep(36000)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_mpirun_ends_even_a_script_that_ignores_it(runs, number):
    if number == signal.SIGKILL:
        runs.without("srun")  # whose step goes on until it is cancelled
    runs.file("script.py", USES + STUBBORN)
    runs.start(3, "run", "script.py").line("runs")
    for _, command in runs.each():
        command.process.send_signal(number)
    runs.end(None, AFTER_A_CRASH)
    if number == signal.SIGKILL:  # else mpirun kills ranks, as a rule after they have cleaned up
        runs.without("MPICH").nothing_is_left()  # its proxies kill them, too


def test_a_killed_worker_is_replaced(runs):
    script = "import psutil\npids = list(client.run(os.getpid).values())\n"
    script += "client.wait_for_workers(2, timeout=30)\n"
    script += "pids = list(client.run(os.getpid).values())\n"
    script += "psutil.Process(pids[0]).kill()\n"
    script += "print(sum(client.gather(client.map(abs, range(-99, 1)))))\n"
    runs.file("script.py", USES + script)
    runs.start(3, "run", "script.py").end(0)
    for _, command in runs.each():
        assert command.out == "4950\n"


@pytest.mark.parametrize("rank", [0, 1], ids=["scheduler", "nanny"])
def test_when_a_rank_is_killed_everything_ends(runs, rank):
    if rank:
        runs.without("srun")  # see below
    runs.file("script.py", USES + STUBBORN)
    runs.start(3, "run", "script.py").line("runs")
    for launcher, command in runs.each():
        launcher.ranks(command)[rank].kill()
    runs.end(None, AFTER_A_CRASH)


def test_under_srun_a_killed_rank_takes_only_its_workers_along(runs):
    script = "client.wait_for_workers(2, timeout=30)\n"
    script += "os.kill(min(client.run(os.getppid).values()), signal.SIGKILL)\n"
    script += "while len(client.nthreads()) == 2:\n    client.submit(abs, 1).result()\n"
    script += "print(sum(client.gather(client.map(abs, range(-99, 1)))))\n"
    runs.without("MPICH").without("Open MPI").file("script.py", USES + script)
    runs.start(3, "run", "script.py").end(128 + signal.SIGKILL)
    for _, command in runs.each():
        assert command.out == "4950\n"


def test_a_signal_to_the_schedulers_rank_ends_the_script_and_the_job(runs):
    runs.file("script.py", USES + STUBBORN)
    runs.start(3, "run", "script.py").line("runs")
    for launcher, command in runs.each():
        launcher.ranks(command)[0].terminate()
    runs.end(128 + signal.SIGKILL, AFTER_A_CRASH)  # it ignores SIGTERM
    runs.nothing_is_left()


def test_shutdown_from_elsewhere_ends_every_rank(runs):
    runs.start(3, "--scheduler-file", "s.json")
    for launcher, home in runs.homes.items():
        file = home.folder / "s.json"
        wait_until(file.exists, 30, f"scheduler file of {runs.commands[launcher]}")
        with Client(scheduler_file=file, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=30)
            assert client.submit(abs, -3).result() == 3
            client.shutdown()
    runs.end(0, PROMPT)
    for launcher, home in runs.homes.items():
        assert not (home.folder / "s.json").exists(), launcher.name
    runs.nothing_is_left()


@pytest.mark.parametrize(
    ("np", "options", "code", "expected"),
    [
        (3, "--scheduler-port PORT", 1, "it is in use; choose another"),
        (2, "--interface nope0", 1, "no network interface 'nope0'"),
        (2, "--lifetime soon", 2, "'soon' is not a duration"),
    ],
)
def test_what_cannot_start_ends_all_ranks_with_one_line(runs, np, options, code, expected):
    _cannot_start(runs, np, options, code, expected)


@pytest.mark.parametrize(
    ("np", "options", "code", "expected"),
    [
        (3, "run --scheduler-file missing/s.json script.py", 1, "/missing does not exist"),
        (3, "run missing.py", 1, "there is no script 'missing.py' to run"),
        (1, "--exclusive-workers", 2, "1 rank is too few for exclusive workers"),
        (2, "--scheduler-rank 2", 2, "rank 2 cannot be the scheduler: there are 2 ranks"),
    ],
)
def test_nor_does_it_depend_on_what_is_wrong(runs, np, options, code, expected):
    runs.without("MPICH").without("srun")
    _cannot_start(runs, np, options, code, expected)


def _cannot_start(runs, np, options, code, expected):
    runs.file("script.py", "pass\n")
    with socket.create_server(("", 0)) as taken:
        runs.start(np, *options.replace("PORT", str(taken.getsockname()[1])).split()).end(code)
    for _, command in runs.each():
        assert len({*ours(command)}) == 1, str(command)  # of each host one, where it is to blame
        assert ours(command)[0].startswith("hpc-dask: ")
        assert expected in ours(command)[0]
    runs.nothing_is_left()


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a read-only folder")
def test_a_scheduler_file_in_a_read_only_folder_ends_all_ranks_with_one_line(runs, tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], check=True)
    try:
        runs.start(3, "--scheduler-file", folder / "s.json").end(1)
    finally:
        subprocess.run(["umount", folder], check=True)
    for _, command in runs.each():
        assert len({*ours(command)}) == 1, str(command)
        assert "Read-only file system" in ours(command)[0]
        assert "--scheduler-file" in ours(command)[0]


def test_an_end_that_takes_too_long_is_forced(runs):
    """Here by a preload that does not let its worker's rank end."""
    hook = "import asyncio\nasync def dask_teardown(service):\n    await asyncio.sleep(36000)\n"
    runs.file("hook.py", hook)
    runs.file("script.py", USES)
    words = ("--no-nanny", "--preload", "hook.py", "--shutdown-timeout", "1s", "script.py")
    runs.start(2, "run", *words).end(0, AFTER_A_CRASH)
    for _, command in runs.each():
        assert "leaving by force" in command.err


@pytest.mark.skipif(bool(slurm.WHY_NOT), reason=slurm.WHY_NOT)
@pytest.mark.parametrize("kind", ["none", "pmix"])
def test_under_srun_an_mpi_that_is_asked_for_fits_or_is_named_with_the_cure(request, home, kind):
    launcher = srun(request.getfixturevalue("slurm"))
    home.file("script.py", f"{USES}print(client.submit(abs, -1).result())\n")
    words = (*launcher.argv[:-1], f"--mpi={kind}", "-n", "2", "hpc-dask", "run", "--mpi")
    command = home.run(*words, "script.py", **launcher.env)
    assert command.code() == (1 if kind == "none" else 0), command
    assert command.out == ("" if kind == "none" else "1\n")
    [*lines] = {*ours(command)}
    assert len(lines) == (kind == "none")
    for line in lines:
        assert "srun has started 2 ranks, but each of them is rank 0 of 1 for MPI" in line
        assert "choose another 'srun --mpi='" in line
    command.all_gone(PROMPT)
