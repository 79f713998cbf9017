"""Messages of one connection, handled in order, but never so many at once that others wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter

from hpcdask.messages import Message

#: Seconds after which the messages of other connections get their turn.
SLICE = 0.005


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
    """

    def __init__(self, handle: Callable[[Message], None], after: Callable[[], None]) -> None:
        self._handle, self._after = handle, after
        self._waiting: deque[Message] = deque()
        self._is_due = False

    def __call__(self, batch: list[Message]) -> None:
        """Take messages that arrived together."""
        self._waiting.extend(batch)
        if not self._is_due:
            self._go_on()

    def _go_on(self) -> None:
        self._is_due = False
        waiting, handle = self._waiting, self._handle
        end = perf_counter() + SLICE
        while waiting:
            handle(waiting.popleft())
            if waiting and perf_counter() > end:
                self._is_due = True
                asyncio.get_running_loop().call_soon(self._go_on)
                break
        self._after()

    def finish(self) -> None:
        """The connection has ended: deal with what came before that."""
        while self._waiting:
            self._handle(self._waiting.popleft())
        self._after()
