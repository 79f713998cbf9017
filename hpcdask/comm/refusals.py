"""Saying who was refused, at a bounded rate."""

from __future__ import annotations

import asyncio

from hpcdask.comm.base import log


class RefusalLog:
    """One line per refused connection, but no more than a burst of 20, then 2 a second.

    A line that tells how many were left out follows as soon as there is room again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, burst: int = 20, rate: float = 2.0) -> None:
        self._loop, self._burst, self._rate = loop, burst, rate
        self._room, self._at, self._left_out = float(burst), loop.time(), 0
        self._timer: asyncio.TimerHandle | None = None

    def note(self, peer: str, reason: str) -> None:
        """Log one refusal, or count it."""
        now = self._loop.time()
        self._room = min(self._burst, self._room + (now - self._at) * self._rate)
        self._at = now
        if self._timer is None and self._room >= 1:
            self._room -= 1
            log.warning("refused a connection from %s: %s", peer, reason)
            return
        self._left_out += 1
        if self._timer is None:
            wait = (2 - self._room) / self._rate  # room for the summary and for one more line
            self._timer = self._loop.call_later(wait, self.summarise)

    def summarise(self) -> None:
        """Tell how many were left out, if any were."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._room -= 1  # it grows by time alone, and had none
            log.warning("refused %d more connections since the last such line", self._left_out)
            self._left_out = 0
