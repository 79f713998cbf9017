"""Tasks that secede from their worker's threads, on a real cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, get_client, local_client, rejoin, secede, worker_client


@pytest.fixture(scope="module")
def one_thread() -> Iterator[Client]:
    own = {"n_workers": 1, "threads_per_worker": 1, "processes": False}
    with Client(**own, set_as_default=False) as client:
        yield client


def increment(x: int) -> int:
    return x + 1


def seceded(path: Path) -> str:
    secede()
    wait_for_file(path)
    return "done"


def test_a_seceded_task_lets_a_hundred_others_run_on_one_thread(
    one_thread: Client, gate: Path
) -> None:
    long = one_thread.submit(seceded, gate, pure=False)
    futures = one_thread.map(increment, range(100))
    assert one_thread.gather(futures, timeout=20) == list(range(1, 101))
    assert not long.done()
    gate.touch()
    assert long.result(timeout=10) == "done"


def test_several_seceded_tasks_stand_aside(one_thread: Client, gate: Path) -> None:
    longs = [one_thread.submit(seceded, gate, pure=False) for _ in range(5)]
    assert one_thread.submit(increment, 1, pure=False).result(timeout=10) == 2
    assert not any(long.done() for long in longs)
    gate.touch()
    assert one_thread.gather(longs, timeout=10) == ["done"] * 5
    wait_until(lambda: one_thread.run(_lent, timeout=5) == {_only(one_thread): (1, 0)})


def _lent(dask_worker) -> tuple[int, int]:
    return dask_worker.state.nthreads, dask_worker._threads._n_lent


def _only(client: Client) -> str:
    [address] = client.nthreads(timeout=5)
    return str(address)


def test_tasks_that_wait_in_turn_do_not_lock_each_other_out(one_thread: Client) -> None:
    def outer(depth: int) -> int:
        secede()
        if not depth:
            rejoin()
            return 1
        total = sum(get_client().gather(get_client().map(outer, [depth - 1] * 3, pure=False)))
        rejoin()
        return total

    assert one_thread.submit(outer, 3, pure=False).result(timeout=30) == 27


def test_rejoined_tasks_run_one_at_a_time(one_thread: Client) -> None:
    def outer() -> int:
        secede()
        rejoin()
        return count_running()

    futures = [one_thread.submit(outer, pure=False) for _ in range(20)]
    assert set(one_thread.gather(futures, timeout=20)) == {1}


_running: list[int] = []


def count_running() -> int:
    _running.append(1)
    time.sleep(0.01)
    n = len(_running)
    _running.pop()
    return n


def test_a_seceded_coroutine_task_lets_others_run(one_thread: Client) -> None:
    async def outer() -> int:
        secede()
        client = get_client()
        values = await client.gather(client.map(increment, range(5), pure=False))
        await rejoin()
        await asyncio.sleep(0)
        return sum(values)

    assert one_thread.submit(outer, pure=False).result(timeout=20) == 15


def test_worker_client_gives_the_client_of_the_task(one_thread: Client) -> None:
    def outer() -> tuple[int, bool]:
        with worker_client() as client:
            total = sum(client.gather(client.map(increment, range(3), pure=False)))
            return total, client is get_client()

    assert one_thread.submit(outer, pure=False).result(timeout=20) == (6, True)


def test_worker_client_in_a_coroutine_task_is_awaited(one_thread: Client) -> None:
    async def outer() -> int:
        with local_client() as client:  # its older name
            return sum(await client.gather(client.map(increment, range(3), pure=False)))

    futures = [one_thread.submit(outer, pure=False) for _ in range(5)]
    assert one_thread.gather(futures, timeout=20) == [6] * 5
    wait_until(lambda: one_thread.run(_lent, timeout=5) == {_only(one_thread): (1, 0)})


@pytest.mark.parametrize("separate_thread", [True, False])
def test_worker_client_stands_aside_if_it_is_to(one_thread: Client, separate_thread: bool) -> None:
    def outer(separate_thread: bool) -> list[bool]:
        from hpcdask.places import current_place

        place = current_place()
        with worker_client(separate_thread=separate_thread):
            seen = [place.has_seceded]
        return [*seen, place.has_seceded]

    future = one_thread.submit(outer, separate_thread, pure=False)
    assert future.result(timeout=20) == [separate_thread, False]


def test_worker_client_leaves_a_seceded_task_seceded(one_thread: Client) -> None:
    def outer() -> bool:
        from hpcdask.places import current_place

        secede()
        with worker_client():
            pass
        return current_place().has_seceded

    assert one_thread.submit(outer, pure=False).result(timeout=20) is True


def test_an_error_passes_through_worker_client(one_thread: Client) -> None:
    def outer() -> None:
        with worker_client():
            raise ZeroDivisionError("on purpose")

    future = one_thread.submit(outer, pure=False)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        future.result(timeout=20)
    assert one_thread.submit(increment, 5, pure=False).result(timeout=10) == 6


def test_outside_of_tasks_there_is_no_worker_client() -> None:
    with pytest.raises(ValueError, match="within a task only"), worker_client():
        pass
