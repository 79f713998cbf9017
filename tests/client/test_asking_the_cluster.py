"""Running functions outside the task queue, questions about the cluster, and restarting it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, FutureCancelledError, LocalCluster, get_client, get_worker


def increment(x: int) -> int:
    return x + 1


def test_a_function_runs_on_every_worker_or_on_chosen_ones(client: Client) -> None:
    pids = client.run(os.getpid, timeout=5)
    assert pids.keys() == client.nthreads(timeout=5).keys()
    assert len(set(pids.values())) == 2
    address = next(iter(pids))
    assert client.run(os.getpid, workers=address, timeout=5) == {address: pids[address]}
    assert client.run(os.getpid, workers=[address], timeout=5) == {address: pids[address]}
    name = client.scheduler_info(timeout=5)["workers"][address]["name"]
    assert client.run(os.getpid, workers=[name], timeout=5) == {address: pids[address]}
    assert client.run(pow, 2, 5, mod=7, workers=[name], timeout=5) == {address: 4}


def test_a_function_that_runs_on_workers_may_ask_for_its_worker(client: Client) -> None:
    def who(dask_worker) -> tuple[str, str]:
        return dask_worker.address, get_worker().address

    async def who_async(dask_worker) -> tuple[str, str]:
        return dask_worker.address, get_worker().address

    for function in (who, who_async):
        for address, answer in client.run(function, timeout=5).items():
            assert answer == (address, address)
    assert set(client.run(lambda: get_client().submit(abs, -3).result(5), timeout=9).values()) == {
        3
    }


def test_a_function_may_run_on_nannies(client: Client) -> None:
    def who(dask_nanny) -> tuple[int, int]:
        return os.getpid(), dask_nanny.pid

    answers = client.run(who, nanny=True, timeout=5)
    assert {pid for pid, _ in answers.values()} == {os.getpid()}
    assert {pid for _, pid in answers.values()} == set(client.run(os.getpid, timeout=5).values())


def test_a_function_may_run_without_being_waited_for(client: Client, tmp_path: Path) -> None:
    assert client.run(lambda: (tmp_path / str(os.getpid())).touch(), wait=False, timeout=5) is None
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    assert client.run_on_scheduler((tmp_path / "s").touch, wait=False, timeout=5) is None
    wait_until((tmp_path / "s").exists)


def test_errors_of_functions_are_raised_returned_or_left_out(client: Client) -> None:
    first = next(iter(client.nthreads(timeout=5)))

    def fail_on_first(dask_worker) -> str:
        if dask_worker.address == first:
            raise ValueError("first")
        return "fine"

    with pytest.raises(ValueError, match="first"):
        client.run(fail_on_first, timeout=5)
    returned = client.run(fail_on_first, on_error="return", timeout=5)
    assert isinstance(returned.pop(first), ValueError)
    assert list(returned.values()) == ["fine"]
    assert client.run(fail_on_first, on_error="ignore", timeout=5) == returned
    with pytest.raises(ValueError, match="on_error"):
        client.run(fail_on_first, on_error="shout")


def test_a_function_runs_on_the_scheduler(client: Client, cluster: LocalCluster) -> None:
    async def workers(dask_scheduler) -> list[str]:
        return sorted(dask_scheduler.workers)

    assert client.run_on_scheduler(workers, timeout=5) == sorted(client.nthreads(timeout=5))
    assert client.run_on_scheduler(increment, 1, timeout=5) == 2
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.id, timeout=5) == (
        cluster.scheduler.id
    )


def test_the_cluster_describes_itself(client: Client, cluster: LocalCluster) -> None:
    info = client.scheduler_info(timeout=5)
    assert info["address"] == cluster.scheduler_address == client.scheduler_address
    assert info["type"] == "Scheduler"
    assert (info["n_workers"], info["total_threads"]) == (2, 4)
    assert info["total_memory"] == sum(w["memory_limit"] for w in info["workers"].values())
    assert {w["status"] for w in info["workers"].values()} == {"running"}
    assert all(w["resources"] == {} for w in info["workers"].values())
    for address, worker in info["workers"].items():
        assert address.startswith("tcp://127.0.0.1:")
        assert worker["nthreads"] == 2
        assert psutil.pid_exists(worker["pid"])
        assert abs(time.time() - worker["last_seen"]) < 60
        assert (worker["status"], worker["resources"]) == ("running", {})
    assert (info["n_workers"], info["total_threads"]) == (2, 4)
    memory = [worker["memory_limit"] for worker in info["workers"].values()]
    assert info["total_memory"] == sum(memory)
    assert client.nthreads(timeout=5) == dict.fromkeys(info["workers"], 2)
    assert client.ncores(timeout=5) == client.nthreads(timeout=5)


def test_processing_tasks_are_named(client: Client, gate: Path) -> None:
    future = client.submit(wait_for_file, gate)
    wait_until(lambda: [future.key] in client.processing(timeout=5).values())
    gate.touch()
    future.result(timeout=10)
    assert list(client.processing(timeout=5).values()) == [[], []]


def test_workers_are_waited_for(client: Client) -> None:
    client.wait_for_workers(2, timeout=5)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"2 of 3 workers have registered within 0\.2 s"):
        client.wait_for_workers(3, timeout=0.2)
    assert time.monotonic() - start < 2
    for nonsense in (-1, "2", 1.5):
        with pytest.raises(ValueError, match="n_workers must be a whole number from 0 up"):
            client.wait_for_workers(nonsense)  # type: ignore[arg-type]


# -- Restarting ------------------------------------------------------------------------------------


def test_a_restart_forgets_tasks_and_gives_fresh_processes(tmp_path: Path) -> None:
    with Client(n_workers=2, threads_per_worker=1) as client:
        pids = set(client.run(os.getpid, timeout=5).values())
        done, stuck = client.submit(increment, 1), client.submit(wait_for_file, tmp_path / "never")
        assert done.result(timeout=10) == 2
        assert client.restart(timeout=30) is client
        assert stuck.status == "cancelled"
        with pytest.raises(FutureCancelledError, match="restarted"):
            stuck.result(timeout=5)
        fresh = set(client.run(os.getpid, timeout=5).values())
        assert len(fresh) == 2
        assert not fresh & pids
        assert client.submit(increment, 1).result(timeout=10) == 2


def hold_the_interpreter(started: Path) -> None:
    """As C code does that does not give the interpreter's lock back."""
    import ctypes

    usleep = ctypes.PyDLL(None).usleep  # PyDLL keeps the lock during a call
    started.touch()
    usleep(100_000_000)


def test_a_restart_ends_workers_that_hold_the_interpreter(tmp_path: Path) -> None:
    with Client(n_workers=2, threads_per_worker=1) as client:
        stuck = client.submit(hold_the_interpreter, tmp_path / "started")
        wait_until((tmp_path / "started").exists)
        start = time.monotonic()
        client.restart(timeout=30)
        assert time.monotonic() - start < 6
        assert stuck.cancelled()
        assert client.gather(client.map(increment, range(10)), timeout=10) == list(range(1, 11))


def test_a_restart_that_takes_too_long_says_which_workers_are_missing() -> None:
    with Client(n_workers=1, threads_per_worker=1) as client:
        nanny = next(iter(client.cluster.workers.values()))
        os.kill(nanny.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"1 of 1 workers were not back within 0\.1 s"):
            client.restart(timeout=0.1)
        assert time.monotonic() - start < 2
        client.wait_for_workers(1, timeout=20)
