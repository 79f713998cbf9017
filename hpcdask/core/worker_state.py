"""What one worker has and does: fetch inputs, run tasks, hold values, drop them.

A task here moves like this (`MOVES`)::

    waiting -> ready -> executing -> memory          tasks to run
    fetch -> flight -> memory                        inputs that others hold

*waiting* is for inputs, which are fetched, or computed here by tasks that were sent before. A task
vanishes from any state when the scheduler frees it. One that is freed while it runs cannot be
stopped; its run is *abandoned*, and what comes of it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heappop, heappush
from typing import Any

from hpcdask.core.definition import definition_of
from hpcdask.core.fetching import MAX_FETCH_BYTES, MAX_PEERS, Fetching
from hpcdask.core.fetching import MOVES as MOVES
from hpcdask.core.held_task import Abandon as Abandon
from hpcdask.core.held_task import Execute as Execute
from hpcdask.core.held_task import Fetch as Fetch
from hpcdask.core.held_task import HeldTask as HeldTask
from hpcdask.core.held_task import NotStarted as NotStarted
from hpcdask.core.held_task import Outcome as Outcome
from hpcdask.core.held_task import Postponed as Postponed
from hpcdask.core.held_task import Raised as Raised
from hpcdask.core.held_task import Ran as Ran
from hpcdask.messages import (
    ComputeTask,
    DefineFunction,
    ForgetFunctions,
    FreeKeys,
    GivenBack,
    HeldRun,
    HeldValue,
    KeysAdded,
    TakeBack,
    TaskErred,
    TaskFinished,
    TaskRescheduled,
    Version,
)

#: Seconds of short tasks that are handed to the threads at once, per thread: a hand-over by the
#: event loop for each would take longer than they do.
LOOKAHEAD = 0.002
MAX_LOOKAHEAD = 100  # tasks per thread
#: Versions that are remembered because they were freed while they were not here.
_MAX_FREED_EARLY = 1000
#: Seconds that a task is expected to take as long as none of its function has run.
_UNKNOWN = 1.0


class WorkerState(Fetching):
    """All that one worker knows and decides: one public method per event.

    Messages to the scheduler are in `outbox` afterwards, and what the shell has to do in
    `instructions`, both in order.

    Parameters
    ----------
    address : str
        Where this worker is reached.
    nthreads : int
        Tasks that may run at a time.
    resources : mapping of str to float, optional
        What tasks may take of it while they run.
    max_peers, max_fetch_bytes : int
        Workers that inputs are fetched from at a time, and bytes that one is asked for at a time,
        unless a single value has more.
    """

    def __init__(
        self,
        address: str,
        nthreads: int,
        resources: Mapping[str, float] | None = None,
        max_peers: int = MAX_PEERS,
        max_fetch_bytes: int = MAX_FETCH_BYTES,
    ) -> None:
        super().__init__(address, max_peers, max_fetch_bytes)
        self.nthreads = nthreads
        self.functions: dict[bytes, DefineFunction] = {}
        #: Runs under way that nobody wants.
        self.abandoned: dict[tuple[str, int], HeldTask] = {}
        self.executing = 0  # runs handed to threads, abandoned ones included
        self.n_ready = 0  # tasks that only wait for a thread, or for resources
        self.resources = dict(resources or {})  # free amounts
        self._executing_cost = 0.0  # seconds
        self._durations: dict[bytes, float] = {}  # by function id: moving average, seconds
        #: Heap, with stale entries.
        self._ready: list[tuple[tuple[float, int, int], int, HeldTask]] = []
        self._starved: list[HeldTask] = []  # ready, but for resources
        self._pushes = 0
        self._freed_early: dict[Version, None] = {}  # before they came; the oldest is first

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
            self._make_way(old)
        task = self.tasks[msg.key] = HeldTask(msg.key, msg.attempt)
        task.function = self.functions[msg.function_id]
        task.arguments, task.priority, task.wanted = msg.arguments, msg.priority, msg.wanted
        task.resources, task.definition = (
            msg.resources,
            definition_of(msg.function_id, msg.arguments),
        )
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

    def take_back(self, now: float, msg: TakeBack) -> None:
        """Others could run these earlier; what has started stays here."""
        found = [(self.tasks.get(version.key), version) for version in msg.versions]
        self._hand_back(t for t, version in found if t is not None and t.attempt == version.attempt)
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
        # A scheduler that knows nothing of it, since the one before has planned it, can free it.
        self.outbox.append(KeysAdded((version,)))

    def came_back(self, now: float) -> tuple[tuple[HeldValue, ...], tuple[HeldRun, ...]]:
        """The scheduler was lost, and one is found: tell it what is here; forget the rest.

        What had not started can run anywhere, and where its inputs are now is not known.
        """
        for task in list(self.tasks.values()):
            task.dependents = {}
            if task.state in ("waiting", "ready", "fetch", "flight"):
                task.dependencies = ()
                self._drop(task)
        self._to_fetch.clear()
        self._starved.clear()
        self.functions.clear()
        self.outbox.clear()
        held = [*self.tasks.values(), *self._spare.values()]
        values = [t for t in held if t.state == "memory"]
        runs = [t for t in held if t.state == "executing"]
        return (
            tuple([HeldValue(t.key, t.attempt, t.nbytes, t.definition) for t in values]),
            tuple([HeldRun(t.key, t.attempt, t.definition) for t in runs]),
        )

    def threads_changed(self, now: float, nthreads: int) -> None:
        """So many tasks may run at a time from now on."""
        self.nthreads = nthreads
        self._start_more()

    # -- Events: the shell did what it was told -------------------------------------------------

    def task_ran(self, now: float, key: str, attempt: int, outcome: Outcome) -> None:
        """A run ended."""
        task = self.abandoned.pop((key, attempt), None) or self.tasks.get(key)
        self.executing -= 1
        if task is not None and task.attempt == attempt:
            self._executing_cost -= task.cost
            if task.resources:
                self._put_back(task)
            if task.state == "executing":
                self._run_ended(task, outcome)
        if not self.executing:
            self._executing_cost = 0.0  # sums of floats drift
        self._start_more()

    # -- Moves ----------------------------------------------------------------------------------

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
            if task.resources and not self._are_free(task):
                self._starved.append(heappop(ready)[2])
                continue
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
        for name, amount in task.resources:
            self.resources[name] -= amount
        task.cost = cost
        self._executing_cost += cost
        inputs = {key: self.tasks[key].value for key in task.dependencies}
        self.instructions.append(
            Execute(task.key, task.attempt, task.function, task.arguments, inputs, task.wanted)
        )

    def _are_free(self, task: HeldTask) -> bool:
        return all(self.resources.get(name, 0.0) >= amount for name, amount in task.resources)

    def _put_back(self, task: HeldTask) -> None:
        """A run has ended: others may take what it took."""
        for name, amount in task.resources:
            self.resources[name] += amount
        starved, self._starved = self._starved, []
        for waiting in starved:
            self._pushes += 1
            heappush(self._ready, (waiting.priority, self._pushes, waiting))

    def _run_ended(self, task: HeldTask, outcome: Outcome) -> None:
        if isinstance(outcome, (Ran, Raised)) and task.function is not None:
            self._observe(task.function.function_id, outcome.duration)
        if isinstance(outcome, Ran):
            self._executing_to_memory(task, outcome)
        elif isinstance(outcome, Raised):
            self._hand_back(self._dependents(task))
            self.outbox.append(TaskErred(task.key, task.attempt, outcome.error))
            self._move(task, "error")
            self._drop_ended(task)
        elif isinstance(outcome, Postponed):
            self._hand_back(self._dependents(task))
            self.outbox.append(TaskRescheduled(task.key, task.attempt))
            self._drop_ended(task)

    def _executing_to_memory(self, task: HeldTask, ran: Ran) -> None:
        self._leave_dependencies(task)
        assert task.function is not None
        task.made_by = task.function.name
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
        self._hand_back(self._dependents(task))
        if task.state != "gone":  # as an input that only these were waiting for
            self._drop(task)

    def _hand_back(self, tasks: Iterable[HeldTask]) -> None:
        """Tell that tasks will not run here, nor what waits for these; those that run do."""
        found: dict[HeldTask, None] = {}
        stack = [task for task in tasks if task.state in ("waiting", "ready")]
        while stack:
            task = stack.pop()
            if task not in found:
                found[task] = None
                stack.extend(self._dependents(task))  # which wait, if this one has not run
        if found:
            last_first = list(reversed(found))
            self.outbox.append(GivenBack(tuple(Version(t.key, t.attempt) for t in last_first)))
            for task in last_first:
                self._drop(task)

    def _drop(self, task: HeldTask) -> None:
        """Forget a task in whatever state, and inputs that only it was to fetch."""
        if task.state == "executing":
            self.abandoned[task.key, task.attempt] = task
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
            is_to_come = dependency.state in ("fetch", "flight") and not dependency.is_kept
            if is_to_come and not dependency.dependents:
                self._drop_ended(dependency)
