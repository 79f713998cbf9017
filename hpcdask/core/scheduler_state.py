"""All that the scheduler knows and decides: one method per event; see `SchedulerState`."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest

from hpcdask.core.records import ClientRecord, FunctionRecord, Task, WorkerRecord
from hpcdask.core.task_errors import killed_worker
from hpcdask.core.transitions import MOVES as MOVES
from hpcdask.core.transitions import Transitions, dependency_of
from hpcdask.messages import (
    CancelKeys,
    DataMissing,
    DataScattered,
    Dependency,
    FreeKeys,
    Heartbeat,
    KeepUntilDone,
    KeyCancelled,
    KeysAdded,
    PlacedValue,
    PlanScatter,
    RegisterWorker,
    ReleaseKeys,
    SubmitTasks,
    TaskDone,
    TaskErred,
    TaskFailed,
    TaskFinished,
    TaskSpec,
    ThreadsLent,
    Version,
    WantKeys,
)


class SchedulerState(Transitions):
    """All the scheduler knows and decides: one public method per event.

    What follows from an event is in `outbox`: messages in order, by the address of a worker or the
    id of a client. Late and repeated messages are ordinary.

    Parameters
    ----------
    allowed_failures : int
        Workers that may die under a task before it is given up with `KilledWorker`.
    """

    def __init__(self, allowed_failures: int = 3) -> None:
        super().__init__()
        self.allowed_failures = allowed_failures
        self._scattering: dict[str, dict[int, PlacedValue]] = {}  # by client, then attempt
        self._generation = 0

    # -- Events: workers come and go ---------------------------------------------------------------

    def worker_joined(self, now: float, info: RegisterWorker) -> None:
        """A worker offers its threads."""
        self.worker_lost(now, info.address, planned=True)  # it came back before we saw it go
        worker = self.workers[info.address] = WorkerRecord(now, info)
        waiting, self.no_worker = self.no_worker, set()
        for task in sorted(waiting, key=lambda task: task.priority):
            self._enqueue(task)
        self._fill(worker)

    def worker_lost(self, now: float, address: str, planned: bool = False) -> None:
        """A worker is gone, with its runs and values."""
        worker = self.workers.pop(address, None)
        if worker is None:
            return
        self.outbox.pop(address, None)
        self.placement.forget(worker)
        self.functions.worker_lost(worker)
        killed = [] if planned else self._given_up(worker)
        # Nothing refers to the worker any more before anything is decided anew.
        runs = sorted(worker.processing, key=lambda task: task.priority)
        for task in runs:
            self._leave_worker(task)
            self._move(task, "waiting")
        lost = []
        for task in sorted(worker.has_what, key=lambda task: task.priority):
            task.drop_holder(worker)
            if not task.who_has:
                lost.append(task)
        self._memory_to_released(lost)
        for task in killed:
            self._err(task, killed_worker(task, worker))
        self._recover(lost)
        for task in runs:
            if task.state == "waiting" and not task.missing:
                self._place(task)
        if not self.workers:
            for _, _, task in self.queue:
                if task.state == "queued":
                    self._move(task, "no-worker")
                    self.no_worker.add(task)
            self.queue.clear()
            self.n_queued = 0
        self._settle()

    def _given_up(self, worker: WorkerRecord) -> list[Task]:
        """Blame those tasks of a dead worker that it may have been running: those that came first.

        Returns
        -------
        list of Task
            Those that have been blamed too often.
        """
        running = nsmallest(worker.nthreads, worker.processing, key=lambda task: task.priority)
        for task in running:
            task.failures += 1
        return [task for task in running if task.failures > self.allowed_failures]

    def heartbeat(self, now: float, address: str, msg: Heartbeat) -> None:
        """A worker tells how it is."""
        worker = self.workers.get(address)
        if worker is not None:
            worker.last_seen, worker.metrics = now, msg

    def threads_lent(self, now: float, address: str, msg: ThreadsLent) -> None:
        """Tasks of a worker wait for others, which must find room or all would wait for ever."""
        worker = self.workers.get(address)
        if worker is not None:
            worker.nthreads = worker.info.nthreads + msg.waiting
            self._fill(worker)

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
        self._settle()

    def tasks_submitted(self, now: float, name: str, msg: SubmitTasks) -> None:
        """A client sends a chunk of a graph, dependencies first."""
        client = self.clients[name]
        client.wants_read = msg.want or client.wants_read
        generation, hold = client.generations.get(msg.submission, (0, None))
        if hold is None:
            self._generation += 1
            generation = self._generation
            if not msg.final:
                hold = ClientRecord(name, is_told=False)
                client.generations[msg.submission] = (generation, hold)
        functions = [self.functions.declare(function) for function in msg.functions]
        tasks = []
        refused: dict[str, str] = {}
        for position, spec in enumerate(msg.tasks, msg.first):
            task = self.tasks.get(spec.key)
            if task is None:
                reason = self._why_not(spec, functions)
                if reason is not None:
                    refused[spec.key] = reason
                    continue
                priority = (-msg.priority, generation, position)
                task = self._new_task(spec, functions[spec.function], priority, msg.retries)
            tasks.append(task)
            if hold is not None:
                task.add_client(hold)
        if msg.wanted is None:
            for task in tasks:
                self._want(client, task)
            for key, reason in refused.items():
                self._write(client, KeyCancelled(key, reason))
        else:
            self._keys_wanted(client, msg.wanted, refused)
        for task in tasks:
            if task.is_needed:
                self._demand(task)
        if msg.final:
            if hold is not None:
                del client.generations[msg.submission]
                tasks.extend(hold.wants)
                for task in list(hold.wants):
                    task.drop_client(hold)
            self._release_unneeded(tasks)
        for function in functions:
            self.functions.keep_or_forget(function)
        self._settle()

    def _why_not(self, spec: TaskSpec, functions: list[FunctionRecord]) -> str | None:
        """Why a task cannot be made of its description; None if it can."""
        for key in spec.dependencies:
            if key not in self.tasks:
                return f"it depends on {key!r}, which the scheduler does not know (any more)"
        if not 0 <= spec.function < len(functions):
            return "its function was not sent"
        return None

    def _new_task(
        self,
        spec: TaskSpec,
        function: FunctionRecord,
        priority: tuple[float, int, int],
        retries: int,
    ) -> Task:
        dependencies: tuple[Task, ...] = ()
        if spec.dependencies:  # each once: they are counted
            dependencies = tuple([self.tasks[key] for key in dict.fromkeys(spec.dependencies)])
        function.uses += 1
        task = Task(spec.key, function, spec.arguments, dependencies, priority, retries)
        self.tasks[spec.key] = task
        for dependency in dependencies:
            dependency.add_dependent(task)
        return task

    def keys_wanted(self, now: float, name: str, msg: WantKeys) -> None:
        """A client got hold of futures by another way than by submitting."""
        client = self.clients[name]
        client.wants_read = msg.want or client.wants_read
        self._keys_wanted(client, msg.keys, {})
        self._settle()

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
        self._settle()

    def kept_until_done(self, now: float, msg: KeepUntilDone) -> None:
        """Tasks are to run even if nobody waits for them."""
        for key in msg.keys:
            task = self.tasks.get(key)
            if task is not None and task.state not in ("memory", "erred"):
                task.add_client(self._keeper)
                self._demand(task)
        self._settle()

    def keys_cancelled(self, now: float, name: str, msg: CancelKeys) -> None:
        """A client gives tasks up, and with them what depends on them.

        What other clients want of all that goes on, unless the client insists.
        """
        tasks = [self.tasks[key] for key in msg.keys if key in self.tasks]
        self._cancel(tasks, msg.reason, None if msg.force else name)
        self._settle()

    def restarted(self, now: float, reason: str) -> None:
        """Forget every task."""
        self._cancel(list(self.tasks.values()), reason)
        self._settle()

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
        if self._vacated:
            self._settle()

    def task_erred(self, now: float, address: str, msg: TaskErred) -> None:
        """A task raised."""
        task, worker = self.tasks.get(msg.key), self.workers.get(address)
        if task is None or worker is None or not self._is_current(task, worker, msg.attempt):
            return
        if task.retries > 0:
            task.retries -= 1
            self._processing_to_waiting(task)
        else:
            self._err(task, msg.error)
        self._fill(worker)
        self._settle()

    def _is_current(self, task: Task, worker: WorkerRecord, attempt: int) -> bool:
        return task.attempt == attempt and task.worker is worker

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
                self._memory_to_released([value])
                self._recover([value])
        task, worker = self.tasks.get(msg.key), self.workers.get(address)
        if task is not None and worker and self._is_current(task, worker, msg.attempt):
            self._processing_to_waiting(task)
            self._fill(worker)
        self._settle()

    # -- Events: scattered data -----------------------------------------------------------------

    def scatter_planned(self, now: float, name: str, msg: PlanScatter) -> list[PlacedValue]:
        """Choose workers for values that a client will send; empty if there are none."""
        chosen = self.find_workers(msg.workers)
        planned = []
        for key, nbytes in msg.items:
            if not chosen:
                break
            self._attempt += 1
            # By the attempt, so that values scattered one at a time do not all go to the first.
            targets = chosen if msg.broadcast else [chosen[self._attempt % len(chosen)]]
            addresses = tuple(worker.address for worker in targets)
            planned.append(PlacedValue(key, self._attempt, nbytes, addresses))
        self._scattering.setdefault(name, {}).update({p.attempt: p for p in planned})
        return planned

    def data_scattered(self, now: float, name: str, msg: DataScattered) -> None:
        """The values are on the workers."""
        client, planned = self.clients[name], self._scattering.get(name, {})
        for placed in msg.placements:
            plan = planned.pop(placed.attempt, None)
            if plan is None:
                continue
            if not placed.addresses:  # the client gave up half-way
                self._free_placed(plan)
                continue
            task = self.tasks.get(placed.key)
            if task is None:
                task = self.tasks[placed.key] = Task(placed.key, None, b"", (), (0.0, 0, 0), 0)
            holders = [self.workers[a] for a in placed.addresses if a in self.workers]
            if holders and task.state in ("released", "erred"):
                self._scattered_to_memory(task, placed, holders)
            else:  # the key has its value already, or is being computed; or the workers are gone
                self._free_placed(placed)
            self._want(client, task)
            self._demand(task)
        self._settle()

    def _scattered_to_memory(
        self, task: Task, placed: PlacedValue, holders: list[WorkerRecord]
    ) -> None:
        if task.state == "erred":
            self._move(task, "released")
        self._move(task, "memory")
        task.attempt, task.nbytes, task.error = placed.attempt, placed.nbytes, None
        for worker in holders:
            task.add_holder(worker)
        self._tell(task, TaskDone(task.key, task.nbytes, None))

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
        return dependency_of(task)

    # -- Wants ----------------------------------------------------------------------------------

    def _keys_wanted(
        self, client: ClientRecord, keys: Iterable[str], refused: dict[str, str]
    ) -> None:
        for key in keys:
            task = self.tasks.get(key)
            if task is not None:
                self._want(client, task)
                self._demand(task)
            else:
                reason = refused.get(key, "the scheduler does not know this key")
                self._write(client, KeyCancelled(key, reason))

    def _want(self, client: ClientRecord, task: Task) -> None:
        """Note the want, and tell a client that comes late what it missed."""
        # Also if it is wanted already: the client may have begun anew with this key, and not have
        # believed what was sent before we knew that.
        task.add_client(client)
        if task.state == "memory":
            self._write(client, TaskDone(task.key, task.nbytes, None))
        elif task.state == "erred":
            assert task.error is not None
            self._write(client, TaskFailed(task.key, task.error))
