"""The event loop behind synchronous clients and clusters: one thread for a whole process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from hpcdask.errors import WaitTimeoutError
from hpcdask.execution import current

T = TypeVar("T")

_lock = threading.Lock()
_shared: asyncio.AbstractEventLoop | None = None


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


def is_in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the caller runs on this very loop, and so must not wait for it."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def run_sync(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], timeout: float | None = None
) -> T:
    """Run a coroutine on another thread's loop and wait for it.

    Raises
    ------
    WaitTimeoutError
        If it takes longer than `timeout` seconds; it is cancelled then.
    RuntimeError
        If called on that loop, which would wait for itself.
    """
    if is_in_loop(loop):
        work.close()
        raise RuntimeError(
            "a blocking call on the event loop would wait for itself; "
            "use Client(asynchronous=True) and await, or call it from another thread"
        )
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        with lent_thread():
            return future.result(timeout)
    except concurrent.futures.TimeoutError:
        if future.done():  # the coroutine's own error
            raise
        future.cancel()
        raise WaitTimeoutError(f"not done within {timeout:g} s") from None
    except BaseException:
        future.cancel()
        raise


def lent_thread() -> Any:
    """While a task waits, its thread's place may serve other tasks; elsewhere this does nothing."""
    threads = getattr(current, "threads", None)
    return _nothing if threads is None else threads.blocked()


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        pass


_nothing = _Nothing()
