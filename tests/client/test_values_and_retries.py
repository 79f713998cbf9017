"""Copies of values, their spread and sizes; tasks that are tried again; workers made anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import (
    Client,
    FutureCancelledError,
    LocalCluster,
    ReplicationError,
    Worker,
    config,
    wait,
)


def increment(x: int) -> int:
    return x + 1


def read(path: Path) -> str:
    return path.read_text()


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


# -- Another try -----------------------------------------------------------------------------------


def test_a_failed_task_runs_again_with_all_that_failed_for_it(
    client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "input"
    text = client.submit(read, path)
    length = client.submit(len, text)
    wait([text, length], timeout=10)
    assert (text.status, length.status) == ("error", "error")
    path.write_text("here")
    assert client.retry([length], timeout=5) is None
    assert length.result(timeout=10) == 4
    assert text.result(timeout=10) == "here"
    assert text.exception(timeout=5) is text.traceback(timeout=5) is None
    assert text.type is str


def test_a_future_can_be_retried_and_may_fail_again(client: Client, tmp_path: Path) -> None:
    text = client.submit(read, tmp_path / "never")
    for _ in range(2):
        assert isinstance(text.exception(timeout=10), FileNotFoundError)
        text.retry(timeout=5)
    with pytest.raises(FileNotFoundError):
        text.result(timeout=10)


def test_only_futures_can_be_retried_and_what_is_well_stays_so(client: Client) -> None:
    future = client.submit(increment, 1)
    assert future.result(timeout=10) == 2
    client.retry(future, timeout=5)
    assert future.status == "finished"
    for ask in (client.retry, client.cancel, client.replicate, client.rebalance):
        with pytest.raises(TypeError, match="expected a future, or futures in a list"):
            ask([future, "x"])


# -- Copies ----------------------------------------------------------------------------------------


def test_values_are_held_by_as_many_workers_as_is_asked(client: Client) -> None:
    one, two = client.nthreads(timeout=5)
    future = client.submit(bytes, 10_000, workers=[one])
    client.replicate([future], timeout=10)
    assert set(client.who_has([future], timeout=5)[future.key]) == {one, two}
    client.replicate(future, n=1, workers=[two], timeout=10)
    assert set(client.who_has([future], timeout=5)[future.key]) == {one, two}
    client.replicate(future, n=1, timeout=10)
    assert len(client.who_has([future], timeout=5)[future.key]) == 1
    assert len(future.result(timeout=10)) == 10_000


def test_copies_that_cannot_be_made_are_complained_of(client: Client, gate: Path) -> None:
    with pytest.raises(ReplicationError, match="1 copies could not be made"):
        client.replicate(client.submit(Unpicklable), timeout=10)
    with pytest.raises(ValueError, match="no worker has the address or name 'nobody'"):
        client.replicate(client.submit(increment, 1), workers=["nobody"], timeout=10)
    with pytest.raises(ValueError, match="n must be"):
        client.replicate(client.submit(increment, 1), n=0)
    with pytest.raises(ValueError, match="branching_factor"):
        client.replicate(client.submit(increment, 1), branching_factor=0)
    with pytest.raises(TimeoutError):
        client.replicate(client.submit(wait_for_file, gate), timeout=0.1)
    cancelled = client.submit(wait_for_file, gate, 1)
    cancelled.cancel()
    with pytest.raises(FutureCancelledError):
        client.replicate(cancelled, timeout=5)


def test_values_are_spread_evenly(client: Client) -> None:
    one, two = client.nthreads(timeout=5)
    futures = client.scatter([bytes([n]) * 10_000 for n in range(6)], workers=[one], timeout=10)
    client.rebalance(futures[:2], workers=[one, two], timeout=10)
    held = client.has_what(timeout=5)
    assert sorted(map(len, held.values())) == [2, 4]
    client.rebalance(timeout=10)
    assert [len(keys) for keys in client.has_what(timeout=5).values()] == [3, 3]
    assert client.gather(futures, timeout=10) == [bytes([n]) * 10_000 for n in range(6)]
    client.rebalance([], timeout=5)


def test_sizes_are_told_by_function_or_by_key(client: Client) -> None:
    futures = client.map(bytes, [1000, 2000])
    [data] = client.scatter([b"x" * 10], timeout=10)
    wait(futures, timeout=10)
    assert client.nbytes(timeout=5) == {"bytes": 1000 + 2000 + 2 * 33 + 10 + 33}
    sizes = client.nbytes([futures[0], data.key], summary=False, timeout=5)
    assert sizes == {futures[0].key: 1033, data.key: 43}
    assert client.nbytes([], timeout=5) == {}
    assert client.nbytes(["nonsense"], timeout=5) == {}


# -- Workers ---------------------------------------------------------------------------------------


def test_some_workers_get_new_processes_and_tasks_go_on(tmp_path: Path) -> None:
    with (
        config.set({"scheduler.allowed-failures": 0}),  # no task may be blamed
        Client(n_workers=2, threads_per_worker=1, memory_limit=0) as client,
    ):
        addresses = {w["name"]: a for a, w in client.scheduler_info(timeout=5)["workers"].items()}
        pids = client.run(os.getpid, timeout=5)
        held = client.submit(increment, 1, workers="0")
        running = client.submit(wait_for_file, tmp_path / "gate", 5, workers=["0"])
        assert held.result(timeout=10) == 2
        wait_until(lambda: running.key in client.processing(timeout=5)[addresses["0"]])
        assert client.restart_workers(["0"], timeout=30) == {addresses["0"]: "OK"}
        (tmp_path / "gate").touch()
        assert running.result(timeout=20) == 5
        assert held.result(timeout=20) == 2
        after = {w["name"]: w["pid"] for w in client.scheduler_info(timeout=5)["workers"].values()}
        assert after["1"] == pids[addresses["1"]]
        assert after["0"] not in pids.values()
        with pytest.raises(ValueError, match="no worker has the address or name '7'"):
            client.restart_workers([7], timeout=5)


def test_a_worker_without_a_nanny_is_not_restarted_nor_called(cluster: LocalCluster) -> None:
    with Client(processes=False, n_workers=1) as client:
        with pytest.raises(ValueError, match="no nanny is there for inproc://"):
            client.restart_workers([0], timeout=5)
        with pytest.raises(ValueError, match="no nanny is there for"):
            client.run(os.getpid, workers=[0], nanny=True, timeout=5)
        assert client.run(os.getpid, nanny=True, timeout=5) == {}


def test_functions_are_run_by_name_and_unknown_names_are_complained_of(client: Client) -> None:
    first = next(iter(client.nthreads(timeout=5)))
    by_address = client.run(os.getpid, workers=[first], timeout=5)
    assert len(client.run(os.getpid, workers=[0, "1", first], timeout=5)) == 2
    assert by_address.keys() == {first}
    with pytest.raises(ValueError, match="no worker has the address or name 'tcp://nowhere:1'"):
        client.run(os.getpid, workers=[first, "tcp://nowhere:1"], timeout=5)


def test_a_worker_that_leaves_can_still_be_called(tmp_path: Path) -> None:
    with Client(n_workers=2, threads_per_worker=1, memory_limit=0) as client:
        busy = client.submit(wait_for_file, tmp_path / "gate", workers=["0"])
        wait_until(lambda: any(client.processing(timeout=5).values()))

        def leave(dask_worker: Worker) -> None:
            dask_worker.loop.call_soon_threadsafe(
                lambda: dask_worker.loop.create_task(dask_worker.leave("to be tested"))
            )

        client.run(leave, workers=["0"], timeout=5)
        wait_until(lambda: len(client.run(os.getpid, timeout=5)) == 1)  # all that stay
        assert len(client.run(os.getpid, workers=["0"], timeout=5)) == 1
        (tmp_path / "gate").touch()
        busy.result(timeout=10)
