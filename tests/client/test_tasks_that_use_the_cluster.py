"""Tasks that submit tasks, and coroutine tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from waiting import wait_until

from hpcdask import Actor, Client, LocalCluster, as_completed, get_client, get_worker, wait
from hpcdask.client.loop import limited
from hpcdask.errors import WaitTimeoutError


def increment(x: int) -> int:
    return x + 1


def fibonacci(n: int) -> int:
    if n < 2:
        return n
    client = get_client()
    return sum(client.gather([client.submit(fibonacci, n - 1), client.submit(fibonacci, n - 2)]))


@pytest.fixture(params=[True, False], ids=["process", "thread"], scope="module")
def one_thread(request: pytest.FixtureRequest) -> Iterator[Client]:
    own = {"n_workers": 1, "threads_per_worker": 1, "processes": request.param}
    with Client(**own, set_as_default=False) as client:
        yield client


def test_tasks_wait_for_their_own_tasks_on_a_single_thread(one_thread: Client) -> None:
    assert one_thread.submit(fibonacci, 10).result(timeout=30) == 55


@pytest.mark.parametrize("way", ["result", "wait", "as_completed", "exception", "gather", "get"])
def test_every_way_of_waiting_lends_the_thread(one_thread: Client, way: str) -> None:
    def outer(way: str) -> object:
        client = get_client()
        futures = client.map(increment, range(3), pure=False)
        if way == "result":
            return [future.result(timeout=10) for future in futures]
        if way == "wait":
            wait(futures, timeout=10)
        elif way == "as_completed":
            return sorted(future.result() for future in as_completed(futures, timeout=10))
        elif way == "exception":
            assert [future.exception(timeout=10) for future in futures] == [None] * 3
        elif way == "get":
            return client.get({"x": (increment, 0), "y": (increment, "x"), "z": 3}, list("xyz"))
        return client.gather(futures, timeout=10)

    assert one_thread.submit(outer, way, pure=False).result(timeout=20) == [1, 2, 3]


def nested(depth: int) -> int:
    """Submit, on any worker, and wait, while all others do."""
    if not depth:
        return 1
    client = get_client()
    return sum(client.submit(nested, depth - 1, pure=False).result(timeout=60) for _ in range(2))


def test_tasks_on_all_threads_of_all_workers_wait_for_their_own(client: Client) -> None:
    futures = [client.submit(nested, 3, pure=False) for _ in range(12)]
    assert client.gather(futures, timeout=60) == [8] * 12


class Middleman:
    def ask(self) -> int:
        return get_client().submit(increment, 1, pure=False).result(timeout=10)


def ask(middleman: Actor) -> int:
    return middleman.ask().result(timeout=20)


async def ask_on_loop(middleman: Actor) -> int:
    client = get_client()
    # Neither of these is a wait for a future.
    assert await client.wait_for_workers(1, timeout=10) is None
    return await middleman.ask()


@pytest.mark.parametrize("task", [ask, ask_on_loop])
def test_a_task_waits_for_an_actor_that_waits_for_a_task(one_thread: Client, task: Any) -> None:
    middleman = one_thread.submit(Middleman, actor=True)
    assert one_thread.submit(task, middleman, pure=False).result(timeout=30) == 2


async def wait_for_another_task() -> str:
    event = get_worker().event_of_test = asyncio.Event()
    await limited(event.wait(), 20)
    return "set"


def set_event() -> None:
    worker = get_worker()
    wait_until(lambda: hasattr(worker, "event_of_test"))
    worker.loop.call_soon_threadsafe(worker.event_of_test.set)


def test_whatever_a_coroutine_task_awaits_of_its_client_lends_its_place(
    one_thread: Client,
) -> None:
    waiting = one_thread.submit(wait_for_another_task, pure=False)
    one_thread.submit(set_event, pure=False).result(timeout=30)
    assert waiting.result(timeout=30) == "set"


def test_lent_threads_come_back(one_thread: Client) -> None:
    one_thread.submit(fibonacci, 7, pure=False).result(timeout=30)
    one_thread.gather(one_thread.map(increment, range(20), pure=False), timeout=10)
    wait_until(lambda: one_thread.run(_n_task_threads, timeout=5) == {_only(one_thread): 1})
    assert one_thread.nthreads(timeout=5) == {_only(one_thread): 1}


def _n_task_threads(dask_worker) -> int:
    assert dask_worker.state.nthreads == dask_worker.nthreads == 1
    threads = dask_worker._threads
    return threads._n_running - threads._n_lent


def _only(client: Client) -> str:
    [address] = client.nthreads(timeout=5)
    return str(address)


def test_no_more_tasks_run_at_a_time_than_there_are_threads(one_thread: Client) -> None:
    def outer() -> int:
        client = get_client()
        return max(client.gather(client.map(count_running, range(8), pure=False)))

    assert max(one_thread.gather([one_thread.submit(outer, pure=False) for _ in range(3)])) == 1


_running: list[int] = []


def count_running(_: int) -> int:
    _running.append(1)
    time.sleep(0.01)
    n = len(_running)
    _running.pop()
    return n


def test_the_tasks_of_a_worker_share_a_client(client: Client) -> None:
    def who() -> tuple[str, str]:
        return get_worker().address, get_client().id

    pairs = set(client.gather([client.submit(who, pure=False) for _ in range(20)], timeout=10))
    assert len(pairs) == len({address for address, _ in pairs}) == 2


def test_handles_made_in_a_task_are_dropped_with_it(client: Client, cluster: LocalCluster) -> None:
    def outer() -> int:
        client = get_client()
        return len(client.gather(client.map(increment, range(100))))

    future = client.submit(outer)
    assert future.result(timeout=10) == 100
    wait_until(lambda: list(cluster.scheduler.state.tasks) == [future.key])


def test_a_task_scatters_and_asks(client: Client) -> None:
    def outer() -> tuple[int, int]:
        client = get_client()
        data = client.scatter({"k": [1, 2, 3]}, timeout=5)["k"]
        return client.submit(sum, data).result(timeout=5), len(client.nthreads(timeout=5))

    assert client.submit(outer).result(timeout=10) == (6, 2)


def test_a_wait_in_a_task_ends_in_time(client: Client) -> None:
    def outer() -> str:
        try:
            get_client().submit(time.sleep, 1).result(timeout=0.1)
        except WaitTimeoutError:
            return "late"
        return "in time"

    assert client.submit(outer).result(timeout=10) == "late"


# -- Coroutine tasks -------------------------------------------------------------------------------


def test_a_coroutine_function_is_a_task(one_thread: Client) -> None:
    async def work(x: int) -> int:
        await asyncio.sleep(0.01)
        return x + 1

    assert one_thread.gather(one_thread.map(work, range(5)), timeout=10) == [1, 2, 3, 4, 5]


def test_a_coroutine_task_knows_its_worker_and_may_use_the_cluster(one_thread: Client) -> None:
    async def work() -> tuple[str, list[int], int, int]:
        client = get_client()
        assert client.asynchronous
        futures = client.map(increment, range(3))
        first = await futures[0]
        values = await client.gather(futures)
        n = 0
        async for _ in as_completed(futures):
            n += 1
        await wait(futures)
        return get_worker().address, values, first, n

    future = one_thread.submit(work, pure=False)
    assert future.result(timeout=20) == (_only(one_thread), [1, 2, 3], 1, 3)


def test_a_task_knows_its_key(client: Client) -> None:
    future = client.submit(lambda: get_worker().get_current_task(), key="mine")
    assert future.result(timeout=10) == "mine"


# -- Without a task --------------------------------------------------------------------------------


def test_outside_of_tasks_there_is_no_worker() -> None:
    with pytest.raises(ValueError, match="within a task only"):
        get_worker()


def test_outside_of_tasks_the_default_client_is_given(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match="there is no client"):
        get_client()
    with Client(cluster) as first:
        assert get_client() is first
        with Client(cluster) as second, Client(cluster, set_as_default=False):
            assert get_client() is second
            assert get_client(second.scheduler_address) is second
        assert get_client() is first
        seen: list[Client] = []
        thread = threading.Thread(target=lambda: seen.append(get_client()))
        thread.start()
        thread.join(10)
        assert seen == [first]
