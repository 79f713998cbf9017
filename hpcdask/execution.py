"""Running tasks in threads: what happens between an `Execute` and its outcome."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from hpcdask.core.worker_state import Abandon, Execute, NotStarted, Outcome, Postponed, Raised, Ran
from hpcdask.errors import Reschedule
from hpcdask.places import Place, coroutine_is_of, current
from hpcdask.sizes import sizeof, small
from hpcdask.tracebacks import to_task_error
from hpcdask.wire.arguments import loads_arguments
from hpcdask.wire.serialize import loads

#: Seconds between two looks whether the first task has come.
_IDLE = 0.2

T = TypeVar("T")


class _Return(NamedTuple):
    """In the queue of the threads: who takes it ends, for the sake of a run that rejoins."""

    place: Place
    back: concurrent.futures.Future[None]


class TaskThreads:
    """Threads that take tasks from a queue and hand outcomes back to the event loop in batches.

    Parameters
    ----------
    worker : object
        What `get_worker` returns in a task.
    address : str
        Named in errors.
    on_outcomes : callable
        Called on the loop with a list of (key, attempt, Outcome); one wake-up of the loop serves
        all runs that ended until it got its turn.
    on_lent : callable
        Called on the loop with the number of tasks that wait for others or have seceded, when it
        has changed.

    Attributes
    ----------
    lock : threading.Lock
        Held while counts of threads and the state of places change.
    """

    def __init__(
        self,
        worker: object,
        address: str,
        nthreads: int,
        on_outcomes: Callable[[list[tuple[str, int, Outcome]]], None],
        on_lent: Callable[[int], None],
    ) -> None:
        self.worker, self._address = worker, address
        self._nthreads = nthreads
        self._on_outcomes, self._on_lent = on_outcomes, on_lent
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Execute | _Return | None] = SimpleQueue()
        self._outcomes: deque[tuple[str, int, Outcome]] = deque()
        self._wake_is_due = False
        self._abandoned: set[tuple[str, int]] = set()
        self._functions: dict[bytes, Any] = {}
        self.lock = threading.Lock()
        self._n_running = 0  # threads that are alive
        self._n_lent = 0  # of these, those whose task waits for other tasks or has seceded
        self._returns: dict[int, concurrent.futures.Future[None]] = {}  # not done; by their id
        self._lent_is_due = False
        self._closed = False
        self._closing = threading.Event()  # the same, to wait for
        self.profiler: Any = None  # of a worker that keeps a profile, once a task has run

    def start(self) -> None:
        """Start the threads."""
        for _ in range(self._nthreads):
            self._start_thread()

    def profile(self, is_busy: Callable[[], bool], interval: float) -> None:
        """Look at what the tasks do every `interval` seconds, while there are any."""

        def run() -> None:
            while not self._closing.wait(_IDLE):
                if is_busy():
                    from hpcdask.profiling import Profiler  # a worker without tasks needs it not

                    self.profiler = Profiler(self, is_busy, interval, self._closing)
                    self.profiler.run()

        threading.Thread(target=run, name="hpcdask-profile", daemon=True).start()

    def submit(self, task: Execute) -> None:
        """Queue a run."""
        self._queue.put(task)

    def abandon(self, run: Abandon) -> None:
        """Do not start a run, if it has not started yet."""
        self._abandoned.add((run.key, run.attempt))

    def forget(self, function_id: bytes) -> None:
        """Drop an unpickled function."""
        self._functions.pop(function_id, None)

    def forget_all(self) -> None:
        """Drop all unpickled functions; tasks that use them load them anew."""
        self._functions.clear()

    def close(self) -> None:
        """Let the threads end after what they are running."""
        self._closing.set()
        with self.lock:
            self._closed = True
            for _ in range(self._n_running):
                self._queue.put(None)
            returns, self._returns = self._returns, {}
            for back in returns.values():  # its turn would not come any more
                back.set_result(None)

    def lend(self, change: int) -> None:
        """So many more places are lent; the lock is held."""
        self._n_lent += change
        if self._n_running - self._n_lent < self._nthreads and not self._closed:
            self._start_thread()
        self._tell_lent_soon()

    def give_back_soon(self, place: Place, back: concurrent.futures.Future[None]) -> bool:
        """Queue a return behind the runs that are due; False if all ends. The lock is held."""
        if self._closed:
            return False
        self._returns[id(back)] = back
        self._queue.put(_Return(place, back))
        return True

    def _tell_lent_soon(self) -> None:
        if not self._lent_is_due:
            self._lent_is_due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._tell_lent)

    def _tell_lent(self) -> None:
        self._lent_is_due = False  # before the look, as in `_hand_over`
        self._on_lent(self._n_lent)

    # -- In the threads ------------------------------------------------------------------------

    def _start_thread(self) -> None:
        self._n_running += 1
        threading.Thread(target=self._run, name="hpcdask-task", daemon=True).start()

    def _run(self) -> None:
        current.worker = self.worker
        while True:
            task = self._queue.get()
            if task is None:
                return
            if type(task) is _Return:
                if self._ends_for(task):
                    return
                continue
            assert type(task) is Execute
            run = (task.key, task.attempt)
            outcome: Outcome
            if run in self._abandoned:
                outcome = NotStarted()
            else:
                place = current.place = Place(self, task.key, task.attempt)
                outcome = self._outcome(task, place)
                place.end()
            self._outcomes.append((task.key, task.attempt, outcome))
            del task, outcome  # a value must not live on in an idle thread
            if not self._wake_is_due:
                self._wake_is_due = True
                try:
                    self._loop.call_soon_threadsafe(self._hand_over)
                except RuntimeError:  # the loop is closed: nobody cares any more
                    return
            if self._n_running - self._n_lent > self._nthreads and self._is_surplus():
                return

    def _is_surplus(self) -> bool:
        """Whether this thread only stood in for one whose place was lent and goes on now."""
        with self.lock:
            return self._leave_if_surplus()

    def _leave_if_surplus(self) -> bool:
        is_surplus = self._n_running - self._n_lent > self._nthreads
        self._n_running -= is_surplus
        return is_surplus

    def _ends_for(self, due: _Return) -> bool:
        """Give a seceded run its place back; say whether it was this thread's."""
        with self.lock:
            due.place.returned()
            is_surplus = self._leave_if_surplus()
            if self._returns.pop(id(due.back), None) is not None:
                due.back.set_result(None)
            return is_surplus

    def _hand_over(self) -> None:
        self._wake_is_due = False  # before the look: what is appended from now on wakes again
        outcomes = []
        while self._outcomes:
            key, attempt, outcome = self._outcomes.popleft()
            self._abandoned.discard((key, attempt))  # abandoned as it ended
            outcomes.append((key, attempt, outcome))
        self._on_outcomes(outcomes)

    def _outcome(self, task: Execute, place: Place) -> Outcome:
        """Run one task; whatever it does ends up in the outcome."""
        start = perf_counter()
        try:
            function_id = task.function.function_id
            function = self._functions.get(function_id)
            try:
                if function is None:
                    function = self._functions[function_id] = loads(task.function.code)
                args, kwargs = loads_arguments(task.arguments, task.inputs)
            except Exception as exc:
                from hpcdask.unreadable import unreadable_task  # not before something goes wrong

                raise unreadable_task(exc, task, function is None, self._address) from None
            start = perf_counter()
            value = function(*args, **kwargs)
            if inspect.iscoroutine(value):
                value = self._finish(value, place)
            duration = perf_counter() - start - place.seconds_away()
            return Ran(value, sizeof(value), duration, small(value) if task.wanted else None)
        except Reschedule:
            return Postponed()
        except BaseException as exc:  # SystemExit and KeyboardInterrupt, too, are only this task's
            error = to_task_error(exc, task.key, self._address)
            exc.__traceback__ = None  # it holds the frames, and they the inputs
            return Raised(error, perf_counter() - start - place.seconds_away())

    def _finish(self, coroutine: Coroutine[Any, Any, Any], place: Place) -> Any:
        """Run a coroutine function's body on the worker's loop; this thread waits."""
        work = self._ended(coroutine, place)
        value, exc = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        if exc is not None:
            raise exc
        return value

    async def _ended(
        self, coroutine: Coroutine[Any, Any, Any], place: Place
    ) -> tuple[Any, BaseException | None]:
        """Await a task's coroutine; a SystemExit in it must not reach the loop, which it ends."""
        coroutine_is_of(self.worker, place)
        try:
            return await coroutine, None
        except BaseException as exc:
            return None, exc
