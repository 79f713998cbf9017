"""Messages of one connection, handled in order, but never so many at once that others wait."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter

from hpcdask.messages import Message

log = logging.getLogger("hpcdask.feeding")

#: Seconds after which the messages of other connections get their turn.
SLICE = 0.003


class Feed:
    """Hands on the messages of a connection as fast as others leave time for it.

    A million tasks in one submission are ten seconds of work; meanwhile other clients want
    answers, and the results of workers have to be taken up.

    Parameters
    ----------
    handle : callable of Message
        Deals with one of them.
    after : callable
        Called when a slice has ended.
    on_error : callable of str
        Ends the connection, if a message cannot be handled; those behind it are dropped, since
        they may build on it.
    """

    def __init__(
        self,
        handle: Callable[[Message], None],
        after: Callable[[], None],
        on_error: Callable[[str], None],
    ) -> None:
        self._handle, self._after, self._on_error = handle, after, on_error
        self._waiting: deque[Message] = deque()
        self._is_due = self._is_dropped = False
        self._then: Callable[[], None] | None = None

    def __call__(self, batch: list[Message]) -> None:
        """Take messages that arrived together."""
        if self._is_dropped:
            return
        self._waiting.extend(batch)
        if not self._is_due:
            self._go_on()

    def _go_on(self) -> None:
        self._is_due = False
        try:
            self._handle_some()
            self._after()
        except Exception:
            log.exception("cannot handle messages of a connection, which is closed")
            self.drop()
            self._on_error("its messages could not be handled")
        if self._waiting:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._go_on)
        elif self._then is not None:
            then, self._then = self._then, None
            then()

    def _handle_some(self) -> None:
        waiting, handle = self._waiting, self._handle
        end = perf_counter() + SLICE
        while waiting:
            handle(waiting.popleft())
            if perf_counter() > end:
                break

    def drop(self) -> None:
        """Forget what waits, and take no more: somebody else speaks for the other side now."""
        self._is_dropped = True
        self._waiting.clear()

    def finish(self, then: Callable[[], None]) -> None:
        """The connection has ended: call `then` after what came before that is dealt with."""
        self._then = then
        if not self._is_due:
            self._go_on()
