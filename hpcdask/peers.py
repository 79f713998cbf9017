"""Requests for data: connections to workers, opened when needed and kept.

A worker that owes an answer and from which no byte comes for a while is given up, so that another
one can be asked. One that is only slow is not: when it turns quiet we ask for nothing, by an empty
`FetchKeys`, which it answers at once whatever else it is busy with.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

from hpcdask.comm import Comm, SilenceError, connect
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
from hpcdask.wire.codec import blob_nbytes

#: Looks at a quiet connection until it is given up.
_LOOKS = 4
#: Most bytes of one request to store values, unless a single one has more.
MAX_STORE_BYTES = 64 * 2**20


class UnreachableError(CommClosedError):
    """A worker that could not even be dialled."""


class Requests:
    """Answers that are waited for, by request number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    def new(self, number: int | None = None) -> tuple[int, asyncio.Future[Any]]:
        """Return a number and the future of its answer.

        Parameters
        ----------
        number : int, optional
            Of a request that is made again; by default it is a fresh one.
        """
        if number is None:
            number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        future.add_done_callback(lambda done: self._forget(number, done))
        return number, future

    def _forget(self, number: int, done: asyncio.Future[Any]) -> None:
        if self._waiting.get(number) is done:  # and not one that is made again
            del self._waiting[number]

    def __bool__(self) -> bool:
        """Whether something is waited for."""
        return bool(self._waiting)

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
    """One connection to a worker, for data.

    Parameters
    ----------
    address : str
        Of the worker, which hangs up if it has another.
    stall_timeout : float
        Seconds without a byte after which the connection is given up while an answer is due;
        infinite for never.
    """

    def __init__(self, comm: Comm, address: str, stall_timeout: float) -> None:
        self.comm = comm
        self.requests = Requests()
        self._stall_timeout = stall_timeout
        self._look: asyncio.TimerHandle | None = None
        self._progress = 0  # of the connection, when we last looked
        self._quiet = 0  # looks since it last made any
        comm.send(RegisterPeer(PROTOCOL_VERSION, address))
        comm.start(self._on_batch, self.requests.fail)

    def _on_batch(self, messages: list[Message]) -> None:
        for message in messages:
            self.requests.answered(message)

    async def ask(self, make: Any, *fields: Any) -> Any:
        """Send the request ``make(number, *fields)`` and wait for its answer."""
        return await self.begin(make, *fields)

    def begin(self, make: Any, *fields: Any) -> asyncio.Future[Any]:
        """Send a request, and return the future of its answer."""
        if self.comm.closed:
            raise CommClosedError(f"connection with {self.comm.peer} is closed")
        number, future = self.requests.new()
        self.comm.send(make(number, *fields))
        if self._look is None and self._stall_timeout < math.inf:
            self._progress, self._quiet = self.comm.progress, 0
            self._look_later()
        return future

    def close(self, reason: str) -> None:
        """Hang up; what is waited for fails at once."""
        if self._look is not None:
            self._look.cancel()
        self.comm.close()
        self.requests.fail(CommClosedError(f"connection with {self.comm.peer}: {reason}"))

    # -- Watching ---------------------------------------------------------------------------------

    def _look_later(self) -> None:
        # Looks are counted instead of seconds: if this process was held up, the peer is not late.
        loop = asyncio.get_running_loop()
        self._look = loop.call_later(self._stall_timeout / _LOOKS, self._watch)

    def _watch(self) -> None:
        self._look = None
        if self.comm.closed or not self.requests:
            return
        self._quiet += 1
        if self.comm.progress != self._progress:
            self._progress, self._quiet = self.comm.progress, 0
        elif self._quiet >= _LOOKS:
            self.comm.abort(f"nothing has come from it for {self._stall_timeout:g} s")
            return
        else:
            self.comm.send(FetchKeys(0, ()))  # no request has this number
        self._look_later()


class Peers:
    """Connections to workers by address, one each.

    Parameters
    ----------
    options : CommOptions
        How to dial; may be replaced, for connections that are yet to come.
    connect_timeout : float
        Seconds to try; less than for a scheduler, since another holder may be asked instead.
    is_patient : bool
        Whether a worker that is silent is not given up: for answers that nobody else can give.
    """

    def __init__(
        self, options: CommOptions, connect_timeout: float = 10.0, is_patient: bool = False
    ) -> None:
        self.options = options
        self._connect_timeout = connect_timeout
        self._is_patient = is_patient
        self._peers: dict[str, asyncio.Task[Peer]] = {}
        self._turns: dict[str, asyncio.Lock] = {}

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
        for some in _portions(values):
            answer = await peer.ask(StoreKeys, some)
            assert type(answer) is Reply

    def turn(self, address: str) -> asyncio.Lock:
        """What to hold while a request begins that must not overtake one before it."""
        return self._turns.setdefault(address, asyncio.Lock())

    async def begin(self, address: str, make: Any, *fields: Any) -> asyncio.Future[Any]:
        """Send the request ``make(number, *fields)`` to a worker; return the answer's future.

        Raises
        ------
        CommClosedError
            If it cannot be reached.
        """
        peer = await self._peer(address)
        return peer.begin(make, *fields)

    async def prove(self, address: str, timeout: float) -> None:
        """Find out whether a worker can be reached, and hang up.

        One that accepts the connection and is too busy to say anything can be.

        Raises
        ------
        CommClosedError, HandshakeError
            Why it cannot.
        """
        try:
            comm = await connect(address, self.options, timeout, was_there=True)
        except SilenceError:
            return
        peer = Peer(comm, address, self.options.stall_timeout)
        try:
            await asyncio.wait_for(peer.ask(FetchKeys, ()), timeout)
        except asyncio.TimeoutError:
            pass
        except CommClosedError:
            text = f"cannot connect to {address}: another process than this worker answers"
            raise CommClosedError(text) from None
        finally:
            peer.close("it was only to be proven")

    def forget(self, address: str) -> None:
        """Close the connection with a worker that is gone."""
        self._turns.pop(address, None)
        task = self._peers.pop(address, None)
        if task is not None:
            _close(task)

    def close(self) -> list[Comm]:
        """Close all connections, and return them."""
        dialled = [task for task in self._peers.values() if task.done() and not task.cancelled()]
        comms = [task.result().comm for task in dialled if task.exception() is None]
        for address in list(self._peers):
            self.forget(address)
        return comms

    async def _peer(self, address: str) -> Peer:
        task = self._peers.get(address)
        if task is not None and task.done() and (task.exception() or task.result().comm.closed):
            task = None
        if task is None:
            task = asyncio.get_running_loop().create_task(self._dial(address))
            task.add_done_callback(_retrieve)
            self._peers[address] = task
        try:
            # Several requests may wait for one dial; one that is cancelled must not cancel it.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise CommClosedError(f"{address} was given up while it was dialled") from None
        except OSError as exc:
            raise UnreachableError(str(exc)) from exc

    async def _dial(self, address: str) -> Peer:
        comm = await connect(address, self.options, self._connect_timeout, was_there=True)
        return Peer(comm, address, math.inf if self._is_patient else self.options.stall_timeout)


def _portions(values: Iterable[StoredValue]) -> Iterator[tuple[StoredValue, ...]]:
    """Cut what is to be stored into requests of a bounded size."""
    portion: list[StoredValue] = []
    nbytes = 0
    for stored in values:
        size = blob_nbytes(stored.value)
        if portion and nbytes + size > MAX_STORE_BYTES:
            yield tuple(portion)
            portion, nbytes = [], 0
        portion.append(stored)
        nbytes += size
    if portion:
        yield tuple(portion)


def _retrieve(dial: asyncio.Task[Peer]) -> None:
    """Those who wait for it see its failure; if all have left, nobody needs to."""
    if not dial.cancelled():
        dial.exception()


def _close(task: asyncio.Task[Peer]) -> None:
    if not task.done():
        task.cancel()
    elif not task.cancelled() and task.exception() is None:
        task.result().close("it was closed")
