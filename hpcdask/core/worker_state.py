"""What one worker has and does: fetch inputs, run tasks, hold values, drop them.

A task here moves like this (`MOVES`)::

    waiting -> ready -> executing -> memory          tasks to run
    fetch -> flight -> memory                        inputs that others hold

and vanishes from any state when the scheduler frees it. A task that is freed while it runs cannot
be stopped; its run is *abandoned*, and what comes of it is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any, NamedTuple

from hpcdask.messages import (
    Blob,
    ComputeTask,
    DataMissing,
    DefineFunction,
    Dependency,
    ForgetFunctions,
    FreeKeys,
    KeysAdded,
    Message,
    TaskErred,
    TaskError,
    TaskFinished,
    Version,
)

#: Every legal move of a task on a worker, as in `scheduler_state.MOVES`.
MOVES = {
    "new": {"waiting", "ready", "fetch", "memory"},
    "waiting": {"ready", "gone"},
    "ready": {"executing", "gone"},
    "executing": {"memory", "gone"},
    "fetch": {"flight", "gone"},
    "flight": {"memory", "fetch", "gone"},
    "memory": {"gone"},
    "gone": set(),
}

#: Seconds of short tasks that are handed to the threads at once, per thread: a hand-over by the
#: event loop for each would take longer than they do.
LOOKAHEAD = 0.002
MAX_LOOKAHEAD = 100  # tasks per thread
#: Versions that are remembered because they were freed while they were not here.
_MAX_FREED_EARLY = 1000
#: Seconds that a task is expected to take as long as none of its function has run.
_UNKNOWN = 1.0
#: Limits of one request for inputs, and how many workers are asked at a time.
MAX_FETCH_BYTES, MAX_FETCH_KEYS, MAX_PEERS = 64 * 2**20, 500, 16


# -- What the shell is to do, and what came of it -------------------------------------------------


class Execute(NamedTuple):
    """Run a task in a thread, then call `task_ran`."""

    key: str
    attempt: int
    function: DefineFunction
    arguments: Blob
    inputs: dict[str, Any]  # values of its dependencies
    wanted: bool  # send a small value along


class Abandon(NamedTuple):
    """Do not start this run if it has not started; `task_ran` is due all the same."""

    key: str
    attempt: int


class Fetch(NamedTuple):
    """Ask a worker for values, then call `data_arrived` or `fetch_failed`."""

    address: str
    versions: tuple[Version, ...]


class Ran(NamedTuple):
    """A run returned."""

    value: Any
    nbytes: int
    duration: float  # seconds
    pickled: Blob | None  # if wanted and small


class Raised(NamedTuple):
    """A run raised."""

    error: TaskError
    duration: float  # seconds


class NotStarted(NamedTuple):
    """A run was abandoned before it began."""


Instruction = Execute | Abandon | Fetch
Outcome = Ran | Raised | NotStarted


class HeldTask:
    """One task as a worker sees it: to run, to fetch, or held."""

    __slots__ = (
        "arguments",
        "attempt",
        "cost",
        "dependencies",
        "dependents",
        "function",
        "holders",
        "key",
        "missing",
        "nbytes",
        "priority",
        "state",
        "tried",
        "value",
        "wanted",
    )

    def __init__(self, key: str, attempt: int) -> None:
        self.key = key
        self.attempt = attempt
        self.state = "new"
        self.dependencies: tuple[str, ...] = ()
        self.dependents: dict[str, None] = {}  # tasks here that need it, as an ordered set
        self.missing = 0  # dependencies not in memory, while waiting
        self.function: DefineFunction | None = None
        self.arguments: Blob = b""
        self.priority: tuple[float, int, int] = (0.0, 0, 0)
        self.wanted = False
        self.cost = 0.0  # seconds that its run is expected to take, while executing
        self.holders: deque[str] = deque()  # workers still to be asked, while fetch or flight
        self.tried: list[str] = []  # workers that did not have it
        self.nbytes = 0
        self.value: Any = None

    def __repr__(self) -> str:
        return f"<HeldTask {self.key} #{self.attempt} {self.state}>"


class WorkerState:
    """All that one worker knows and decides: one public method per event.

    Messages to the scheduler are in `outbox` afterwards, and what the shell has to do in
    `instructions`, both in order.

    Parameters
    ----------
    address : str
        Where this worker is reached.
    nthreads : int
        Tasks that may run at a time.
    """

    def __init__(self, address: str, nthreads: int) -> None:
        self.address = address
        self.nthreads = nthreads
        self.tasks: dict[str, HeldTask] = {}
        self.functions: dict[bytes, DefineFunction] = {}
        self.outbox: list[Message] = []
        self.instructions: list[Instruction] = []
        #: Runs under way that nobody wants, with the seconds that they were expected to take.
        self.abandoned: dict[tuple[str, int], float] = {}
        self.executing = 0  # runs handed to threads, abandoned ones included
        self.nbytes = 0  # of values held
        self.n_ready = 0  # tasks that only wait for a thread
        self._executing_cost = 0.0  # seconds
        self._durations: dict[bytes, float] = {}  # by function id: moving average, seconds
        self._ready: list[
            tuple[tuple[float, int, int], int, HeldTask]
        ] = []  # heap, with stale entries
        self._pushes = 0
        self._salt = sum(address.encode())
        #: Values put here by clients while their keys meant something else: which of the two counts
        #: is for the scheduler to say, by freeing the other.
        self._spare: dict[Version, HeldTask] = {}
        self._freed_early: dict[Version, None] = {}  # before they came; the oldest is first
        self._to_fetch: dict[str, deque[HeldTask]] = {}  # by the worker to ask
        self._in_flight: dict[str, set[str]] = {}  # keys asked for, by worker

    def value_of(self, version: Version) -> HeldTask | None:
        """Return the task whose value this is, or None if it is not here."""
        held = self.tasks.get(version.key)
        if held is not None and held.attempt == version.attempt and held.state == "memory":
            return held
        return self._spare.get(version)

    # -- Events: the scheduler speaks -----------------------------------------------------------

    def function_defined(self, now: float, msg: DefineFunction) -> None:
        """Code that tasks will refer to."""
        self.functions[msg.function_id] = msg

    def functions_forgotten(self, now: float, msg: ForgetFunctions) -> None:
        """Code that no task refers to any more."""
        for function_id in msg.function_ids:
            self.functions.pop(function_id, None)
            self._durations.pop(function_id, None)

    def compute_task(self, now: float, msg: ComputeTask) -> None:
        """A task is to run here."""
        old = self.tasks.get(msg.key)
        if old is not None:
            if old.attempt == msg.attempt:  # said twice
                return
            self._supersede(old)
        task = self.tasks[msg.key] = HeldTask(msg.key, msg.attempt)
        task.function = self.functions[msg.function_id]
        task.arguments, task.priority, task.wanted = msg.arguments, msg.priority, msg.wanted
        task.dependencies = tuple([d.key for d in msg.dependencies])
        for dependency in msg.dependencies:
            held = self._dependency(dependency)
            held.dependents[task.key] = None
            if held.state != "memory":
                task.missing += 1
        if task.missing:
            self._move(task, "waiting")
            self._fetch_more()
        else:
            self._to_ready(task)
            self._start_more()

    def keys_freed(self, now: float, msg: FreeKeys) -> None:
        """Values and runs that nobody needs any more."""
        for version in msg.versions:
            task = self.tasks.get(version.key)
            if task is not None and task.attempt == version.attempt:
                self._withdraw(task)
            elif version in self._spare:
                self.nbytes -= self._spare.pop(version).nbytes
            else:  # a client that scatters may have given up before its values are here
                self._freed_early[version] = None
                if len(self._freed_early) > _MAX_FREED_EARLY:
                    del self._freed_early[next(iter(self._freed_early))]
        self._start_more()

    def value_stored(self, now: float, version: Version, value: Any, nbytes: int) -> None:
        """A client put a value here."""
        old = self.tasks.get(version.key)
        if version in self._spare or (old is not None and old.attempt == version.attempt):
            return  # said twice
        if version in self._freed_early:
            del self._freed_early[version]
            return
        task = HeldTask(version.key, version.attempt)
        if old is None:
            self.tasks[version.key] = task
        else:
            self._spare[version] = task
        self._to_memory(task, value, nbytes)

    def threads_changed(self, now: float, nthreads: int) -> None:
        """So many tasks may run at a time from now on."""
        self.nthreads = nthreads
        self._start_more()

    # -- Events: the shell did what it was told -------------------------------------------------

    def task_ran(self, now: float, key: str, attempt: int, outcome: Outcome) -> None:
        """A run ended."""
        task = self.tasks.get(key)
        self.executing -= 1
        if (key, attempt) in self.abandoned:
            self._executing_cost -= self.abandoned.pop((key, attempt))
        elif task is not None and task.attempt == attempt and task.state == "executing":
            self._executing_cost -= task.cost
            if not isinstance(outcome, NotStarted) and task.function is not None:
                self._observe(task.function.function_id, outcome.duration)
            if isinstance(outcome, Ran):
                self._executing_to_memory(task, outcome)
            elif isinstance(outcome, Raised):
                self.outbox.append(TaskErred(key, attempt, outcome.error))
                self._drop_ended(task)
        if not self.executing:
            self._executing_cost = 0.0  # sums of floats drift
        self._start_more()

    def data_arrived(
        self, now: float, address: str, values: Iterable[tuple[Version, Any, int]]
    ) -> None:
        """A worker answered a `Fetch`; what it did not send it does not have.

        Parameters
        ----------
        values : iterable of (Version, value, nbytes)
        """
        asked = self._in_flight.pop(address, set())
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
            self._not_there(key, address)
        self._fetch_more()
        self._start_more()

    def input_unusable(self, now: float, version: Version, error: TaskError) -> None:
        """An input exists, but its holder cannot send it or this worker cannot read it."""
        task = self.tasks.get(version.key)
        if task is None or task.attempt != version.attempt or task.state == "memory":
            return
        for key in list(task.dependents):
            dependent = self.tasks[key]
            self.outbox.append(TaskErred(key, dependent.attempt, error))
            self._drop(dependent)

    def fetch_failed(self, now: float, address: str) -> None:
        """A worker could not be asked."""
        self.data_arrived(now, address, ())

    # -- Moves ----------------------------------------------------------------------------------

    def _move(self, task: HeldTask, state: str) -> None:
        if state not in MOVES[task.state]:
            raise AssertionError(f"{task} cannot become {state}")
        task.state = state

    def _dependency(self, dependency: Dependency) -> HeldTask:
        """Return the input, known already or to be fetched now."""
        held = self.tasks.get(dependency.key)
        if held is not None and held.attempt == dependency.attempt:
            return held
        if held is not None:  # another value of a key that was used again
            self._supersede(held)
            spare = self._spare.pop(Version(dependency.key, dependency.attempt), None)
            if spare is not None:  # the one that is meant was here already
                self.tasks[spare.key] = spare
                return spare
        held = self.tasks[dependency.key] = HeldTask(dependency.key, dependency.attempt)
        held.nbytes = dependency.nbytes
        held.holders.extend(a for a in dependency.addresses if a != self.address)
        # Spread a popular input's readers over its holders.
        held.holders.rotate(dependency.attempt + self._salt)
        self._move(held, "fetch")
        self._queue_fetch(held)
        return held

    def _queue_fetch(self, task: HeldTask) -> None:
        """Line an input up at the next worker to ask, if there is one left."""
        if task.holders:
            address = task.holders.popleft()
            task.tried.append(address)
            self._to_fetch.setdefault(address, deque()).append(task)
        else:
            self._to_fetch.setdefault("", deque()).append(task)

    def _fetch_more(self) -> None:
        for task in self._to_fetch.pop("", ()):
            if task.state == "fetch":
                self._nowhere(task)
        for address in list(self._to_fetch):
            if len(self._in_flight) >= MAX_PEERS:
                return
            if address not in self._in_flight:
                self._fetch_from(address)

    def _fetch_from(self, address: str) -> None:
        """Ask one worker for as much as one request may hold."""
        waiting = self._to_fetch[address]
        versions: list[Version] = []
        nbytes = 0
        while waiting and len(versions) < MAX_FETCH_KEYS and nbytes < MAX_FETCH_BYTES:
            task = waiting.popleft()
            if task.state == "fetch":
                self._move(task, "flight")
                versions.append(Version(task.key, task.attempt))
                nbytes += task.nbytes
        if not waiting:
            del self._to_fetch[address]
        if versions:
            self._in_flight[address] = {version.key for version in versions}
            self.instructions.append(Fetch(address, tuple(versions)))

    def _not_there(self, key: str, address: str) -> None:
        """A worker did not give an input: ask the next one that may have it."""
        task = self.tasks.get(key)
        if task is not None and task.state == "flight" and task.tried[-1:] == [address]:
            self._move(task, "fetch")
            self._queue_fetch(task)

    def _nowhere(self, task: HeldTask) -> None:
        """Nobody gave an input: let the scheduler decide."""
        for dependent in self._dependents(task):
            self._give_up(dependent, task, task.tried or [self.address])

    def _dependents(self, task: HeldTask) -> list[HeldTask]:
        return [self.tasks[key] for key in task.dependents]

    def _give_up(self, task: HeldTask, missing: HeldTask, tried: list[str]) -> None:
        """Hand a task back whose input cannot be had."""
        if task.state in ("waiting", "ready"):
            version = Version(missing.key, missing.attempt)
            for address in tried:
                self.outbox.append(DataMissing(task.key, task.attempt, version, address))
            self._drop(task)

    def _to_ready(self, task: HeldTask) -> None:
        self._move(task, "ready")
        self.n_ready += 1
        self._pushes += 1
        heappush(self._ready, (task.priority, self._pushes, task))

    def _start_more(self) -> None:
        """Hand ready tasks to the threads: one for each, or more of those known to be short."""
        ready = self._ready
        while ready:
            task = ready[0][2]
            if task.state != "ready":
                heappop(ready)
                continue
            assert task.function is not None
            cost = self._durations.get(task.function.function_id, _UNKNOWN)
            if self.executing >= self.nthreads and (
                self._executing_cost + cost > LOOKAHEAD * self.nthreads
                or self.executing >= MAX_LOOKAHEAD * self.nthreads
            ):
                return
            heappop(ready)
            self._to_executing(task, cost)

    def _to_executing(self, task: HeldTask, cost: float) -> None:
        assert task.function is not None
        self._move(task, "executing")
        self.n_ready -= 1
        self.executing += 1
        task.cost = cost
        self._executing_cost += cost
        inputs = {key: self.tasks[key].value for key in task.dependencies}
        self.instructions.append(
            Execute(task.key, task.attempt, task.function, task.arguments, inputs, task.wanted)
        )

    def _executing_to_memory(self, task: HeldTask, ran: Ran) -> None:
        self._leave_dependencies(task)
        self._to_memory(task, ran.value, ran.nbytes)
        self.outbox.append(
            TaskFinished(task.key, task.attempt, ran.nbytes, ran.duration, ran.pickled)
        )

    def _to_memory(self, task: HeldTask, value: Any, nbytes: int) -> None:
        self._move(task, "memory")
        task.value, task.nbytes = value, nbytes
        task.arguments, task.function = b"", None
        self.nbytes += nbytes
        for dependent in self._dependents(task):
            if dependent.state == "waiting":
                dependent.missing -= 1
                if not dependent.missing:
                    self._to_ready(dependent)

    def _observe(self, function_id: bytes, duration: float) -> None:
        old = self._durations.get(function_id, duration)
        self._durations[function_id] = 0.5 * old + 0.5 * duration

    # -- Letting go -----------------------------------------------------------------------------

    def _withdraw(self, task: HeldTask) -> None:
        """Drop a task that the scheduler needs no more, and hand back what waits for it here."""
        dependents = self._dependents(task)
        self._drop(task)
        for dependent in dependents:
            self._give_up(dependent, task, [self.address])

    def _supersede(self, task: HeldTask) -> None:
        """Make room for another value or run of the same key.

        Values stay until the scheduler frees them: one that a client put here may be the newer.
        """
        key = task.key
        if task.state == "memory":
            for dependent in self._dependents(task):
                self._give_up(dependent, task, [self.address])
        else:
            self._withdraw(task)
        spare = self.tasks.pop(key, None)  # `task`, or what was put here besides
        if spare is not None:
            self._spare[Version(key, spare.attempt)] = spare

    def _drop(self, task: HeldTask) -> None:
        """Forget a task in whatever state, and inputs that only it was to fetch."""
        if task.state == "executing":
            self.abandoned[task.key, task.attempt] = task.cost
            self.instructions.append(Abandon(task.key, task.attempt))
        elif task.state == "memory":
            self.nbytes -= task.nbytes
        elif task.state == "ready":
            self.n_ready -= 1
        self._drop_ended(task)

    def _drop_ended(self, task: HeldTask) -> None:
        self._move(task, "gone")
        task.value, task.arguments = None, b""
        if self.tasks.get(task.key) is task:
            del self.tasks[task.key]
            for version in self._spare:
                if version.key == task.key:
                    self.tasks[task.key] = self._spare.pop(version)
                    break
        self._leave_dependencies(task)

    def _leave_dependencies(self, task: HeldTask) -> None:
        """A task needs its inputs no more; those not here yet need not come."""
        dependencies, task.dependencies = task.dependencies, ()
        for key in dependencies:
            dependency = self.tasks.get(key)
            if dependency is None:
                continue
            dependency.dependents.pop(task.key, None)
            if dependency.state in ("fetch", "flight") and not dependency.dependents:
                self._drop_ended(dependency)
