"""A client of a simulated cluster: what it asked for, and what it has been told.

What it keeps to come back after a loss, and what it tells then, is decided by the real client's
code: for that some names here are those of `hpcdask.client.conversation.Conversation`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from recipes import DATA, Recipes, functions
from virtual_clock import VirtualClock
from virtual_network import SCHEDULER, Batch, Closed, Process, VirtualNetwork
from virtual_worker import Store, Stored

from hpcdask.client.future import FutureState
from hpcdask.client.retained import Retained
from hpcdask.client.returning import tasks_to_tell
from hpcdask.messages import Message, PlacedValue, RegisterClient, Version
from hpcdask.messages.client import (
    AllTold,
    CancelKeys,
    ClientClosing,
    DataScattered,
    KeepUntilDone,
    KeyCancelled,
    KeyLost,
    PlanScatter,
    ReleaseKeys,
    RetryKeys,
    ScatterPlan,
    SubmitTasks,
    TaskDone,
    TaskFailed,
    WantKeys,
    WantsRead,
)


class KnownFuture(FutureState):
    """What a client knows of one key, and what may befall it."""

    __slots__ = ("is_orphan", "may_be_cancelled")

    def __init__(self, key: str, since: int, may_be_cancelled: bool = False) -> None:
        super().__init__(key)
        self.since = since
        self.may_be_cancelled = may_be_cancelled  # somebody gave up something that it depends on
        self.is_orphan = False  # done, and of no scheduler that is there now


@dataclass
class Scattering:
    """Values on their way to the workers."""

    placements: tuple[PlacedValue, ...]
    connection: int  # on which they were planned
    stored: int = 0
    expected: int = 0
    failed: bool = False


@dataclass
class Chunks:
    """What is still to be sent of a graph."""

    messages: list[SubmitTasks] = field(default_factory=list)
    doomed: bool = False  # something of it was cancelled meanwhile


class NothingToTell:
    """What a client has besides futures, and would tell when it comes back."""

    def to_tell(self, *_: object) -> list[Message]:
        return []


class VirtualClient(Process):
    """One client process."""

    def __init__(
        self,
        name: str,
        clock: VirtualClock,
        network: VirtualNetwork,
        random: Random,
        recipes: Recipes,
    ) -> None:
        super().__init__(name, clock)
        self.network = network
        self.random = random
        self.recipes = recipes
        self.futures: dict[str, KnownFuture] = {}
        self.unsent = Chunks()
        self.lent: dict[str, int] = {}  # keys that others are about to want
        self.connection = 0
        self.is_connected = False
        self.slowest = 1.2  # of its returns, log10 of seconds
        self._wants = self._wants_read = self._told_again = self._submissions = 0
        self._scattering: list[Scattering] = []
        self._retained = Retained(self.futures)  # type: ignore[arg-type]
        self._outbox: list[Message] = []  # while there is no scheduler
        self._kept: dict[str, KnownFuture] = {}
        self._plugins = self._operations = self._subscriptions = NothingToTell()
        self.scheduler_id = ""
        #: Keys that were relied on when this client came back, but not submitted again: of these
        #: a scheduler that did not know us has what survived, and no more.
        self.uncovered: set[str] = set()
        self.told: set[str] = set()  # keys that were

    @property
    def wants(self) -> int:
        """Number of the last want."""
        return self._wants

    @property
    def _futures(self) -> dict[str, KnownFuture]:
        return self.futures

    def start(self) -> None:
        """Register."""
        self.connection += 1
        self.is_connected = True
        self._send(RegisterClient(self.name, 1, "1"))

    def say_goodbye(self) -> None:
        self._send(ClientClosing())

    def _send(self, *messages: Message) -> None:
        if self.is_connected:
            self.network.send(self.name, SCHEDULER, messages, self.connection)
        else:
            self._outbox.extend(messages)

    # -- Coming back ------------------------------------------------------------------------------

    def scheduler_lost(self) -> None:
        """Look for it, or for another in its place."""
        self.is_connected = False
        self.connection += 1  # what is still on its way belongs to the one that has ended
        kept = CancelKeys, DataScattered
        self._outbox = [message for message in self._outbox if type(message) in kept]
        self.later(10 ** self.random.uniform(-3, self.slowest), self._return, self.connection)

    def _return(self, search: int) -> None:
        """Tell all that is wanted, in one piece or in several."""
        if search != self.connection:
            return  # another search has begun
        self.connection += 1
        messages = [*tasks_to_tell(self), AllTold()]  # type: ignore[arg-type]
        self._note_uncovered(messages)
        hello = RegisterClient(self.name, 1, "1", True)
        self._tell([hello, *messages], self.connection)

    def _tell(self, messages: list[Message], connection: int) -> None:
        if connection != self.connection:
            return  # which has ended meanwhile
        count = self.random.choice([1, 3, len(messages)])
        self.network.send(self.name, SCHEDULER, messages[:count], connection)
        if messages[count:]:
            delay = 10 ** self.random.uniform(-5, -1)
            self.later(delay, self._tell, messages[count:], connection)
        else:
            assert type(messages[-1]) is AllTold
            self.is_connected = True
            waiting, self._outbox = self._outbox, []
            self._send(*waiting)

    def _note_uncovered(self, messages: list[Message]) -> None:
        chunks = [message for message in messages if type(message) is SubmitTasks]
        told = {spec.key for message in chunks for spec in message.tasks}
        relied = {key for m in chunks for spec in m.tasks for key in spec.dependencies}
        self.told |= told
        self.uncovered |= (relied | self.futures.keys()) - told

    def _release_keys(self) -> None:
        """What is let go is told at once."""

    # -- What comes in ----------------------------------------------------------------------------

    def receive(self, source: str, batch: Batch) -> None:
        if source == SCHEDULER and batch.connection != self.connection:
            return  # of an earlier connection
        for message in batch.messages:
            if isinstance(message, WantsRead):
                self._wants_read = message.want
            elif isinstance(message, ScatterPlan):
                self._store(message.placements)
            elif isinstance(message, Stored):
                self._stored(message.version, failed=False)
            elif isinstance(message, Closed) and source == SCHEDULER:
                self.scheduler_lost()
                return
            elif isinstance(message, Closed):
                self.refused(source)
            else:
                self._hear(message)

    def _hear(self, message: Any) -> None:
        """Learn how a key fares, unless the message is about an earlier life of the key."""
        future = self.futures.get(message.key)
        if future is None or future.since > self._wants_read:
            return
        if isinstance(message, KeyCancelled):
            self._cancelled(message, future)
            return
        future.is_orphan = False
        if isinstance(message, TaskDone):
            right = self.recipes.value(message.key)
            assert message.value is None or pickle.loads(message.value) == right, (message, right)  # type: ignore[arg-type]
            future.value = future.value or message.value  # type: ignore[assignment]
            self._end(future, "finished")
        elif isinstance(message, TaskFailed):
            future.error = message.error
            self._end(future, "error")
        elif isinstance(message, KeyLost):
            # In error, if it was another client that had it retried.
            assert future.status != "cancelled", message
            future.lost()
        else:
            raise AssertionError(f"no event of a client for {message}")

    def _cancelled(self, message: KeyCancelled, future: KnownFuture) -> None:
        is_here = future.status == "error" or future.value is not None
        if message.is_unknown and future.since <= self._told_again and is_here:
            future.is_orphan = True
            return
        assert future.may_be_cancelled, (message, future.status, future.since)
        self._end(future, "cancelled")

    def _end(self, future: KnownFuture, status: str) -> None:
        future.end(status)
        self._kept.pop(future.key, None)

    # -- Graphs -----------------------------------------------------------------------------------

    def live_keys(self) -> list[str]:
        """Keys that a new task may depend on."""
        return [
            key
            for key, future in self.futures.items()
            if future.status != "cancelled" and not self.recipes.by_key[key].private
        ]

    def submit(self, keys: list[str], wanted: Iterable[str], priority: float | None = None) -> None:
        """Send a graph in one piece or two, with the wants as they come or all at the end."""
        assert not self.unsent.messages
        self._submissions += 1
        wanted = set(wanted)
        all_at_end = self.random.random() < 0.3
        retries = self.random.choice([0, 1, 2, 3])
        if priority is None:
            priority = float(self.random.choice([0, 0, 1]))
        self.unsent = Chunks(doomed=any(map(self._is_doomed, keys)))
        for first, chunk in self._chunks(keys):
            is_final = first + len(chunk) == len(keys)
            here = {key for key in chunk if key in wanted}
            if all_at_end:
                here = wanted if is_final else set()
            for key in chunk:
                recipe = self.recipes.by_key[key]
                recipe.min_retries = min(recipe.min_retries, retries)
            specs = tuple(map(self.recipes.spec, chunk))
            names = tuple(key for key in keys if key in here)
            restriction = self.recipes.by_key[chunk[0]].restriction
            order = (first, priority, retries, is_final, 0, restriction)
            message = SubmitTasks(self._submissions, functions(), specs, names, *order)
            self.unsent.messages.append(message)
        self._send_chunk()

    def _chunks(self, keys: list[str]) -> Iterator[tuple[int, list[str]]]:
        """Cut a graph at one place at most, and wherever another restriction begins."""
        cut = self.random.choice([len(keys), len(keys), self.random.randint(1, len(keys))])
        first = 0
        for i in range(1, len(keys) + 1):
            recipes = [self.recipes.by_key[key] for key in keys[i - 1 : i + 1]]
            if i in (cut, len(keys)) or recipes[0].restriction != recipes[1].restriction:
                yield first, keys[first:i]
                first = i

    def _send_chunk(self) -> None:
        message = self.unsent.messages.pop(0)
        if message.wanted:
            self._wants += 1
            message = message._replace(want=self._wants)
            for key in message.wanted or ():
                self._begin(key, self.unsent.doomed)
        self._send(self._retained.keep(message))
        if self.unsent.messages:
            self.later(10 ** self.random.uniform(-4, 0), self._send_chunk)

    def _begin(self, key: str, doomed: bool = False) -> None:
        """Begin a life of a key with the want of number `wants`, unless it has one."""
        future = self.futures.get(key)
        doomed |= self._is_doomed(key)
        if future is None or future.status == "cancelled":
            self.futures[key] = KnownFuture(key, self._wants, doomed)
        else:
            future.may_be_cancelled |= doomed

    def _is_doomed(self, key: str) -> bool:
        """Whether something that the key depends on may be cancelled."""
        inputs = self.recipes.ancestors(key) - {key}
        return any(self.futures[k].may_be_cancelled for k in inputs if k in self.futures)

    def want(self, key: str, doomed: bool = False) -> None:
        """Get hold of a future by another way than by submitting."""
        if key not in self.futures:
            self._wants += 1
            self._begin(key, doomed)
            self._send(WantKeys((key,), self._wants))

    def needed_keys(self) -> set[str]:
        """Keys that a graph which is still to be sent, or another client, relies on."""
        unsent = {d for m in self.unsent.messages for spec in m.tasks for d in spec.dependencies}
        return unsent | self.lent.keys() | self._kept.keys()

    def release(self, keys: Iterable[str]) -> None:
        keys = tuple(keys)
        for key in keys:
            del self.futures[key]
        self._send(ReleaseKeys(keys))

    def reuse(self, keys: list[str]) -> None:
        """Let the keys of a private graph mean something else from now on."""
        for key in keys:
            recipe = self.recipes.by_key[key]
            self.recipes.by_key[key] = replace(
                recipe, number=recipe.number + 1000, min_retries=1000
            )
        wanted = [key for key in keys if key in self.futures]
        self.release(wanted)
        self.submit(keys, wanted)

    def cancel(self, key: str, force: bool) -> None:
        self.note_cancelled([key])
        self._send(CancelKeys((key,), force, "enough"))

    def note_cancelled(self, keys: Iterable[str]) -> None:
        """Somebody gives up these, and what depends on them."""
        doomed = set(keys)
        for key, future in self.futures.items():
            future.may_be_cancelled |= not doomed.isdisjoint(self.recipes.ancestors(key))
        self.unsent.doomed = True

    def retry(self, key: str) -> None:
        """Have a task run again that has failed."""
        if self.is_connected:
            self._send(RetryKeys(1, (key,)))

    def keep_until_done(self, key: str) -> None:
        if self.futures[key].status == "pending":
            self._kept[key] = self.futures[key]
        self._send(KeepUntilDone((key,)))

    # -- Scattered data ---------------------------------------------------------------------------

    def scatter(self, keys: Iterable[str], broadcast: bool) -> None:
        if self.is_connected:
            self._send(PlanScatter(1, tuple((key, 8) for key in keys), (), broadcast))

    def _store(self, placements: tuple[PlacedValue, ...]) -> None:
        scattering = Scattering(placements, self.connection)
        self._scattering.append(scattering)
        for placed in placements:
            assert self.recipes.by_key[placed.key].function == DATA
            for address in placed.addresses:
                scattering.expected += 1
                version = Version(placed.key, placed.attempt)
                store = Store(version, self.recipes.value(placed.key), 8)
                self.network.send_plain(self.name, address, [store])

    def refused(self, target: str) -> None:
        """A worker is gone: what was to be stored there is not."""
        if target == SCHEDULER:
            self.scheduler_lost()
            return
        for scattering in list(self._scattering):
            for placed in scattering.placements:
                if target in placed.addresses:
                    self._stored(Version(placed.key, placed.attempt), failed=True)

    def _stored(self, version: Version, failed: bool) -> None:
        for scattering in self._scattering:
            if any((p.key, p.attempt) == version for p in scattering.placements):
                scattering.stored += 1
                scattering.failed |= failed
                if scattering.stored >= scattering.expected:
                    self._scattering.remove(scattering)
                    self._all_stored(scattering)
                return

    def _all_stored(self, scattering: Scattering) -> None:
        if scattering.failed:  # it gives up half-way
            nowhere = tuple(placed._replace(addresses=()) for placed in scattering.placements)
            self._send(DataScattered(nowhere))
            return
        self._send(DataScattered(scattering.placements))
        for placed in scattering.placements:
            # A scheduler that has forgotten us in between has forgotten its plan, too.
            self.want(placed.key, doomed=scattering.connection != self.connection)
