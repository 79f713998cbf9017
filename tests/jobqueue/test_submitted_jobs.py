"""``hpc-dask submit`` on real Slurm, real Grid Engine, and PBS commands."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from batch.bed import Bed, Job
from commands import Command, Home

from hpcdask import Client

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

SYSTEMS = ["slurm", "pbs", "sge"]
SMALL = ["--tasks-per-node", "1", "--cpus-per-task", "1"]

#: What each says when the queue is one that it has not.
UNKNOWN_QUEUE = {
    "slurm": "Invalid partition name specified",
    "pbs": "Invalid partition name specified",
    "sge": 'unknown queue "nope"',
}

# Ignores what asks it to end, as a program in a long call into a library does.
STUBBORN = """\
import signal, time
from hpcdask import Client

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    client = Client()
    client.wait_for_workers(1)
    future = client.submit(time.sleep, 36000)
    print("it runs", flush=True)
    while True:
        time.sleep(1000)
"""


def submit(home: Home, bed: Bed, *words: str) -> Command:
    """Run the command where the batch system is known; its jobs keep out of the user's home."""
    prologue = f"export XDG_CONFIG_HOME={home.folder}/config"
    return home.hpc_dask("submit", bed.name, "--prologue", prologue, *words, **bed.env)


@dataclass
class Running:
    """A job with a script that does not end, and the command that has submitted it."""

    bed: Bed
    command: Command
    job: Job


@pytest.fixture(scope="module")
def running_jobs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Running]]:
    """One on each system that is here, all at the same time."""
    jobs = {}
    for system in SYSTEMS:
        with contextlib.suppress(pytest.skip.Exception):
            bed = request.getfixturevalue(system)
            home = Home(tmp_path_factory.mktemp(system) / "home")
            home.file("stubborn.py", STUBBORN)
            words = ["--launch", "native", "--nodes", "2", *SMALL]
            memory = ["--memory", "1GiB"] if system != "sge" else []
            command = submit(home, bed, *words, *memory, "stubborn.py")
            assert command.code() == 0, command
            jobs[system] = Running(bed, command, bed.job(command.out.strip(), home.folder))
    yield jobs
    for running in jobs.values():
        if running.job.exit_code is None:
            running.bed.cancel(running.job)
    for running in jobs.values():
        running.job.all_gone()


@pytest.fixture(params=SYSTEMS)
def running(request: pytest.FixtureRequest, running_jobs: dict[str, Running]) -> Running:
    request.getfixturevalue(request.param)  # says why it is not here, if so
    return running_jobs[request.param]


def test_a_job_is_attached_to_by_the_line_that_is_printed(running):
    assert re.fullmatch(r"\d+(\.pbshost)?\n", running.command.out)
    line = running.command.line(r"attach to its cluster with (.*)")
    running.job.line("it runs")
    with eval(line.replace("hpcdask.Client(", "Client(timeout=20, "), {"Client": Client}) as client:
        assert sum(map(len, client.processing().values())) == 1


@pytest.fixture(scope="module")
def cancelled_jobs(running_jobs: dict[str, Running]) -> None:
    for running in running_jobs.values():
        running.job.line("it runs")
        assert running.job.processes()
        running.bed.cancel(running.job)


def test_a_cancelled_job_leaves_no_process_whatever_its_script_does(running, cancelled_jobs):
    assert running.job.wait() != 0
    running.job.all_gone()


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_refusal_is_told_in_the_systems_own_words(request, home, system):
    bed = request.getfixturevalue(system)
    command = submit(home, bed, "--launch", "cluster", "--queue", "nope")
    assert command.code() == 1
    assert command.out == ""
    assert "refused the job:" in command.err
    assert UNKNOWN_QUEUE[system] in command.err


def test_a_log_goes_into_a_folder_that_was_not_there(home, slurm):
    home.file("hello.py", "print('hello')\n")
    words = ["--launch", "native", "--nodes", "1", *SMALL, "--output", "logs/deep/hello-%j.log"]
    command = submit(home, slurm, *words, "hello.py")
    assert command.code() == 0, command
    job = slurm.job(command.out.strip(), home.folder / "logs/deep")
    assert job.wait() == 0
    assert job.log == "hello\n"


WHO = """\
import getpass
from hpcdask import Client

if __name__ == "__main__":
    print("I am", Client().submit(getpass.getuser).result(timeout=30))
"""


@pytest.mark.parametrize("system", ["slurm", "sge"])
def test_an_ordinary_user_has_a_cluster_and_a_token_of_their_own(request, ordinary_user, system):
    bed = request.getfixturevalue(system)
    folder = ordinary_user.folder(system)
    (folder / "who.py").write_text(WHO)
    command = str(ordinary_user.home / "bin/hpc-dask")
    words = ["submit", system, "--launch", "native", "--nodes", "1", *SMALL, "who.py"]
    done = ordinary_user.run(command, *words, cwd=folder, bed=bed)
    assert done.returncode == 0, done.stderr
    job = bed.job(done.stdout.strip(), folder)
    assert job.wait() == 0, job
    assert job.log == f"I am {ordinary_user.name}\n"
    token = ordinary_user.home / ".config/hpcdask/token"
    assert token.owner() == ordinary_user.name
    assert token.stat().st_mode & 0o777 == 0o600
