"""Clusters whose owner is killed, and clusters that are found again, on real batch systems."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from batch.bed import Bed
from batch.slurm import Slurm
from commands import Command, Home
from waiting import wait_until

from hpcdask import Client
from hpcdask.errors import LaunchError
from hpcdask.jobqueue import SGECluster, SLURMCluster
from hpcdask.jobqueue.folder import ClusterFolder
from hpcdask.jobqueue.status import Answer

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for anything; a loaded machine is slow.
PATIENCE = 90.0

PROGRAM = """\
import time
from hpcdask.jobqueue import {kind}

if __name__ == "__main__":
    cluster = {kind}(
        name="mine",
        cores=1,
        memory="1GB",
        job_script_prologue=["export PYTHONPATH={root}"],
        **{options}
    )
    cluster.scale(jobs=2)
    cluster.wait_for_workers(2, timeout=90)
    cluster.scale(jobs={n_jobs})
    print("ready", flush=True)
    time.sleep(600)
"""


class Owner:
    """A user's program that keeps a cluster "mine"."""

    def __init__(
        self, home: Home, bed: Bed, kind: type, n_jobs: int = 2, path: str = "", **options: object
    ) -> None:
        self.home, self.bed, self.kind = home, bed, kind
        self.env = {**bed.env, "PYTHONPATH": str(ROOT), "HOME": str(home.folder)}
        self.env["PATH"] = os.pathsep.join([path, self.env["PATH"]])
        program = PROGRAM.format(kind=kind.__name__, root=ROOT, n_jobs=n_jobs, options=options)
        home.file("program.py", program)
        self.command = home.run(sys.executable, "program.py", **self.env)
        self.folder = ClusterFolder(home.folder / ".local/state/hpcdask/clusters/mine")

    def hpc_dask(self, *words: str) -> Command:
        """Run a command until it has ended."""
        command = self.home.hpc_dask(*words, **self.env)
        command.code(PATIENCE)
        return command

    def kill(self) -> None:
        """As the kernel does, or an administrator."""
        self.command.process.kill()
        self.command.code()

    def queue(self) -> set[str]:
        """Ids of all jobs that are in the queue."""
        if isinstance(self.bed, Slurm):
            return {id for id, *_ in self.bed.squeue()}
        system = self.kind.job_cls.system
        done = self.bed.run(*system.status_command([]), check=False)
        found = system.parse_status(Answer(done.returncode, done.stdout, done.stderr))
        return {id for id, status in found.items() if status.end is None}


def test_nothing_is_left_of_killed_clients(
    slurm: Bed, sge: Bed, new_home: Callable[[str], Home], tmp_path: Path
):
    # One is killed while it submits, and never hears what its jobs are called.
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "sbatch").write_text(
        "#!/bin/bash\n"
        f'answer=$({shutil.which("sbatch")} "$@") || exit\n'
        f'case "$*" in *--test-only*) ;; *x68.sbatch) touch {slow}/waits\n'
        f"while [[ ! -e {slow}/go ]]; do sleep 0.1; done ;; esac\n"
        'echo "$answer"\n'
    )
    (slow / "sbatch").chmod(0o755)
    submits = Owner(new_home("slurm"), slurm, SLURMCluster, n_jobs=70, path=str(slow))
    works = Owner(new_home("sge"), sge, SGECluster, n_jobs=70)
    works.command.line("ready", PATIENCE)
    wait_until((slow / "waits").exists, PATIENCE)
    assert len(submits.folder.read_state().jobs) == 2
    assert len(submits.queue()) == 70
    for owner in (submits, works):
        owner.kill()
    (slow / "go").touch()
    for owner in (submits, works):
        wait_until(lambda o=owner: not o.queue(), PATIENCE, "an empty queue")
        owner.command.all_gone(PATIENCE)
        assert [path.name for path in owner.folder.path.iterdir()] == ["logs"]
        log = (owner.folder.logs / "cluster.log").read_text()
        assert f"process {owner.command.process.pid} on " in log
        assert "and 60 more" in log
        assert owner.hpc_dask("ps").out == "no clusters\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_nothing_is_left_of_a_client_that_is_told_to_end(
    slurm: Slurm, home: Home, number: signal.Signals
):
    # As at a logout, which is said to all processes of the session.
    owner = Owner(home, slurm, SLURMCluster, n_jobs=4)
    owner.command.line("ready", PATIENCE)
    os.killpg(owner.command.process.pid, number)
    assert owner.command.code() == -number, "as the program has it; what it does itself is its own"
    wait_until(lambda: not owner.queue(), PATIENCE, "an empty queue")
    owner.command.all_gone(PATIENCE)
    assert [path.name for path in owner.folder.path.iterdir()] == ["logs"]
    assert "and left mine behind" in (owner.folder.logs / "cluster.log").read_text()


def test_a_cluster_is_found_again_after_its_client_was_killed(
    slurm: Slurm, home: Home, monkeypatch: pytest.MonkeyPatch
):
    owner = Owner(home, slurm, SLURMCluster, scheduler="job", shutdown_on_close=False)
    for name, value in owner.env.items():
        monkeypatch.setenv(name, value)
    owner.command.line("ready", PATIENCE)
    with pytest.raises(LaunchError, match=r"mine is kept by process \d+"):
        SLURMCluster.attach("mine")
    owner.kill()
    [found] = json.loads(owner.hpc_dask("ps", "--json").out)
    assert (found["state"], found["workers"], len(found["jobs"])) == ("unattended", 2, 3)
    shown = owner.hpc_dask("attach", "mine")
    assert f"use it:    Client(scheduler_file='{owner.folder.scheduler_file}')" in shown.out
    assert "keep it:   cluster = SLURMCluster.attach('mine')" in shown.out
    assert owner.hpc_dask("clean").out.startswith("mine is unattended; it is not touched")
    refused = owner.hpc_dask("clean", "mine")
    assert (refused.code(), "say --yes to end it" in refused.err) == (2, True)
    with SLURMCluster.attach("mine") as cluster, Client(cluster) as client:
        cluster.wait_for_workers(2, timeout=PATIENCE)
        workers = sorted(cluster.workers)
        assert client.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3
        [first] = [job.id for job in cluster.jobs() if job.pool == "scheduler"]
        address = cluster.scheduler_address
        slurm.scancel(first)
        wait_until(lambda: cluster.scheduler_address != address, PATIENCE, "another scheduler")
        assert client.submit(sum, [1, 3]).result(timeout=PATIENCE) == 4
        wait_until(lambda: sorted(cluster.workers) == workers, PATIENCE, "the same workers")
        cluster.detach()
        assert client.submit(sum, [1, 4]).result(timeout=PATIENCE) == 5
    done = owner.hpc_dask("clean", "mine", "--yes", "--logs")
    assert done.code() == 0, done
    assert "mine: cancelled its jobs (" in done.out
    assert not owner.folder.path.exists()
    assert owner.queue() == set()
    owner.command.all_gone(PATIENCE)
