"""A client that has lost its scheduler looks for it, or for one in its place, and goes on there."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hpcdask.dialling import Link, reach_scheduler
from hpcdask.errors import AuthenticationError, CommClosedError
from hpcdask.messages import Message
from hpcdask.messages.client import (
    AllTold,
    CancelKeys,
    DataScattered,
    KeepUntilDone,
    ReleaseKeys,
    SubmitTasks,
    WantKeys,
)

if TYPE_CHECKING:
    from hpcdask.client.connection import Connection

log = logging.getLogger("hpcdask.client")

#: Seconds before the first try and between two of them, at most; each time a random part less, so
#: that not all clients of a scheduler dial in the same moment.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
#: Seconds that a connection must have lasted for its loss to be another one.
_STEADY = 10.0
#: Tasks, or keys, that are told without waiting for the connection to take them.
_AT_ONCE = 5000


class Absence:
    """The time without a scheduler, until a return that lasts.

    A scheduler that lets a client in and drops it again at once, because of what the client sends
    perhaps, would else be looked for without end.
    """

    def __init__(self, reason: CommClosedError, limit: float) -> None:
        self.reason, self.limit = reason, limit
        self.began = time.strftime("%H:%M:%S")
        self.deadline = time.monotonic() + limit
        self.pause = _FIRST_PAUSE
        self._returned = 0.0

    def has_returned(self) -> None:
        """The connection stands again, for now."""
        self._returned = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether that was long enough ago."""
        return time.monotonic() - self._returned > _STEADY

    @property
    def left(self) -> float:
        """Seconds left to look for a scheduler."""
        return self.deadline - time.monotonic()


def begin(client: Connection, reason: CommClosedError) -> None:
    """The connection is lost: who asked is told so, and the search begins."""
    client.status = "reconnecting"
    if client._absence is None or client._absence.is_over:
        client._absence = Absence(reason, client._reconnect_timeout)
        text = "client %s lost the scheduler, and looks for it for %g s: %s"
        log.warning(text, client.name, client._absence.limit, reason)
    with client._lock:  # all else is said anew
        kept = CancelKeys, DataScattered
        client._outbox = [message for message in client._outbox if type(message) in kept]
    client._requests.fail(CommClosedError(f"the scheduler was lost before it answered: {reason}"))
    client._returning = client.loop.create_task(_come_back(client, client._absence))


async def _come_back(client: Connection, absence: Absence) -> None:
    """Connect the client again, or end it when the time is over or it is refused."""
    start = time.monotonic()
    try:
        while True:
            link = await _look(client, absence)
            if await _tell(client, link):
                absence.has_returned()
                away = time.monotonic() - start
                text = "client %s has found a scheduler again, at %s, after %.1f s"
                log.warning(text, client.name, link.address, away)  # as loud as the loss
                return
    except Exception as exc:  # whatever it is, nobody may wait on for ever
        client._is_over(
            f"the scheduler is gone ({absence.reason}), since {absence.began}; looked for it for "
            f"{absence.limit:g} s at most: {exc}"
        )


async def _look(client: Connection, absence: Absence) -> Link:
    """Dial until the time is over; raise at once if a scheduler is there and refuses."""
    problem: Exception = absence.reason
    while absence.left > 0:
        await asyncio.sleep(min(absence.pause * random.uniform(0.5, 1), max(absence.left, 0)))
        absence.pause = min(absence.pause * 2, _LONGEST_PAUSE)
        try:
            return await reach_scheduler(client._way_back, client._introduce, absence.left)
        except AuthenticationError:
            raise
        except OSError as exc:  # nobody there, or nobody that speaks as a scheduler does
            problem = exc
    raise problem


async def _tell(client: Connection, link: Link) -> bool:
    """Tell a scheduler all that this client wants; say whether the connection has lasted."""
    client._take(link)
    with client._lock:
        messages = [
            *client._plugins.to_tell(client.scheduler_id),  # first: tasks may need them
            *tasks_to_tell(client),
            *client._operations.to_tell(),
            *client._subscriptions.to_tell(),
            AllTold(),
        ]
    for batch in _batches(messages):
        link.comm.send_now(batch)
        await link.comm.drained()
        await asyncio.sleep(0)
    if link.comm.closed:
        return False
    client.status = "running"
    client._flush()
    client._flush_releases()
    return True


def _batches(messages: list[Message]) -> Iterator[list[Message]]:
    batch: list[Message] = []
    size = 0
    for message in messages:
        batch.append(message)
        size += len(message.tasks) if type(message) is SubmitTasks else 1
        if size >= _AT_ONCE:
            yield batch
            batch, size = [], 0
    yield batch


def tasks_to_tell(client: Connection) -> list[Message]:
    """What the client says of its tasks and futures; called under its lock.

    What it was asked to say while there was no connection stays in its outbox, unless it is said
    here.
    """
    client._release_keys()
    waiting, client._outbox = client._outbox, []
    said_here = SubmitTasks, WantKeys, ReleaseKeys, KeepUntilDone, DataScattered
    client._outbox = [message for message in waiting if type(message) not in said_here]
    # Submissions may depend on data that was scattered.
    messages: list[Message] = [m for m in waiting if type(m) is DataScattered]
    before = client._wants
    messages += _submissions(client, before)
    messages += _other_wants(client, before)
    if client._kept:
        messages.append(KeepUntilDone(tuple(client._kept)))
    client._told_again = client._wants
    return messages


def _submissions(client: Connection, before: int) -> Iterator[Message]:
    """All that is retained, as one submission.

    A scheduler keeps the tasks of an unfinished submission: so what was released, but is needed by
    a later task, is still there when that one comes.
    """
    client._submissions += 1
    number, position = client._submissions, 0
    for recipe in client._retained.recipes():
        wanted = tuple([key for key in recipe.future_keys() if _is_wanted(client, key, before)])
        want = _begin_again(client, wanted)
        if client._retained.is_unfinished(recipe.submission):
            # Its further chunks will come under its own number.
            yield recipe.again(recipe.submission, recipe.first, wanted, want)
        else:
            yield recipe.again(number, position, wanted, want)
            position += len(recipe.tasks)
    yield SubmitTasks(number, (), (), (), position, 0.0, 0, True)


def _is_wanted(client: Connection, key: str, before: int) -> bool:
    """Whether there is a future of a key that has not been told again, and no value here."""
    state = client._futures.get(key)
    if state is None or state.since > before:
        return False
    return state.status == "pending" or (state.status == "finished" and state.value is None)


def _other_wants(client: Connection, before: int) -> Iterator[Message]:
    """What came by other ways, and what is done: tasks still to come may build on that."""
    keys = [
        key
        for key, state in client._futures.items()
        if state.since <= before and state.status != "cancelled"
    ]
    for first in range(0, len(keys), _AT_ONCE):
        some = tuple(keys[first : first + _AT_ONCE])
        yield WantKeys(some, _begin_again(client, some))


def _begin_again(client: Connection, keys: tuple[str, ...]) -> int:
    """Number a want, and believe from now on only what is sent in knowledge of it."""
    if not keys:
        return 0
    client._wants += 1
    for key in keys:
        client._futures[key].since = client._wants
    return client._wants
