"""Messages of one connection, handled in order, but never so many at once that others wait."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter

from hpcdask.comm import Comm
from hpcdask.messages import Message

log = logging.getLogger("hpcdask.feeding")

#: Seconds after which the messages of other connections get their turn.
SLICE = 0.005


class Feed:
    """Hands on the messages of a connection as fast as others leave time for it.

    A million tasks in one submission are ten seconds of work; meanwhile other clients want
    answers, and the results of workers have to be taken up. Until it has caught up nothing more is
    read: who sends too much has to wait, and not the memory of this process.

    Parameters
    ----------
    comm : Comm
        The connection. It is ended if a message cannot be handled; those behind that one are
        dropped, since they may build on it.
    handle : callable of Message
        Deals with one of them.
    after : callable
        Called when a slice has ended.
    """

    def __init__(
        self, comm: Comm, handle: Callable[[Message], None], after: Callable[[], None]
    ) -> None:
        self._comm, self._handle, self._after = comm, handle, after
        self._waiting: deque[Message] = deque()
        self._is_due = self._is_dropped = self._is_paused = False
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
        turn_is_over = False
        try:
            if self._waiting:
                turn_is_over = self._handle_some()
                self._after()
        except Exception:
            log.exception("cannot handle messages of a connection, which is closed")
            self.drop()
            self._comm.abort("its messages could not be handled")
        if self._waiting or turn_is_over:  # the same read may have brought more frames
            self._is_due = True
            if not self._is_paused:
                self._is_paused = True
                self._comm.pause()
            asyncio.get_running_loop().call_soon(self._go_on)
            return
        if self._is_paused:
            self._is_paused = False
            self._comm.resume()
        if self._then is not None:
            then, self._then = self._then, None
            then()

    def _handle_some(self) -> bool:
        """Handle messages until none waits, or the slice is over; say whether it is."""
        waiting, handle = self._waiting, self._handle
        end = perf_counter() + SLICE
        while waiting:
            handle(waiting.popleft())
            if perf_counter() > end:
                return True
        return False

    def drop(self) -> None:
        """Forget what waits, and take no more: somebody else speaks for the other side now."""
        self._is_dropped = True
        self._waiting.clear()

    def finish(self, then: Callable[[], None]) -> None:
        """The connection has ended: call `then` after what came before that is dealt with."""
        self._then = then
        if not self._is_due:
            self._go_on()
