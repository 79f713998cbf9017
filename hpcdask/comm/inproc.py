"""Connections within one process: messages are handed over as they are.

There is no handshake, since nobody outside the process can dial one.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import Callable

from hpcdask.comm.base import Comm, Listener, OnComm, log
from hpcdask.errors import CommClosedError
from hpcdask.messages import Message

_listeners: dict[str, InprocListener] = {}
_numbers = itertools.count(1)


def _resolve(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class InprocComm(Comm):
    """One end of a pair; the two may live on different event loops."""

    same_host = True

    def __init__(self, local: str, peer: str) -> None:
        super().__init__()
        self.local, self.peer = local, peer
        self.other: InprocComm | None = None

    def _transmit(self, messages: list[Message]) -> None:
        if self.other is not None:
            self._call(self.other, self.other._arrived, messages)

    def _call(self, other: InprocComm, method: Callable[..., object], *args: object) -> None:
        # Always through the loop: a direct call could come back into our own caller.
        call = other._loop.call_soon
        if other._loop is not self._loop:
            call = other._loop.call_soon_threadsafe
        try:
            call(method, *args)
        except RuntimeError:  # its loop is closed, so it is gone
            self._end(f"{self.peer} is gone")

    def _arrived(self, messages: list[Message]) -> None:
        if not self.closed:
            self.progress += 1
            self._deliver(messages)

    def pause(self) -> None:
        """Nothing is read here: what the other end sends is handed over as it is."""

    def resume(self) -> None:
        """See `pause`."""

    async def drained(self) -> None:
        """Wait until the other end has been handed all that was sent."""
        self._flush()
        if self.other is None:
            return
        handed_over = self._loop.create_future()
        self._call(self.other, _call_back, self._loop, handed_over)
        await asyncio.wait({handed_over, self._ended}, return_when=asyncio.FIRST_COMPLETED)

    def close(self) -> None:
        if not self.closed:
            self._on_closed = None
            self._flush()
            self._tell_other()
            self._end("closed")

    def abort(self, reason: str) -> None:
        if not self.closed:
            self._tell_other()
            self._end(reason)

    def _tell_other(self) -> None:
        other, self.other = self.other, None
        if other is not None:
            self._call(other, other._end, f"{self.local} has closed the connection")

    def _end(self, reason: str) -> None:
        self._has_ended(CommClosedError(f"connection with {self.peer}: {reason}"))
        self.other = None
        _resolve(self._ended)


def _call_back(loop: asyncio.AbstractEventLoop, waiting: asyncio.Future[None]) -> None:
    try:
        loop.call_soon_threadsafe(_resolve, waiting)
    except RuntimeError:  # closed meanwhile, so nobody waits
        pass


class InprocListener(Listener):
    """Found by its name through a table of this process."""

    def __init__(self, name: str, on_comm: OnComm) -> None:
        self.name = name or f"{os.getpid()}/{next(_numbers)}"
        self.address = f"inproc://{self.name}"
        self._on_comm = on_comm
        self._loop = asyncio.get_running_loop()
        if _listeners.setdefault(self.name, self) is not self:
            raise OSError(errno.EADDRINUSE, f"cannot listen on {self.address}: it is in use")

    def accept(self, end: InprocComm, accepted: asyncio.Future[None]) -> None:
        """Make the other end of a dialler's connection; called on this listener's loop."""
        if end.closed:  # it has given up
            return
        mine = InprocComm(self.address, end.local)
        mine.other, end.other = end, mine
        _call_back(end._loop, accepted)
        try:
            self._on_comm(mine)
        except Exception:
            log.exception("cannot serve the connection of %s", mine.peer)
            mine.abort("cannot be served")

    def close(self) -> None:
        if _listeners.get(self.name) is self:
            del _listeners[self.name]


async def connect(name: str, timeout: float) -> InprocComm:
    """Dial a listener of this process.

    Raises
    ------
    CommClosedError
        If there is none of this name, or its event loop does not run within `timeout` seconds.
    """
    listener = _listeners.get(name)
    if listener is None:
        raise CommClosedError(f"nothing listens at inproc://{name} in this process")
    end = InprocComm(f"inproc://{os.getpid()}/{next(_numbers)}", listener.address)
    accepted = end._loop.create_future()
    try:
        listener._loop.call_soon_threadsafe(listener.accept, end, accepted)
        await asyncio.wait_for(accepted, timeout)
    except (RuntimeError, asyncio.TimeoutError) as exc:
        end.abort("not accepted in time")
        reason = str(exc) or f"its event loop has not answered within {timeout:g} s"
        raise CommClosedError(f"cannot reach inproc://{name}: {reason}") from exc
    return end
