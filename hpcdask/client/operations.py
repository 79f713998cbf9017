"""Requests about what clients share by name: sent until they are answered, and carried out once.

See `hpcdask.core.coordination.desk` for the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcdask.client.loop import CarriedError
from hpcdask.errors import CommClosedError
from hpcdask.messages import Blob, Message, Reply
from hpcdask.messages.shared import (
    Confirm,
    GiveUp,
    HeldLease,
    QueueHandle,
    Resume,
    Values,
    Withdraw,
)
from hpcdask.peers import RequestFailedError
from hpcdask.places import lent_thread
from hpcdask.tracebacks import to_exception

if TYPE_CHECKING:
    from hpcdask.client.connection import Connection

#: Seconds that the scheduler has to say that something has not happened in time.
_ANSWER = 5.0


class Operations:
    """What a client waits for, and holds, of what is shared; told to the scheduler after a return.

    Attributes
    ----------
    waiting : set of int
        Requests that are not answered.
    withdrawn : set of int
        Those that are not waited for any more, until the scheduler surely knows.
    leases : dict
        By the number of the request that got it.
    handles : dict
        Queue -> number of objects that are open, and its limit.
    reentrant : dict
        Name and owner of an `RLock` that is held -> its lease, and how often it was acquired.
    """

    def __init__(self) -> None:
        self.waiting: set[int] = set()
        self.withdrawn: set[int] = set()
        self.leases: dict[int, HeldLease] = {}
        self.handles: dict[str, tuple[int, int]] = {}
        self.reentrant: dict[tuple[str, object], tuple[int, int]] = {}

    def to_tell(self) -> list[Message]:
        """What the scheduler has to know after a return; the client's lock is held."""
        handles = [QueueHandle(name, *handle) for name, handle in self.handles.items()]
        waiting, withdrawn = tuple(self.waiting), tuple(self.withdrawn)
        return [Resume(waiting, withdrawn, tuple(self.leases.values()), tuple(handles))]


class Delivery(NamedTuple):
    """Values that have come, and are still pickled."""

    client: Any
    request: int
    blobs: tuple[Blob | None, ...]

    def unpacked(self, missing: Any = None) -> list[Any]:
        """Rebuild the values, whose futures are the client's, and confirm that they are here.

        Parameters
        ----------
        missing : object
            What stands for a value that there is not.
        """
        from hpcdask.client.current import receiving
        from hpcdask.wire.serialize import loads

        try:
            with receiving(self.client):
                return [missing if blob is None else loads(blob) for blob in self.blobs]
        finally:
            # Behind the news of the futures that were found.
            with contextlib.suppress(CommClosedError):
                self.client._send(Confirm(self.request))


async def operate(
    client: Connection, make: Any, *fields: Any, timeout: float | None = None
) -> tuple[int, Any]:
    """Send the request ``make(number, *fields)`` and wait for its answer, over losses of it all.

    Parameters
    ----------
    timeout : float, optional
        Seconds, after which the scheduler is asked for an answer at once.

    Returns
    -------
    int, object
        The number of the request, and the value of the `Reply`: False if there was no answer in
        time. Of `Values` a `Delivery`.
    """
    mine = client._operations
    number, future = client._requests.new()
    mine.waiting.add(number)
    deadline = None if timeout is None else time.monotonic() + timeout
    is_late = False
    try:
        while True:
            try:
                client._send(make(number, *fields))
                if not is_late:
                    is_late = not await _is_answered(future, deadline)
                if is_late:
                    client._send(GiveUp(number))
                    assert deadline is not None
                    # From now on, since other threads may have kept us from the answer so far.
                    if not await _is_answered(future, time.monotonic() + _ANSWER):
                        _withdraw(client, number)
                        return number, False
                answer = future.result()
                break
            except CommClosedError:
                if client.status == "closed":
                    raise
                number, future = client._requests.new(number)
    except RequestFailedError as exc:
        client._send(Confirm(number))
        raise CarriedError(to_exception(exc.error)) from None
    except asyncio.CancelledError:
        _withdraw(client, number)
        raise
    finally:
        mine.waiting.discard(number)
        future.cancel()
        del future  # it holds an error that was raised here, and so this frame
    if type(answer) is Values:
        return number, Delivery(client, number, answer.values)
    assert type(answer) is Reply
    client._send(Confirm(number))
    return number, answer.value


async def _is_answered(future: asyncio.Future[Any], deadline: float | None) -> bool:
    left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
    with lent_thread():
        await asyncio.wait({future}, timeout=left)
    return future.done()


def _withdraw(client: Connection, number: int) -> None:
    """Say, if need be more than once, that an answer would not be looked at."""
    mine = client._operations
    mine.withdrawn.add(number)
    request, told = client._requests.new()

    def forget(told: asyncio.Future[Any]) -> None:
        if not told.cancelled() and told.exception() is None:
            mine.withdrawn.discard(number)

    told.add_done_callback(forget)
    with contextlib.suppress(CommClosedError):
        client._send(Withdraw(request, number))
