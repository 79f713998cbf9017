"""Queues, variables and events, and the futures in them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import pytest
from losses import Program, cut
from waiting import on_a_loop, wait_until

from hpcdask import Client, Event, Future, LocalCluster, Queue, Variable, WaitTimeoutError


def produce(name: str, numbers: range) -> None:
    for number in numbers:
        Queue(name).put(number)


def consume(queue: Queue, count: int) -> list[int]:
    return [queue.get(timeout=30) for _ in range(count)]


def test_what_tasks_put_other_tasks_get(client: Client) -> None:
    queue = Queue("numbers", maxsize=3)
    consumers = [client.submit(consume, queue, 20, pure=False) for _ in range(3)]
    producers = [client.submit(produce, "numbers", range(k, k + 20)) for k in (0, 20, 40)]
    got = client.gather(consumers, timeout=60)
    client.gather(producers, timeout=60)
    assert sorted(number for numbers in got for number in numbers) == list(range(60))
    for numbers in got:
        for begin in (0, 20, 40):  # of one producer they come in its order
            of_one = [n for n in numbers if begin <= n < begin + 20]
            assert of_one == sorted(of_one)
    queue.close()


def test_batches_sizes_and_times(client: Client, other: Client) -> None:
    queue, same = Queue("q", maxsize=2), Queue("q", client=other)
    assert queue.get(batch=True) == []
    queue.put("a")
    same.put(None)
    assert (queue.qsize(), same.qsize()) == (2, 2)
    with pytest.raises(WaitTimeoutError, match=r"no room within 0\.02 s"):
        same.put("full", timeout="20ms")
    with pytest.raises(TimeoutError, match=r"no value within 0\.02 s"):
        Queue("empty", client=other).get(timeout="20ms")
    with pytest.raises(TimeoutError, match=r"fewer than 3 values within 0\.02 s"):
        queue.get(batch=3, timeout=0.02)
    assert queue.get(batch=2) == ["a", None]
    with pytest.raises(WaitTimeoutError):
        queue.get(timeout=0)
    assert queue.get(batch=0) == []
    with pytest.raises(ValueError, match="batch must be"):
        queue.get(batch=-1)
    with pytest.raises(ValueError, match="maxsize must be"):
        Queue(maxsize=-1)
    queue.close()
    queue.close()
    same.put(1)
    same.close()
    assert Queue("q").qsize() == 0


def test_what_is_put_is_what_it_was_then(client: Client) -> None:
    values = bytearray(100_000)
    queue = Queue()
    queue.put(values)
    values[0] = 1
    assert queue.get()[0] == 0
    with pytest.raises(TypeError, match="cannot pickle"):
        queue.put(threading.Lock())
    assert queue.qsize() == 0
    queue.close()


# -- Futures ---------------------------------------------------------------------------------------


def kept(cluster: LocalCluster) -> set[str]:
    return set(cluster.scheduler.state.tasks)


def test_futures_in_a_queue_live_until_they_are_taken(
    cluster: LocalCluster, client: Client, other: Client
) -> None:
    queue = Queue("futures")
    queue.put(client.submit(pow, 2, 5, key="one"))
    queue.put({"deep": [client.submit(pow, 2, 6, key="two")]})
    client._sync(client._has_been_read())
    assert kept(cluster) == {"one", "two"}
    theirs = Queue("futures", client=other)
    future = theirs.get()
    assert isinstance(future, Future)
    assert future.client is other
    assert future.result(timeout=20) == 32
    nested = theirs.get()["deep"]
    assert nested[0].result(timeout=20) == 64
    del future, nested
    gc.collect()
    wait_until(lambda: not kept(cluster))
    queue.close()


def test_futures_in_a_queue_outlive_the_client_that_put_them(
    cluster: LocalCluster, client: Client
) -> None:
    with Client(cluster, set_as_default=False) as leaving:
        queue = Queue("left", client=leaving)
        queue.put(leaving.submit(pow, 3, 3))
        Variable("left", client=leaving).set([leaving.submit(pow, 3, 4)])
    assert Queue("left").get().result(timeout=20) == 27
    assert Variable("left").get()[0].result(timeout=20) == 81
    Variable("left").delete()


def test_futures_of_tasks_go_through_queues_too(client: Client) -> None:
    def submit_and_put(queue: Queue) -> None:
        from hpcdask import get_client

        queue.put(get_client().submit(sum, [1, 2, 3]))

    def take_and_wait(queue: Queue) -> Any:
        return queue.get(timeout=30).result(timeout=30)

    queue = Queue("by tasks")
    taken = client.submit(take_and_wait, queue)
    client.submit(submit_and_put, queue).result(timeout=30)
    assert taken.result(timeout=30) == 6
    queue.close()


def test_the_error_of_a_future_comes_along(client: Client, other: Client) -> None:
    def fail() -> None:
        raise ZeroDivisionError("as asked")

    queue = Queue("errors")
    queue.put(client.submit(fail))
    future = Queue("errors", client=other).get()
    with pytest.raises(ZeroDivisionError, match="as asked"):
        future.result(timeout=20)
    queue.close()


def test_a_variable_keeps_the_futures_of_its_last_value(
    cluster: LocalCluster, client: Client, other: Client
) -> None:
    variable, same = Variable("v"), Variable("v", client=other)
    with pytest.raises(WaitTimeoutError, match=r"was not set within 0\.02 s"):
        same.get(timeout=0.02)
    for key in ("first", "second"):
        variable.set(client.submit(pow, 2, 2, key=key))
        assert same.get(timeout=20).result(timeout=20) == 4
        gc.collect()
        wait_until(lambda key=key: kept(cluster) == {key})
    variable.delete()
    wait_until(lambda: not kept(cluster))
    waiting = client.submit(lambda: Variable("v").get(timeout=30))
    variable.set("again")
    assert waiting.result(timeout=30) == "again"
    variable.delete()


# -- Losses ----------------------------------------------------------------------------------------


def test_queues_and_variables_go_through_a_loss(cluster: LocalCluster, client: Client) -> None:
    queue, seen = Queue("loss", maxsize=2), []
    desk = cluster.scheduler.requests.coordination.desk

    def get_all() -> None:
        for _ in range(5):
            seen.append(queue.get(timeout=30))

    thread = threading.Thread(target=get_all)
    thread.start()
    wait_until(lambda: "loss" in desk.queues.queues and desk.queues.queues["loss"].taking)
    cut(client, cluster)
    future = client.submit(pow, 2, 2)
    for value in (1, future, 3):
        queue.put(value)
    wait_until(lambda: len(seen) == 3)
    for value in (4, 5):
        cut(client, cluster)
        queue.put(value)
    thread.join(30)
    assert seen == [1, seen[1], 3, 4, 5]
    assert seen.pop(1).result(timeout=20) == 4
    assert queue.qsize() == 0
    queue.close()
    wait_until(lambda: "loss" not in desk.queues.queues)


def test_a_killed_program_leaves_what_it_has_put_and_takes_nothing_along(
    cluster: LocalCluster, client: Client
) -> None:
    code = (
        "import threading\nqueue = Queue('left')\nqueue.put(client.submit(pow, 2, 7))\n"
        "threading.Thread(target=Queue('never').get, daemon=True).start()\n"
        "while not client._operations.waiting: time.sleep(0.01)\n"
        "while client._futures: time.sleep(0.01)\n"  # who is killed first keeps it for a while
        "Event('left').set()"
    )
    with Program(cluster, code) as program:
        program.kill()
        assert Event("left").wait(timeout=10) is True
        future = Queue("left").get(timeout=20)
        assert future.result(timeout=20) == 128
    Event("left").clear()


def test_a_wait_whose_scheduler_is_gone_ends(client: Client) -> None:
    errors: list[Exception] = []

    def wait_for_ever() -> None:
        try:
            Event("never", client=here).wait()
        except Exception as exc:
            errors.append(exc)

    with LocalCluster(1, 1, processes=False) as local, Client(local, set_as_default=False) as here:
        thread = threading.Thread(target=wait_for_ever)
        thread.start()
        wait_until(lambda: here._operations.waiting)
    thread.join(20)
    assert "closed" in str(errors[0]) or "gone" in str(errors[0])


# -- Events ----------------------------------------------------------------------------------------


def test_an_event_wakes_tasks_and_programs(client: Client, other: Client) -> None:
    def wait_for(event: Event) -> bool:
        return event.wait(timeout=30)  # type: ignore[no-any-return]

    event = Event("e", client=other)
    waiting = [client.submit(wait_for, event, pure=False) for _ in range(10)]
    assert event.is_set() is False
    assert event.wait(timeout=0.02) is False
    Event("e").set()
    assert client.gather(waiting, timeout=30) == [True] * 10
    assert event.wait() is True
    event.clear()
    assert event.wait(timeout=0) is False


# -- With await ------------------------------------------------------------------------------------


def test_all_of_it_with_await(cluster: LocalCluster) -> None:
    @on_a_loop
    async def check() -> None:
        async with Client(cluster, asynchronous=True) as client:
            queue = await Queue("awaited", maxsize=1)
            await queue.put(client.submit(pow, 2, 8))
            late = asyncio.create_task(queue.put("second"))
            with pytest.raises(WaitTimeoutError):
                await queue.put("third", timeout=0.02)
            future = await queue.get()
            assert await future == 256
            await late
            assert await queue.qsize() == 1
            assert await queue.get(batch=True) == ["second"]
            cancelled = asyncio.create_task(queue.get())
            await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.wait({cancelled})
            await queue.put("not for the one that left")
            assert await queue.get(timeout=10) == "not for the one that left"
            queue.close()
            variable, event = Variable("awaited"), await Event("awaited")
            waiting = asyncio.create_task(variable.get())
            await variable.set([future])
            assert await (await waiting)[0] == 256
            await variable.delete()
            flag = asyncio.create_task(event.wait())
            await event.set()
            assert await flag is True
            assert await event.is_set() is True
            await event.clear()

    check()


def test_a_hundred_waits_at_a_time_are_quick(client: Client) -> None:
    """The scheduler has no coroutine for each, and the client one thread for all."""
    began = time.monotonic()
    waiting = [threading.Thread(target=Event("go").wait) for _ in range(100)]
    for thread in waiting:
        thread.start()
    Event("go").set()
    for thread in waiting:
        thread.join(20)
    assert time.monotonic() - began < 20
    Event("go").clear()
