"""The event loop behind synchronous clients and clusters: one thread for a whole process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from hpcdask.errors import HpcdaskError, WaitTimeoutError
from hpcdask.places import lent_thread

T = TypeVar("T")

#: Longest time in seconds for which a signal may stay unseen.
_SLICE = 0.5

_lock = threading.Lock()
_shared: asyncio.AbstractEventLoop | None = None
#: That of the process of which this one is a fork, which nobody runs here.
_of_parent: asyncio.AbstractEventLoop | None = None


def shared_loop() -> asyncio.AbstractEventLoop:
    """Return the process's background loop, started when first asked for."""
    global _shared
    with _lock:
        if _shared is None or _shared.is_closed():
            loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(loop,), name="hpcdask-io", daemon=True).start()
            _shared = loop
        return _shared


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


def _forget() -> None:
    """In a forked child the thread of the loop does not exist."""
    global _shared, _of_parent, _lock
    _of_parent, _shared = _shared or _of_parent, None
    _lock = threading.Lock()  # which another thread may have held just then


os.register_at_fork(after_in_child=_forget)


class Wake:
    """Has a loop call a function soon, once for all who ask before it is called.

    Attributes
    ----------
    is_due : bool
        Whether it has been asked for. The function sets it to False, before it looks at what there
        is to do.
    """

    __slots__ = ("is_due",)

    def __init__(self) -> None:
        self.is_due = False

    def ask(self, loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
        """Ask for it, from any thread, within finalizers too."""
        if not self.is_due:
            try:
                self.is_due = True
                loop.call_soon_threadsafe(function)
            except RuntimeError:  # the loop is closed, at interpreter exit
                pass
            except BaseException:  # Ctrl-C in this very moment: else it would never be called again
                self.is_due = False
                raise


def is_in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the caller runs on this very loop, and so must not wait for it."""
    # The public function raises where no loop runs, which takes ten times as long.
    return asyncio._get_running_loop() is loop


def is_of_parent(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether nobody runs this loop here, since this process is a fork of the one that does."""
    return loop is _of_parent


class CarriedError(Exception):
    """Carries the error of a task or a call through the event loop to who asked for it.

    Raised on the loop itself a SystemExit would end it, a CancelledError would cancel what raises
    it, a StopIteration would become a RuntimeError, and a TimeoutError would be taken for ours.
    """

    def __init__(self, exc: BaseException) -> None:
        super().__init__(exc)
        self._exc: BaseException | None = exc

    def unpack(self) -> BaseException:
        """Return what it carried, and forget it.

        It lives on with the frames and tasks that it came through, of which some are in a circle
        with it: `asyncio.wait_for` holds a task that holds the error which it raised.
        """
        exc, self._exc = self._exc, None
        assert exc is not None
        self.__traceback__ = self.__context__ = None
        return exc


async def uncarried(work: Awaitable[T]) -> T:
    """Await `work` and raise a carried error as what it is."""
    try:
        return await work
    except CarriedError as carried:
        exc = carried.unpack()
    try:
        raise exc
    finally:
        del exc  # its traceback has this frame: see `run_sync`


def run_sync(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], timeout: float | None = None
) -> T:
    """Run a coroutine on another thread's loop and wait for it.

    Raises
    ------
    WaitTimeoutError
        If it takes longer than `timeout` seconds; it is cancelled then.
    RuntimeError
        If called on that loop, which would wait for itself, or in a fork of its process.
    """
    if is_in_loop(loop):
        work.close()
        raise RuntimeError(
            "a blocking call on the event loop would wait for itself; "
            "use Client(asynchronous=True) and await, or call it from another thread"
        )
    if is_of_parent(loop):
        work.close()
        raise RuntimeError(
            "this client or cluster is of the process of which this one is a fork, and cannot be "
            "used here: make a Client of its own, of the same address or scheduler file"
        )
    future = asyncio.run_coroutine_threadsafe(work, loop)
    exc: BaseException | None = None
    try:
        return wait_for_result(future, timeout)
    except CarriedError as carried:
        exc = carried.unpack()
    finally:
        # What is raised has this frame in its traceback, and that of the caller. In a circle with
        # it they would keep all that these hold, futures among it, until Python looks for cyclic
        # garbage.
        del future
    try:
        raise exc  # here, since in the handler it would get that one as its context
    finally:
        del exc


def slices(timeout: float | None) -> Iterator[float]:
    """Divide a time to wait into pieces, in seconds.

    A signal that comes just before Python begins to wait, or to another thread, is not seen until
    the waiting ends, and so Ctrl-C would be lost.
    """
    if timeout is None:
        yield from itertools.repeat(_SLICE)
        return
    deadline = time.monotonic() + timeout
    left = timeout
    while True:
        yield min(max(left, 0.0), _SLICE)
        left = deadline - time.monotonic()
        if left <= 0:
            return


def wait_for_result(future: concurrent.futures.Future[T], timeout: float | None) -> T:
    """Wait in a thread for what happens on a loop; at the end it is cancelled, if it can be."""
    try:
        with lent_thread():
            for piece in slices(timeout):
                try:
                    return future.result(piece)
                except concurrent.futures.TimeoutError:
                    if future.done():  # the coroutine's own error
                        raise
        raise WaitTimeoutError(f"not done within {timeout:g} s") from None
    except HpcdaskError as exc:
        raise exc.with_traceback(
            None
        ) from exc.__cause__  # as in `CarriedError.unpack`; its text says it all
    finally:
        future.cancel()  # nothing if it is done
        del future


async def limited(work: Coroutine[Any, Any, Any], timeout: float | None) -> Any:
    """Await `work` on the loop itself, at most `timeout` seconds; see `run_sync`.

    A coroutine task has a place among its worker's tasks that serves others meanwhile.
    """
    try:
        with lent_thread():
            return await asyncio.wait_for(work, timeout)
    except CarriedError as carried:
        exc = carried.unpack()
    except asyncio.TimeoutError as late:
        if timeout is None or isinstance(late, WaitTimeoutError):
            raise
        raise WaitTimeoutError(f"not done within {timeout:g} s") from None
    try:
        raise exc
    finally:
        del exc  # as in `run_sync`
