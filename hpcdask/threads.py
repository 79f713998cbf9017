"""Work that would hold up an event loop, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


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
