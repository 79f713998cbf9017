"""What the scheduler keeps of each task, worker, client and function."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from hpcdask.core.tables import Wants
from hpcdask.messages import Blob, Heartbeat, RegisterWorker, TaskError

if TYPE_CHECKING:
    from hpcdask.core.lanes import Lane

#: Seconds assumed for a task of a kind that has not run yet.
UNKNOWN_DURATION = 0.5
#: Seconds that any task costs besides its own running.
OVERHEAD = 50e-6

A = TypeVar("A", bound="WorkerRecord | ClientRecord")

#: Sets here are dicts without values: they keep their order, so that equal events have equal
#: outcomes in every run. This one stands for an empty set until something is added. Most sets have
#: one item at most: those share the item's own `alone`, since a dict takes 230 bytes.
_NOTHING: Any = MappingProxyType({})


class Prefix:
    """How long the tasks of one function take.

    Attributes
    ----------
    duration : float or None
        Seconds, a moving average.
    cost : float
        Seconds that one more such task is expected to occupy a thread.
    """

    __slots__ = ("cost", "duration", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.duration: float | None = None
        self.cost = UNKNOWN_DURATION

    def observe(self, duration: float) -> None:
        """Take one measured duration into the average."""
        old = self.duration
        self.duration = duration if old is None else 0.5 * old + 0.5 * duration
        self.cost = self.duration + OVERHEAD


class FunctionRecord:
    """Code that tasks share."""

    __slots__ = ("code", "function_id", "known_by", "prefix", "uses")

    def __init__(self, function_id: bytes, code: Blob, prefix: Prefix) -> None:
        self.function_id = function_id
        self.code = code
        self.prefix = prefix
        self.uses = 0  # tasks that refer to it
        self.known_by: dict[WorkerRecord, None] = {}


class Task:
    """One task. A million of them may wait, so slots, and a shared empty set until needed."""

    __slots__ = (
        "arguments",
        "attempt",
        "born",
        "dependencies",
        "dependents",
        "error",
        "failures",
        "function",
        "key",
        "lane",
        "missing",
        "nbytes",
        "priority",
        "retries",
        "state",
        "waiters",
        "wanted_by",
        "who_has",
        "worker",
    )

    def __init__(
        self,
        key: str,
        function: FunctionRecord | None,
        arguments: Blob,
        dependencies: tuple[Task, ...],
        priority: tuple[float, int, int],
        retries: int,
        lane: Lane,
        born: int,
    ) -> None:
        self.key = key
        self.state = "released"
        self.function = function  # None: scattered data, which cannot be computed again
        self.arguments = arguments
        self.dependencies = dependencies
        self.dependents: dict[Task, None] = _NOTHING
        self.lane = lane  # where it may run
        self.born = born  # runs and values with greater attempts are of this life of the key
        self.missing = 0  # dependencies not in memory, while it is to run
        self.waiters = 0  # dependents that are still to run
        self.wanted_by: dict[ClientRecord, None] = _NOTHING
        self.who_has: dict[WorkerRecord, None] = _NOTHING
        self.worker: WorkerRecord | None = None  # where it is processing
        self.attempt = 0  # of the present run, or the value
        self.priority = priority
        self.retries = retries
        self.failures = 0  # workers that died while they may have run it
        self.nbytes = 0
        self.error: TaskError | None = None

    @property
    def is_needed(self) -> bool:
        """Whether a client or a task that is still to run wants its value."""
        return bool(self.waiters or self.wanted_by)

    @property
    def is_awaited(self) -> bool:
        """Whether someone is told of its end, and could use a small value right away."""
        for client in self.wanted_by:
            if client.is_told:
                return True
        return False

    def add_dependent(self, task: Task) -> None:
        """Note a task that takes this one's value."""
        if self.dependents is _NOTHING:
            self.dependents = {task: None}
        else:
            self.dependents[task] = None

    def drop_dependent(self, task: Task) -> None:
        """Undo `add_dependent`."""
        if self.dependents is not _NOTHING:
            self.dependents.pop(task, None)
            self.dependents = self.dependents or _NOTHING

    def add_holder(self, worker: WorkerRecord) -> None:
        """Note a worker that has the value; also on the worker's side."""
        if self.who_has is _NOTHING or worker not in self.who_has:
            self.who_has = _with(self.who_has, worker)
            worker.has_what[self] = None
            worker.nbytes += self.nbytes

    def drop_holder(self, worker: WorkerRecord) -> None:
        """Undo `add_holder`."""
        if worker in self.who_has:
            self.who_has = _without(self.who_has, worker)
            del worker.has_what[self]
            worker.nbytes -= self.nbytes

    def add_client(self, client: ClientRecord) -> None:
        """Note a client that wants it; also on the client's side."""
        wanted_by = self.wanted_by
        self.wanted_by = client.alone if wanted_by is _NOTHING else _with(wanted_by, client)
        client.wants.add(self)

    def drop_client(self, client: ClientRecord) -> None:
        """Undo `add_client`."""
        wanted_by = self.wanted_by
        self.wanted_by = _NOTHING if wanted_by is client.alone else _without(wanted_by, client)
        client.wants.discard(self)

    def change_priority(self, priority: tuple[float, int, int]) -> None:
        """Give it another, also where it stands by its turn."""
        for client in self.wanted_by:
            client.wants.discard(self)
        self.priority = priority
        for client in self.wanted_by:
            client.wants.add(self)

    def __lt__(self, other: Task) -> bool:
        """Break ties in queues, where each task stands with its priority."""
        return self.key < other.key

    def __repr__(self) -> str:
        return f"<Task {self.key} {self.state}>"


def _with(items: dict[A, None], item: A) -> dict[A, None]:
    if items is _NOTHING:
        return item.alone  # type: ignore[no-any-return]
    if len(items) == 1:
        (other,) = items
        if other is item:
            return items
        return {other: None, item: None}  # the one before may be shared
    items[item] = None
    return items


def _without(items: dict[A, None], item: A) -> dict[A, None]:
    if item not in items:
        return items
    if len(items) == 1:
        return _NOTHING  # type: ignore[no-any-return]
    del items[item]
    if len(items) == 1:
        (left,) = items
        return left.alone  # type: ignore[no-any-return]
    return items


class WorkerRecord:
    """One worker."""

    __slots__ = (
        "actors",
        "address",
        "alone",
        "has_what",
        "info",
        "is_leaving",
        "is_loaded",
        "is_patient",
        "lanes",
        "last_seen",
        "metrics",
        "n_ahead",
        "nbytes",
        "nthreads",
        "occupancy",
        "processing",
        "recalled",
        "resources",
    )

    def __init__(self, now: float, info: RegisterWorker) -> None:
        self.info = info
        self.alone: Any = {self: None}
        self.address = info.address
        self.nthreads = info.nthreads
        #: Seconds that each is expected to take; 0 for those that were sent ahead of their inputs.
        self.processing: dict[Task, float] = {}
        self.occupancy = 0.0  # their sum
        self.n_ahead = 0  # of these, sent ahead of inputs
        self.recalled: dict[Task, WorkerRecord] = {}  # of these, asked back, and for whom
        self.has_what: dict[Task, None] = {}
        self.nbytes = 0  # their sum
        self.actors: dict[Task, None] = {}  # of these, those that live there
        self.resources = dict(info.resources)  # free amounts
        self.lanes: list[Lane] = []  # restricted ones that it serves
        self.metrics: Heartbeat | None = None
        self.last_seen = now
        self.is_leaving = False
        self.is_patient = False  # it leaves, and waits for others to come if there are none
        self.is_loaded = False  # whether it stands in the ring of those that may be relieved

    @property
    def n_runnable(self) -> int:
        """Tasks that a thread could run there, or is running."""
        return len(self.processing) - self.n_ahead

    def __repr__(self) -> str:
        return f"<WorkerRecord {self.address}, {len(self.processing)} processing>"


class ClientRecord:
    """Someone who wants values: a client, or the scheduler on behalf of one.

    Parameters
    ----------
    name : str
        Where its messages go in the outbox; empty for fire_and_forget.
    is_told : bool
        False for a want that nobody listens to: a graph that is still being sent, or
        fire_and_forget.
    """

    __slots__ = (
        "alone",
        "generations",
        "has_departed",
        "is_returning",
        "is_told",
        "name",
        "turn",
        "wants",
        "wants_read",
        "wants_told",
    )

    def __init__(self, name: str, is_told: bool = True) -> None:
        self.name = name
        self.alone: Any = {self: None}
        self.turn = 0  # when its next task will have its turn
        self.is_told = is_told
        self.has_departed = False  # what it wants is being dropped
        self.is_returning = False  # it has lost us, and tells now what it holds
        self.wants = Wants()
        self.wants_read = self.wants_told = 0  # its last want, and the last it knows we know of
        # Unfinished submissions: number -> (generation, hold on the tasks sent so far)
        self.generations: dict[int, tuple[int, ClientRecord]] = {}

    def __repr__(self) -> str:
        return f"<ClientRecord {self.name}, {len(self.wants)} wanted>"
