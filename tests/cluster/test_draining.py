"""Workers that get SIGTERM: what only they hold survives, and nothing is computed twice."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from pathlib import Path

import pytest
from commands import Command, Home
from waiting import wait_until

from hpcdask import Client, wait

#: Seconds that leaving may take.
LIMIT = 20


class DrainedCluster:
    """A scheduler, the workers a and b, each a command of its own, and a client."""

    def __init__(self, home: Home, nanny: str, limit: float = LIMIT) -> None:
        self.scheduler = home.hpc_dask("scheduler", "--port", "0")
        self.address = self.scheduler.line(r"Scheduler at: +(tcp://\S+)")
        self.workers: dict[str, Command] = {}
        for name in ("a", "b"):
            options = ("--name", name, "--nthreads", "1", "--drain-timeout", f"{limit}s", nanny)
            # With this module, whose functions are the tasks.
            path = os.pathsep.join(sys.path)
            self.workers[name] = home.hpc_dask("worker", self.address, *options, PYTHONPATH=path)
        self.client = Client(self.address, token=home.token, set_as_default=False, timeout=20)
        self.client.wait_for_workers(2, timeout=30)

    def address_of(self, name: str) -> str:
        workers = self.client.scheduler_info()["workers"]
        [address] = [address for address, about in workers.items() if about["name"] == name]
        return address

    def __enter__(self) -> DrainedCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()


@pytest.fixture(params=["--nanny", "--no-nanny"])
def nanny(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def note_and_fill(folder: Path, x: int, nbytes: int) -> bytes:
    """A value too large to go to the client by the way; every run leaves a file of its own."""
    import time

    (folder / f"{x}-{uuid.uuid4().hex}").touch()
    time.sleep(0.02)
    return bytes([x]) * nbytes


def note_and_wait(folder: Path, x: int, go_on: Path) -> int:
    (folder / f"{x}-{uuid.uuid4().hex}").touch()
    wait_until(go_on.exists, 60)
    return x


def test_results_that_only_it_holds_survive_a_worker_that_gets_sigterm(
    home: Home, nanny: str
) -> None:
    runs = home.folder / "runs"
    runs.mkdir()
    with DrainedCluster(home, nanny) as cluster:
        client = cluster.client
        futures = [client.submit(note_and_fill, runs, x, 10_000) for x in range(40)]
        wait(futures, timeout=30)
        only_on_a = client.has_what()[cluster.address_of("a")]
        assert len(only_on_a) > 5, "or there would be little to see"
        assert cluster.workers["a"].end(signal.SIGTERM, LIMIT + 10) == 0
        expected = [bytes([x]) * 10_000 for x in range(40)]
        assert client.gather(futures, timeout=30) == expected
        assert len(list(runs.iterdir())) == 40, "no task has run twice"
        assert len(client.nthreads()) == 1


def test_what_runs_on_it_ends_there_and_what_waits_runs_elsewhere(home: Home, nanny: str) -> None:
    runs, go_on = home.folder / "runs", home.folder / "go on"
    runs.mkdir()
    with DrainedCluster(home, nanny) as cluster:
        client = cluster.client
        futures = [client.submit(note_and_wait, runs, x, go_on) for x in range(6)]
        wait_until(lambda: len(list(runs.iterdir())) == 2, 20, "one task runs on each")
        a = cluster.workers["a"]
        a.process.send_signal(signal.SIGTERM)
        a.line("leaving the cluster")
        go_on.touch()
        assert a.code(LIMIT + 10) == 0
        assert client.gather(futures, timeout=30) == list(range(6))
        assert len(list(runs.iterdir())) == 6, "no task has run twice"


def test_a_worker_whose_task_takes_too_long_ends_with_0(home: Home, nanny: str) -> None:
    runs, go_on = home.folder / "runs", home.folder / "go on"
    runs.mkdir()
    with DrainedCluster(home, nanny, 0.5) as cluster:
        future = cluster.client.submit(note_and_wait, runs, 1, go_on)
        wait_until(lambda: list(runs.iterdir()), 20)
        ends = [worker.end(signal.SIGTERM, 10) for worker in cluster.workers.values()]
        assert ends == [0, 0]
        go_on.touch()
        del future


def test_a_worker_does_not_wait_long_for_a_scheduler_that_is_killed(home: Home, nanny: str) -> None:
    runs = home.folder / "runs"
    runs.mkdir()
    with DrainedCluster(home, nanny, 60) as cluster:
        futures = [cluster.client.submit(note_and_fill, runs, x, 10_000) for x in range(4)]
        wait(futures, timeout=30)
        cluster.scheduler.process.kill()
        for worker in cluster.workers.values():
            worker.line("lost the scheduler")
        for worker in cluster.workers.values():
            worker.process.send_signal(signal.SIGTERM)
        assert [worker.code(20) for worker in cluster.workers.values()] == [0, 0]
        assert "no scheduler" in cluster.workers["a"].err
        del futures
