"""Workers and clients that lost the scheduler and come back, to it or to its successor.

To the same scheduler a worker brings values and runs of tasks that are known, and may have been
given to others meanwhile. To a new one it brings keys that nobody has asked for yet, since the
clients come back as well, in any order. So a new scheduler that learns that it had a predecessor
holds for a moment what returning clients submit, until all seem to be back; then it gives
each task the value or the run that was kept for it, and has the rest computed.
"""

from __future__ import annotations

from collections.abc import Iterable

from hpcdask.core.definition import definition_of
from hpcdask.core.records import ClientRecord, Task, WorkerRecord
from hpcdask.core.transitions import Transitions
from hpcdask.messages import (
    FreeKeys,
    HeldRun,
    HeldValue,
    KeyCancelled,
    RegisterWorker,
    TaskDone,
    Version,
)

#: Seconds without another return after which all are taken to be back, and seconds at most.
QUIET, LONGEST_HOLD = 2.0, 15.0
#: Seconds that values are kept for which nobody has asked yet, unless the shell says otherwise.
UNCLAIMED = 120.0


class Returning(Transitions):
    """The part of the scheduler that takes up what survived."""

    def __init__(self, first_attempt: int) -> None:
        super().__init__(first_attempt)
        self._first_attempt = first_attempt
        self._values: dict[str, dict[WorkerRecord, HeldValue]] = {}  # not asked for yet
        self._runs: dict[str, tuple[WorkerRecord, HeldRun]] = {}
        self._hold_since = self._hold_until = 0.0  # until 0: nothing is held
        self._unclaimed_until = 0.0
        #: Seconds that values are kept for clients that have not come back yet.
        self.unclaimed = UNCLAIMED
        self.held: dict[Task, None] = {}  # demanded when the hold ends
        self._held_wants: dict[str, dict[ClientRecord, None]] = {}  # of keys not known yet
        self._former: dict[str, ClientRecord] = {}  # what clients wanted before they came back

    # -- Workers ----------------------------------------------------------------------------------

    def _take_up(self, now: float, worker: WorkerRecord, info: RegisterWorker) -> None:
        """Take up what a returning worker has kept; the rest it can drop."""
        if self._hold_until:
            self._hold(now)
        useless = []
        for value in info.values:
            if not self._take_up_value(now, worker, value):
                useless.append(Version(value.key, value.attempt))
        for run in info.runs:
            if not self._take_up_run(now, worker, run):
                useless.append(Version(run.key, run.attempt))
        if useless:
            self.send(worker.address, FreeKeys(tuple(useless)))

    def _take_up_value(self, now: float, worker: WorkerRecord, value: HeldValue) -> bool:
        if self._is_for_later(now, value):
            self._values.setdefault(value.key, {})[worker] = value
            return True
        task = self.tasks.get(value.key)
        return task is not None and self._is_same(task, value) and self._adopt(task, worker, value)

    def _take_up_run(self, now: float, worker: WorkerRecord, run: HeldRun) -> bool:
        if self._is_for_later(now, run):
            self._runs[run.key] = worker, run
            return True
        task = self.tasks.get(run.key)
        return task is not None and self._is_same(task, run) and self._adopt_run(task, worker, run)

    def _is_for_later(self, now: float, kept: HeldValue | HeldRun) -> bool:
        """Whether it is of a key that only returning clients can ask for."""
        task = self.tasks.get(kept.key)
        if not self._is_of_another_scheduler(kept.attempt) or not (
            task is None or task in self.held
        ):
            return False
        self._hold(now)
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
            return True
        if task.state == "erred" or (task.state == "released" and task not in self.held):
            return False
        if task.state == "released":  # nothing that it needs has been demanded for it
            self._move(task, "memory")
            task.attempt, task.nbytes = value.attempt, value.nbytes
            task.add_holder(worker)
            self._tell(task, TaskDone(task.key, task.nbytes, None))
            return True
        if task.state == "processing":
            self._take_back_and_tell(task)
            self._move(task, "waiting")
            self._take_back_dependents(task)
        self._leave_queue(task)
        task.attempt = value.attempt
        self._to_memory(task, worker, value.nbytes)
        return True

    def _adopt_run(self, task: Task, worker: WorkerRecord, run: HeldRun) -> bool:
        """Let a run that is under way stand for a task's; False if that has another one."""
        if task.state not in ("queued", "no-worker", "waiting") or task.missing:
            return False
        if task.lane.resources:  # which others may have been given
            return False
        self._leave_queue(task)
        self._move(task, "processing")
        task.attempt, task.worker = run.attempt, worker
        self._occupy(task, worker)
        return True

    def _forget_kept(self, worker: WorkerRecord) -> None:
        """A worker is gone: nothing of it can be claimed."""
        for key in [key for key, values in self._values.items() if worker in values]:
            del self._values[key][worker]
            if not self._values[key]:
                del self._values[key]
        self._runs = {k: kept for k, kept in self._runs.items() if kept[0] is not worker}

    # -- Clients ----------------------------------------------------------------------------------

    def client_returned(self, now: float, name: str) -> None:
        """A client that had lost us is back, and begins to tell all that it holds."""
        before = self.clients.pop(name, None)
        client = self.clients[name] = ClientRecord(name)
        client.is_returning = True
        if before is None:  # it knew another scheduler
            self._hold(now)
        else:
            self.outbox.pop(name, None)
            before.is_told = False
            self._former[name] = before

    def all_told(self, now: float, name: str) -> None:
        """A returned client has told all that it holds; it wants nothing else."""
        client = self.clients.get(name)
        if client is None:
            return
        client.is_returning = False
        self._drop_former(name)
        if not self._hold_until:
            self._end_hold()
        self._settle()

    def _drop_former(self, name: str) -> None:
        former = self._former.pop(name, None)
        if former is not None:
            self._drop_wants(former)

    def _drop_wants(self, client: ClientRecord) -> None:
        """Nobody wants any more what this client did."""
        released = []
        for holder in (client, *(hold for _, hold in client.generations.values())):
            for task in list(holder.wants):
                task.drop_client(holder)
                released.append(task)
        for wants in self._held_wants.values():
            wants.pop(client, None)
        self._release_unneeded(released)

    def _hold_tasks(self, now: float, tasks: Iterable[Task]) -> None:
        """Demand what a returning client submits only when all are back."""
        if self._hold_until:
            self._hold(now)
        for task in tasks:
            if task.state == "released":
                self.held[task] = None

    def _placeholder(self, key: str, born: int) -> Task:
        """A task of which only the value can be had: it was scattered, or its recipe is lost."""
        task = self.tasks[key] = Task(key, None, b"", (), (0.0, 0, 0), 0, self.lanes.open, born)
        self.lanes.open.uses += 1
        return task

    # -- Time -------------------------------------------------------------------------------------

    def _hold(self, now: float) -> None:
        """Somebody came back to us who knew another scheduler: wait for the others."""
        if not self._hold_until:
            self._hold_since = now
        self._hold_until = min(now + QUIET, self._hold_since + LONGEST_HOLD)
        self._unclaimed_until = now + self.unclaimed

    def _tick_hold(self, now: float) -> None:
        if self._hold_until and now >= self._hold_until:
            self._hold_until = 0.0
            self._end_hold()
        if self._unclaimed_until and now >= self._unclaimed_until and not self._hold_until:
            self._unclaimed_until = 0.0
            self._free_unclaimed()

    def _end_hold(self) -> None:
        """All are back: use what was kept, compute the rest."""
        for key, wants in self._held_wants.items():
            task = self.tasks.get(key)
            if task is None and key in self._values:
                task = self._placeholder(key, self._attempt)
            for client in wants:
                if task is not None:
                    self._want(client, task)
                    self.held[task] = None
                else:
                    self._write(client, KeyCancelled(key, _LOST))
        self._held_wants = {}
        for task in self.held:
            self._claim_value(task)
        held, self.held = self.held, {}
        for task in held:
            if task.state == "released" and task.is_needed:
                self._demand(task)
        self._release_unneeded(held)

    def _claim_value(self, task: Task) -> None:
        for worker, value in self._values.pop(task.key, {}).items():
            is_useful = task.state != "forgotten" and self._is_same(task, value)
            if not is_useful or not self._adopt(task, worker, value):
                self.send(worker.address, FreeKeys((Version(value.key, value.attempt),)))

    def _place(self, task: Task) -> None:
        if not self._runs or not self._claim_run(task):
            super()._place(task)

    def _claim_run(self, task: Task) -> bool:
        """Let a task have a run that was kept for it."""
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
            for worker, value in values.items():
                free.setdefault(worker, []).append(Version(key, value.attempt))
        for key, (worker, run) in self._runs.items():
            free.setdefault(worker, []).append(Version(key, run.attempt))
        self._values, self._runs = {}, {}
        for worker, versions in free.items():
            self.send(worker.address, FreeKeys(tuple(versions)))

    def _want_all(self, client: ClientRecord, keys: Iterable[str]) -> None:
        """A returning client holds futures of these keys."""
        for key in keys:
            task = self.tasks.get(key)
            if task is None:
                self._held_wants.setdefault(key, {})[client] = None
                continue
            self._want(client, task)
            if task.state == "released":
                self.held[task] = None


_LOST = "its value was lost together with the scheduler, and its recipe is not known here"
