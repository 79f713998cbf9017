"""Workers whose job is to end, as a signal or the clock says: nothing is lost or computed twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from commands import Home
from counted_runs import note_and_fill, note_and_wait
from drained import LIMIT, DrainedCluster
from waiting import wait_until

from hpcdask import wait


def hold_the_interpreter_once(folder: Path, started: Path) -> str:
    """As C code does that does not give the interpreter's lock back."""
    import ctypes

    is_first = not list(folder.iterdir())
    (folder / f"{len(list(folder.iterdir()))}").touch()
    usleep = ctypes.PyDLL(None).usleep
    if is_first:
        started.touch()
        usleep(100_000_000)
    return "done"


@pytest.mark.parametrize(
    ("nanny", "number"), [("--nanny", signal.SIGUSR2), ("--no-nanny", signal.SIGUSR1)]
)
def test_results_survive_that_only_a_warned_worker_holds(home: Home, nanny: str, number) -> None:
    """The signal comes to all processes of the job, and twice."""
    with DrainedCluster(home, nanny) as cluster:
        client = cluster.client
        futures = [client.submit(note_and_fill, cluster.runs, x, 10_000) for x in range(40)]
        wait(futures, timeout=30)
        assert len(client.has_what()[cluster.address_of("a")]) > 5, (
            "or there would be little to see"
        )
        cluster.signal("a", number, number, signal.SIGCONT)
        assert cluster.workers["a"].code(LIMIT + 10) == 0
        assert client.gather(futures, timeout=30) == [bytes([x]) * 10_000 for x in range(40)]
        assert cluster.n_runs == 40, "no task has run twice"
        assert "was killed by" not in cluster.workers["a"].err


def test_the_only_worker_waits_for_another_that_takes_its_results(home: Home) -> None:
    with DrainedCluster(home, names=["a"], limit=60) as cluster:
        client = cluster.client
        futures = [client.submit(note_and_fill, cluster.runs, x, 10_000) for x in range(10)]
        wait(futures, timeout=30)
        cluster.signal("a", signal.SIGUSR2)
        cluster.scheduler.line("is to end: its job is to end soon, as SIGUSR2 says")
        cluster.start("b")
        assert cluster.workers["a"].code(60) == 0
        assert client.gather(futures, timeout=30) == [bytes([x]) * 10_000 for x in range(10)]
        assert cluster.n_runs == 10, "no task has run twice"


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_a_job_that_is_killed_after_a_warning_is_no_failure_of_its_tasks(
    home: Home, nanny: str
) -> None:
    go_on = home.folder / "go on"
    with DrainedCluster(home, nanny, options=["--allowed-failures", "0"]) as cluster:
        futures = [cluster.client.submit(note_and_wait, cluster.runs, x, go_on) for x in range(2)]
        wait_until(lambda: cluster.n_runs == 2, 20, "one task runs on each")
        cluster.signal("a", signal.SIGTERM)
        cluster.scheduler.line("is to end: ")
        cluster.signal("a", signal.SIGKILL)
        cluster.workers["a"].code()
        go_on.touch()
        assert cluster.client.gather(futures, timeout=30) == [0, 1]
        assert cluster.n_runs == 3


def test_of_a_worker_that_cannot_speak_its_nanny_says_that_it_is_to_end(home: Home) -> None:
    started = home.folder / "started"
    with DrainedCluster(home, names=["a"], options=["--allowed-failures", "0"]) as cluster:
        future = cluster.client.submit(hold_the_interpreter_once, cluster.runs, started)
        wait_until(started.exists, 20)
        cluster.signal("a", signal.SIGUSR2)
        cluster.scheduler.line("is to end: ")
        cluster.start("b")
        cluster.client.wait_for_workers(2, timeout=30)
        cluster.signal("a", signal.SIGKILL)
        cluster.workers["a"].code()
        assert future.result(timeout=30) == "done"


def test_workers_end_before_the_walltime_that_they_are_told(home: Home) -> None:
    with DrainedCluster(home, names=[]) as cluster:
        a = cluster.start("a", "--walltime", "0:00:04")
        a.line(r"the job ends at \S+ \S+ \(--walltime\): leaving at ")
        assert a.code() == 0
        assert "leaving: its job ends at " in a.err


def test_a_worker_that_was_suspended_is_taken_back_with_what_it_has(home: Home) -> None:
    """As a batch system does with a job that has to wait for another: SIGSTOP, later SIGCONT."""
    go_on = home.folder / "go on"
    with DrainedCluster(home, options=["--worker-ttl", "2s"]) as cluster:
        client = cluster.client
        futures = [client.submit(note_and_fill, cluster.runs, x, 10_000) for x in range(20)]
        wait(futures, timeout=30)
        address = cluster.address_of("a")
        only_on_a = len(client.has_what()[address])
        assert only_on_a > 2, "or there would be little to see"
        there = {"workers": ["a"], "allow_other_workers": True}
        futures.append(client.submit(note_and_wait, cluster.runs, 20, go_on, **there))
        wait_until(lambda: cluster.n_runs == 21, 20, "one task runs on it")
        cluster.signal("a", signal.SIGSTOP)
        wait_until(lambda: address not in client.nthreads(), 30, "it is given up")
        go_on.touch()
        wait(futures, timeout=30)
        assert cluster.n_runs == 22 + only_on_a, "what it had, and ran, is computed again"
        cluster.signal("a", signal.SIGCONT)
        cluster.scheduler.line("Register worker a again")
        futures += [client.submit(note_and_fill, cluster.runs, x, 10_001) for x in range(20)]
        expected = [20 if x == 20 else bytes([x]) * 10_000 for x in range(21)]
        expected += [bytes([x]) * 10_001 for x in range(20)]
        assert client.gather(futures, timeout=30) == expected
        assert cluster.n_runs == 42 + only_on_a, "nothing else is"
        wait_until(lambda: sum(map(len, client.has_what().values())) == 41, 10, "one copy of each")
