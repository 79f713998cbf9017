"""How tasks get from state to state on the scheduler; see `Transitions`.

A task moves like this (`MOVES`)::

    released -> waiting -> queued | no-worker -> processing -> memory | erred
    any of them -> released -> forgotten

*released*: nobody needs its value, but a dependant may yet. *waiting*: for its dependencies.
*queued*: could run, but all workers have enough. *no-worker*: could run, but no worker is there
that may run it. *processing*: sent to a worker, maybe ahead of inputs that are still being computed
there. *memory*: at least one worker holds the value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from hpcdask.core.ahead import inputs_come_from, may_go_ahead
from hpcdask.core.lanes import Lane
from hpcdask.core.placement import has_room
from hpcdask.core.records import Task, WorkerRecord
from hpcdask.core.scheduler_tables import SchedulerTables
from hpcdask.core.task_errors import lost_data
from hpcdask.messages import (
    Blob,
    ComputeTask,
    Dependency,
    FreeKeys,
    TaskError,
    TaskFinished,
    Version,
)
from hpcdask.messages.client import KeyCancelled, KeyLost, TaskDone, TaskFailed

#: Every legal move of a task. `_move` is held to it by tests, and docs/ draws its table from it.
MOVES = {
    "released": {"waiting", "memory", "erred", "forgotten"},
    "waiting": {"queued", "no-worker", "processing", "memory", "erred", "released"},
    "queued": {"processing", "no-worker", "waiting", "memory", "erred", "released"},
    "no-worker": {"queued", "waiting", "memory", "erred", "released"},
    "processing": {"memory", "erred", "waiting", "released"},
    "memory": {"released"},
    "erred": {"released"},
    "forgotten": set(),
}
#: States of tasks that count as waiters of their dependencies.
TO_RUN = {"waiting", "queued", "no-worker", "processing"}

#: Holders of an input that are named to the worker which needs it.
_MAX_HOLDERS = 5


class Transitions(SchedulerTables):
    """Each change of a task's state, with all that goes with it.

    It knows no events: `SchedulerState` decides when a transition is due, and calls `_settle` when
    it has made all those of an event.
    """

    def _move(self, task: Task, state: str) -> None:
        if state not in MOVES[task.state]:
            raise AssertionError(f"{task} cannot become {state}")
        task.state = state

    # -- Towards a worker -------------------------------------------------------------------------

    def _demand(self, task: Task) -> None:
        """Have a task run, and before it all that it needs."""
        if task.state != "released":
            return
        if (self.held or self._values) and self._recall(task):
            return
        if not task.dependencies and task.function is not None:
            self._move(task, "waiting")
            self._place(task)
            return
        first, ready, stack, failed = task, [], [task], []
        while stack:
            task = stack.pop()
            if task.state != "released":
                continue
            if task.function is None:
                failed.append((task, lost_data(task)))
                continue
            self._move(task, "waiting")
            task.missing = 0
            for dependency in task.dependencies:
                dependency.waiters += 1
                if dependency.state == "memory":
                    continue
                if dependency.state == "released" and self._recall(dependency):
                    continue
                task.missing += 1
                if dependency.state == "released":
                    stack.append(dependency)
                elif dependency.state == "erred":
                    assert dependency.error is not None
                    failed.append((task, dependency.error))
            if not task.missing:
                ready.append(task)
        for task, error in failed:  # first, so that nothing is sent which only these need
            self._err(task, error)
        for task in sorted(ready, key=lambda task: task.priority):
            if task.state == "waiting":
                self._place(task)
        if first.state == "waiting":
            self._send_ahead_of_inputs(first)

    def _recall(self, task: Task) -> bool:
        """Whether a value had been kept for a task that is to run, which has it now."""
        return False

    def _claim_run(self, task: Task) -> bool:
        """Whether a run had been kept for a task that can run, which has it now."""
        return False

    def _claim_value(self, task: Task) -> None:
        """Let a task have what was kept for it, if it is right."""

    def _place(self, task: Task) -> None:
        """Send a task whose inputs are there to a worker, or queue it."""
        if task.key in self._values:
            self._to_claim.append(task)  # not now: each of a long chain would have the next placed
            return
        if self._runs and self._claim_run(task):
            return
        lane = task.lane
        if lane.n_queued and not task.dependencies:
            self._enqueue(task)  # others came first
            return
        worker = lane.placement.choose(task)
        if worker is None:
            self._enqueue(task)
        else:
            self._assign(task, worker)

    def _enqueue(self, task: Task) -> None:
        lane = task.lane
        if lane.workers:
            self._move(task, "queued")
            lane.push(task)
        else:
            self._move(task, "no-worker")
            lane.stranded[task] = None

    def _leave_queue(self, task: Task) -> None:
        if task.state == "queued":
            task.lane.leave(task)
        elif task.state == "no-worker":
            task.lane.stranded.pop(task, None)

    def _fill(self, worker: WorkerRecord) -> None:
        """Give a worker queued tasks while it has room, else let placement know of the room."""
        if worker.is_leaving:
            return
        lane = self.lanes.open
        if worker.lanes:
            self._fill_from_lanes(worker, [lane, *worker.lanes])
        else:
            while lane.n_queued and has_room(worker):
                task = lane.pop()
                if task is not None:
                    self._assign(task, worker)
        if not lane.n_queued:  # else it has no room
            lane.placement.note(worker)

    def _fill_from_lanes(self, worker: WorkerRecord, lanes: list[Lane]) -> None:
        """Give a worker those tasks first that come first in any of its lanes."""
        while True:
            firsts = [
                task
                for lane in lanes
                if lane.n_queued and lane.placement.has_room(worker) and (task := lane.first())
            ]
            if not firsts:
                break
            task = min(firsts, key=lambda task: task.priority)
            task.lane.pop()
            self._assign(task, worker)
        for lane in lanes:
            lane.placement.note(worker)

    def _serve_no_more(self, worker: WorkerRecord) -> None:
        """Give a worker no more tasks; those that only it could run have nobody now."""
        lanes = [self.lanes.open, *worker.lanes]
        self.lanes.remove(worker)
        self.loaded.forget(worker)
        for lane in lanes:
            if not lane.workers:
                for task in list(lane.queued):
                    if task.state == "queued":
                        self._leave_queue(task)
                        self._move(task, "no-worker")
                        lane.stranded[task] = None

    def _settle(self) -> None:
        """End an event: fill the workers that runs were taken from.

        Not earlier: a client that releases ten thousand tasks would have each of them sent to a
        worker in the place of the one before.
        """
        while self._to_claim:
            task = self._to_claim.pop()
            if task.state == "waiting" and not task.missing:
                self._claim_value(task)
                if task.state == "waiting":
                    self._place(task)
        for worker in self.lanes.take_new():
            self._vacated[worker] = None
        while self._vacated:
            worker, _ = self._vacated.popitem()
            if self.workers.get(worker.address) is worker:
                self._fill(worker)

    def _assign(self, task: Task, worker: WorkerRecord) -> None:
        """Send a task to a worker, and with it what may run there next."""
        self._send_to(task, worker)
        if task.dependents:
            self._send_ahead(task, worker)

    def _send_to(self, task: Task, worker: WorkerRecord) -> None:
        function = task.function
        assert function is not None
        self._attempt += 1
        task.attempt = self._attempt
        task.worker = worker
        self._move(task, "processing")
        if task.priority[1] > self._turn:
            self._turn = task.priority[1]
        self._occupy(task, worker)
        if worker not in function.known_by:
            self.functions.define(function, worker)
        self.send(
            worker.address,
            ComputeTask(
                task.key,
                task.attempt,
                function.function_id,
                task.arguments,
                tuple(map(dependency_of, task.dependencies)) if task.dependencies else (),
                task.priority,
                task.is_awaited,
                task.lane.resources,
            ),
        )

    def _occupy(self, task: Task, worker: WorkerRecord) -> None:
        """Note what a run takes of a worker."""
        assert task.function is not None
        if task.missing:
            worker.processing[task] = 0.0
            worker.n_ahead += 1
            return
        cost = worker.processing[task] = task.function.prefix.cost
        worker.occupancy += cost
        for name, amount in task.lane.resources:
            worker.resources[name] -= amount
        n_runnable = len(worker.processing) - worker.n_ahead
        if n_runnable > worker.nthreads and not worker.is_loaded:
            self.loaded.add(worker)

    def _send_ahead(self, task: Task, worker: WorkerRecord) -> None:
        """Send what only waits for runs of `worker` there, so that it need not ask us in between.

        A chain, or the lower part of a tree, then runs without a round trip for each task.
        """
        stack = [task]
        while stack:
            for dependent in stack.pop().dependents:
                if dependent.state != "waiting" or self._is_kept(dependent):
                    continue
                if may_go_ahead(dependent, worker):
                    self._send_to(dependent, worker)
                    if dependent.dependents:
                        stack.append(dependent)

    def _send_ahead_of_inputs(self, task: Task) -> None:
        """The same for a task that is new, or of which an input has just come."""
        worker = inputs_come_from(task)
        if worker is not None and not self._is_kept(task) and may_go_ahead(task, worker):
            self._assign(task, worker)

    def _is_kept(self, task: Task) -> bool:
        """Whether a run or a value may be claimed for a task that has waited until now."""
        return task.key in self._runs or task.key in self._values

    # -- A run ends -------------------------------------------------------------------------------

    def _leave_worker(self, task: Task) -> WorkerRecord:
        """End a run in the books."""
        worker = task.worker
        assert worker is not None
        worker.occupancy -= worker.processing.pop(task)
        if task.missing:
            worker.n_ahead -= 1
        else:
            for name, amount in task.lane.resources:
                worker.resources[name] += amount
        if worker.recalled:
            worker.recalled.pop(task, None)
        if not worker.processing:
            worker.occupancy = 0.0  # sums of floats drift
        task.worker = None
        return worker

    def _take_back(self, task: Task) -> WorkerRecord:
        """End a run that the worker still has; the caller tells it by a FreeKeys."""
        worker = self._leave_worker(task)
        self._vacated[worker] = None
        return worker

    def _take_back_and_tell(self, task: Task) -> None:
        worker = self._take_back(task)
        self.send(worker.address, FreeKeys((Version(task.key, task.attempt),)))

    def _processing_to_memory(self, task: Task, worker: WorkerRecord, msg: TaskFinished) -> None:
        assert task.function is not None
        self._leave_worker(task)
        task.function.prefix.observe(msg.duration)
        self._to_memory(task, worker, msg.nbytes, msg.value)

    def _to_memory(
        self, task: Task, worker: WorkerRecord, nbytes: int, value: Blob | None = None
    ) -> None:
        """Note the value of a task that was to run, with all that follows."""
        self._move(task, "memory")
        task.nbytes = nbytes
        task.add_holder(worker)
        if task.lane.is_actor:
            worker.actors[task] = None
        self._tell(task, TaskDone(task.key, nbytes, value))
        for dependent in task.dependents:
            if dependent.state in TO_RUN:
                self._has_input(dependent)
        if task.dependencies:
            self._ran(task)
        self._keep_no_more(task)

    def _has_input(self, task: Task) -> None:
        """One more input of a task that is to run is in memory."""
        if task.state == "processing":
            worker = task.worker
            assert worker is not None
            if task.missing == 1:  # it can run now, where it is
                worker.n_ahead -= 1
                task.missing = 0
                self._occupy(task, worker)
                self._send_ahead(task, worker)
            else:
                task.missing -= 1
            return
        task.missing -= 1
        if not task.missing:
            self._place(task)
        else:
            self._send_ahead_of_inputs(task)

    def _keep_no_more(self, task: Task) -> None:
        """A task has ended: fire_and_forget asks for no more than that."""
        if self._keeper in task.wanted_by:
            task.drop_client(self._keeper)
            if task.error is not None and not task.is_awaited:
                self.unseen_errors.append((task.key, task.error))
        if not task.waiters and not task.wanted_by:
            self._release_unneeded([task])

    def _ran(self, task: Task) -> None:
        """A task needs its inputs no more."""
        unneeded = []
        for dependency in task.dependencies:
            dependency.waiters -= 1
            if not dependency.is_needed:
                unneeded.append(dependency)
        if unneeded:
            self._release_unneeded(unneeded)

    def _processing_to_waiting(self, task: Task, thief: WorkerRecord | None = None) -> None:
        """A run ended without an outcome: run the task anew, where and when it can.

        Parameters
        ----------
        thief : WorkerRecord, optional
            Who asked for the task, and should have it: where its inputs are, it would only wait.
        """
        self._leave_worker(task)
        self._move(task, "waiting")
        self._take_back_dependents(task)
        if task.missing:
            return
        if thief in task.lane.workers and task.lane.placement.has_room(thief):
            self._assign(task, thief)
        else:
            self._place(task)

    def _take_back_dependents(self, task: Task) -> None:
        """A run is over that had no value: what was sent ahead of it has to wait here again."""
        stack = [task]
        while stack:
            for dependent in stack.pop().dependents:
                if dependent.state == "processing":
                    self._take_back_and_tell(dependent)
                    self._move(dependent, "waiting")
                    stack.append(dependent)

    def _err(self, task: Task, error: TaskError) -> None:
        """A task will have no value, nor will those that wait for it."""
        root, stack = task, [task]
        while stack:
            task = stack.pop()
            if task.state in ("erred", "forgotten"):
                continue
            was_to_run = task.state in TO_RUN
            if task is root and task.state == "processing":
                self._leave_worker(task)
            elif task.state == "processing":  # it was sent ahead
                self._take_back_and_tell(task)
            self._leave_queue(task)
            self._move(task, "erred")
            task.error = error
            self._tell(task, TaskFailed(task.key, error))
            stack.extend(d for d in task.dependents if d.state in TO_RUN)
            if was_to_run:
                self._ran(task)
            self._keep_no_more(task)

    # -- Values are lost --------------------------------------------------------------------------

    def _memory_to_released(self, tasks: Iterable[Task]) -> None:
        """The last copies of these values are gone; `_recover` is due."""
        for task in tasks:
            self._move(task, "released")
            if task.function is not None:
                # Now, since a task that is demanded again may fail at once.
                self._tell(task, KeyLost(task.key))
            for dependent in task.dependents:
                if dependent.state in TO_RUN:
                    self._wait_again(dependent)
                    dependent.missing += 1

    def _wait_again(self, task: Task) -> None:
        """An input of a task that is to run is gone."""
        if task.state == "waiting":
            return
        if task.state == "processing":
            self._take_back_and_tell(task)
        self._leave_queue(task)
        self._move(task, "waiting")
        self._take_back_dependents(task)

    def _recover(self, tasks: Iterable[Task]) -> None:
        """Compute lost values again as far as they are needed."""
        for task in tasks:
            if task.is_needed:
                self._demand(task)
            else:
                self._release_unneeded([task])

    # -- Letting go -------------------------------------------------------------------------------

    def _release_unneeded(self, tasks: Iterable[Task], at_once: float | None = None) -> None:
        """Release those of `tasks` that nobody needs, then whatever only they needed.

        Of a large graph with one result that is all of it: what is too much to be forgotten within
        one event, unless `at_once` says otherwise, is left among the `doomed`.
        """
        n_left = self.drop_at_once if at_once is None else at_once
        freed: dict[str, list[Version]] = {}
        line = deque(tasks)
        while line:
            task = line.popleft()
            if task.waiters or task.wanted_by or task.state == "forgotten":
                continue
            if task.state != "released":
                was_to_run = task.state in TO_RUN
                self._to_released(task, freed)
                if was_to_run:
                    for dependency in task.dependencies:
                        dependency.waiters -= 1
                        line.append(dependency)
            if task.dependents:
                continue
            if n_left <= 0:
                self.doomed[task] = None
                continue
            n_left -= 1
            self._forget(task)
            line.extend(task.dependencies)
        for address, versions in freed.items():
            self.send(address, FreeKeys(tuple(versions)))

    def _to_released(self, task: Task, freed: dict[str, list[Version]]) -> None:
        """Drop the value, the error or the run of a task; note it at the workers that had it."""
        if task.state == "memory":
            if task.lane.is_actor:
                self._actor_ends(task)
            for holder in list(task.who_has):
                task.drop_holder(holder)
                freed.setdefault(holder.address, []).append(Version(task.key, task.attempt))
        elif task.state == "processing":
            worker = self._take_back(task)
            freed.setdefault(worker.address, []).append(Version(task.key, task.attempt))
        else:
            self._leave_queue(task)
        self._move(task, "released")
        task.error = None

    def _actor_ends(self, task: Task) -> None:
        """Forget how it was made: another one would not know what this one knew."""
        for holder in task.who_has:
            holder.actors.pop(task, None)
        function, task.function, task.arguments = task.function, None, b""
        if function is not None:
            function.uses -= 1
            self.functions.keep_or_forget(function)

    def _forget(self, task: Task) -> None:
        self._move(task, "forgotten")
        del self.tasks[task.key]
        task.lane.uses -= 1
        if not task.lane.uses:
            self.lanes.drop_if_unused(task.lane)
        for dependency in task.dependencies:
            dependency.drop_dependent(task)
        if task.function is not None:
            task.function.uses -= 1
            if not task.function.uses:
                self.functions.keep_or_forget(task.function)
        if self.held:
            self.held.pop(task, None)
        if self.doomed:
            self.doomed.pop(task, None)
        if self._unreachable:
            self._unreachable.pop(task, None)

    def _cancel(self, tasks: Iterable[Task], reason: str, name: str | None = None) -> None:
        """Give up tasks and all that waits for them, and tell who wanted them.

        Parameters
        ----------
        name : str, optional
            The client that gives them up; what others want goes on. None: for everybody.
        """
        doomed: dict[Task, None] = {}
        stack = list(tasks)
        while stack:
            task = stack.pop()
            if task not in doomed:
                doomed[task] = None
                stack.extend(d for d in task.dependents if d.state in TO_RUN)
        for task in doomed:
            for client in list(task.wanted_by):
                is_caller = name is None or client.name == name
                if is_caller or client is self._keeper or client.has_departed:
                    if client.is_told:
                        self._write(client, KeyCancelled(task.key, reason))
                    task.drop_client(client)
        self._release_unneeded(doomed)


def dependency_of(task: Task) -> Dependency:
    """Return a value as it is described to those who need it."""
    if task.worker is not None:  # it is being computed where it is needed
        return Dependency(task.key, task.attempt, 0, (task.worker.address,))
    holders = tuple([worker.address for worker in islice(task.who_has, _MAX_HOLDERS)])
    return Dependency(task.key, task.attempt, task.nbytes, holders)
