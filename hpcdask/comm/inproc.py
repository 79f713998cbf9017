"""Connections within one process: messages are handed over as they are.

There is no handshake, since nobody outside the process can dial one.
"""

from __future__ import annotations

import asyncio
import itertools
import os

from hpcdask.comm.base import Comm, Listener, OnComm
from hpcdask.errors import CommClosedError
from hpcdask.messages import Message

_listeners: dict[str, InprocListener] = {}
_numbers = itertools.count(1)


class InprocComm(Comm):
    """One end of a pair; the two may live on different event loops."""

    same_host = True

    def __init__(self, local: str, peer: str) -> None:
        super().__init__()
        self.local, self.peer = local, peer
        self.other: InprocComm | None = None

    def _transmit(self, messages: list[Message]) -> None:
        if self.other is not None:
            self._call(self.other, "_arrived", messages)

    def _call(self, other: InprocComm, method: str, *args: object) -> None:
        # Always through the loop: a direct call could come back into our own caller.
        call = other._loop.call_soon
        if other._loop is not self._loop:
            call = other._loop.call_soon_threadsafe
        try:
            call(getattr(other, method), *args)
        except RuntimeError:  # its loop is closed, so it is gone
            self._end(f"{self.peer} is gone")

    def _arrived(self, messages: list[Message]) -> None:
        if not self.closed:
            self._deliver(messages)

    async def drained(self) -> None:
        """Let the other end work off what it has."""
        await asyncio.sleep(0)

    def close(self) -> None:
        if not self.closed:
            self._flush()
            self._on_closed = None
            self._tell_other(f"{self.local} has closed the connection")
            self._end("closed")

    def abort(self, reason: str) -> None:
        if not self.closed:
            self._tell_other(f"{self.local} has closed the connection")
            self._end(reason)

    def _tell_other(self, reason: str) -> None:
        other, self.other = self.other, None
        if other is not None:
            self._call(other, "_end", reason)

    def _end(self, reason: str) -> None:
        self._has_ended(CommClosedError(f"connection with {self.peer}: {reason}"))
        self.other = None
        if not self._ended.done():
            self._ended.set_result(None)


class InprocListener(Listener):
    """Found by its name through a table of this process."""

    def __init__(self, name: str, on_comm: OnComm) -> None:
        self.name = name or f"{os.getpid()}/{next(_numbers)}"
        self.address = f"inproc://{self.name}"
        self._on_comm = on_comm
        self._loop = asyncio.get_running_loop()
        _listeners[self.name] = self

    def accept(self, end: InprocComm) -> None:
        """Make the other end of a dialler's connection, on this listener's loop."""
        mine = InprocComm(self.address, end.local)
        mine.other, end.other = end, mine
        self._on_comm(mine)
        end._call(end, "_flush")

    def close(self) -> None:
        _listeners.pop(self.name, None)


async def connect(name: str) -> InprocComm:
    """Dial a listener of this process.

    Raises
    ------
    CommClosedError
        If there is none of this name.
    """
    listener = _listeners.get(name)
    if listener is None:
        raise CommClosedError(f"nothing listens at inproc://{name} in this process")
    end = InprocComm(f"inproc://{os.getpid()}/{next(_numbers)}", listener.address)
    accepted = end._loop.create_future()

    def accept() -> None:
        listener.accept(end)
        if end._loop is listener._loop:
            accepted.set_result(None)
        else:
            end._loop.call_soon_threadsafe(accepted.set_result, None)

    listener._loop.call_soon_threadsafe(accept)
    await accepted
    return end
