"""All that the scheduler knows and decides; see `SchedulerState`.

A task moves like this (`MOVES`)::

    released -> waiting -> queued | no-worker -> processing -> memory | erred
    any of them -> released -> forgotten

*released*: nobody needs its value, but a dependant may yet. *waiting*: for its dependencies.
*queued*: could run, but all workers have enough. *no-worker*: could run, but there is none.
*processing*: sent to a worker. *memory*: at least one worker holds the value.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict, deque
from collections.abc import Iterable
from heapq import heappop, heappush, nsmallest

from hpcdask.core.placement import Placement, has_room
from hpcdask.core.records import ClientRecord, FunctionRecord, Prefix, Task, WorkerRecord
from hpcdask.errors import KilledWorker, LostDataError
from hpcdask.messages import (
    CancelKeys,
    ComputeTask,
    DataMissing,
    DataScattered,
    DefineFunction,
    Dependency,
    ForgetFunctions,
    FreeKeys,
    Function,
    Heartbeat,
    KeepUntilDone,
    KeyCancelled,
    KeyLost,
    KeysAdded,
    Message,
    PlacedValue,
    PlanScatter,
    RegisterWorker,
    ReleaseKeys,
    SubmitTasks,
    TaskDone,
    TaskErred,
    TaskError,
    TaskFailed,
    TaskFinished,
    TaskSpec,
    Version,
    WantKeys,
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
_UNRUN = {"waiting", "queued", "no-worker", "processing"}  # states that count as waiters

#: Holders of an input that are named to the worker which needs it.
_MAX_HOLDERS = 5
#: Unused functions that stay on the workers, so that a loop of submits sends its code once.
_KEPT_FUNCTIONS = 100


class SchedulerState:
    """All the scheduler knows and decides: one public method per event.

    What follows from an event is in `outbox`: messages in order, by the address of a worker or the
    id of a client. Late and repeated messages are ordinary.

    Parameters
    ----------
    allowed_failures : int
        Workers that may die under a task before it is given up with `KilledWorker`.
    """

    def __init__(self, allowed_failures: int = 3) -> None:
        self.allowed_failures = allowed_failures
        self.tasks: dict[str, Task] = {}
        self.workers: dict[str, WorkerRecord] = {}
        self.clients: dict[str, ClientRecord] = {}
        self.prefixes: dict[str, Prefix] = {}
        self.functions: dict[bytes, FunctionRecord] = {}
        self.outbox: dict[str, list[Message]] = {}
        self.no_worker: set[Task] = set()
        self.placement = Placement()
        self.queue: list[tuple[tuple[float, int, int], int, Task]] = []  # heap, with stale entries
        self.n_queued = 0
        self._unused_functions: OrderedDict[bytes, FunctionRecord] = OrderedDict()
        self._keeper = ClientRecord("", is_told=False)  # of fire_and_forget
        self._scattering: dict[str, dict[int, PlacedValue]] = {}  # by client, then attempt
        self._attempt = 0
        self._generation = 0
        self._pushes = 0

    def send(self, address: str, message: Message) -> None:
        """Put a message into the outbox."""
        box = self.outbox.get(address)
        if box is None:
            self.outbox[address] = [message]
        else:
            box.append(message)

    # -- Events: workers come and go ---------------------------------------------------------------

    def worker_joined(self, now: float, info: RegisterWorker) -> None:
        """A worker offers its threads."""
        worker = self.workers[info.address] = WorkerRecord(now, info)
        self.placement.note(worker)
        waiting, self.no_worker = self.no_worker, set()
        for task in sorted(waiting, key=lambda task: task.priority):
            self._enqueue(task)
        # Tasks for which there was no room may go to it, too.
        self._fill(worker)
        self._place_queued()

    def worker_lost(self, now: float, address: str, planned: bool = False) -> None:
        """A worker is gone, with its runs and values."""
        worker = self.workers.pop(address, None)
        if worker is None:
            return
        self.outbox.pop(address, None)
        self.placement.forget(worker)
        for function in self.functions.values():
            function.known_by.discard(worker)
        blamed = set() if planned else self._blamed(worker)
        lost = []
        for task in sorted(worker.has_what, key=lambda task: task.priority):
            task.drop_holder(worker)
            if not task.who_has:
                lost.append(task)
        self._values_lost(lost)
        for task in sorted(worker.processing, key=lambda task: task.priority):
            if task in blamed and task.failures > self.allowed_failures:
                self._err(task, _killed(task, worker))
            else:
                self._put_back(task)
        if not self.workers:
            while self.queue:
                task = heappop(self.queue)[2]
                if task.state == "queued":
                    self.n_queued -= 1
                    self._move(task, "no-worker")
                    self.no_worker.add(task)

    def heartbeat(self, now: float, address: str, msg: Heartbeat) -> None:
        """A worker tells how it is."""
        worker = self.workers.get(address)
        if worker is not None:
            worker.last_seen, worker.metrics = now, msg

    # -- Events: clients want things --------------------------------------------------------------

    def client_joined(self, now: float, name: str) -> None:
        """A client may want values from now on."""
        self.clients.setdefault(name, ClientRecord(name))

    def client_lost(self, now: float, name: str) -> None:
        """A client is gone: nobody wants on its behalf."""
        client = self.clients.pop(name, None)
        if client is None:
            return
        self.outbox.pop(name, None)
        for placed in self._scattering.pop(name, {}).values():
            self._free_placed(placed)
        released = []
        for holder in (client, *(hold for _, hold in client.generations.values())):
            for task in list(holder.wants):
                task.drop_client(holder)
                released.append(task)
        self._release_unneeded(released)

    def tasks_submitted(self, now: float, name: str, msg: SubmitTasks) -> None:
        """A client sends a chunk of a graph, dependencies first."""
        client = self.clients[name]
        generation, hold = client.generations.get(msg.submission, (0, None))
        if hold is None:
            self._generation += 1
            generation, hold = self._generation, ClientRecord(f"{name} sending", is_told=False)
        functions = [self._function(function) for function in msg.functions]
        tasks = []
        for position, spec in enumerate(msg.tasks, msg.first):
            task = self.tasks.get(spec.key)
            if task is None:
                priority = (-msg.priority, generation, position)
                task = self._new_task(client, spec, functions, priority, msg.retries)
            if task is not None:
                tasks.append(task)
                if not msg.final:
                    task.add_client(hold)
        if msg.wanted is None:
            for task in tasks:
                self._want(client, task)
        else:
            self._keys_wanted(client, msg.wanted)
        for task in tasks:
            if task.is_needed:
                self._demand(task)
        if msg.final:
            client.generations.pop(msg.submission, None)
            self._drop_hold(hold)
            self._release_unneeded(tasks)
        else:
            client.generations[msg.submission] = (generation, hold)
        for function in functions:
            self._maybe_unused(function)

    def keys_wanted(self, now: float, name: str, msg: WantKeys) -> None:
        """A client got hold of futures by another way than by submitting."""
        self._keys_wanted(self.clients[name], msg.keys)

    def keys_released(self, now: float, name: str, msg: ReleaseKeys) -> None:
        """A client dropped the last future of each key."""
        client = self.clients[name]
        released = []
        for key in msg.keys:
            task = self.tasks.get(key)
            if task is not None and client in task.wanted_by:
                task.drop_client(client)
                released.append(task)
        self._release_unneeded(released)

    def kept_until_done(self, now: float, msg: KeepUntilDone) -> None:
        """Tasks are to run even if nobody waits for them."""
        for key in msg.keys:
            task = self.tasks.get(key)
            if task is not None and task.state not in ("memory", "erred"):
                task.add_client(self._keeper)
                self._demand(task)

    def keys_cancelled(self, now: float, name: str, msg: CancelKeys) -> None:
        """A client gives tasks up, and with them what depends on them."""
        client = self.clients[name]
        doomed: list[Task] = []
        for key in msg.keys:
            task = self.tasks.get(key)
            if task is None:
                continue
            others = any(other.is_told and other is not client for other in task.wanted_by)
            if others and not msg.force:
                task.drop_client(client)
                self.send(name, KeyCancelled(key, msg.reason))
            else:
                doomed.append(task)
        self._cancel(doomed, msg.reason)

    def restarted(self, now: float, reason: str) -> None:
        """Forget every task."""
        self._cancel(list(self.tasks.values()), reason)

    # -- Events: runs end -----------------------------------------------------------------------

    def task_finished(self, now: float, address: str, msg: TaskFinished) -> None:
        """A worker ran a task, and holds its value."""
        task, worker = self.tasks.get(msg.key), self.workers.get(address)
        # A run that was given up got a FreeKeys, which reaches the worker after this answer left
        # it: there is nothing to do but not to believe it.
        if task is None or worker is None or not self._is_current(task, worker, msg.attempt):
            return
        self._processing_to_memory(task, worker, msg)
        self._fill(worker)

    def task_erred(self, now: float, address: str, msg: TaskErred) -> None:
        """A task raised."""
        task, worker = self.tasks.get(msg.key), self.workers.get(address)
        if task is None or worker is None or not self._is_current(task, worker, msg.attempt):
            return
        if task.retries > 0:
            task.retries -= 1
            self._put_back(task)
        else:
            self._err(task, msg.error)
        self._fill(worker)

    def keys_added(self, now: float, address: str, msg: KeysAdded) -> None:
        """A worker fetched copies."""
        worker = self.workers.get(address)
        if worker is None:
            return
        for version in msg.versions:
            task = self.tasks.get(version.key)
            if task is not None and task.state == "memory" and task.attempt == version.attempt:
                task.add_holder(worker)
            else:  # released while it was on its way
                self.send(address, FreeKeys((version,)))

    def data_missing(self, now: float, address: str, msg: DataMissing) -> None:
        """A worker could not get an input from where we said it is."""
        source = self.workers.get(msg.address)
        value = self.tasks.get(msg.missing.key)
        if value is not None and source is not None and value.attempt == msg.missing.attempt:
            value.drop_holder(source)
            self.send(msg.address, FreeKeys((msg.missing,)))
            if value.state == "memory" and not value.who_has:
                self._values_lost([value])
        task, worker = self.tasks.get(msg.key), self.workers.get(address)
        if task is not None and worker and self._is_current(task, worker, msg.attempt):
            self._put_back(task)
            self._fill(worker)

    # -- Events: scattered data -----------------------------------------------------------------

    def scatter_planned(self, now: float, name: str, msg: PlanScatter) -> list[PlacedValue]:
        """Choose workers for values that a client will send; empty if there are none."""
        chosen = self.find_workers(msg.workers)
        planned = []
        for position, (key, nbytes) in enumerate(msg.items):
            if not chosen:
                break
            targets = chosen if msg.broadcast else [chosen[position % len(chosen)]]
            self._attempt += 1
            addresses = tuple(worker.address for worker in targets)
            planned.append(PlacedValue(key, self._attempt, nbytes, addresses))
        self._scattering.setdefault(name, {}).update({p.attempt: p for p in planned})
        return planned

    def data_scattered(self, now: float, name: str, msg: DataScattered) -> None:
        """The values are on the workers."""
        client, planned = self.clients[name], self._scattering.get(name, {})
        for placed in msg.placements:
            if planned.pop(placed.attempt, None) is None:
                continue
            task = self.tasks.get(placed.key)
            if task is not None and task.state == "memory":  # the same data once more
                self._free_placed(placed)
                self._want(client, task)
                continue
            if task is None:
                task = Task(placed.key, None, b"", (), (0.0, 0, 0), 0)
                self.tasks[placed.key] = task
                self._move(task, "memory", start="released")
            elif task.state in ("released", "erred"):
                if task.state == "erred":
                    self._move(task, "released")
                self._move(task, "memory")
            else:  # being computed under this key
                self._free_placed(placed)
                self._want(client, task)
                continue
            self._arrived(client, task, placed)

    def _arrived(self, client: ClientRecord, task: Task, placed: PlacedValue) -> None:
        task.attempt, task.nbytes, task.error = placed.attempt, placed.nbytes, None
        for address in placed.addresses:
            worker = self.workers.get(address)
            if worker is not None:
                task.add_holder(worker)
        self._want(client, task)
        if not task.who_has:
            self._values_lost([task])

    def _free_placed(self, placed: PlacedValue) -> None:
        for address in placed.addresses:
            if address in self.workers:
                self.send(address, FreeKeys((Version(placed.key, placed.attempt),)))

    # -- Questions ------------------------------------------------------------------------------

    def find_workers(self, names: Iterable[str]) -> list[WorkerRecord]:
        """Workers by address or name; all if `names` is empty."""
        wanted = set(names)
        workers = list(self.workers.values())
        if wanted:
            workers = [w for w in workers if w.address in wanted or w.info.name in wanted]
        return workers

    def locate(self, key: str) -> Dependency:
        """Where the value of a key is; no addresses if it is not in memory."""
        task = self.tasks.get(key)
        if task is None or task.state != "memory":
            return Dependency(key, 0, 0, ())
        return _dependency(task)

    # -- Wants ----------------------------------------------------------------------------------

    def _keys_wanted(self, client: ClientRecord, keys: Iterable[str]) -> None:
        for key in keys:
            task = self.tasks.get(key)
            if task is not None:
                self._want(client, task)
                self._demand(task)
            elif client.is_told:
                self.send(client.name, KeyCancelled(key, "the scheduler does not know this key"))

    def _want(self, client: ClientRecord, task: Task) -> None:
        """Note the want, and tell a client that comes late what it missed."""
        if client in task.wanted_by:
            return
        task.add_client(client)
        if task.state == "memory":
            self.send(client.name, TaskDone(task.key, task.nbytes, None))
        elif task.state == "erred":
            assert task.error is not None
            self.send(client.name, TaskFailed(task.key, task.error))

    def _drop_hold(self, hold: ClientRecord) -> None:
        held = list(hold.wants)
        for task in held:
            task.drop_client(hold)
        self._release_unneeded(held)

    def _tell(self, task: Task, message: Message) -> None:
        for client in task.wanted_by:
            if client.is_told:
                self.send(client.name, message)
        if self._keeper in task.wanted_by and task.state in ("memory", "erred"):
            task.drop_client(self._keeper)

    # -- Making tasks ---------------------------------------------------------------------------

    def _function(self, function: Function) -> FunctionRecord:
        record = self.functions.get(function.function_id)
        if record is None:
            prefix = self.prefixes.get(function.name)
            if prefix is None:
                prefix = self.prefixes[function.name] = Prefix(function.name)
            record = FunctionRecord(function.function_id, function.code, prefix)
            self.functions[function.function_id] = record
        self._unused_functions.pop(function.function_id, None)
        return record

    def _maybe_unused(self, function: FunctionRecord) -> None:
        if function.uses:
            return
        self._unused_functions[function.function_id] = function
        while len(self._unused_functions) > _KEPT_FUNCTIONS:
            function_id, oldest = self._unused_functions.popitem(last=False)
            del self.functions[function_id]
            for worker in oldest.known_by:
                self.send(worker.address, ForgetFunctions((function_id,)))

    def _new_task(
        self,
        client: ClientRecord,
        spec: TaskSpec,
        functions: list[FunctionRecord],
        priority: tuple[float, int, int],
        retries: int,
    ) -> Task | None:
        """Make a task of its description; None if it cannot be, which the client is told."""
        dependencies = []
        for key in spec.dependencies:
            dependency = self.tasks.get(key)
            if dependency is None:
                reason = f"it depends on {key!r}, which the scheduler does not know (any more)"
                self.send(client.name, KeyCancelled(spec.key, reason))
                return None
            dependencies.append(dependency)
        if not 0 <= spec.function < len(functions):
            self.send(client.name, KeyCancelled(spec.key, "its function was not sent"))
            return None
        function = functions[spec.function]
        function.uses += 1
        task = Task(spec.key, function, spec.arguments, tuple(dependencies), priority, retries)
        self.tasks[spec.key] = task
        for dependency in dependencies:
            dependency.add_dependent(task)
        return task

    # -- Moves ----------------------------------------------------------------------------------

    def _move(self, task: Task, state: str, start: str | None = None) -> None:
        if state not in MOVES[start or task.state]:
            raise AssertionError(f"{task} cannot become {state}")
        task.state = state

    def _demand(self, task: Task) -> None:
        """Have a task run, and before it all that it needs."""
        if task.state != "released":
            return
        ready, stack, failed = [], [task], []
        while stack:
            task = stack.pop()
            if task.state != "released":
                continue
            if task.function is None:
                failed.append((task, _lost(task)))
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
        for task in sorted(ready, key=lambda task: task.priority):
            self._place(task)
        for task, error in failed:
            if task.state in ("waiting", "released"):
                self._err(task, error)

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

    def _place_queued(self) -> None:
        """Give queued tasks out while anyone has room."""
        while self.n_queued:
            task = self.queue[0][2]
            if task.state != "queued":
                heappop(self.queue)
                continue
            worker = self.placement.choose(task)
            if worker is None:
                return
            heappop(self.queue)
            self.n_queued -= 1
            self._assign(task, worker)

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
            function.known_by.add(worker)
            self.send(
                worker.address,
                DefineFunction(function.function_id, function.prefix.name, function.code),
            )
        self.send(
            worker.address,
            ComputeTask(
                task.key,
                task.attempt,
                function.function_id,
                task.arguments,
                tuple(map(_dependency, task.dependencies)) if task.dependencies else (),
                task.priority,
                bool(task.wanted_by),
            ),
        )

    def _is_current(self, task: Task, worker: WorkerRecord, attempt: int) -> bool:
        return task.attempt == attempt and task.worker is worker

    def _leave_worker(self, task: Task) -> WorkerRecord:
        """End a run in the books."""
        worker = task.worker
        assert worker is not None
        worker.occupancy -= worker.processing.pop(task)
        if not worker.processing:
            worker.occupancy = 0.0  # sums of floats drift
        task.worker = None
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
        if not task.is_needed:
            self._release_unneeded([task])

    def _ran(self, task: Task) -> None:
        """A task needs its inputs no more."""
        unneeded = []
        for dependency in task.dependencies:
            dependency.waiters -= 1
            if not dependency.is_needed:
                unneeded.append(dependency)
        self._release_unneeded(unneeded)

    def _put_back(self, task: Task) -> None:
        """Take a task from its worker, to run it anew where and when it can."""
        worker = self._leave_worker(task)
        if worker.address in self.workers:
            self.send(worker.address, FreeKeys((Version(task.key, task.attempt),)))
        self._move(task, "waiting")
        task.missing = sum(d.state != "memory" for d in task.dependencies)
        if not task.missing:
            self._place(task)

    def _values_lost(self, tasks: list[Task]) -> None:
        """The last copies of these values are gone."""
        for task in tasks:
            self._move(task, "released")
            for dependent in task.dependents:
                if dependent.state == "waiting":
                    dependent.missing += 1
                elif dependent.state in _UNRUN:
                    self._wait_again(dependent)
        for task in tasks:
            if task.function is None:
                self._err(task, _lost(task))
            elif task.is_needed:
                self._tell(task, KeyLost(task.key))
                self._demand(task)
            else:
                self._release_unneeded([task])

    def _wait_again(self, task: Task) -> None:
        """An input of a runnable task is gone."""
        if task.state == "processing":
            worker = self._leave_worker(task)
            if worker.address in self.workers:
                self.send(worker.address, FreeKeys((Version(task.key, task.attempt),)))
        self._leave_queue(task)
        self._move(task, "waiting")
        task.missing = sum(d.state != "memory" for d in task.dependencies)

    def _leave_queue(self, task: Task) -> None:
        if task.state == "queued":
            self.n_queued -= 1
        elif task.state == "no-worker":
            self.no_worker.discard(task)

    def _err(self, task: Task, error: TaskError) -> None:
        """A task will have no value, nor will those that wait for it."""
        stack = [task]
        while stack:
            task = stack.pop()
            if task.state in ("erred", "forgotten", "memory"):
                continue
            ran = task.state in _UNRUN
            if task.state == "processing":
                worker = self._leave_worker(task)
                if worker.address in self.workers:
                    self.send(worker.address, FreeKeys((Version(task.key, task.attempt),)))
            self._leave_queue(task)
            self._move(task, "erred")
            task.error = error
            self._tell(task, TaskFailed(task.key, error))
            stack.extend(d for d in task.dependents if d.state in _UNRUN)
            if ran:
                self._ran(task)
            if not task.is_needed:
                self._release_unneeded([task])

    # -- Letting go -----------------------------------------------------------------------------

    def _release_unneeded(self, tasks: Iterable[Task]) -> None:
        """Release those of `tasks` that nobody needs, then whatever only they needed."""
        stack = deque(tasks)
        while stack:
            task = stack.popleft()
            if task.is_needed or task.state == "forgotten":
                continue
            if task.state != "released":
                was_to_run = task.state in _UNRUN
                self._to_released(task)
                if was_to_run:
                    for dependency in task.dependencies:
                        dependency.waiters -= 1
                        stack.append(dependency)
            if not task.dependents:
                self._forget(task)
                stack.extend(task.dependencies)

    def _to_released(self, task: Task) -> None:
        """Drop the value, the error or the run of a task."""
        for holder in list(task.who_has):
            task.drop_holder(holder)
            self.send(holder.address, FreeKeys((Version(task.key, task.attempt),)))
        worker = None
        if task.state == "processing":
            worker = self._leave_worker(task)
            self.send(worker.address, FreeKeys((Version(task.key, task.attempt),)))
        self._leave_queue(task)
        self._move(task, "released")
        task.error = None
        if worker is not None:
            self._fill(worker)

    def _forget(self, task: Task) -> None:
        self._move(task, "forgotten")
        self.tasks.pop(task.key, None)
        for dependency in task.dependencies:
            dependency.drop_dependent(task)
        if task.function is not None:
            task.function.uses -= 1
            self._maybe_unused(task.function)

    def _cancel(self, tasks: list[Task], reason: str) -> None:
        """Forget tasks and all that depends on them, and tell who wanted them."""
        doomed: dict[Task, None] = {}
        stack = list(tasks)
        while stack:
            task = stack.pop()
            if task not in doomed:
                doomed[task] = None
                stack.extend(d for d in task.dependents if d.state in _UNRUN)
        for task in doomed:
            for client in list(task.wanted_by):
                if client.is_told:
                    self.send(client.name, KeyCancelled(task.key, reason))
                task.drop_client(client)
        self._release_unneeded(doomed)

    def _blamed(self, worker: WorkerRecord) -> set[Task]:
        """Tasks that a dead worker may have been running: those that came first."""
        running = nsmallest(worker.nthreads, worker.processing, key=lambda task: task.priority)
        for task in running:
            task.failures += 1
        return set(running)


def _dependency(task: Task) -> Dependency:
    holders = tuple([worker.address for worker in task.who_has][:_MAX_HOLDERS])
    return Dependency(task.key, task.attempt, task.nbytes, holders)


def _lost(task: Task) -> TaskError:
    text = (
        f"the data of {task.key!r} was scattered and the workers that held it are gone; "
        "scatter it again, with broadcast=True if it must survive a worker"
    )
    return TaskError(pickle.dumps(LostDataError(text)), (), task.key, "")


def _killed(task: Task, worker: WorkerRecord) -> TaskError:
    text = (
        f"{task.key!r} was running on {task.failures} workers when they died, the last of them "
        f"{worker.address} (pid {worker.info.pid} on {worker.info.host}); it is not tried again. "
        "Look at the worker's log, or raise allowed_failures."
    )
    return TaskError(pickle.dumps(KilledWorker(text)), (), task.key, worker.address)
