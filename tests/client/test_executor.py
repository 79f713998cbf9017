"""The cluster as an executor of the standard library."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import on_a_loop, wait_for_file, wait_until

from hpcdask import Client, LocalCluster, SerializationError, get_client
from hpcdask.client import executor as executors
from hpcdask.client.executor import ClientExecutor


def increment(x: int) -> int:
    return x + 1


def fail(x: object) -> None:
    raise ValueError(x)


def lock(x: object) -> object:
    return threading.Lock()


def fail_at(x: int, bad: int) -> int:
    if x == bad:
        raise ValueError(x)
    return x


@pytest.fixture
def executor(client: Client) -> Iterator[ClientExecutor]:
    with client.get_executor() as executor:
        yield executor


def test_calls_give_futures_of_the_standard_library(executor: ClientExecutor) -> None:
    good, bad = executor.submit(increment, 1), executor.submit(fail, "why")
    assert isinstance(executor, concurrent.futures.Executor)
    assert isinstance(good, concurrent.futures.Future)
    done, not_done = concurrent.futures.wait([good, bad], timeout=10)
    assert (done, not_done) == ({good, bad}, set())
    assert good.result() == 2
    assert isinstance(bad.exception(), ValueError)
    large = executor.submit(bytes, 3_000_000)
    assert len(large.result(timeout=10)) == 3_000_000
    assert executor.submit(dict, key=1, workers=2, pure=3, x=4).result(timeout=10) == {
        "key": 1,
        "workers": 2,
        "pure": 3,
        "x": 4,
    }
    seen: list[Any] = []
    good.add_done_callback(lambda future: seen.append(future.result()))
    assert seen == [2]
    assert {f.result() for f in concurrent.futures.as_completed([good], timeout=5)} == {2}


def test_equal_calls_run_each_unless_they_are_pure(client: Client) -> None:
    with client.get_executor() as executor:
        assert len({executor.submit(time.monotonic_ns).result(10) for _ in range(5)}) == 5
    with client.get_executor(pure=True) as executor:
        calls = [executor.submit(time.monotonic_ns) for _ in range(5)]
        assert len({call.result(10) for call in calls}) == 1


def test_what_cannot_be_pickled_is_the_exception_of_its_future(executor: ClientExecutor) -> None:
    call = executor.submit(increment, threading.Lock())
    assert "cannot pickle" in str(call.exception(timeout=5))
    assert "cannot pickle" in str(executor.submit(lambda: threading.Lock()).exception(timeout=5))
    assert isinstance(executor.submit(3).exception(timeout=5), TypeError)  # type: ignore[arg-type]
    results = executor.map(str, [1, threading.Lock(), 3])
    assert next(results) == "1"
    with pytest.raises(TypeError, match="cannot pickle"):
        next(results)


def test_results_of_map_come_in_order(executor: ClientExecutor) -> None:
    assert list(executor.map(pow, range(5), [2] * 9)) == [0, 1, 4, 9, 16]
    assert list(executor.map(increment, range(10), chunksize=3)) == list(range(1, 11))
    assert list(executor.map(increment, [])) == []
    assert [len(value) for value in executor.map(bytes, [10**6, 10])] == [10**6, 10]
    results = executor.map(fail_at, range(5), [2] * 5)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(increment, [1], chunksize=0)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_loop_over_results_that_is_broken_off_drops_the_others(
    client: Client, executor: ClientExecutor, tmp_path: Path, chunksize: int
) -> None:
    def is_left(dask_worker: Any) -> bool:
        return len(dask_worker.state.tasks) > dask_worker.state.executing

    def wait_if(number: int) -> int:
        if number >= chunksize:
            wait_for_file(tmp_path / "gate")
        (tmp_path / str(number)).touch()
        return number

    for number in executor.map(wait_if, range(20), chunksize=chunksize):
        assert number == 0
        break
    wait_until(lambda: not any(client.run(is_left).values()), 20, "workers drop what waits")
    (tmp_path / "gate").touch()
    executor.shutdown()  # there is nothing to wait for
    assert len(list(tmp_path.iterdir())) < 15


def test_what_cannot_be_pickled_in_a_chunk_is_told_of_the_function(
    executor: ClientExecutor,
) -> None:
    with pytest.raises(SerializationError, match="argument 'x' of increment"):
        list(executor.map(increment, [1, threading.Lock()], chunksize=2))
    with pytest.raises(SerializationError, match="the result of lock"):
        list(executor.map(lock, [1, 2], chunksize=2))


def test_first_results_come_while_the_rest_is_being_sent(
    client: Client, executor: ClientExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "CHUNK", 5)
    first_is_here = threading.Event()
    send = client.map
    sent: list[int] = []

    def map(function: Callable[..., Any], *iterables: Any, **how: Any) -> Any:
        if sent:
            assert first_is_here.wait(20)
        sent.append(len(iterables[0]))
        return send(function, *iterables, **how)

    monkeypatch.setattr(client, "map", map)
    results = executor.map(increment, range(13))
    assert next(results) == 1
    first_is_here.set()
    assert list(results) == list(range(2, 14))
    assert sent == [5, 5, 3]


def test_map_ends_in_time(executor: ClientExecutor, gate: Path) -> None:
    start = time.monotonic()
    results = executor.map(wait_for_file, [gate], [1], timeout=0.1)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    assert time.monotonic() - start < 5


def test_nothing_is_taken_after_a_shutdown(client: Client) -> None:
    executor = client.get_executor()
    call = executor.submit(increment, 1)
    executor.shutdown()
    assert call.done()
    for use in (lambda: executor.submit(increment, 1), lambda: executor.map(increment, [1])):
        with pytest.raises(RuntimeError, match="after shutdown"):
            use()
    executor.shutdown()
    assert client.submit(increment, 5).result(timeout=10) == 6


def test_a_shutdown_waits_for_what_was_submitted_though_nobody_holds_it(
    client: Client, gate: Path, tmp_path: Path
) -> None:
    executor = client.get_executor()
    executor.submit(lambda: (wait_for_file(gate), (tmp_path / "a").touch()))
    executor.map(lambda name: (wait_for_file(gate), (tmp_path / name).touch()), ["b", "c"])
    gc.collect()
    ended = threading.Event()
    waiter = threading.Thread(target=lambda: (executor.shutdown(), ended.set()))
    waiter.start()
    assert not ended.wait(0.2)
    gate.touch()
    waiter.join(20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "gate"]


def test_a_shutdown_may_give_up_what_has_not_ended(
    client: Client, cluster: LocalCluster, gate: Path
) -> None:
    executor = client.get_executor()
    calls = [executor.submit(wait_for_file, gate, i) for i in range(8)]
    results = executor.map(wait_for_file, [gate] * 8, range(8))
    executor.shutdown(wait=True, cancel_futures=True)
    assert all(call.cancelled() for call in calls)
    assert concurrent.futures.wait(calls, timeout=5).not_done == set()
    with pytest.raises(concurrent.futures.CancelledError):
        next(results)
    wait_until(lambda: not cluster.scheduler.state.tasks)


def test_a_call_can_be_cancelled_until_it_is_done(
    executor: ClientExecutor, cluster: LocalCluster, gate: Path
) -> None:
    call = executor.submit(wait_for_file, gate)
    assert call.cancel()
    assert call.cancel()
    assert call.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        call.result(timeout=5)
    wait_until(lambda: not cluster.scheduler.state.tasks)
    done = executor.submit(increment, 1)
    assert done.result(timeout=10) == 2
    assert not done.cancel()


def test_values_leave_the_cluster_when_they_are_here(
    executor: ClientExecutor, cluster: LocalCluster
) -> None:
    call = executor.submit(bytes, 10**6)
    assert len(call.result(timeout=10)) == 10**6
    wait_until(lambda: not cluster.scheduler.state.tasks)


def test_conditions_hold_for_all_calls(client: Client) -> None:
    address = next(iter(client.nthreads(timeout=5)))

    def where() -> str:
        from hpcdask import get_worker

        return get_worker().address

    with client.get_executor(workers=[address], retries=1) as executor:
        assert {executor.submit(where).result(10) for _ in range(6)} == {address}
        assert set(executor.map(lambda _: where(), range(6))) == {address}
    with pytest.raises(TypeError, match="has no keyword 'worker'; it takes allow_other_workers,"):
        client.get_executor(worker=1)
    with pytest.raises(ValueError, match="retries"):
        client.get_executor(retries=-1)


def test_tasks_may_wait_for_calls_of_their_own(client: Client) -> None:
    """More than there are threads, which would all wait for each other."""

    def outer(n: int) -> int:
        with get_client().get_executor() as executor:
            return sum(call.result() for call in [executor.submit(increment, n)] * 2)

    assert client.gather(client.map(outer, range(8)), timeout=30) == [2 * n + 2 for n in range(8)]


def test_a_closed_client_says_so(cluster: LocalCluster, gate: Path) -> None:
    client = Client(cluster)
    executor = client.get_executor()
    call = executor.submit(wait_for_file, gate)
    client.close()
    assert isinstance(call.exception(timeout=5), concurrent.futures.CancelledError)
    with pytest.raises(ConnectionError, match="closed"):
        executor.submit(increment, 1)
    executor.shutdown()


@on_a_loop
async def test_an_event_loop_runs_calls_in_it() -> None:
    async with (
        LocalCluster(n_workers=1, processes=False, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        executor = client.get_executor()
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, increment, 1) == 2
        with pytest.raises(ValueError, match="why"):
            await loop.run_in_executor(executor, fail, "why")
        results = executor.map(increment, range(3))
        assert await asyncio.to_thread(list, results) == [1, 2, 3]
        with pytest.raises(RuntimeError, match="would wait for itself"):
            executor.shutdown()
        await asyncio.to_thread(executor.shutdown)
