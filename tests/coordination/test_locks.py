"""Locks and semaphores of programs and tasks, whose holders may die."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from losses import Program, cut
from waiting import on_a_loop, wait_until

from hpcdask import (
    Client,
    Event,
    LocalCluster,
    Lock,
    MultiLock,
    Queue,
    RLock,
    Semaphore,
    Variable,
    get_client,
    get_worker,
)


def add_one(lock: Any, name: str) -> None:
    """What goes wrong if two do it at a time."""
    total = Variable(name)
    with lock:
        value = total.get()
        time.sleep(0.002)
        total.set(value + 1)


@pytest.mark.parametrize("make", [Lock, RLock, Semaphore])
def test_what_tasks_do_under_a_lock_they_do_one_after_the_other(
    client: Client, make: Callable[..., Any]
) -> None:
    total = Variable("total")
    total.set(0)
    lock = make(name="a lock, by any name: \N{SNOWMAN} / \\ \0")
    client.gather([client.submit(add_one, lock, "total", pure=False) for _ in range(12)])
    assert total.get() == 12
    total.delete()


def test_tasks_that_wait_for_a_lock_leave_room_for_the_one_that_frees_it(client: Client) -> None:
    """There are more that wait than threads, on every worker."""

    def wait_for(name: str) -> bool:
        with Lock(name):
            return True

    lock = Lock("room")
    lock.acquire()
    waiting = [client.submit(wait_for, "room", pure=False) for _ in range(12)]
    assert client.submit(pow, 2, 3).result(timeout=20) == 8
    lock.release()
    assert client.gather(waiting, timeout=20) == [True] * 12


def test_whoever_does_not_get_a_lock_in_time_goes_on_without(client: Client, other: Client) -> None:
    lock, same = Lock("x"), Lock("x", client=other)
    assert lock.acquire() is True
    assert same.locked() is True
    assert same.acquire(blocking=False) is False
    assert same.acquire(timeout="20ms") is False
    with pytest.raises(ValueError, match="makes no sense"):
        same.acquire(blocking=False, timeout=1)
    with pytest.raises(RuntimeError, match="has not acquired it"):
        same.release()
    assert lock.release() is True
    assert same.acquire(timeout=0) is True
    same.release()
    assert lock.locked() is False


def test_locks_without_a_name_are_two(client: Client) -> None:
    with Lock() as one, Lock() as two:
        assert one.name != two.name


def test_a_lock_is_known_by_its_name_after_pickling(client: Client, other: Client) -> None:
    lock = Lock("x", client=other)
    copy = pickle.loads(pickle.dumps(lock))
    assert (copy.name, copy.client) == ("x", client)  # one that is connected with its scheduler
    with lock:
        assert copy.acquire(blocking=False) is False


def test_without_a_client_a_lock_says_so() -> None:
    lock = Lock("x")
    with pytest.raises(ValueError, match="there is no client"):
        lock.acquire()


# -- Who may acquire again -------------------------------------------------------------------------


def test_a_thread_may_acquire_its_rlock_again_and_others_may_not(client: Client) -> None:
    lock, same = RLock("r"), RLock("r")
    seen: list[bool] = []
    with lock, same:
        thread = threading.Thread(target=lambda: seen.append(same.acquire(blocking=False)))
        thread.start()
        thread.join(20)
        same.release()
        assert lock.locked() is True
        same.acquire()
    assert (seen, lock.locked()) == ([False], False)
    with pytest.raises(RuntimeError, match="not this task that holds it"):
        lock.release()


def test_each_task_is_another_holder_of_an_rlock(client: Client) -> None:
    def acquire_twice(lock: RLock) -> tuple[bool, bool]:
        with lock:
            return lock.acquire(timeout=20), lock.release()

    async def acquire_thrice(lock: RLock) -> bool:
        async with lock, lock:
            others = asyncio.create_task(lock.acquire(blocking=False))  # whose holder is this task
            seen = await others
            alone = await asyncio.create_task(_acquire_and_release(lock))
            await lock.release()
            return seen and not alone

    lock = RLock("r")
    twice = [client.submit(acquire_twice, lock, pure=False) for _ in range(8)]
    assert client.gather(twice, timeout=20) == [(True, True)] * 8
    assert client.submit(acquire_thrice, lock).result(timeout=20) is True


async def _acquire_and_release(lock: RLock) -> bool:
    is_mine: bool = await lock.acquire(blocking=False)
    if is_mine:
        await lock.release()
    return is_mine


# -- Several at once -------------------------------------------------------------------------------


def test_several_locks_in_any_order_block_nobody_for_ever(client: Client) -> None:
    def both(names: list[str]) -> bool:
        with MultiLock(names) as lock:
            time.sleep(0.002)
            return lock.locked()

    orders = [["x", "y", "z"], ["z", "x"], ["y", "z"], ["y", "x"]] * 3
    futures = [client.submit(both, names, pure=False) for names in orders]
    assert client.gather(futures, timeout=30) == [True] * 12


def test_some_of_several_locks_will_do(client: Client) -> None:
    with MultiLock(["x"]):
        some = MultiLock(["x", "y", "z"])
        assert some.acquire(blocking=False) is False
        assert some.acquire(num_locks=2, timeout=5) is True
        assert MultiLock(["z"]).acquire(blocking=False) is False
        assert some.release() is True
        with pytest.raises(ValueError, match="has not acquired it"):
            some.release()
        with pytest.raises(ValueError, match="cannot hold 4 of 3"):
            some.acquire(num_locks=4)
    with MultiLock():
        pass


def test_a_semaphore_counts_its_leases(client: Client, other: Client) -> None:
    semaphore, same = Semaphore(2, name="s"), Semaphore(2, "s", client=other)
    assert [semaphore.acquire(), same.acquire(), same.acquire(timeout=0)] == [True, True, False]
    assert semaphore.get_value() == 2
    with pytest.raises(ValueError, match="limit of 2"):
        Semaphore(3, name="s").acquire()
    with pytest.raises(ValueError, match="at least 1"):
        Semaphore(0)
    assert same.release() is True
    with pytest.warns(RuntimeWarning, match="while 1 of its leases were held"):
        same.close()
    assert semaphore.release() is False
    with pytest.raises(RuntimeError, match="was closed"):
        semaphore.acquire()
    with Semaphore(5, name="s") as anew:
        assert anew.get_value() == 1
    anew.close()


# -- Holders that die ------------------------------------------------------------------------------


def test_what_a_client_held_is_free_when_it_closes(cluster: LocalCluster, client: Client) -> None:
    with Client(cluster, set_as_default=False) as other:
        for lock in (Lock("x", other), RLock("x", other), MultiLock(["x"], other)):
            assert lock.acquire() is True
        assert Lock("x").acquire(blocking=False) is False
    for lock in (Lock("x"), RLock("x"), MultiLock(["x"])):
        with lock:
            pass


def hold_for_ever(locks: list[Any]) -> int:
    """Hold all until this process dies, unless another one has before."""
    for lock in locks:
        lock.acquire()
    if not Event("held").is_set():
        Event("held").set()
        time.sleep(300)
    for lock in locks:
        lock.release()
    return os.getpid()


def test_the_locks_of_a_worker_that_died_go_at_once_to_the_run_that_takes_its_place(
    cluster: LocalCluster, client: Client
) -> None:
    """Long before a client that only has lost its connection would be given up."""
    locks = [Lock("dead"), RLock("dead"), MultiLock(["dead"]), Semaphore(1, "dead")]
    future = client.submit(hold_for_ever, locks)
    assert Event("held").wait(timeout=20) is True
    (worker,) = [w for w in cluster.scheduler.state.workers.values() if w.processing]
    os.kill(worker.info.pid, signal.SIGKILL)
    assert future.result(timeout=30) != worker.info.pid
    Event("held").clear()


def test_the_lock_of_a_program_that_is_killed_is_free_after_the_grace() -> None:
    brief = {"client_grace": 0.5}
    with (
        LocalCluster(1, 1, processes=False, host="127.0.0.1", scheduler_kwargs=brief) as cluster,
        Client(cluster) as client,
        Program(cluster, "Lock('x').acquire()") as program,
    ):
        assert Lock("x", client).acquire(blocking=False) is False
        program.kill()
        assert Lock("x", client).acquire(timeout=20) is True


# -- Clients that lose their connection ------------------------------------------------------------


def test_what_a_client_held_it_holds_when_it_is_back(
    cluster: LocalCluster, client: Client, other: Client
) -> None:
    locks = [Lock("x"), RLock("x"), MultiLock(["x", "y"]), Semaphore(1, "x")]
    for lock in locks:
        assert lock.acquire() is True
    cut(client, cluster)
    kinds = (Lock("x", other), RLock("x", other), MultiLock(["y"], other))
    for lock in kinds:
        assert lock.acquire(blocking=False) is False
    assert Semaphore(1, "x", client=other).acquire(timeout=0) is False
    for lock in locks:
        assert lock.release() is True
    locks[-1].close()


def test_who_waits_for_a_lock_waits_on_over_a_loss(
    cluster: LocalCluster, client: Client, other: Client
) -> None:
    seen: list[Any] = []
    held = Lock("x", other)
    held.acquire()
    thread = threading.Thread(target=lambda: seen.append(Lock("x").acquire(timeout=30)))
    thread.start()
    waiting = cluster.scheduler.requests.coordination.desk.leases.places["lock", "x"].waiting
    wait_until(lambda: len(waiting) == 1)
    cut(client, cluster)
    held.release()
    thread.join(20)
    assert seen == [True]
    assert held.acquire(blocking=False) is False
    client.close()  # whose object has gone with the thread
    assert held.acquire(timeout=10) is True
    held.release()


def test_a_lease_that_was_lost_is_reported_when_it_is_given_back(
    cluster: LocalCluster, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    lock = Lock("x")
    lock.acquire()
    desk = cluster.scheduler.requests.coordination
    cluster.loop.call_soon_threadsafe(desk.client_lost, client.id)  # as after a long absence
    with Lock("x") as another:
        assert lock.release() is False
        assert "<Lock: x> was held no longer" in caplog.text
        assert another.locked() is True


# -- With await ------------------------------------------------------------------------------------


def test_locks_and_asynchronous_clients(cluster: LocalCluster) -> None:
    @on_a_loop
    async def check() -> None:
        async with Client(cluster, asynchronous=True):
            lock = await Lock("x")
            with pytest.raises(TypeError, match="needs 'async with'"), lock:
                pass
            async with lock:
                assert await lock.locked() is True
                assert await Lock("x").acquire(timeout=0.01) is False
                cancelled = asyncio.create_task(Lock("x").acquire())
                await asyncio.sleep(0)
                cancelled.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
            assert await lock.acquire(timeout=10) is True
            assert await lock.release() is True
            async with Semaphore(2, name="s") as semaphore, MultiLock(["x", "y"]) as several:
                assert await semaphore.get_value() == 1
                assert several.locked() is True
            async with RLock("r"), RLock("r") as again:
                assert await again.locked() is True
            await semaphore.close()

    check()


def test_a_lock_may_be_awaited_on_another_loop_than_the_clients(client: Client) -> None:
    async def work() -> bool:
        async with Lock("x") as lock:
            return lock in [lock]

    assert asyncio.run(work()) is True
    assert Lock("x").locked() is False


def test_coroutine_tasks_use_locks(client: Client) -> None:
    async def append(number: int) -> int:
        async with Lock("coroutines"):
            queue = Queue("order")
            await queue.put(number)
            await asyncio.sleep(0.002)
            await queue.put(number)
        return number

    numbers = client.gather(client.map(append, range(10)), timeout=30)
    assert numbers == list(range(10))
    queue = Queue("order")
    order = queue.get(batch=True)
    assert order[::2] == order[1::2]
    assert sorted(order) == sorted([*numbers, *numbers])


def test_a_task_that_calls_its_client_and_worker_shares_both(client: Client) -> None:
    def same() -> bool:
        return Lock("x").client is get_client() is get_worker()._client

    assert client.submit(same).result(timeout=20) is True
