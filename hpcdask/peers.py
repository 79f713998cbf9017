"""Requests for data: connections to workers, opened when needed and kept."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

from hpcdask.comm import Comm, connect
from hpcdask.comm.options import CommOptions
from hpcdask.errors import CommClosedError
from hpcdask.messages import (
    PROTOCOL_VERSION,
    Failure,
    FetchKeys,
    KeyValues,
    Message,
    RegisterPeer,
    Reply,
    StoredValue,
    StoreKeys,
    TaskError,
    Version,
)


class Requests:
    """Answers that are waited for, by request number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    def new(self) -> tuple[int, asyncio.Future[Any]]:
        """Return a fresh number and the future of its answer."""
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        future.add_done_callback(lambda _: self._waiting.pop(number, None))
        return number, future

    def answered(self, message: Any) -> None:
        """Resolve what `message` answers; answers that nobody waits for any more are dropped."""
        future = self._waiting.get(message.request)
        if future is None or future.done():
            return
        if type(message) is Failure:
            future.set_exception(RequestFailedError(message.error))
        else:
            future.set_result(message)

    def fail(self, reason: Exception) -> None:
        """Let all that is waited for raise."""
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(reason)


class RequestFailedError(Exception):
    """The answer is an error. It stays pickled: only who asked in the first place opens it."""

    def __init__(self, error: TaskError) -> None:
        super().__init__(f"a request to {error.worker or 'the scheduler'} failed")
        self.error = error


class Peer:
    """One connection to a worker, for data."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.requests = Requests()
        comm.send(RegisterPeer(PROTOCOL_VERSION))
        comm.start(self._on_batch, self.requests.fail)

    def _on_batch(self, messages: list[Message]) -> None:
        for message in messages:
            self.requests.answered(message)

    async def ask(self, make: Any, *fields: Any) -> Any:
        """Send the request ``make(number, *fields)`` and wait for its answer."""
        if self.comm.closed:
            raise CommClosedError(f"connection with {self.comm.peer} is closed")
        number, future = self.requests.new()
        self.comm.send(make(number, *fields))
        return await future


class Peers:
    """Connections to workers by address, one each.

    Parameters
    ----------
    options : CommOptions
        How to dial.
    connect_timeout : float
        Seconds to try; less than for a scheduler, since another holder may be asked instead.
    """

    def __init__(self, options: CommOptions, connect_timeout: float = 10.0) -> None:
        self._options = options
        self._connect_timeout = connect_timeout
        self._peers: dict[str, asyncio.Task[Peer]] = {}

    async def fetch(self, address: str, versions: Iterable[Version]) -> KeyValues:
        """Ask a worker for values.

        Raises
        ------
        CommClosedError
            If it cannot be reached or is lost before it has answered.
        """
        peer = await self._peer(address)
        return await peer.ask(FetchKeys, tuple(versions))  # type: ignore[no-any-return]

    async def store(self, address: str, values: Iterable[StoredValue]) -> None:
        """Put values on a worker and wait until it has them."""
        peer = await self._peer(address)
        answer = await peer.ask(StoreKeys, tuple(values))
        assert type(answer) is Reply

    def forget(self, address: str) -> None:
        """Close the connection with a worker that is gone."""
        task = self._peers.pop(address, None)
        if task is not None:
            _close(task)

    def close(self) -> None:
        """Close all connections."""
        for address in list(self._peers):
            self.forget(address)

    async def _peer(self, address: str) -> Peer:
        task = self._peers.get(address)
        if task is not None and task.done() and (task.exception() or task.result().comm.closed):
            task = None
        if task is None:
            task = asyncio.get_running_loop().create_task(self._dial(address))
            task.add_done_callback(_retrieve)
            self._peers[address] = task
        # Several requests may wait for one dial; one that is cancelled must not cancel it.
        return await asyncio.shield(task)

    async def _dial(self, address: str) -> Peer:
        return Peer(await connect(address, self._options, self._connect_timeout, was_there=True))


def _retrieve(dial: asyncio.Task[Peer]) -> None:
    """Those who wait for it see its failure; if all have left, nobody needs to."""
    if not dial.cancelled():
        dial.exception()


def _close(task: asyncio.Task[Peer]) -> None:
    if not task.done():
        task.cancel()
    elif not task.cancelled() and task.exception() is None:
        peer = task.result()
        peer.comm.close()
        peer.requests.fail(CommClosedError(f"the connection with {peer.comm.peer} was closed"))
