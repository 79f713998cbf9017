"""Futures: what a client knows of a task, and the handle that a user holds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hpcdask.client.loop import slices, uncarried
from hpcdask.client.reasons import why_pending
from hpcdask.errors import FutureCancelledError, WaitTimeoutError
from hpcdask.messages import Blob, TaskError
from hpcdask.places import lent_thread, runs_task
from hpcdask.tracebacks import to_exception, to_traceback
from hpcdask.wire.arguments import loads_value

if TYPE_CHECKING:
    from hpcdask.client.client import Client
    from hpcdask.client.retained import Recipe


class FutureState:
    """What a client knows of one key; shared by all its futures.

    Written on the client's loop only. Readers in other threads look at `status` first, which is
    set last.
    """

    __slots__ = ("error", "key", "reason", "recipe", "refs", "since", "status", "value", "waiters")

    def __init__(self, key: str) -> None:
        self.key = key
        self.status = "pending"
        self.refs = 0
        self.since = 0  # number of the want that began this life of the key
        self.value: Blob | None = None  # if it came along with the message that it is done
        self.error: TaskError | None = None
        self.reason = ""  # of a cancellation
        self.waiters: list[Callable[[FutureState], None]] | None = None
        self.recipe: Recipe | None = None  # to submit it again, until it is done

    def end(self, status: str) -> None:
        """It is finished, in error or cancelled: tell those who wait."""
        self.status = status
        recipe = self.recipe
        if recipe is not None:
            self.recipe = None
            recipe.pending -= 1
            if not recipe.pending:  # or a pipeline that never runs dry would keep all before it
                recipe.inputs = ()
        self.tell_waiters()

    def tell_waiters(self) -> None:
        """Call all that wait, each once."""
        waiters, self.waiters = self.waiters, None
        while waiters:
            try:
                waiter = waiters.pop(0)
            except IndexError:  # taken out by who waits no more
                break
            waiter(self)

    def lost(self) -> None:
        """It is computed again: its value was lost, or it failed and is tried once more."""
        if self.status in ("finished", "error"):
            self.status, self.value = "pending", None

    def let_go(self) -> bool:
        """The last handle is gone, in any thread; say whether waiters are to be told, on the loop.

        No news of the key will come any more. What tasks of others are made by is kept.
        """
        if self.status == "pending" or (self.status == "finished" and self.value is None):
            self.reason, self.status = "its future was released", "cancelled"
        return bool(self.waiters)

    def when_done(self, waiter: Callable[[FutureState], None]) -> None:
        """Call `waiter` once, on the client's loop, or here if it is done already.

        Safe from any thread: the waiter is in the list before the status is read, and `end` sets
        the status before it takes the list. Whoever takes the waiter out calls it.
        """
        with _adding:
            waiters = self.waiters
            if waiters is None:
                waiters = self.waiters = []
            waiters.append(waiter)
        if self.status != "pending":
            try:
                waiters.remove(waiter)
            except ValueError:
                return  # `end` was quicker
            waiter(self)

    def when_changed(self, waiter: Callable[[FutureState], None]) -> None:
        """Call `waiter` once, on the client's loop, when it ends next; it may be done already."""
        with _adding:
            if self.waiters is None:
                self.waiters = []
            self.waiters.append(waiter)

    def wait_no_more(self, waiter: Callable[[FutureState], None]) -> None:
        """Undo `when_done`, if it has not been called."""
        waiters = self.waiters
        if waiters is not None:
            try:
                waiters.remove(waiter)
            except ValueError:
                pass

    def exception(self) -> BaseException | None:
        """The error that asking for the value raises, if it does."""
        if self.status == "error":
            assert self.error is not None
            return to_exception(self.error)
        if self.status == "cancelled":
            return FutureCancelledError(f"{self.key}: {self.reason}")
        return None


#: Two threads that begin to wait for one future must not each make it a list.
_adding = threading.Lock()


class Latch:
    """Waits in a thread for a number of futures, and is woken once.

    Parameters
    ----------
    fail_early : bool
        Also wake at the first that does not finish well.
    first : bool
        Wake as soon as any is done.
    """

    def __init__(
        self, states: Iterable[FutureState], fail_early: bool = False, first: bool = False
    ) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._counting = threading.Lock()
        self._fail_early, self._first = fail_early, first
        states = list(states)
        self._pending = [state for state in states if state.status == "pending"]
        self._remaining = len(self._pending) + 1
        self._is_early = False
        if len(self._pending) < len(states) and (
            first or (fail_early and any([s.status in ("error", "cancelled") for s in states]))
        ):
            self._count(now=True)
            return
        done = self._done  # one bound method for all
        for state in self._pending:
            state.when_done(done)
        self._count()

    def _done(self, state: FutureState) -> None:
        self._count(self._first or (self._fail_early and state.status != "finished"))

    def _count(self, now: bool = False) -> None:
        with self._counting:
            self._is_early |= now
            self._remaining = 0 if now and self._remaining > 0 else self._remaining - 1
            if self._remaining == 0:
                self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        """Wait; say whether it happened in time."""
        happened = False
        try:
            if self._lock.acquire(blocking=False):
                happened = True
            else:
                with lent_thread():
                    happened = _acquire(self._lock, timeout)
        finally:
            if not happened:  # who asks every second must not leave something behind each time
                self._leave()
        if self._is_early:
            self._leave()
        return happened

    def _leave(self) -> None:
        for state in self._pending:
            state.wait_no_more(self._done)


def _acquire(lock: threading.Lock, timeout: float | None) -> bool:
    for piece in slices(timeout):
        if lock.acquire(timeout=piece):
            return True
    return False


class Future:
    """A value that is computed on the cluster.

    While anyone holds a future of a key its value is kept; so drop those you need no more.
    Futures may be arguments of further tasks, within lists, tuples, sets and dicts too. Awaiting
    one gives its value.

    Parameters
    ----------
    key : str
        The task.
    client : Client, optional
        By default the current one.

    Examples
    --------
    >>> future = client.submit(pow, 2, 10)
    >>> future.result(timeout=10)
    1024
    """

    __slots__ = ("__weakref__", "_state", "client", "key")

    #: Tells dask that in a graph it stands for its value.
    __dask_future__ = True

    def __init__(self, key: str, client: Client | None = None) -> None:
        if client is None:
            from hpcdask.client.current import get_client

            client = get_client()
        self.key = key
        self.client = client
        self._state = client._hold(key)

    @property
    def status(self) -> str:
        """ "pending", "finished", "error" or "cancelled"."""
        return self._state.status

    def done(self) -> bool:
        """Whether it has its value, or will not get one."""
        return self._state.status != "pending"

    def cancelled(self) -> bool:
        """Whether its task was cancelled."""
        return self._state.status == "cancelled"

    def result(self, timeout: float | str | None = None) -> Any:
        """Wait for the value and fetch it.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds.

        Returns
        -------
        object
            The value; with an asynchronous client, an awaitable of it.

        Raises
        ------
        WaitTimeoutError
            If it takes longer.
        FutureCancelledError
            If the task was cancelled.
        Exception
            What the task raised, of its own type, with the remote traceback.
        """
        client = self.client
        timeout = client._seconds(timeout)
        if client.asynchronous:
            return self._result(timeout)
        state = self._state
        if state.status == "pending":
            start = time.monotonic()
            if not Latch([state]).wait(timeout):
                why = client._sync(why_pending(client, [state], timeout or 0))
                raise WaitTimeoutError(f"{self.key} is not done within {timeout:g} s{why}")
            if timeout is not None:
                timeout = max(timeout - (time.monotonic() - start), 0.0)
        value = state.value
        if state.status == "finished" and value is not None:
            return loads_value(value)
        return loads_value(client._sync(self._blob(timeout)))

    async def _blob(self, timeout: float | None) -> Blob:
        blobs = await self.client._blobs([self._state], "raise", timeout, None)
        return blobs[0]  # type: ignore[no-any-return]

    async def _result(self, timeout: float | None = None) -> Any:
        return loads_value(await uncarried(self._blob(timeout)))

    async def _wait(self, timeout: float | None = None) -> FutureState:
        await self.client._all_done([self._state], timeout)
        return self._state

    def exception(self, timeout: float | str | None = None) -> Any:
        """Wait until it is done and return what it raised, or None."""

        async def exception() -> BaseException | None:
            return (await self._wait(self.client._seconds(timeout))).exception()

        return self.client._maybe_sync(exception())

    def traceback(self, timeout: float | str | None = None) -> Any:
        """Wait until it is done and return the traceback of what it raised, or None.

        Returns
        -------
        types.TracebackType or None
            With the remote files, lines and functions, for the `traceback` module.
        """

        async def traceback() -> TracebackType | None:
            state = await self._wait(self.client._seconds(timeout))
            has_failed = state.status == "error"
            return to_traceback(state.error) if has_failed and state.error is not None else None

        return self.client._maybe_sync(traceback())

    def cancel(self, reason: str | None = None, msg: str | None = None, force: bool = False) -> Any:
        """Stop computing it, for this reason; see `Client.cancel`."""
        return self.client.cancel([self], reason=reason, msg=msg, force=force)

    def retry(self, timeout: float | str | None = None) -> Any:
        """Run its task again, which has failed; see `Client.retry`."""
        return self.client.retry([self], timeout=timeout)

    @property
    def executor(self) -> Client:
        """The client, by an older name."""
        return self.client

    @property
    def type(self) -> type[Any] | None:
        """Type of the value, if that is here already; large values stay on their workers."""
        value = self._state.value
        return type(loads_value(value)) if self.status == "finished" and value is not None else None

    def add_done_callback(self, fn: Callable[[Future], Any]) -> None:
        """Call ``fn(future)`` once it is done, in the thread that the client's callbacks share."""
        callbacks = self.client._callbacks
        self._state.when_done(lambda state: callbacks.put(partial(_call_back, fn, self)))

    def release(self) -> None:
        """Drop this handle, as deleting it does."""
        client = getattr(self, "client", None)
        state = getattr(self, "_state", None)
        if client is not None and state is not None and state is not _RELEASED:
            # May run within any other code of any thread, as finalizers do: takes no lock.
            self._state = _RELEASED
            client._let_go(self.key)

    def __del__(self) -> None:
        self.release()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._result().__await__()

    def __reduce__(self) -> Any:
        from hpcdask.client.submission import note_pickled

        note_pickled(self)
        return _unpickled, (self.key, self.client.scheduler_id, self.client.scheduler_address)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "hpcdask.Future", self.key

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<Future: {self.status}, key: {self.key}>"


#: What released futures still know.
_RELEASED = FutureState("released")
_RELEASED.status, _RELEASED.reason = "cancelled", "this future was released"


def _call_back(function: Callable[[Future], Any], future: Future) -> None:
    try:
        function(future)
    except BaseException:  # sys.exit() in one must not keep the next from being called
        import logging

        logging.getLogger("hpcdask.client").exception("a callback of %r failed", future)


def _unpickled(key: str, scheduler_id: str, address: str) -> Future:
    from hpcdask.client.current import client_of_scheduler

    client = client_of_scheduler(scheduler_id, address)
    future = Future(key, client)
    if runs_task() and client._has_unknown_wants:
        # The task's end is told on another connection, and would release what it depends on: the
        # scheduler must know before that this future holds it.
        client._sync(client._wants_are_known())
    return future


class Callbacks:
    """Calls functions one after the other in a thread, which lives while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], Any]] = deque()
        self._is_running = False

    def put(self, function: Callable[[], Any]) -> None:
        """Have a function called soon."""
        with self._lock:
            self._waiting.append(function)
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="hpcdask-callbacks", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_running = False
                    return
                function = self._waiting.popleft()
            function()
            del function


async def until_done(
    states: Iterable[FutureState], first: bool = False, fail_early: bool = False
) -> None:
    """Wait on the client's loop until all are done, or the first is, or fails."""
    loop = asyncio.get_running_loop()
    pending = []
    for state in states:
        if state.status == "pending":
            pending.append(state)
        elif first or (fail_early and state.status != "finished"):
            return
    if not pending:
        return
    remaining = len(pending)
    woken = loop.create_future()

    def done(state: FutureState) -> None:
        nonlocal remaining
        remaining -= 1
        is_over = not remaining or first or (fail_early and state.status != "finished")
        if is_over and not woken.done():
            woken.set_result(None)

    for state in pending:
        state.when_done(done)
    try:
        with lent_thread():
            await woken
    finally:
        if remaining:
            for state in pending:
                state.wait_no_more(done)
