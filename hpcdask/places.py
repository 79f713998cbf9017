"""Which task the calling code is part of, and its place among those that its worker runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcdask.execution import TaskThreads

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


def coroutine_is_of(worker: object, place: Place | None = None) -> None:
    """Let `current_worker` give `worker` in the running asyncio task, and `current_place` this."""
    _worker.set(worker)
    _place.set(place)  # also None: who has asked for it may be a task


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
