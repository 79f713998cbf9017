"""The token of a cluster of jobs: what the whole machine shows of it, to root and to others."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from batch.bed import Bed
from batch.user import OrdinaryUser

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

#: Seconds for anything; a loaded machine is slow.
PATIENCE = 90.0
#: By system, commands that tell of a job all there is to tell, and its script.
COMMANDS = {
    "slurm": ("scontrol -dd show job {id}", "scontrol write batch_script {id} -", "squeue -o %all"),
    "sge": ("qstat -j {number}", "qstat -f -ext -u *", "qstat -xml -j {number}"),
}
PROGRAM = """\
import json, sys
from hpcdask import Client
from hpcdask.jobqueue import {kind}

if __name__ == "__main__":
    with {kind}(
        n_workers=2, cores=2, memory="1GB", processes=2, scheduler="{scheduler}",
        job_script_prologue=["export PYTHONPATH={packages}"],
    ) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout={patience})
        client.submit(print, "the task's own words").result(timeout={patience})
        [job] = [job for job in cluster.jobs() if job.pool == "workers"]
        shown = cluster, client, cluster.place, cluster.jobs(), cluster.get_logs()
        print(shown, file=sys.stderr, flush=True)
        print(json.dumps([job.id, cluster.scheduler_file, job.log, *client.nthreads()]), flush=True)
        sys.stdin.readline()
"""
#: What another user tries, who has the address from somewhere.
INTRUDER = """\
import asyncio, sys
from hpcdask.comm.connect import connect
from hpcdask.comm.options import CommOptions
from hpcdask.rendezvous import new_token

async def try_to(address):
    for token in (None, new_token()):
        try:
            comm = await connect(address, CommOptions(token=token), timeout=20)
            await comm.read()
        except ConnectionError as exc:
            print(type(exc).__name__)
        else:
            print("came in")

for address in sys.argv[1:]:
    asyncio.run(try_to(address))
"""


class Running(NamedTuple):
    """An ordinary user's cluster."""

    bed: Bed
    job: str
    files: list[Path]  # scheduler file, log
    addresses: list[str]  # of scheduler and workers
    token: bytes
    said: Path  # what the program has written

    def shows(self, content: bytes) -> bool:
        """Whether the token is in a text, in one form or another."""
        forms = (self.token, self.token.hex().encode(), self.token.hex().upper().encode())
        encoded = base64.b64encode(self.token).rstrip(b"=")
        return any(form in content for form in (*forms, encoded))


@pytest.fixture(
    params=[("slurm", "SLURMCluster", "job"), ("sge", "SGECluster", "client")], ids=lambda it: it[0]
)
def running(request: pytest.FixtureRequest, ordinary_user: OrdinaryUser) -> Iterator[Running]:
    system, kind, scheduler = request.param
    bed: Bed = request.getfixturevalue(system)
    folder = ordinary_user.folder(f"secrets-{system}")
    packages = ordinary_user.home / "packages"
    values = {"kind": kind, "scheduler": scheduler, "packages": packages, "patience": PATIENCE}
    (folder / "program.py").write_text(PROGRAM.format(**values))
    said = folder / "stderr"
    with (
        said.open("wb") as stderr,
        subprocess.Popen(
            ordinary_user.become(ordinary_user.python, "program.py"),
            cwd=folder,
            env=ordinary_user.environ(bed),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as program,
    ):
        assert program.stdin is not None
        assert program.stdout is not None
        line = program.stdout.readline()
        assert line, said.read_text()
        id, scheduler_file, log, *workers = json.loads(line)
        contact = json.loads(Path(scheduler_file).read_text())
        files = [Path(scheduler_file), *map(Path, log.split())]
        addresses = [contact["address"], *workers]
        yield Running(bed, id, files, addresses, bytes.fromhex(contact["token"]), said)
        program.stdin.close()
        assert program.wait(PATIENCE) == 0, said.read_text()


def test_the_token_is_only_in_files_of_the_users_own(running, ordinary_user):
    assert_no_command_shows_it(running)
    assert_no_process_shows_it(running, ordinary_user)
    assert_one_file_has_it(running, ordinary_user)
    assert_nobody_else_sees_the_folder(running)
    assert_nobody_else_comes_in(running, ordinary_user)


def assert_no_command_shows_it(running: Running) -> None:
    number = running.job.partition(".")[0]
    for command in COMMANDS[running.bed.name]:
        words = command.format(id=running.job, number=number).split()
        done = running.bed.run(*words)  # as root, who sees more than any user
        assert re.search(rf"{number}|#SBATCH", done.stdout), words  # it has shown the job
        assert not running.shows(done.stdout.encode()), words


def assert_no_process_shows_it(running: Running, user: OrdinaryUser) -> None:
    n_workers = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            cmdline, environ = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
            is_users = folder.owner() == user.name
        except OSError:  # it has ended meanwhile
            continue
        n_workers += is_users and b"hpcdask" in cmdline
        assert not running.shows(cmdline), folder
        assert not running.shows(environ), (folder, cmdline)
    assert n_workers >= 2, "those that are meant were there"


def assert_one_file_has_it(running: Running, user: OrdinaryUser) -> None:
    """Of all that the user has, and that the batch system has written."""
    scheduler_file = running.files[0]
    private = {scheduler_file}
    if (token_file := scheduler_file.with_name("token")).exists():
        private.add(token_file)  # for a scheduler in a job, which writes the other file
    found, n_scripts = [], 0
    for folder in (user.home, running.bed.folder):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                n_scripts += b"hpcdask worker" in content
                found += [path] if running.shows(content) else []
    assert set(found) == private
    assert n_scripts >= 2, "the job's script: the cluster's own, and the batch system's"
    assert running.said.stat().st_size > 100
    for path in scheduler_file.parent.rglob("*"):
        if path.name != "logs" and path.parent == scheduler_file.parent:
            assert path.stat().st_mode & 0o7777 == 0o600, path
    assert scheduler_file.parent.stat().st_mode & 0o7777 == 0o700


def assert_nobody_else_sees_the_folder(running: Running) -> None:
    folder = running.files[0].parent
    files = {*running.files, *folder.rglob("*"), folder, folder.parent}
    assert any(path.suffix == ".json" and path.name.startswith("state") for path in files)
    for path in sorted(files):
        assert path.exists(), path
        look = ("ls", str(path)) if path.is_dir() else ("cat", str(path))
        done = subprocess.run(as_nobody(*look), capture_output=True, text=True)
        assert (done.returncode != 0, done.stdout) == (True, ""), path
        assert "Permission denied" in done.stderr, path


def assert_nobody_else_comes_in(running: Running, user: OrdinaryUser) -> None:
    done = subprocess.run(
        as_nobody(user.python, "-c", INTRUDER, *running.addresses),
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(user.home / "packages")},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) <= {"AuthenticationError", "HandshakeError", "CommClosedError"}
    assert len(done.stdout.split()) == 2 * len(running.addresses)


def as_nobody(*command: str) -> list[str]:
    assert shutil.which("runuser")
    return ["runuser", "-u", "nobody", "--", *command]
