"""What every connection offers, whatever carries it."""

from __future__ import annotations

import abc
import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from hpcdask.comm.options import CommOptions
from hpcdask.errors import CommClosedError
from hpcdask.messages import Message

log = logging.getLogger("hpcdask.comm")

#: Gets the messages that arrived together, in order.
OnBatch = Callable[[list[Message]], None]
#: Gets the reason when a connection has ended, once.
OnClosed = Callable[[CommClosedError], None]


async def ends_of_all(comms: Iterable[Comm], limit: float) -> None:
    """Wait until closed connections are so at both ends, for at most `limit` seconds.

    An event loop that ends before then leaves their sockets open.
    """
    ends = [comm._ended for comm in comms]
    if ends:
        await asyncio.wait(ends, timeout=limit)


class Comm(abc.ABC):
    """One connection.

    Messages are given to a callback and not to a waiting coroutine: that saves a turn of the event
    loop per batch, a fifth of the round trip of a small task. Until `start` is called they wait,
    and `receive` hands them out one by one.

    Attributes
    ----------
    peer : str
        Address of the other end, for logs.
    local : str
        Address of this end.
    same_host : bool
        Whether bytes stay within this machine.
    compresses : bool
        Whether what is sent may be copied on its way, into something smaller.
    progress : int
        Grows with every byte that comes, and with those that the peer takes after it let them
        wait. As long as it grows, there is somebody.
    """

    peer: str
    local: str
    same_host: bool
    compresses = False
    progress = 0

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._outbox: list[Message] = []
        self._flush_is_due = False
        self._inbox: list[Message] = []
        self._receiver: asyncio.Future[None] | None = None
        self._on_batch: OnBatch | None = None
        self._on_closed: OnClosed | None = None
        self._reason: CommClosedError | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()

    # -- For users -----------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._reason is not None

    def send(self, message: Message) -> None:
        """Queue a message; all that is queued in one turn of the loop leaves together.

        Sending on a closed connection is no error, since it may close at any moment anyway: the
        end is told through `on_closed`.
        """
        if self._reason is not None:
            return
        self._outbox.append(message)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def send_now(self, messages: list[Message]) -> None:
        """Send messages at once, behind those that are queued.

        For who has a whole batch in hand: waiting for the loop to turn idle would add a turn of it
        to every way of a message.
        """
        if self._reason is not None or not messages:
            return
        if self._outbox:
            messages = self._outbox + messages
            self._outbox = []
        self._transmit(messages)

    def send_first(self, messages: list[Message]) -> None:
        """Send the first messages of a turn of the loop at once, and later ones at its end.

        For a peer of whom much is told in one turn, a little at a time: hundreds of workers that
        each finish a task in it would else be as many writes.
        """
        if self._flush_is_due:
            self._outbox += messages
        elif self._reason is None:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)
            self.send_now(messages)

    def start(self, on_batch: OnBatch, on_closed: OnClosed) -> None:
        """Deliver messages to `on_batch` from now on, those that wait already included."""
        self._on_batch, self._on_closed = on_batch, on_closed
        ended = self._reason  # before `on_batch` gets a chance to end it
        if self._inbox:
            batch, self._inbox = self._inbox, []
            self._deliver(batch)
        if ended is not None:
            self._loop.call_soon(on_closed, ended)

    async def receive(self) -> Message:
        """Wait for the next message; only before `start`.

        Raises
        ------
        CommClosedError
            If the connection ends first.
        """
        while not self._inbox:
            if self._reason is not None:
                raise self._reason
            self._receiver = self._loop.create_future()
            await self._receiver
        return self._inbox.pop(0)

    async def wait_closed(self) -> None:
        """Wait until the connection has ended and its resources are free."""
        await asyncio.shield(self._ended)

    @abc.abstractmethod
    def pause(self) -> None:
        """Read nothing more until `resume`; a peer that goes on sending has to wait."""

    @abc.abstractmethod
    def resume(self) -> None:
        """Read on."""

    @abc.abstractmethod
    async def drained(self) -> None:
        """Wait while more is queued than the peer has taken lately."""

    @abc.abstractmethod
    def close(self) -> None:
        """Send what is queued, then end; `on_closed` is not called, nor `on_batch` any more.

        `wait_closed` tells when the peer has it all.
        """

    @abc.abstractmethod
    def abort(self, reason: str) -> None:
        """End now; `on_closed` is called with the reason."""

    # -- For implementations -------------------------------------------------------------------

    @abc.abstractmethod
    def _transmit(self, messages: list[Message]) -> None:
        """Send messages."""

    def _flush(self) -> None:
        self._flush_is_due = False
        messages, self._outbox = self._outbox, []
        if messages and self._reason is None:
            self._transmit(messages)

    def _deliver(self, messages: list[Message]) -> None:
        if self._on_batch is None:
            self._inbox.extend(messages)
            if self._receiver is not None and not self._receiver.done():
                self._receiver.set_result(None)
            return
        try:
            self._on_batch(messages)
        except Exception:
            log.exception("cannot handle messages of %s; its connection is closed", self.peer)
            self.abort("its messages could not be handled")

    def _has_ended(self, reason: CommClosedError) -> None:
        """Note the end once; implementations free their resources themselves."""
        if self._reason is not None:
            return
        self._reason = reason
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
        if self._on_closed is not None:
            self._loop.call_soon(self._on_closed, reason)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} {self.local} -> {self.peer} {state}>"


class Listener(abc.ABC):
    """Accepts connections until it is closed.

    Attributes
    ----------
    address : str
        Where it listens, with the port that was found free.
    options : CommOptions
        For connections that are yet to come; may be replaced.
    """

    address: str
    options: CommOptions

    @abc.abstractmethod
    def close(self) -> None:
        """Accept no more."""


#: Called with each accepted and authenticated connection.
OnComm = Callable[[Comm], Any]
