"""How tasks get from state to state on the scheduler; see `Transitions`.

A task moves like this (`MOVES`)::

    released -> waiting -> queued | no-worker -> processing -> memory | erred
    any of them -> released -> forgotten

*released*: nobody needs its value, but a dependant may yet. *waiting*: for its dependencies.
*queued*: could run, but all workers have enough. *no-worker*: could run, but there is none.
*processing*: sent to a worker. *memory*: at least one worker holds the value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import islice

from hpcdask.core.functions import Functions
from hpcdask.core.placement import Placement, has_room
from hpcdask.core.records import ClientRecord, Task, WorkerRecord
from hpcdask.core.task_errors import lost_data
from hpcdask.messages import (
    ComputeTask,
    Dependency,
    FreeKeys,
    KeyCancelled,
    KeyLost,
    Message,
    TaskDone,
    TaskError,
    TaskFailed,
    TaskFinished,
    Version,
    WantsRead,
)

#: Every legal move of a task. `_move` is held to it by tests, and docs/ draws its table from it.
MOVES = {
    "released": {"waiting", "memory", "erred", "forgotten"},
    "waiting": {"queued", "no-worker", "processing", "erred", "released"},
    "queued": {"processing", "no-worker", "waiting", "erred", "released"},
    "no-worker": {"processing", "queued", "waiting", "erred", "released"},
    "processing": {"memory", "erred", "waiting", "released"},
    "memory": {"released"},
    "erred": {"released"},
    "forgotten": set(),
}
#: States of tasks that count as waiters of their dependencies.
TO_RUN = {"waiting", "queued", "no-worker", "processing"}

#: Holders of an input that are named to the worker which needs it.
_MAX_HOLDERS = 5
#: Stale entries that the queue may hold, besides as many as there are good ones.
_MAX_STALE = 1000


class Transitions:
    """The tables of the scheduler, and each change of a task's state with all that goes with it.

    It knows no events: `SchedulerState` decides when a transition is due, and calls `_settle` when
    it has made all those of an event.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.workers: dict[str, WorkerRecord] = {}
        self.clients: dict[str, ClientRecord] = {}
        self.outbox: dict[str, list[Message]] = {}
        self.functions = Functions(self.send)
        self.placement = Placement()
        self.no_worker: set[Task] = set()
        self.queue: list[tuple[tuple[float, int, int], int, Task]] = []  # heap, with stale entries
        self.n_queued = 0
        self._keeper = ClientRecord("", is_told=False)  # of fire_and_forget
        self._vacated: dict[WorkerRecord, None] = {}  # runs were taken back from these
        self._attempt = 0
        self._pushes = 0

    def send(self, address: str, message: Message) -> None:
        """Put a message into the outbox."""
        box = self.outbox.get(address)
        if box is None:
            self.outbox[address] = [message]
        else:
            box.append(message)

    def _write(self, client: ClientRecord, message: Message) -> None:
        """Send to a client, once it knows which of its wants we know of."""
        if client.wants_told != client.wants_read:
            client.wants_told = client.wants_read
            self.send(client.name, WantsRead(client.wants_read))
        self.send(client.name, message)

    def _tell(self, task: Task, message: Message) -> None:
        for client in task.wanted_by:
            if client.is_told:
                self._write(client, message)

    def _move(self, task: Task, state: str) -> None:
        if state not in MOVES[task.state]:
            raise AssertionError(f"{task} cannot become {state}")
        task.state = state

    # -- Towards a worker -------------------------------------------------------------------------

    def _demand(self, task: Task) -> None:
        """Have a task run, and before it all that it needs."""
        if task.state != "released":
            return
        if not task.dependencies and task.function is not None:
            self._move(task, "waiting")
            self._place(task)
            return
        ready, stack, failed = [], [task], []
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

    def _place(self, task: Task) -> None:
        """Send a task whose inputs are there to a worker, or queue it."""
        if self.n_queued and not task.dependencies:
            self._enqueue(task)  # others came first
            return
        worker = self.placement.choose(task)
        if worker is None:
            self._enqueue(task)
        else:
            self._assign(task, worker)

    def _enqueue(self, task: Task) -> None:
        if not self.workers:
            self._move(task, "no-worker")
            self.no_worker.add(task)
            return
        self._move(task, "queued")
        self._pushes += 1
        self.n_queued += 1
        heappush(self.queue, (task.priority, self._pushes, task))

    def _leave_queue(self, task: Task) -> None:
        if task.state == "queued":
            self.n_queued -= 1
            if len(self.queue) > 2 * self.n_queued + _MAX_STALE:
                entries = {entry[2]: entry for entry in self.queue}
                del entries[task]
                self.queue = [entry for t, entry in entries.items() if t.state == "queued"]
                heapify(self.queue)
        elif task.state == "no-worker":
            self.no_worker.discard(task)

    def _fill(self, worker: WorkerRecord) -> None:
        """Give a worker queued tasks while it has room, else let placement know of the room."""
        while self.n_queued and has_room(worker):
            task = heappop(self.queue)[2]
            if task.state == "queued":
                self.n_queued -= 1
                self._assign(task, worker)
        if not self.n_queued:
            self.queue.clear()
        self.placement.note(worker)

    def _settle(self) -> None:
        """End an event: fill the workers that runs were taken from.

        Not earlier: a client that releases ten thousand tasks would have each of them sent to a
        worker in the place of the one before.
        """
        while self._vacated:
            worker, _ = self._vacated.popitem()
            if self.workers.get(worker.address) is worker:
                self._fill(worker)

    def _assign(self, task: Task, worker: WorkerRecord) -> None:
        function = task.function
        assert function is not None
        self._move(task, "processing")
        self._attempt += 1
        task.attempt = self._attempt
        task.worker = worker
        cost = function.prefix.cost
        worker.processing[task] = cost
        worker.occupancy += cost
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
            ),
        )

    # -- A run ends -------------------------------------------------------------------------------

    def _leave_worker(self, task: Task) -> WorkerRecord:
        """End a run in the books."""
        worker = task.worker
        assert worker is not None
        worker.occupancy -= worker.processing.pop(task)
        if not worker.processing:
            worker.occupancy = 0.0  # sums of floats drift
        task.worker = None
        return worker

    def _take_back(self, task: Task) -> WorkerRecord:
        """End a run that the worker still has; the caller tells it by a FreeKeys."""
        worker = self._leave_worker(task)
        self._vacated[worker] = None
        return worker

    def _processing_to_memory(self, task: Task, worker: WorkerRecord, msg: TaskFinished) -> None:
        assert task.function is not None
        self._leave_worker(task)
        self._move(task, "memory")
        task.function.prefix.observe(msg.duration)
        task.nbytes = msg.nbytes
        task.add_holder(worker)
        self._tell(task, TaskDone(task.key, msg.nbytes, msg.value))
        for dependent in task.dependents:
            if dependent.state == "waiting":
                dependent.missing -= 1
                if not dependent.missing:
                    self._place(dependent)
        if task.dependencies:
            self._ran(task)
        self._keep_no_more(task)

    def _keep_no_more(self, task: Task) -> None:
        """A task has ended: fire_and_forget asks for no more than that."""
        if self._keeper.wants:
            task.drop_client(self._keeper)
        if not task.is_needed:
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

    def _processing_to_waiting(self, task: Task) -> None:
        """A run ended without an outcome: run the task anew, where and when it can."""
        self._leave_worker(task)
        self._move(task, "waiting")
        task.missing = _count_missing(task)
        if not task.missing:
            self._place(task)

    def _err(self, task: Task, error: TaskError) -> None:
        """A task will have no value, nor will those that wait for it."""
        stack = [task]
        while stack:
            task = stack.pop()
            if task.state in ("erred", "forgotten"):
                continue
            was_to_run = task.state in TO_RUN
            if task.state == "processing":
                self._leave_worker(task)
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
                if dependent.state == "waiting":
                    dependent.missing += 1
                elif dependent.state in TO_RUN:
                    self._wait_again(dependent)

    def _wait_again(self, task: Task) -> None:
        """An input of a runnable task is gone."""
        if task.state == "processing":
            worker = self._take_back(task)
            self.send(worker.address, FreeKeys((Version(task.key, task.attempt),)))
        self._leave_queue(task)
        self._move(task, "waiting")
        task.missing = _count_missing(task)

    def _recover(self, tasks: Iterable[Task]) -> None:
        """Compute lost values again as far as they are needed."""
        for task in tasks:
            if task.is_needed:
                self._demand(task)
            else:
                self._release_unneeded([task])

    # -- Letting go -------------------------------------------------------------------------------

    def _release_unneeded(self, tasks: Iterable[Task]) -> None:
        """Release those of `tasks` that nobody needs, then whatever only they needed."""
        freed: dict[str, list[Version]] = {}
        line = deque(tasks)
        while line:
            task = line.popleft()
            if task.state == "forgotten" or task.is_needed:
                continue
            if task.state != "released":
                was_to_run = task.state in TO_RUN
                for address in self._to_released(task):
                    freed.setdefault(address, []).append(Version(task.key, task.attempt))
                if was_to_run:
                    for dependency in task.dependencies:
                        dependency.waiters -= 1
                        line.append(dependency)
            if not task.dependents:
                self._forget(task)
                line.extend(task.dependencies)
        for address, versions in freed.items():
            self.send(address, FreeKeys(tuple(versions)))

    def _to_released(self, task: Task) -> list[str]:
        """Drop the value, the error or the run of a task; return the workers that had it."""
        if task.state == "memory":
            holders = list(task.who_has)
            for holder in holders:
                task.drop_holder(holder)
        elif task.state == "processing":
            holders = [self._take_back(task)]
        else:
            holders = []
            self._leave_queue(task)
        self._move(task, "released")
        task.error = None
        return [holder.address for holder in holders]

    def _forget(self, task: Task) -> None:
        self._move(task, "forgotten")
        del self.tasks[task.key]
        for dependency in task.dependencies:
            dependency.drop_dependent(task)
        if task.function is not None:
            task.function.uses -= 1
            if not task.function.uses:
                self.functions.keep_or_forget(task.function)

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
                if name is None or client.name == name or client is self._keeper:
                    if client.is_told:
                        self._write(client, KeyCancelled(task.key, reason))
                    task.drop_client(client)
        self._release_unneeded(doomed)


def dependency_of(task: Task) -> Dependency:
    """Return a value in memory as it is described to those who fetch it."""
    holders = tuple([worker.address for worker in islice(task.who_has, _MAX_HOLDERS)])
    return Dependency(task.key, task.attempt, task.nbytes, holders)


def _count_missing(task: Task) -> int:
    return sum(dependency.state != "memory" for dependency in task.dependencies)
