"""Running tasks in threads: what happens between an `Execute` and its outcome."""

from __future__ import annotations

import asyncio
import concurrent.futures
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
from typing import Any, NamedTuple, TypeVar

from hpcdask.core.worker_state import Abandon, Execute, NotStarted, Outcome, Postponed, Raised, Ran
from hpcdask.errors import Reschedule
from hpcdask.messages import Blob
from hpcdask.tracebacks import to_task_error
from hpcdask.wire.arguments import loads_arguments
from hpcdask.wire.serialize import dumps, loads

#: Pickled results up to this size, in bytes, go to waiting clients with the finished message.
SMALL_RESULT = 2048

#: A size that is told to others, in bytes; what claims more, such as a view that repeats itself,
#: would not fit into a message.
_MOST = 2**60

#: Seconds between two looks whether the first task has come.
_IDLE = 0.2

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})
_CONTAINERS = frozenset({tuple, list, set, frozenset, dict})

T = TypeVar("T")

#: What the task in this thread belongs to: `.worker` and `.place`; of an actor's method `.turn`.
current = threading.local()
#: The same of a coroutine task, which runs on the loop among others.
_worker: ContextVar[Any] = ContextVar("worker", default=None)
_place: ContextVar[Place | None] = ContextVar("place", default=None)


def current_worker() -> Any:
    """The worker on whose behalf the calling code runs, or None."""
    return getattr(current, "worker", None) or _worker.get()


def runs_task() -> bool:
    """Whether a task runs in the calling thread."""
    return getattr(current, "place", None) is not None


def coroutine_is_of(worker: object) -> None:
    """Let `current_worker` give `worker` in the running asyncio task, which is none of a task."""
    _worker.set(worker)
    _place.set(None)  # who has asked for it may be one


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
    """While a task waits, its place may serve other tasks; elsewhere this does nothing.

    Nor may what an actor's method waits for have to wait for that method.
    """
    lender = current_place() or getattr(current, "turn", None)
    return _NOTHING_LENT if lender is None else lender.lent()


_NOTHING_LENT = contextlib.nullcontext()


def current_place() -> Place | None:
    """The place of the task that calls, or None outside of tasks."""
    return getattr(current, "place", None) or _place.get()


def secede() -> None:
    """Let the calling task leave the worker's thread pool: another thread takes its place.

    It counts no longer among the tasks that its worker runs at a time, until it ends or calls
    `rejoin`. For tasks that run long and do little. A task that only waits for futures need not
    secede: its place serves others meanwhile anyway. Again within the same task it does nothing.

    Raises
    ------
    ValueError
        If the calling code runs in no task.

    Examples
    --------
    >>> def watch(path):
    ...     secede()
    ...     while not os.path.exists(path):
    ...         time.sleep(1)
    """
    _own_place("secede").secede()


def rejoin() -> Any:
    """Let the calling task, which has called `secede`, count among its worker's tasks again.

    Waits until one of these places is free. A task that has not seceded goes on at once.

    Returns
    -------
    None or awaitable
        On a running event loop, as in a coroutine task, it cannot wait: await what it returns.

    Raises
    ------
    ValueError
        If the calling code runs in no task.
    """
    back = _own_place("rejoin").rejoin()
    # The public function raises where no loop runs.
    if asyncio._get_running_loop() is not None:
        return asyncio.wrap_future(back)
    return back.result()


def _own_place(called: str) -> Place:
    place = current_place()
    if place is None:
        raise ValueError(f"{called}() works within a task only; no task runs in this thread")
    return place


class Place:
    """One run's place among those that a worker runs at a time.

    It is lent to another thread while the run waits for other tasks, and from `secede` to
    `rejoin`. Several parts of a coroutine task may wait at a time, and some go on after its end.
    """

    __slots__ = (
        "_away",
        "_is_lent",
        "_is_over",
        "_n_waits",
        "_seceded_at",
        "_threads",
        "attempt",
        "key",
    )

    def __init__(self, threads: TaskThreads, key: str, attempt: int) -> None:
        self.key, self.attempt = key, attempt
        self._threads = threads
        self._n_waits = 0
        self._is_lent = False
        self._is_over = False
        self._seceded_at = 0.0  # on `perf_counter`; 0 of one that has not
        self._away = 0.0  # seconds between secession and return, all told

    @property
    def has_seceded(self) -> bool:
        """Whether the run has left the thread pool."""
        return self._seceded_at > 0

    def seconds_away(self) -> float:
        """How long the run has been seceded."""
        return self._away + (perf_counter() - self._seceded_at if self.has_seceded else 0.0)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Lend the place while the run waits: else tasks of its own might find none to run in."""
        with self._threads.lock:
            self._n_waits += 1
            self._settle()
        try:
            yield
        finally:
            with self._threads.lock:
                self._n_waits -= 1
                self._settle()

    def secede(self) -> None:
        """Lend the place until the run ends or rejoins."""
        with self._threads.lock:
            if not self.has_seceded and not self._is_over:
                self._seceded_at = perf_counter()
                self._settle()

    def rejoin(self) -> concurrent.futures.Future[None]:
        """Ask for the place back; the future is done when the run has it."""
        back: concurrent.futures.Future[None] = concurrent.futures.Future()
        back.set_running_or_notify_cancel()  # who waits no more must not cancel it
        with self._threads.lock:
            is_away = self.has_seceded and not self._is_over
            if not (is_away and self._threads.give_back_soon(self, back)):
                back.set_result(None)
        return back

    def returned(self) -> None:
        """The run counts again; the lock is held."""
        self._away, self._seceded_at = self.seconds_away(), 0.0
        self._settle()

    def end(self) -> None:
        """The run has ended, and what it lent comes back."""
        with self._threads.lock:
            self._is_over = True
            self._settle()

    def _settle(self) -> None:
        is_lent = not self._is_over and (self._n_waits > 0 or self.has_seceded)
        if is_lent != self._is_lent:
            self._is_lent = is_lent
            self._threads.lend(1 if is_lent else -1)


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
            return Ran(value, sizeof(value), duration, _small(value) if task.wanted else None)
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
        _worker.set(self.worker)
        _place.set(place)
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
        if hasattr(kind, "memory_usage"):
            return _size_of_table(value)
        nbytes = getattr(value, "nbytes", None)
        if type(nbytes) is int or (nbytes is not None and hasattr(nbytes, "__index__")):
            return min(max(int(nbytes), 0) + 100, _MOST)
        container: Any = kind if kind in _CONTAINERS else _container_of(kind)
        if container is not None and value:
            items = list(islice(value.items() if container is dict else value, 100))
            mean = sum(map(sizeof, items)) / len(items)
            return int(container.__sizeof__(value)) + int(mean * len(value))
        return sys.getsizeof(value)
    except Exception:  # a value that misbehaves when looked at is still a value
        return 100


def _container_of(kind: type) -> Any:
    """The container that a class derives from; its own ``__sizeof__`` may take long.

    dask's results of splitting a table are dicts of tables which ask each of them at length.
    """
    for container in (dict, list, tuple):
        if issubclass(kind, container):
            return container
    return None


def _size_of_table(value: Any) -> int:
    """Bytes of a table, or column, of pandas, or of what has the same method."""
    blocks = getattr(getattr(value, "_mgr", None), "blocks", None)
    if blocks is not None:
        # Asked itself, pandas makes an object of each column: 100 us, and more than some tasks.
        nbytes = sum([block.values.nbytes for block in blocks])
        return int(nbytes + value.index.nbytes) + 100
    usage = value.memory_usage(deep=False)
    return int(usage.sum() if hasattr(usage, "sum") else usage)


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
