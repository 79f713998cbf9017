"""Workers that get SIGTERM: what only they hold survives, and nothing is computed twice."""

from __future__ import annotations

import signal

import pytest
from commands import Home
from counted_runs import note_and_fill, note_and_wait
from drained import LIMIT, DrainedCluster
from waiting import wait_until

from hpcdask import wait


@pytest.fixture(params=["--nanny", "--no-nanny"])
def nanny(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_results_that_only_it_holds_survive_a_worker_that_gets_sigterm(
    home: Home, nanny: str
) -> None:
    with DrainedCluster(home, nanny) as cluster:
        client = cluster.client
        futures = [client.submit(note_and_fill, cluster.runs, x, 10_000) for x in range(40)]
        wait(futures, timeout=30)
        only_on_a = client.has_what()[cluster.address_of("a")]
        assert len(only_on_a) > 5, "or there would be little to see"
        assert cluster.workers["a"].end(signal.SIGTERM, LIMIT + 10) == 0
        expected = [bytes([x]) * 10_000 for x in range(40)]
        assert client.gather(futures, timeout=30) == expected
        assert cluster.n_runs == 40, "no task has run twice"
        assert len(client.nthreads()) == 1


def test_what_runs_on_it_ends_there_and_what_waits_runs_elsewhere(home: Home, nanny: str) -> None:
    go_on = home.folder / "go on"
    with DrainedCluster(home, nanny) as cluster:
        client = cluster.client
        futures = [client.submit(note_and_wait, cluster.runs, x, go_on) for x in range(6)]
        wait_until(lambda: cluster.n_runs == 2, 20, "one task runs on each")
        a = cluster.workers["a"]
        a.process.send_signal(signal.SIGTERM)
        a.line("leaving the cluster")
        go_on.touch()
        assert a.code(LIMIT + 10) == 0
        assert client.gather(futures, timeout=30) == list(range(6))
        assert cluster.n_runs == 6, "no task has run twice"


def test_a_worker_whose_nanny_has_sigterm_first_leaves_as_well(home: Home) -> None:
    """A batch system signals all processes of a job, of which the nanny may be the quickest."""
    go_on = home.folder / "go on"
    with DrainedCluster(home) as cluster:
        client, a = cluster.client, cluster.workers["a"]
        result = client.submit(note_and_fill, cluster.runs, 0, 10_000, workers="a")
        running = client.submit(note_and_wait, cluster.runs, 1, go_on, workers="a")
        wait_until(lambda: cluster.n_runs == 2, 20)
        [worker] = (p for p in a.processes() if "hpcdask.worker_process" in p.cmdline())
        a.process.send_signal(signal.SIGTERM)
        a.line("leaving the cluster")
        worker.send_signal(signal.SIGTERM)
        go_on.touch()
        assert a.code(LIMIT + 10) == 0
        assert client.gather([result, running], timeout=30) == [bytes(10_000), 1]
        assert cluster.n_runs == 2, "no task has run twice"


def test_a_worker_whose_task_takes_too_long_ends_with_0(home: Home, nanny: str) -> None:
    go_on = home.folder / "go on"
    with DrainedCluster(home, nanny, 0.5) as cluster:
        future = cluster.client.submit(note_and_wait, cluster.runs, 1, go_on)
        wait_until(lambda: cluster.n_runs, 20)
        ends = [worker.end(signal.SIGTERM, 10) for worker in cluster.workers.values()]
        assert ends == [0, 0]
        go_on.touch()
        del future


def test_a_worker_does_not_wait_long_for_a_scheduler_that_is_killed(home: Home, nanny: str) -> None:
    with DrainedCluster(home, nanny, 60) as cluster:
        futures = [cluster.client.submit(note_and_fill, cluster.runs, x, 10_000) for x in range(4)]
        wait(futures, timeout=30)
        cluster.scheduler.process.kill()
        for worker in cluster.workers.values():
            worker.line("lost the scheduler")
        for worker in cluster.workers.values():
            worker.process.send_signal(signal.SIGTERM)
        assert [worker.code(20) for worker in cluster.workers.values()] == [0, 0]
        assert "no scheduler" in cluster.workers["a"].err
        del futures
