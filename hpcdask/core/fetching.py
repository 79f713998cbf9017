"""Getting inputs from other workers: whom to ask for what, and whom next.

A request asks one worker for many values at once. What is under way is bounded in bytes and in
workers that are asked at a time; a worker is asked for more when it has answered.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Iterable
from typing import Any

from hpcdask.core.held_task import Fetch, HeldTask, Instruction
from hpcdask.messages import (
    AcquireKeys,
    DataMissing,
    Dependency,
    KeysAdded,
    Message,
    NotAcquired,
    TaskErred,
    TaskError,
    Version,
    WorkersGone,
)

#: Every legal move of a task on a worker, as in `scheduler_state.MOVES`.
MOVES = {
    "new": {"waiting", "ready", "fetch", "memory"},
    "waiting": {"ready", "gone"},
    "ready": {"executing", "gone"},
    "executing": {"memory", "error", "gone"},
    "error": {"gone"},
    "fetch": {"flight", "gone"},
    "flight": {"memory", "fetch", "gone"},
    "memory": {"gone"},
    "gone": set(),
}

#: Limits of one request, and of all that are under way. A value larger than these is asked for
#: alone.
MAX_FETCH_BYTES, MAX_FETCH_KEYS = 64 * 2**20, 500
MAX_PEERS, MAX_BYTES_IN_FLIGHT = 16, 256 * 2**20


class Fetching(abc.ABC):
    """The tables of a worker, and the part of it that gets inputs."""

    def __init__(
        self, address: str, max_peers: int = MAX_PEERS, max_fetch_bytes: int = MAX_FETCH_BYTES
    ) -> None:
        self.address = address
        self._max_peers, self._max_fetch_bytes = max_peers, max_fetch_bytes
        self.tasks: dict[str, HeldTask] = {}
        self.outbox: list[Message] = []
        self.instructions: list[Instruction] = []
        self.nbytes = 0  # of values held
        #: Moves of tasks since somebody looked, who empties it: key, state before, state after.
        #: None unless somebody wants to know.
        self.moves: list[tuple[str, str, str]] | None = None
        #: Values put here by clients while their keys meant something else: which of the two counts
        #: is for the scheduler to say, by freeing the other.
        self._spare: dict[Version, HeldTask] = {}
        self._salt = sum(address.encode())
        self._to_fetch: dict[str, deque[HeldTask]] = {}  # by the worker to ask; "" if none is left
        self._in_flight: dict[str, set[str]] = {}  # keys asked for, by worker
        self._bytes_asked: dict[str, int] = {}  # expected of each of these

    # -- What the other part does -----------------------------------------------------------------

    @abc.abstractmethod
    def _to_memory(self, task: HeldTask, value: Any, nbytes: int) -> None:
        """An input, or the value of a run, is here."""

    @abc.abstractmethod
    def _start_more(self) -> None:
        """Run what can be run now."""

    @abc.abstractmethod
    def _withdraw(self, task: HeldTask) -> None:
        """Drop a task, and hand back what waits for it here."""

    @abc.abstractmethod
    def _drop(self, task: HeldTask) -> None:
        """Forget a task in whatever state."""

    @abc.abstractmethod
    def _hand_back(self, tasks: Iterable[HeldTask]) -> None:
        """Tell that tasks will not run here."""

    # -- Events -----------------------------------------------------------------------------------

    def acquire_keys(self, now: float, msg: AcquireKeys) -> None:
        """Copies are to be made here, since their holders will end."""
        for dependency in msg.dependencies:
            held = self._dependency(dependency)
            if held.state == "memory":
                self.outbox.append(KeysAdded((Version(held.key, held.attempt),)))
            elif held.state in ("fetch", "flight"):
                held.is_kept = True
        self._fetch_more()

    def data_arrived(
        self, now: float, address: str, values: Iterable[tuple[Version, Any, int]]
    ) -> None:
        """A worker answered a `Fetch`; what it did not send it does not have.

        Parameters
        ----------
        values : iterable of (Version, value, nbytes)
        """
        self._has_answered(address, values, unreachable="")

    def fetch_failed(self, now: float, address: str, why: str = "no answer") -> None:
        """A worker could not be asked, or has not answered; `why` is for people, and not empty."""
        self._has_answered(address, (), unreachable=why)

    def _has_answered(
        self, address: str, values: Iterable[tuple[Version, Any, int]], unreachable: str
    ) -> None:
        asked = self._in_flight.pop(address, set())
        self._bytes_asked.pop(address, None)
        added = []
        for version, value, nbytes in values:
            asked.discard(version.key)
            task = self.tasks.get(version.key)
            if task is None or task.state != "flight" or task.attempt != version.attempt:
                continue  # freed meanwhile
            self._to_memory(task, value, nbytes)
            added.append(version)
        if added:
            self.outbox.append(KeysAdded(tuple(added)))
        for key in sorted(asked):
            self._not_there(key, address, unreachable)
        self._fetch_more()
        self._start_more()

    def workers_gone(self, now: float, msg: WorkersGone) -> None:
        """Workers have fallen silent: do not ask them. The shell hangs up on those that it asks."""
        gone = set(msg.addresses)
        for task in list(self.tasks.values()):
            if task.state in ("fetch", "flight"):
                task.holders = deque(address for address in task.holders if address not in gone)
        for address in msg.addresses:
            for task in self._to_fetch.pop(address, ()):
                if task.state == "fetch":
                    self._queue_fetch(task)
        self._fetch_more()

    def input_unusable(self, now: float, version: Version, error: TaskError) -> None:
        """An input exists, but its holder cannot send it or this worker cannot read it."""
        task = self.tasks.get(version.key)
        if task is None or task.attempt != version.attempt or task.state == "memory":
            return
        if task.is_kept:
            task.is_kept = False
            self.outbox.append(NotAcquired((version,)))
        dependents = self._dependents(task)
        for dependent in dependents:
            self._hand_back(self._dependents(dependent))
            self.outbox.append(TaskErred(dependent.key, dependent.attempt, error))
            self._drop(dependent)
        if not dependents:
            self._drop(task)

    # -- Asking -----------------------------------------------------------------------------------

    def _move(self, task: HeldTask, state: str) -> None:
        if state not in MOVES[task.state]:
            raise AssertionError(f"{task} cannot become {state}")
        if self.moves is not None:
            self.moves.append((task.key, task.state, state))
        task.state = state

    def _dependents(self, task: HeldTask) -> list[HeldTask]:
        return [self.tasks[key] for key in task.dependents]

    def _dependency(self, dependency: Dependency) -> HeldTask:
        """Return the input: known already, about to be computed here, or to be fetched now."""
        held = self.tasks.get(dependency.key)
        if held is not None and held.attempt == dependency.attempt:
            return held
        if held is not None:  # another value of a key that was used again
            self._make_way(held)
        version = Version(dependency.key, dependency.attempt)
        if version in self._spare:
            held = self.tasks[dependency.key] = self._spare.pop(version)
            return held
        held = self.tasks[dependency.key] = HeldTask(dependency.key, dependency.attempt)
        held.nbytes = dependency.nbytes
        held.holders.extend(a for a in dependency.addresses if a != self.address)
        # Spread a popular input's readers over its holders.
        held.holders.rotate(dependency.attempt + self._salt)
        self._move(held, "fetch")
        self._queue_fetch(held)
        return held

    def _make_way(self, task: HeldTask) -> None:
        """Another life of a task's key begins.

        Values stay until the scheduler frees them: one that a client put here may be the newer.
        """
        if task.state == "memory":
            self._hand_back(self._dependents(task))
        else:
            self._withdraw(task)
        spare = self.tasks.pop(task.key, None)  # it, or what has taken its place
        if spare is not None:
            spare.dependents = {}  # runs that are under way have it in hand
            self._spare[Version(spare.key, spare.attempt)] = spare

    def _queue_fetch(self, task: HeldTask) -> None:
        """Line an input up at the next worker to ask, if there is one left."""
        address = task.holders.popleft() if task.holders else ""
        self._to_fetch.setdefault(address, deque()).append(task)

    def _fetch_more(self) -> None:
        for task in self._to_fetch.pop("", ()):
            if task.state == "fetch":
                self._nowhere(task)
        for address in list(self._to_fetch):
            under_way = sum(self._bytes_asked.values())
            if len(self._in_flight) >= self._max_peers or under_way >= MAX_BYTES_IN_FLIGHT:
                return
            if address not in self._in_flight:
                self._fetch_from(address, MAX_BYTES_IN_FLIGHT - under_way)

    def _fetch_from(self, address: str, most: int) -> None:
        """Ask one worker for as much as one request may hold."""
        waiting = self._to_fetch[address]
        most = min(most, self._max_fetch_bytes)
        versions: list[Version] = []
        nbytes = 0
        while waiting and len(versions) < MAX_FETCH_KEYS:
            task = waiting[0]
            if task.state == "fetch":
                if versions and nbytes + task.nbytes > most:
                    break
                self._move(task, "flight")
                task.asked = address
                versions.append(Version(task.key, task.attempt))
                nbytes += task.nbytes
            waiting.popleft()
        if not waiting:
            del self._to_fetch[address]
        if versions:
            self._in_flight[address] = {version.key for version in versions}
            self._bytes_asked[address] = nbytes
            self.instructions.append(Fetch(address, tuple(versions)))

    def _not_there(self, key: str, address: str, unreachable: str) -> None:
        """A worker did not give an input: ask the next one that may have it."""
        task = self.tasks.get(key)
        if task is not None and task.state == "flight" and task.asked == address:
            task.tried.append((address, unreachable))
            self._move(task, "fetch")
            self._queue_fetch(task)

    def _nowhere(self, task: HeldTask) -> None:
        """Nobody gave an input: let the scheduler decide."""
        if task.is_kept:
            task.is_kept = False
            self.outbox.append(NotAcquired((Version(task.key, task.attempt),)))
        dependents = self._dependents(task)
        for dependent in dependents:
            self._give_up(dependent, task)
        if not dependents:
            self._drop(task)

    def _give_up(self, task: HeldTask, missing: HeldTask) -> None:
        """Hand a task back of which an input cannot be had."""
        if task.state in ("waiting", "ready"):
            self._hand_back(self._dependents(task))
            version = Version(missing.key, missing.attempt)
            for address, unreachable in missing.tried or [(self.address, "")]:
                message = DataMissing(task.key, task.attempt, version, address, unreachable)
                self.outbox.append(message)
            self._drop(task)
