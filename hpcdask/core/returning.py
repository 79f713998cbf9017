"""Workers and clients that lost the scheduler and come back, to it or to its successor.

To the same scheduler a worker brings values and runs of tasks that are known, and may have been
given to others meanwhile. To a new one it brings keys that nobody has asked for yet, since the
clients come back as well, in any order. So a new scheduler that learns that it had a predecessor
holds for a moment what clients submit, until all seem to be back; then it gives each task the value
or the run that was kept for it, and has the rest computed.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable

from hpcdask.core.definition import definition_of
from hpcdask.core.departing import Departing
from hpcdask.core.lanes import Lane
from hpcdask.core.records import ClientRecord, FunctionRecord, Task, WorkerRecord
from hpcdask.core.transitions import TO_RUN
from hpcdask.messages import (
    FreeKeys,
    HeldRun,
    HeldValue,
    RegisterWorker,
    Restriction,
    TaskErred,
    TaskFinished,
    TaskRescheduled,
    TaskSpec,
    Version,
)
from hpcdask.messages.client import KeyCancelled, TaskDone

#: Seconds without another return after which all are taken to be back, and seconds at most.
QUIET, LONGEST_HOLD = 2.0, 15.0
#: Seconds that values are kept for which nobody has asked yet, unless the shell says otherwise.
UNCLAIMED = 120.0
#: What is left to know of an actor whose recipe is lost.
_AN_ACTOR = Restriction((), False, (), actor=True)


class Returning(Departing, abc.ABC):
    """The part of the scheduler that takes up what survived."""

    def __init__(self, first_attempt: int) -> None:
        super().__init__(first_attempt)
        self._first_attempt = first_attempt
        self._hold_since = self._hold_until = 0.0  # until 0: nothing is held
        self._has_predecessor = False  # somebody has come back who knew another scheduler
        self._unclaimed_until = 0.0
        #: Seconds that values are kept for clients that have not come back yet.
        self.unclaimed = UNCLAIMED
        self._held_wants: dict[str, dict[ClientRecord, None]] = {}  # of keys not known yet
        #: Submissions that returning clients have told, until all is told: what is not wanted by
        #: them may be by what they tell later.
        self._told: dict[str, list[ClientRecord]] = {}
        #: What clients wanted before they came back, maybe several times.
        self._former: dict[str, list[ClientRecord]] = {}

    # -- Workers ----------------------------------------------------------------------------------

    def _take_up(self, now: float, worker: WorkerRecord, info: RegisterWorker) -> None:
        """Take up what a returning worker has kept; the rest it can drop."""
        if self._hold_until:
            self._hold(now)
        # Where they are claimed as soon as their tasks could be placed.
        for run in info.runs:
            self._runs.setdefault(run.key, (worker, run))
        for value in info.values:
            self._values.setdefault(value.key, {})[worker, value.attempt] = value
        useless = []
        # Dependants first: what they need is not to be given to others for their sake.
        for value in sorted(info.values, key=lambda value: -value.attempt):
            if (worker, value.attempt) not in self._values.get(value.key, ()):
                continue  # claimed meanwhile
            version = Version(value.key, value.attempt)
            self._drop_kept(worker, version)
            if not self._take_up_value(now, worker, value):
                useless.append(version)
        for run in info.runs:
            if not self._take_up_run(now, worker, run):
                useless.append(Version(run.key, run.attempt))
        if useless:
            self.send(worker.address, FreeKeys(tuple(useless)))

    def _take_up_value(self, now: float, worker: WorkerRecord, value: HeldValue) -> bool:
        if self._is_for_later(now, value):
            self._values.setdefault(value.key, {})[worker, value.attempt] = value
            return True
        task = self.tasks.get(value.key)
        if task is None or not self._is_same(task, value):
            return False
        if task.state == "released" and task not in self.held:
            return False  # nobody needs it
        return self._adopt(task, worker, value)

    def _take_up_run(self, now: float, worker: WorkerRecord, run: HeldRun) -> bool:
        task = self.tasks.get(run.key)
        if self._runs.get(run.key) != (worker, run):  # claimed already, or another worker's
            return task is not None and task.worker is worker and task.attempt == run.attempt
        if self._is_for_later(now, run):
            return True
        if task is not None and self._is_same(task, run):
            if task.state in ("queued", "no-worker"):
                self._leave_queue(task)
                self._move(task, "waiting")
                self._place(task)  # where it is claimed, or freed
                return True
            if task.state == "waiting" or task in self.held:
                return True
        del self._runs[run.key]
        return False

    def _is_for_later(self, now: float, kept: HeldValue | HeldRun) -> bool:
        """Whether it is of a key that only returning clients can ask for."""
        task = self.tasks.get(kept.key)
        if not self._is_of_another_scheduler(kept.attempt) or not (
            task is None or task in self.held
        ):
            return False
        self._hold(now)
        self._has_predecessor = True
        return True

    def _is_of_another_scheduler(self, attempt: int) -> bool:
        # Attempts begin with the time at which a scheduler starts, in microseconds.
        return attempt <= self._first_attempt

    def _is_same(self, task: Task, kept: HeldValue | HeldRun) -> bool:
        """Whether a value or a run is of this life of the key."""
        if not self._is_of_another_scheduler(kept.attempt):
            return kept.attempt > task.born
        if task.function is None:
            return True  # all that is known of it is that a client holds it
        return kept.definition == definition_of(task.function.function_id, task.arguments)

    def _adopt(self, task: Task, worker: WorkerRecord, value: HeldValue) -> bool:
        """Let a task have a value that was kept for it; False if it has another one."""
        if task.state == "memory":
            if task.attempt != value.attempt:
                return False
            task.add_holder(worker)
            if value.is_actor:
                self._lives_on(task, worker)
            return True
        if task.lane.is_actor and not value.definition:
            return False  # a copy, which only knows where the actor was
        if task.state == "erred":
            if not task.lane.is_actor or task.attempt != value.attempt:
                return False
            self._move(task, "released")  # an actor that was only out of touch
            task.error = None
        if task.state == "released":  # nothing that it needs has been demanded for it
            self._move(task, "memory")
            task.attempt, task.nbytes = value.attempt, value.nbytes or task.nbytes
            task.add_holder(worker)
            if value.is_actor or task.lane.is_actor:
                self._lives_on(task, worker)
            self._tell(task, TaskDone(task.key, task.nbytes, None))
            task.drop_client(self._keeper)
            return True
        if task.state == "processing":
            self._take_back_and_tell(task)
            self._move(task, "waiting")
            self._take_back_dependents(task)
        self._leave_queue(task)
        task.attempt = value.attempt
        self._to_memory(task, worker, value.nbytes)
        return True

    def _lives_on(self, task: Task, worker: WorkerRecord) -> None:
        """A value is an actor, whether or not its recipe is here to tell."""
        worker.actors[task] = None
        if not task.lane.is_actor:
            task.lane.uses -= 1
            task.lane = self.lanes.lane(_AN_ACTOR)
            task.lane.uses += 1

    def _adopt_run(self, task: Task, worker: WorkerRecord, run: HeldRun) -> bool:
        """Let a run that is under way stand for a task's; False if that has another one."""
        if task.state != "waiting" or task.missing:
            return False
        if task.lane.resources:  # which others may have been given
            return False
        task.attempt, task.worker = run.attempt, worker
        self._move(task, "processing")
        self._occupy(task, worker)
        return True

    def _kept_run_ended(
        self, now: float, worker: WorkerRecord, msg: TaskFinished | TaskErred | TaskRescheduled
    ) -> None:
        """A run has ended before anybody has come for it."""
        kept_by, run = self._runs.get(msg.key, (None, None))
        if run is None or kept_by is not worker or run.attempt != msg.attempt:
            return
        del self._runs[msg.key]
        if type(msg) is TaskFinished:
            value = HeldValue(msg.key, msg.attempt, msg.nbytes, run.definition)
            if not self._take_up_value(now, worker, value):
                self.send(worker.address, FreeKeys((Version(msg.key, msg.attempt),)))
            self._settle()

    def _might_be_claimed(self, worker: WorkerRecord, version: Version) -> bool:
        """Keep a value that only returning clients can know of, for as long as they may come."""
        task = self.tasks.get(version.key)
        if not self._unclaimed_until or not (task is None or task in self.held):
            return False
        if not self._is_of_another_scheduler(version.attempt):
            return False
        values = self._values.setdefault(version.key, {})
        value = HeldValue(version.key, version.attempt, 0, 0)
        values.setdefault((worker, version.attempt), value)
        return True

    def _drop_kept(self, worker: WorkerRecord, version: Version) -> None:
        """A worker has lost what it had kept."""
        values = self._values.get(version.key, {})
        values.pop((worker, version.attempt), None)
        if not values:
            self._values.pop(version.key, None)

    def _forget_kept(self, worker: WorkerRecord) -> None:
        """A worker is gone: nothing of it can be claimed."""
        for key, values in list(self._values.items()):
            for kept in [kept for kept in values if kept[0] is worker]:
                del values[kept]
            if not values:
                del self._values[key]
        self._runs = {k: kept for k, kept in self._runs.items() if kept[0] is not worker}

    # -- Clients ----------------------------------------------------------------------------------

    def client_returned(self, now: float, name: str) -> None:
        """A client that had lost us is back, and begins to tell all that it holds."""
        before = self.clients.pop(name, None)
        client = self.clients[name] = ClientRecord(name)
        client.is_returning = True
        self._hold(now)
        if before is None:
            self._has_predecessor = True
        else:
            self.outbox.pop(name, None)
            before.is_told = False
            client.turn = before.turn
            self._former.setdefault(name, []).extend([before, *self._told.pop(name, ())])
            self._drop_held_wants(before)  # it tells them again

    @property
    def awaits_returns(self) -> bool:
        """Whether somebody has come back who knew another scheduler, so that others may follow."""
        return self._has_predecessor

    def all_told(self, now: float, name: str) -> None:
        """A returned client has told all that it holds; it wants nothing else."""
        client = self.clients.get(name)
        if client is None:
            return
        client.is_returning = False
        self._drop_former(name)
        # Nothing is known elsewhere: there is nobody to wait for.
        if not self._has_predecessor and not any(c.is_returning for c in self.clients.values()):
            self._end_hold()
        self._settle()

    def _until_told(self, client: ClientRecord) -> ClientRecord:
        """Somebody who wants on behalf of a returning client until that has told all it wants."""
        holds = self._told.setdefault(client.name, [])
        if not holds:
            holds.append(ClientRecord(client.name, is_told=False))
        return holds[0]

    def _drop_former(self, name: str) -> None:
        for former in self._former.pop(name, ()):
            self._depart(former)

    def _drop_told(self, name: str) -> None:
        for hold in self._told.pop(name, ()):
            self._depart(hold)

    def _drop_held_wants(self, client: ClientRecord) -> None:
        for wants in self._held_wants.values():
            wants.pop(client, None)

    def _of_this_life(
        self, client: ClientRecord, task: Task, spec: TaskSpec, functions: list[FunctionRecord]
    ) -> Task | None:
        """The task of a key that a returning client submits; None if it is to be made anew.

        It may have let the key go, and begun anew with it, without our having heard of that.
        """
        if task.function is None or not 0 <= spec.function < len(functions):
            return task
        mine = definition_of(task.function.function_id, task.arguments)
        if mine == definition_of(functions[spec.function].function_id, spec.arguments):
            return task
        former = [*self._former.get(client.name, []), *self._told.get(client.name, [])]
        former = [f for one in former for f in (one, *(h for _, h in one.generations.values()))]
        doomed = _with_dependents(task)
        for old in doomed:
            for record in list(old.wanted_by):
                if record in former or record.has_departed:
                    old.drop_client(record)
        self._release_unneeded(doomed, math.inf)
        return self.tasks.get(spec.key)

    def _give_recipe(
        self, task: Task, spec: TaskSpec, function: FunctionRecord, lane: Lane
    ) -> None:
        """A task that somebody relied on before its recipe was known here can be computed now."""
        needs = [self.tasks[key] for key in dict.fromkeys(spec.dependencies)]
        if not _with_dependents(task).keys().isdisjoint(needs):
            return  # nonsense: it would need itself
        task.function, task.arguments, task.dependencies = function, spec.arguments, tuple(needs)
        function.uses += 1
        lane.uses += 1
        task.lane.uses -= 1
        task.lane = lane
        for dependency in needs:
            dependency.add_dependent(task)
        if task.state == "erred":
            self._move(task, "released")
            task.error = None

    def _hold_tasks(self, client: ClientRecord, tasks: Iterable[Task]) -> None:
        """Demand what comes of a submission only when all are back, if there are some to be.

        Of a scheduler before this one there may be values of these very keys, and others to come
        that want them: nothing may be claimed, and be let go of as unneeded, before that is known.
        """
        holds_all = client.is_returning or self._has_predecessor
        if not holds_all and not self.held:
            return
        for task in tasks:
            if task.state == "released" and (
                holds_all or any(dependency in self.held for dependency in task.dependencies)
            ):
                self.held[task] = None

    def _demand_or_hold(self, task: Task) -> None:
        """Have a task run, unless it or what it needs is held."""
        if task not in self.held:
            self._demand(task)

    def _placeholder(self, key: str, born: int) -> Task:
        """A task of which only the value can be had: it was scattered, or its recipe is lost."""
        # A turn of its own, since a million may be scattered: wants stand by their turns.
        priority = (0.0, born, 0)
        task = self.tasks[key] = Task(key, None, b"", (), priority, 0, self.lanes.open, born)
        self.lanes.open.uses += 1
        return task

    @abc.abstractmethod
    def _find_scattered(self, client: ClientRecord, key: str) -> Task | None:
        """Return the task of data that the client is scattering, or None."""

    # -- Time -------------------------------------------------------------------------------------

    def _hold(self, now: float) -> None:
        """Somebody came back to us who knew another scheduler: wait for the others."""
        if not self._hold_until:
            self._hold_since = now
        self._hold_until = min(now + QUIET, self._hold_since + LONGEST_HOLD)
        self._unclaimed_until = now + self.unclaimed

    def _tick_hold(self, now: float) -> None:
        if self._hold_until and now >= self._hold_until:
            self._end_hold()
        if self._unclaimed_until and now >= self._unclaimed_until and not self._hold_until:
            self._unclaimed_until = 0.0
            self._free_unclaimed()

    def _end_hold(self) -> None:
        """All are back: use what was kept, compute the rest."""
        self._hold_until, self._has_predecessor = 0.0, False
        for key, wants in self._held_wants.items():
            if not wants:
                continue
            task = self.tasks.get(key)
            if task is None and key in self._values:
                task = self._placeholder(key, self._attempt)
            for client in wants:
                if task is not None:
                    self._want(client, task)
                    self.held[task] = None
                else:
                    self._write(client, KeyCancelled(key, _LOST, is_unknown=True))
        self._held_wants = {}
        for task in list(self.held):
            self._claim_value(task)
        held, self.held = self.held, {}
        # What the first of these needs no more may be what the next one needs.
        guard = ClientRecord("", is_told=False)
        for task in held:
            if task.state == "memory":
                task.add_client(guard)
        for name in list(self._told):  # until now, since others may build on it
            if not self.clients[name].is_returning:
                self._drop_told(name)
        for task in held:
            if task.state == "released" and task.is_needed:
                self._demand(task)
        self._drop_wants(guard)
        self._release_unneeded(held)

    def _recall(self, task: Task) -> bool:
        if self.held:
            self.held.pop(task, None)
        if task.key in self._values:
            self._claim_value(task)
        return task.state == "memory"

    def _recover(self, tasks: Iterable[Task]) -> None:
        tasks = list(tasks)
        for task in tasks if self._values else ():
            if task.state == "released" and task.is_needed and self._recall(task):
                for dependent in list(task.dependents):
                    if dependent.state in TO_RUN:
                        self._has_input(dependent)
        super()._recover(task for task in tasks if task.state == "released")

    def _claim_value(self, task: Task) -> None:
        if task.state == "forgotten":
            return
        # Copies that were fetched do not say what they are; they are what the first one is.
        values = self._values.pop(task.key, {}).items()
        for (worker, _), value in sorted(values, key=lambda item: not item[1].definition):
            is_copy = task.state == "memory" and task.attempt == value.attempt
            is_useful = is_copy or self._is_same(task, value)
            if not is_useful or not self._adopt(task, worker, value):
                self.send(worker.address, FreeKeys((Version(value.key, value.attempt),)))

    def _claim_run(self, task: Task) -> bool:
        worker, run = self._runs.pop(task.key, (None, None))
        if worker is None or run is None:
            return False
        if self._is_same(task, run) and self._adopt_run(task, worker, run):
            return True
        self.send(worker.address, FreeKeys((Version(run.key, run.attempt),)))
        return False

    def _free_unclaimed(self) -> None:
        """Nobody has come for these."""
        free: dict[WorkerRecord, list[Version]] = {}
        for key, values in self._values.items():
            for worker, attempt in values:
                free.setdefault(worker, []).append(Version(key, attempt))
        for key, (worker, run) in self._runs.items():
            free.setdefault(worker, []).append(Version(key, run.attempt))
        self._values, self._runs = {}, {}
        for worker, versions in free.items():
            self.send(worker.address, FreeKeys(tuple(versions)))

    def _want_all(self, now: float, client: ClientRecord, keys: Iterable[str]) -> None:
        """A returning client holds futures of these keys."""
        self._hold(now)
        for key in keys:
            task = self.tasks.get(key) or self._find_scattered(client, key)
            if task is None:
                self._held_wants.setdefault(key, {})[client] = None
                continue
            self._want(client, task)
            if task.state == "released":
                self.held[task] = None


def _with_dependents(task: Task) -> dict[Task, None]:
    """A task and all that builds on it."""
    found: dict[Task, None] = {}
    stack = [task]
    while stack:
        task = stack.pop()
        if task not in found:
            found[task] = None
            stack.extend(task.dependents)
    return found


_LOST = "its value was lost together with the scheduler, and its recipe is not known here"
