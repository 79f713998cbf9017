"""Actors on a real cluster: state on one worker, and calls from everywhere."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import on_a_loop, wait_for_file, wait_until

from hpcdask import (
    Actor,
    ActorFuture,
    BaseActorFuture,
    Client,
    CommClosedError,
    Future,
    LocalCluster,
    LostActorError,
    SerializationError,
    TaskExitError,
    WaitTimeoutError,
    config,
    get_client,
    get_worker,
    wait,
    worker_client,
)


class Counter:
    """Counts."""

    kind = "counter"

    def __init__(self, n: int = 0) -> None:
        self.n = n
        self.seen: list[Any] = []

    def increment(self, by: int = 1) -> int:
        """Add one, or more."""
        self.n += by
        return self.n

    def note(self, item: Any) -> None:
        self.seen.append(item)

    def fail(self) -> None:
        raise ZeroDivisionError("on purpose")

    def raises(self, kind: type[BaseException]) -> None:
        raise kind(3)

    def where(self) -> tuple[str, bool, int]:
        worker = get_worker()
        return worker.address, self in worker.actors.values(), threading.get_ident()

    def wait_for(self, path: Path) -> str:
        wait_for_file(path)
        return "waited"

    def use_the_cluster(self) -> list[int]:
        with worker_client() as client:
            return client.gather(client.map(abs, [-1, -2], pure=False))

    def make_future(self) -> Future:
        return get_client().submit(pow, 7, 2, pure=False)

    @property
    def double(self) -> int:
        return 2 * self.n

    async def pause(self, item: Any, seconds: float = 0.0) -> tuple[str, bool]:
        self.seen.append(item)
        await asyncio.sleep(seconds)
        worker = get_worker()
        return worker.address, asyncio.get_running_loop() is worker.loop

    async def wait_on_loop(self, path: Path) -> str:
        while not path.exists():
            await asyncio.sleep(0.01)
        return "waited"

    async def fail_later(self, kind: type[BaseException]) -> None:
        await asyncio.sleep(0)
        raise kind(3)


@pytest.fixture
def counter(client: Client) -> Actor:
    return client.submit(Counter, actor=True).result(timeout=20)


def addresses(client: Client) -> list[str]:
    return sorted(client.nthreads(timeout=5))


def in_turn(counter: Actor, n: int) -> tuple[str, list[int]]:
    futures = [counter.increment() for _ in range(n)]
    return get_worker().address, [future.result(timeout=20) for future in futures]


def test_an_actor_keeps_its_state_from_call_to_call(client: Client) -> None:
    future = client.submit(Counter, 5, actor=True)
    counter = future.result(timeout=20)
    assert repr(counter) == f"<Actor: Counter, key: {future.key}>"
    assert counter.key == future.key
    calls = [counter.increment() for _ in range(100)]
    assert all(isinstance(call, ActorFuture) for call in calls)
    assert [call.result(timeout=20) for call in calls] == list(range(6, 106))
    assert counter.increment(by=5).result(timeout=20) == 110
    assert BaseActorFuture is ActorFuture


def test_an_attribute_gives_its_value(counter: Actor) -> None:
    counter.increment().result(timeout=20)
    assert (counter.n, counter.double, counter.kind) == (1, 2, "counter")
    with pytest.raises(AttributeError, match="'Counter' object has no attribute 'nothing'"):
        _ = counter.nothing


def test_names_that_python_looks_for_are_not_asked_for(counter: Actor) -> None:
    for name in ("__array__", "_repr_html_", "_ipython_display_"):
        assert not hasattr(counter, name)
    assert "increment" in dir(counter)
    assert counter.increment.__doc__ == "Add one, or more."


def test_an_attribute_cannot_be_set_from_outside(counter: Actor) -> None:
    with pytest.raises(AttributeError, match="give the class a method"):
        counter.n = 3


def test_each_submission_is_an_actor_of_its_own(client: Client) -> None:
    futures = client.map(Counter, [1, 2, 2], actors=True)
    actors = client.gather(futures, timeout=20)
    assert len(set(actors)) == 3
    actors[1].increment().result(timeout=20)
    assert [actor.n for actor in actors] == [1, 3, 2]
    one, same = (client.submit(Counter, actor=True, pure=True) for _ in range(2))
    assert one.result(timeout=20) == same.result(timeout=20)


def test_actors_go_where_they_are_to_be(client: Client) -> None:
    futures = [client.submit(Counter, actor=True, workers=a) for a in addresses(client)]
    actors = client.gather(futures, timeout=20)
    assert [actor.where().result(timeout=20)[:2] for actor in actors] == [
        (address, True) for address in addresses(client)
    ]


def test_what_is_not_a_class_may_make_an_actor(client: Client) -> None:
    counter = client.submit(lambda: Counter(4), actor=True).result(timeout=20)
    assert counter.increment().result(timeout=20) == 5


# -- Errors ----------------------------------------------------------------------------------------


def test_what_a_method_raises_has_its_type_and_the_remote_lines(counter: Actor) -> None:
    with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
        counter.fail().result(timeout=20)
    text = "".join(traceback.format_exception(caught.value))
    assert 'raise ZeroDivisionError("on purpose")' in text
    assert "hosting.py" not in text
    assert counter.increment().result(timeout=20) == 1


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration])
def test_what_would_end_a_program_ends_only_the_call(
    counter: Actor, kind: type[BaseException]
) -> None:
    expected = StopIteration if kind is StopIteration else TaskExitError
    with pytest.raises(expected):
        counter.raises(kind).result(timeout=20)
    with pytest.raises(RuntimeError):  # as which a coroutine gives a StopIteration
        counter.fail_later(kind).result(timeout=20)
    assert counter.increment().result(timeout=20) == 1


def test_a_class_that_cannot_be_made_is_the_futures_error(client: Client) -> None:
    future = client.submit(Counter, 1, 2, 3, actor=True)
    with pytest.raises(TypeError, match="positional arguments"):
        future.result(timeout=20)
    with pytest.raises(TypeError, match="must be callable"):
        client.submit(3, actor=True)


def test_arguments_that_cannot_be_pickled_are_refused_at_once(counter: Actor) -> None:
    with pytest.raises(SerializationError):
        counter.note(threading.Lock())


def test_a_result_that_cannot_be_pickled_is_the_calls_error(client: Client) -> None:
    class Holder:
        def lock(self) -> object:
            return threading.Lock()

    holder = client.submit(Holder, actor=True).result(timeout=20)
    with pytest.raises(SerializationError, match="lock"):
        holder.lock().result(timeout=20)


# -- Order and waiting -----------------------------------------------------------------------------


def test_a_wait_ends_in_time_and_the_method_goes_on(counter: Actor, gate: Path) -> None:
    call = counter.wait_for(gate)
    assert not call.done()
    with pytest.raises(WaitTimeoutError):
        call.result(timeout="50ms")
    gate.touch()
    assert call.result(timeout=20) == "waited"
    assert call.done()


def test_methods_wait_for_each_other_and_nothing_else_for_them(counter: Actor, gate: Path) -> None:
    waiting = counter.wait_for(gate)
    later = counter.increment()
    counter.pause("meanwhile").result(timeout=20)  # a coroutine
    assert (counter.n, counter.seen) == (0, ["meanwhile"])
    assert not later.done()
    gate.touch()
    assert waiting.result(timeout=20) == "waited"
    assert later.result(timeout=20) == 1


def test_coroutine_methods_begin_in_order_on_the_workers_loop(counter: Actor) -> None:
    # Some are rebuilt in a thread, since nobody knows how long that takes.
    items = [Path(str(i)) if i % 3 == 1 else i for i in range(60)]
    calls = [counter.pause(item) for item in items]
    results = {call.result(timeout=20) for call in calls}
    assert {is_on_loop for _, is_on_loop in results} == {True}
    assert counter.seen == items


def test_coroutine_methods_run_beside_each_other(counter: Actor, gate: Path) -> None:
    long = counter.wait_on_loop(gate)
    assert counter.pause("short").result(timeout=20)[1]
    assert not long.done()
    gate.touch()
    assert long.result(timeout=20) == "waited"


# -- From tasks, actors and other clients ----------------------------------------------------------


@pytest.mark.parametrize("what", ["future", "actor", "nested"])
def test_tasks_call_from_every_worker_in_their_order(client: Client, what: str) -> None:
    future = client.submit(Counter, actor=True)
    counter = future.result(timeout=20)
    given = {"future": future, "actor": counter, "nested": {"a": [counter]}}[what]

    def call(given: Any) -> tuple[str, list[int]]:
        return in_turn(given["a"][0] if isinstance(given, dict) else given, 50)

    tasks = [client.submit(call, given, workers=a, pure=False) for a in addresses(client)]
    results = dict(client.gather(tasks, timeout=30))
    assert sorted(results) == addresses(client)
    assert sorted([n for values in results.values() for n in values]) == list(range(1, 101))
    assert all(values == sorted(values) for values in results.values())


def test_a_coroutine_task_awaits_an_actor(client: Client, counter: Actor) -> None:
    async def use(counter: Actor) -> tuple[int, int]:
        return await counter.increment(), await counter.n

    futures = [client.submit(use, counter, workers=a, pure=False) for a in addresses(client)]
    results = sorted(client.gather(futures, timeout=20))
    assert results in ([(1, 1), (2, 2)], [(1, 2), (2, 2)])


def test_an_actor_that_an_actor_holds_lives_on(client: Client, cluster: LocalCluster) -> None:
    class Holder:
        def __init__(self, counter: Actor) -> None:
            self.counter = counter

        def increment(self) -> int:
            return self.counter.increment().result(timeout=20)

    here, there = addresses(client)
    for where in (here, there):
        counter = client.submit(Counter, actor=True, workers=here)
        holder = client.submit(Holder, counter, actor=True, workers=where).result(timeout=20)
        key = counter.key
        del counter
        assert [holder.increment().result(timeout=20) for _ in range(3)] == [1, 2, 3]
        assert key in cluster.scheduler.state.tasks
        del holder
        wait_until(lambda: not cluster.scheduler.state.tasks, 20, "both are let go of")


class Friend:
    def __init__(self, name: str) -> None:
        self.name = name
        self.friend: Any = None

    def meet(self, friend: Any) -> None:
        self.friend = friend

    def rally(self, n: int) -> list[str]:
        return [self.name, *(self.friend.rally(n - 1).result(timeout=20) if n else [])]


@pytest.mark.parametrize("are_apart", [True, False])
def test_actors_that_call_each_other_in_a_circle_do_not_lock_each_other_out(
    client: Client, are_apart: bool
) -> None:
    a, b = addresses(client)
    places = (a, b if are_apart else a)
    futures = [
        client.submit(Friend, n, actor=True, workers=w) for n, w in zip("xy", places, strict=True)
    ]
    one, two = client.gather(futures, timeout=20)
    wait_for = [one.meet(two), two.meet(one)]
    assert [call.result(timeout=20) for call in wait_for] == [None, None]
    assert one.rally(6).result(timeout=20) == list("xyxyxyx")
    # They hold each other, and would for ever.
    assert [call.result(timeout=20) for call in (one.meet(None), two.meet(None))] == [None, None]


def test_a_call_of_its_own_waits_until_the_method_does(client: Client, gate: Path) -> None:
    class Own:
        def meet(self, me: Any) -> None:
            self.me, self.log = me, []

        def inner(self) -> None:
            self.log.append("inner")

        def outer(self) -> list[str]:
            call = self.me.inner()
            wait_until(lambda: own_line_has_started(get_worker()), 10)
            self.log.append("outer")
            call.result(timeout=20)
            self.me = None
            return self.log

    own = client.submit(Own, actor=True).result(timeout=20)
    own.meet(own).result(timeout=20)
    assert own.outer().result(timeout=20) == ["outer", "inner"]


def own_line_has_started(worker: Any) -> bool:
    [held] = [v.value for v in worker.state.tasks.values() if hasattr(v.value, "instance")]
    return 1 in held._lines


def test_other_clients_share_an_actor(client: Client, cluster: LocalCluster) -> None:
    counter = client.submit(Counter, key="shared", actor=True).result(timeout=20)
    with Client(cluster, set_as_default=False) as other:
        theirs = Future("shared", other).result(timeout=20)
        assert theirs.increment().result(timeout=20) == 1
        assert counter.increment().result(timeout=20) == 2
        assert theirs == counter
        del theirs


def test_an_actor_uses_the_cluster(counter: Actor) -> None:
    assert counter.use_the_cluster().result(timeout=20) == [1, 2]


def test_a_future_that_a_method_returns_is_held_on_its_way(counter: Actor) -> None:
    calls = [counter.make_future() for _ in range(20)]
    futures = [call.result(timeout=20) for call in calls]
    assert [future.result(timeout=20) for future in futures] == [49] * 20


def test_a_future_that_is_an_argument_arrives_as_a_future(client: Client, counter: Actor) -> None:
    call = counter.note(client.submit(pow, 3, 2))
    call.result(timeout=20)
    [future] = counter.seen
    assert future.result(timeout=20) == 9


def test_what_cannot_reach_the_workers_calls_through_the_scheduler(cluster: LocalCluster) -> None:
    with Client(cluster, direct_to_workers=False, set_as_default=False) as outside:
        counter = outside.submit(Counter, actor=True).result(timeout=20)
        calls = [counter.increment() for _ in range(50)]
        assert [call.result(timeout=20) for call in calls] == list(range(1, 51))
        assert counter.make_future().result(timeout=20).result(timeout=20) == 49
        assert counter.n == 50
        with pytest.raises(ZeroDivisionError):
            counter.fail().result(timeout=20)


@on_a_loop
async def test_an_asynchronous_client_awaits(cluster: LocalCluster) -> None:
    async with Client(cluster, asynchronous=True) as client:
        counter = await client.submit(Counter, actor=True)
        assert await asyncio.gather(*[counter.increment() for _ in range(5)]) == [1, 2, 3, 4, 5]
        assert await counter.n == 5
        call = counter.increment()
        with pytest.raises(RuntimeError, match="await it"):
            call.result()
        assert await call == 6
        assert call.result() == 6
        with pytest.raises(ZeroDivisionError):
            await counter.fail()
        with pytest.raises(AttributeError):
            await counter.nothing


def test_a_call_is_awaited_on_any_loop(counter: Actor) -> None:
    async def work() -> int:
        return await asyncio.wait_for(counter.increment(), 20)

    assert asyncio.run(work()) == 1


# -- Ends ------------------------------------------------------------------------------------------


def test_an_actor_is_freed_when_nobody_holds_it(client: Client, tmp_path: Path) -> None:
    class Mark:
        def __init__(self, path: Path) -> None:
            self.path = path

        def touch(self) -> None:
            pass

        def __del__(self) -> None:
            self.path.touch()

    future = client.submit(Mark, tmp_path / "end", actor=True)
    mark = future.result(timeout=20)
    del future
    mark.touch().result(timeout=20)
    assert not (tmp_path / "end").exists()
    del mark
    wait_until((tmp_path / "end").exists, 20)
    wait_until(lambda: not any(client.run(_n_actor_threads, timeout=5).values()), 20)


def _n_actor_threads() -> int:
    return sum(thread.name == "hpcdask-actor" for thread in threading.enumerate())


def test_a_cancelled_actor_says_so(client: Client) -> None:
    future = client.submit(Counter, actor=True)
    counter = future.result(timeout=20)
    client.cancel(future, reason="enough", timeout=10)
    with pytest.raises(LostActorError, match="enough"):
        counter.increment()


def test_a_closed_client_calls_no_actor(cluster: LocalCluster, gate: Path) -> None:
    with Client(cluster, set_as_default=False) as closing:
        counter = closing.submit(Counter, actor=True).result(timeout=20)
        pending = counter.wait_for(gate)
        counter.pause("it is there").result(timeout=20)
    with pytest.raises(CommClosedError, match="is closed"):
        counter.increment()
    with pytest.raises(CommClosedError, match="is closed"):
        pending.result(timeout=20)


def test_an_actor_is_not_made_again_for_what_needs_it(client: Client) -> None:
    counter = client.submit(Counter, actor=True)
    wait(counter, timeout=20)
    used = client.submit(lambda counter: counter.increment().result(timeout=20), counter)
    assert used.result(timeout=20) == 1
    key = counter.key
    del counter
    wait_until(lambda: not any(key in kept for kept in client.has_what(timeout=5).values()))
    client.run(_lose, used.key, timeout=5)
    with pytest.raises(LostActorError, match="not made a second time"):
        client.submit(abs, used, pure=False).result(timeout=20)


def _lose(key: str, dask_worker: Any) -> None:
    """Drop a value, as for want of memory."""
    from hpcdask.messages import KeysDropped, Version

    task = dask_worker.state.tasks.get(key)
    if task is not None:
        version = Version(key, task.attempt)
        dask_worker.state._withdraw(task)
        dask_worker.state.outbox.append(KeysDropped((version,)))
        dask_worker.loop.call_soon_threadsafe(dask_worker._act)


@pytest.fixture(scope="module")
def short_lived() -> Iterator[Client]:
    """Workers that tests may end, or stop for as long as they like."""
    of_its_own = {"n_workers": 2, "threads_per_worker": 1, "set_as_default": False}
    with (
        config.set({"comm.timeouts.stall": "100ms", "scheduler.worker-ttl": "0"}),
        Client(**of_its_own) as client,
    ):
        yield client


def pid_of_actor(actor: Actor) -> int:
    return actor.pid().result(timeout=20)


class Mortal(Counter):
    def pid(self) -> int:
        return os.getpid()


def test_a_killed_worker_fails_what_is_under_way_and_all_later_use(short_lived: Client) -> None:
    future = short_lived.submit(Mortal, actor=True)
    mortal = future.result(timeout=20)
    pid = pid_of_actor(mortal)
    there = short_lived.submit(in_turn, mortal, 1, pure=False)
    assert there.result(timeout=20)[1] == [1]
    pending = [mortal.pause("long", 60.0), mortal.wait_for(Path("/nowhere"))]
    mortal.pause("begun").result(timeout=20)
    os.kill(pid, signal.SIGKILL)
    for call in pending:
        with pytest.raises(LostActorError, match=mortal.key):
            call.result(timeout=20)
    with pytest.raises(LostActorError, match="SIGKILL"):
        future.result(timeout=20)
    for use in (lambda: mortal.increment(), lambda: mortal.n):
        with pytest.raises(LostActorError, match="What it knew is lost"):
            use()
    with pytest.raises(LostActorError):
        short_lived.submit(in_turn, mortal, 1, pure=False).result(timeout=20)
    # A program for distributed expects these.
    assert issubclass(LostActorError, ValueError)
    assert issubclass(LostActorError, OSError)


def test_a_silent_worker_is_waited_for_until_the_scheduler_gives_it_up(
    short_lived: Client,
) -> None:
    mortal = short_lived.submit(Mortal, actor=True).result(timeout=20)
    pid = pid_of_actor(mortal)
    os.kill(pid, signal.SIGSTOP)
    try:
        call = mortal.increment()
        with pytest.raises(WaitTimeoutError):
            call.result(timeout=0.5)  # five times as long as one that fetches data would wait
        os.kill(pid, signal.SIGCONT)
        assert call.result(timeout=20) == 1
        os.kill(pid, signal.SIGSTOP)
        call = mortal.increment()
        short_lived.run_on_scheduler(_give_up, mortal._address, timeout=20)
        with pytest.raises(LostActorError, match="What it knew is lost"):
            call.result(timeout=20)
    finally:
        os.kill(pid, signal.SIGCONT)


def _give_up(address: str, dask_scheduler: Any) -> None:
    dask_scheduler.workers[address].abort("it is silent")


def test_a_worker_that_retires_takes_its_actors_along(
    short_lived: Client, caplog: pytest.LogCaptureFixture
) -> None:
    short_lived.wait_for_workers(2, timeout=30)
    mortal = short_lived.submit(Mortal, actor=True).result(timeout=20)
    address = mortal._address
    assert list(short_lived.retire_workers([address], timeout=20)) == [address]
    wait_until(lambda: mortal._future.status == "error")
    with pytest.raises(LostActorError, match="What it knew is lost"):
        mortal.increment()
    assert "takes 1 actors along" in caplog.text
