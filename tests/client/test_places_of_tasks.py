"""The threads of a worker, and the places that tasks lend, leave and get back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import pytest
from waiting import wait_until

from hpcdask.client.submission import pack_arguments, pack_function
from hpcdask.core.worker_state import Execute, Outcome, Raised, Ran
from hpcdask.execution import TaskThreads
from hpcdask.messages import DefineFunction
from hpcdask.places import lent_thread, rejoin, secede
from hpcdask.threads import in_thread


class Pool:
    """`TaskThreads` with a loop of their own in a thread, and what they told it."""

    def __init__(self, nthreads: int) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.told: list[int] = []  # numbers of lent places
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.threads: TaskThreads = self.on_loop(self._made, nthreads)

    def on_loop(self, function: Callable[..., Any], *args: Any) -> Any:
        async def called() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(10)

    def _made(self, nthreads: int) -> TaskThreads:
        threads = TaskThreads(None, "tcp://w:1", nthreads, self._ended, self.told.append)
        threads.start()
        return threads

    def _ended(self, outcomes: list[tuple[str, int, Outcome]]) -> None:
        self.outcomes.update((key, outcome) for key, _, outcome in outcomes)

    def submit(self, key: str, function: Callable[[], object]) -> None:
        _functions[key] = function
        code = pack_function(_call)
        defined = DefineFunction(code.function_id, code.name, code.code)
        arguments, _ = pack_arguments((key,), {})
        self.threads.submit(Execute(key, 1, defined, arguments, {}, False))

    def has_ended(self, *keys: str) -> bool:
        return self.outcomes.keys() >= set(keys)

    @property
    def n_active(self) -> int:
        """Threads whose place is not lent."""
        return self.threads._n_running - self.threads._n_lent

    def close(self) -> None:
        self.threads.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


_functions: dict[str, Callable[[], object]] = {}


def _call(key: str) -> object:
    return _functions[key]()


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(1)
    yield pool
    pool.close()


@pytest.fixture
def two() -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    pool.close()


class Stage:
    """A task that goes as far as the test lets it, and says how far it is."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = steps
        self.reached = 0
        self._allowed = threading.Semaphore(0)

    def __call__(self) -> object:
        result = None
        for step in self.steps:
            self.reached += 1
            assert self._allowed.acquire(timeout=20)
            result = step()
        return result

    def go_on(self) -> None:
        self._allowed.release()

    def is_at(self, step: int) -> bool:
        return self.reached == step


def nothing() -> None:
    pass


def begun(pool: Pool, key: str, *steps: Callable[[], object]) -> Stage:
    """A task that is at its first step."""
    stage = Stage(*steps)
    pool.submit(key, stage)
    wait_until(lambda: stage.is_at(1), what=f"{key} has begun")
    return stage


def gone_on(stage: Stage) -> None:
    """Let a task take a step, and wait until it is at the next."""
    step = stage.reached
    stage.go_on()
    wait_until(lambda: stage.is_at(step + 1))


def test_a_seceded_task_makes_room_for_another(pool: Pool) -> None:
    stage = begun(pool, "s", secede, nothing)
    pool.submit("x", nothing)
    gone_on(stage)
    wait_until(lambda: pool.has_ended("x"))
    assert not pool.has_ended("s")
    stage.go_on()
    wait_until(lambda: pool.has_ended("s"))
    wait_until(lambda: pool.told and pool.told[-1] == 0)
    wait_until(lambda: pool.threads._n_running == 1)


def test_seceding_twice_lends_one_place(pool: Pool) -> None:
    stage = begun(pool, "s", secede, secede, nothing)
    gone_on(stage)
    gone_on(stage)
    assert pool.threads._n_lent == 1
    assert pool.threads._n_running == 2
    stage.go_on()
    wait_until(lambda: pool.has_ended("s") and pool.threads._n_running == 1)


def test_waiting_while_seceded_lends_nothing_more(pool: Pool) -> None:
    def wait_for_others() -> None:
        with lent_thread(), lent_thread():
            pool_seen.append(pool.threads._n_lent)

    pool_seen: list[int] = []
    stage = begun(pool, "s", secede, wait_for_others, nothing)
    gone_on(stage)
    gone_on(stage)
    assert pool_seen == [1]
    assert pool.threads._n_lent == 1, "after the wait it is as seceded as before"
    stage.go_on()
    wait_until(lambda: pool.has_ended("s") and pool.threads._n_lent == 0)


def test_rejoining_takes_the_place_of_an_idle_substitute(pool: Pool) -> None:
    stage = begun(pool, "s", secede, rejoin, nothing)
    gone_on(stage)
    gone_on(stage)
    assert (pool.threads._n_running, pool.threads._n_lent) == (1, 0)
    pool.submit("x", nothing)
    stage.go_on()
    wait_until(lambda: pool.has_ended("s", "x"))


def test_rejoining_waits_for_a_busy_substitute(pool: Pool) -> None:
    stage = begun(pool, "s", secede, rejoin, nothing)
    gone_on(stage)
    other = begun(pool, "x", nothing)
    stage.go_on()
    wait_until(lambda: pool.threads._returns)
    assert stage.is_at(2), "it waits within rejoin"
    other.go_on()
    wait_until(lambda: stage.is_at(3))
    assert pool.n_active == 1
    last = Stage(nothing)
    pool.submit("y", last)
    last.go_on()
    assert pool.n_active == 1
    stage.go_on()
    wait_until(lambda: pool.has_ended("s", "x", "y"))


def test_rejoining_without_secession_does_nothing(pool: Pool) -> None:
    pool.submit("x", rejoin)
    wait_until(lambda: pool.has_ended("x"))
    assert isinstance(pool.outcomes["x"], Ran)
    assert (pool.threads._n_running, pool.threads._n_lent) == (1, 0)


def test_a_seceded_task_that_raises_gives_back_one_place(two: Pool) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    stage = begun(two, "s", secede, fail)
    gone_on(stage)
    assert two.threads._n_running == 3
    stage.go_on()
    wait_until(lambda: two.has_ended("s"))
    assert isinstance(two.outcomes["s"], Raised)
    wait_until(lambda: (two.threads._n_running, two.threads._n_lent) == (2, 0))


def test_the_next_task_of_a_thread_has_not_seceded(pool: Pool) -> None:
    for key in "abc":
        pool.submit(key, secede)
    wait_until(lambda: pool.has_ended("a", "b", "c"))
    wait_until(lambda: (pool.threads._n_running, pool.threads._n_lent) == (1, 0))
    stage = begun(pool, "s", nothing)
    assert pool.threads._n_lent == 0
    stage.go_on()
    wait_until(lambda: pool.has_ended("s"))


def test_never_do_more_run_than_there_are_places(two: Pool) -> None:
    """Forty tasks secede, rejoin and wait at random; those in a place count themselves."""
    lock = threading.Lock()
    in_place = 0
    most = 0

    def enter() -> None:
        nonlocal in_place, most
        with lock:
            in_place += 1
            most = max(most, in_place)

    def leave() -> None:
        nonlocal in_place
        with lock:
            in_place -= 1

    def task() -> None:
        enter()
        for _ in range(5):
            leave()
            secede()
            rejoin()
            enter()
        leave()

    keys = [f"t{i}" for i in range(40)]
    for key in keys:
        two.submit(key, task)
    wait_until(lambda: two.has_ended(*keys), 30)
    assert all(isinstance(two.outcomes[key], Ran) for key in keys)
    assert most <= 2
    wait_until(lambda: (two.threads._n_running, two.threads._n_lent) == (2, 0))


def test_the_duration_of_a_seceded_task_ends_where_it_seceded(pool: Pool) -> None:
    def secede_late() -> None:
        wait_until(lambda: perf_counter() > start + 0.05)
        secede()

    start = perf_counter()
    stage = begun(pool, "s", secede_late, nothing)
    gone_on(stage)
    wait_until(lambda: perf_counter() > start + 1)
    stage.go_on()
    wait_until(lambda: pool.has_ended("s"))
    outcome = pool.outcomes["s"]
    assert isinstance(outcome, Ran)
    assert 0.05 <= outcome.duration < 0.5


def test_the_end_of_the_worker_sets_free_who_waits_for_a_place(pool: Pool) -> None:
    stage = begun(pool, "s", secede, rejoin)
    gone_on(stage)
    other = begun(pool, "x", nothing)
    stage.go_on()
    wait_until(lambda: pool.threads._returns)
    pool.threads.close()
    wait_until(lambda: pool.has_ended("s"))
    other.go_on()
    wait_until(lambda: pool.has_ended("x"))


def test_a_coroutine_task_that_waits_thrice_lends_one_place(pool: Pool) -> None:
    """Its parts wait at a time, but it has only one thread to lend."""
    seen: list[int] = []

    async def part() -> None:
        with lent_thread():
            await asyncio.sleep(0)
            seen.append(pool.threads._n_lent)

    async def work() -> None:
        await asyncio.gather(part(), part(), part())

    pool.submit("c", work)
    wait_until(lambda: pool.has_ended("c"))
    assert seen == [1, 1, 1]


def test_a_coroutine_task_secedes_and_rejoins(pool: Pool) -> None:
    seen: list[int] = []
    x_has_run = threading.Event()

    async def work() -> None:
        secede()
        pool.submit("x", x_has_run.set)
        await in_thread(x_has_run.wait, 10)
        seen.append(pool.threads._n_lent)
        await rejoin()
        seen.append(pool.threads._n_lent)

    pool.submit("c", work)
    wait_until(lambda: pool.has_ended("c", "x"))
    assert isinstance(pool.outcomes["c"], Ran)
    assert seen == [1, 0]


def test_what_a_coroutine_task_leaves_behind_lends_nothing(pool: Pool) -> None:
    tasks: list[asyncio.Task[None]] = []
    go_on: list[asyncio.Event] = []

    async def rest() -> None:
        with lent_thread():
            await go_on[0].wait()
        secede()

    async def work() -> None:
        go_on.append(asyncio.Event())
        tasks.append(asyncio.create_task(rest()))
        await asyncio.sleep(0)

    pool.submit("c", work)
    wait_until(lambda: pool.has_ended("c"))
    wait_until(lambda: pool.threads._n_lent == 0)
    pool.on_loop(go_on[0].set)
    wait_until(lambda: tasks[0].done())
    assert tasks[0].exception() is None
    assert pool.threads._n_lent == 0


@pytest.mark.parametrize("call", [secede, rejoin])
def test_outside_of_tasks_there_is_no_place(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=rf"{call.__name__}\(\) works within a task only"):
        call()
