"""Running tasks in threads: what happens between an `Execute` and its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from itertools import islice
from queue import SimpleQueue
from time import perf_counter
from typing import Any, TypeVar

from hpcdask.core.worker_state import Abandon, Execute, NotStarted, Outcome, Raised, Ran
from hpcdask.messages import Blob
from hpcdask.tracebacks import to_task_error
from hpcdask.wire.arguments import loads_arguments
from hpcdask.wire.serialize import dumps, loads

#: Pickled results up to this size, in bytes, go to waiting clients with the finished message.
SMALL_RESULT = 2048

#: A size that is told to others, in bytes; what claims more, such as a view that repeats itself,
#: would not fit into a message.
_MOST = 2**60

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})
_CONTAINERS = frozenset({tuple, list, set, frozenset, dict})

T = TypeVar("T")

#: What the task in this thread belongs to: `.worker` and `.threads`.
current = threading.local()
#: The same of a coroutine task, which runs on the loop among others.
_worker: ContextVar[Any] = ContextVar("worker", default=None)
_threads: ContextVar[TaskThreads | None] = ContextVar("threads", default=None)


def current_worker() -> Any:
    """The worker on whose behalf the calling code runs, or None."""
    return getattr(current, "worker", None) or _worker.get()


def runs_task() -> bool:
    """Whether a task runs in the calling thread."""
    return getattr(current, "threads", None) is not None


def coroutine_is_of(worker: object) -> None:
    """Let `current_worker` give `worker` in the running asyncio task."""
    _worker.set(worker)


@contextlib.contextmanager
def on_behalf_of(worker: object) -> Iterator[None]:
    """Let `current_worker` give `worker` in this thread, for code without an await."""
    before = getattr(current, "worker", None)
    current.worker = worker
    try:
        yield
    finally:
        current.worker = before


def lent_thread() -> contextlib.AbstractContextManager[None]:
    """While a task waits, its place may serve other tasks; elsewhere this does nothing."""
    threads: TaskThreads | None = getattr(current, "threads", None) or _threads.get()
    return _NOTHING_LENT if threads is None else threads.blocked()


_NOTHING_LENT = contextlib.nullcontext()


def in_thread(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """Call a function in a thread of its own.

    Not in the loop's executor, whose threads are joined at exit: one that is stuck would keep the
    process for ever.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def tell(set_outcome: Callable[[Any], None], what: Any) -> None:
        if not outcome.cancelled():
            set_outcome(what)

    def run() -> None:
        try:
            result = function(*args)
        except BaseException as exc:
            # StopIteration cannot be set on a future.
            problem = RuntimeError(repr(exc)) if isinstance(exc, StopIteration) else exc
            told: tuple[Any, Any] = (outcome.set_exception, problem)
        else:
            told = (outcome.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, *told)

    threading.Thread(target=run, name="hpcdask-call", daemon=True).start()
    return outcome


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
        Called on the loop with the number of tasks that wait for others, when it has changed.
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
        self._queue: SimpleQueue[Execute | None] = SimpleQueue()
        self._outcomes: deque[tuple[str, int, Outcome]] = deque()
        self._wake_is_due = False
        self._abandoned: set[tuple[str, int]] = set()
        self._functions: dict[bytes, Any] = {}
        self._lock = threading.Lock()
        self._n_running = 0  # threads that are alive
        self._n_blocked = 0  # threads that wait for other tasks
        self._lent_is_due = False
        self._closed = False

    def start(self) -> None:
        """Start the threads."""
        for _ in range(self._nthreads):
            self._start_thread()

    def submit(self, task: Execute) -> None:
        """Queue a run."""
        self._queue.put(task)

    def abandon(self, run: Abandon) -> None:
        """Do not start a run, if it has not started yet."""
        self._abandoned.add((run.key, run.attempt))

    def forget(self, function_id: bytes) -> None:
        """Drop an unpickled function."""
        self._functions.pop(function_id, None)

    def close(self) -> None:
        """Let the threads end after what they are running."""
        self._closed = True
        for _ in range(self._n_running):
            self._queue.put(None)

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Lend this thread's place to another one while it waits for other tasks.

        Without this a task that waits for tasks of its own would keep them from running.
        """
        with self._lock:
            self._n_blocked += 1
            if self._n_running - self._n_blocked < self._nthreads and not self._closed:
                self._start_thread()
        self._tell_lent_soon()
        try:
            yield
        finally:
            with self._lock:
                self._n_blocked -= 1
            self._tell_lent_soon()

    @property
    def lent(self) -> int:
        """Tasks that wait for others, or have seceded."""
        return self._n_blocked

    def _tell_lent_soon(self) -> None:
        if not self._lent_is_due:
            self._lent_is_due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._tell_lent)

    def _tell_lent(self) -> None:
        self._lent_is_due = False  # before the look, as in `_hand_over`
        self._on_lent(self._n_blocked)

    # -- In the threads ------------------------------------------------------------------------

    def _start_thread(self) -> None:
        self._n_running += 1
        threading.Thread(target=self._run, name="hpcdask-task", daemon=True).start()

    def _run(self) -> None:
        current.worker, current.threads = self.worker, self
        while True:
            task = self._queue.get()
            if task is None:
                return
            run = (task.key, task.attempt)
            outcome: Outcome
            if run in self._abandoned:
                outcome = NotStarted()
            else:
                outcome = self._outcome(task)
            self._outcomes.append((task.key, task.attempt, outcome))
            del task, outcome  # a value must not live on in an idle thread
            if not self._wake_is_due:
                self._wake_is_due = True
                try:
                    self._loop.call_soon_threadsafe(self._hand_over)
                except RuntimeError:  # the loop is closed: nobody cares any more
                    return
            if self._n_running - self._n_blocked > self._nthreads and self._is_surplus():
                return

    def _is_surplus(self) -> bool:
        """Whether this thread only stood in for one that was blocked and goes on now."""
        with self._lock:
            if self._n_running - self._n_blocked > self._nthreads:
                self._n_running -= 1
                return True
            return False

    def _hand_over(self) -> None:
        self._wake_is_due = False  # before the look: what is appended from now on wakes again
        outcomes = []
        while self._outcomes:
            key, attempt, outcome = self._outcomes.popleft()
            self._abandoned.discard((key, attempt))  # abandoned as it ended
            outcomes.append((key, attempt, outcome))
        self._on_outcomes(outcomes)

    def _outcome(self, task: Execute) -> Outcome:
        """Run one task; whatever it does ends up in the outcome."""
        start = perf_counter()
        try:
            function_id = task.function.function_id
            function = self._functions.get(function_id)
            if function is None:
                function = self._functions[function_id] = loads(task.function.code)
            args, kwargs = loads_arguments(task.arguments, task.inputs)
            start = perf_counter()
            value = function(*args, **kwargs)
            if inspect.iscoroutine(value):
                value = self._finish(value)
            duration = perf_counter() - start
            return Ran(value, sizeof(value), duration, _small(value) if task.wanted else None)
        except BaseException as exc:  # SystemExit and KeyboardInterrupt, too, are only this task's
            error = to_task_error(exc, task.key, self._address)
            exc.__traceback__ = None  # it holds the frames, and they the inputs
            return Raised(error, perf_counter() - start)

    def _finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine function's body on the worker's loop; this thread waits."""
        value, exc = asyncio.run_coroutine_threadsafe(self._ended(coroutine), self._loop).result()
        if exc is not None:
            raise exc
        return value

    async def _ended(self, coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
        """Await a task's coroutine; a SystemExit in it must not reach the loop, which it ends."""
        _worker.set(self.worker)
        _threads.set(self)
        try:
            return await coroutine, None
        except BaseException as exc:
            return None, exc


def sizeof(value: Any) -> int:
    """Size of a value in bytes: measured where it is cheap, else a rough guess.

    Arrays and frames tell it themselves (``nbytes``, ``memory_usage``); of a container the first
    hundred items are looked at and the mean is taken for the rest.
    """
    kind = type(value)
    if kind in _SCALARS:
        return sys.getsizeof(value)
    try:
        nbytes = getattr(value, "nbytes", None)
        if type(nbytes) is int or (nbytes is not None and hasattr(nbytes, "__index__")):
            return min(max(int(nbytes), 0) + 100, _MOST)
        if kind in _CONTAINERS and value:
            items = list(islice(value.items() if kind is dict else value, 100))
            mean = sum(map(sizeof, items)) / len(items)
            return sys.getsizeof(value) + int(mean * len(value))
        if hasattr(value, "memory_usage"):
            usage = value.memory_usage(deep=False)
            return int(usage.sum() if hasattr(usage, "sum") else usage)
        return sys.getsizeof(value)
    except Exception:  # a value that misbehaves when looked at is still a value
        return 100


def _small(value: Any) -> Blob | None:
    """Pickle of a value that surely is small; None of all others."""
    if type(value) is object or not _is_small(value, [64]):
        return None
    try:
        pickled = dumps(value)
    except Exception:
        return None
    return pickled if type(pickled) is bytes and len(pickled) <= SMALL_RESULT else None


def _is_small(value: Any, budget: list[int]) -> bool:
    """Whether a value is made of a few builtin scalars, or is one of numpy's."""
    kind = type(value)
    budget[0] -= 1
    if kind in _SCALARS:
        return sys.getsizeof(value) <= SMALL_RESULT
    if kind in _CONTAINERS:
        if len(value) > budget[0]:
            return False
        items = (*value.keys(), *value.values()) if kind is dict else value
        return all(_is_small(item, budget) for item in items)
    return kind.__module__ == "numpy" and getattr(value, "nbytes", SMALL_RESULT) < SMALL_RESULT
