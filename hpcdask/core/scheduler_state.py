"""All that the scheduler knows and decides: one method per event; see `SchedulerState`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import nsmallest

from hpcdask.core.actors import Actors
from hpcdask.core.copying import Copying
from hpcdask.core.keeping import Keeping
from hpcdask.core.lanes import Lane
from hpcdask.core.placement import has_free_thread
from hpcdask.core.records import ClientRecord, FunctionRecord, Task, WorkerRecord
from hpcdask.core.rescheduling import Rescheduling
from hpcdask.core.retrying import Retrying
from hpcdask.core.scattering import Scattering
from hpcdask.core.task_errors import killed_worker, out_of_reach
from hpcdask.core.transitions import MOVES as MOVES
from hpcdask.core.transitions import dependency_of
from hpcdask.messages import (
    DataMissing,
    Dependency,
    FreeKeys,
    GivenBack,
    Heartbeat,
    KeysAdded,
    KeysDropped,
    RegisterWorker,
    TakeBack,
    TaskErred,
    TaskFinished,
    TaskRescheduled,
    TaskSpec,
    ThreadsLent,
    Version,
    WorkersGone,
)
from hpcdask.messages.client import (
    CancelKeys,
    KeepUntilDone,
    KeyCancelled,
    ReleaseKeys,
    SubmitTasks,
    WantKeys,
)

#: Idle workers that one tick finds work for.
_RELIEVED_AT_A_TIME = 20
#: How often a task may find an input out of its worker's reach before that is computed anew, or,
#: if it cannot be, the task is given up.
_MAX_UNREACHABLE = 3
#: How often until it is given up although its input can be computed anew: where that has to be done
#: where it was, by its restriction, it would go on for ever.
_HOPELESS = 20


class SchedulerState(Keeping, Scattering, Copying, Rescheduling, Retrying, Actors):
    """All the scheduler knows and decides: one public method per event.

    What follows from an event is in `outbox`: messages in order, by the address of a worker or the
    id of a client. Late and repeated messages are ordinary.

    Parameters
    ----------
    allowed_failures : int
        Workers that may die under a task before it is given up with `KilledWorker`.
    first_attempt : int
        Attempts are greater than this. The time in microseconds makes them differ from those of a
        scheduler before, whose workers may come back to this one.
    work_stealing : bool
        Whether tasks that have not started are taken back for workers that have nothing to do.
    """

    def __init__(
        self, allowed_failures: int = 3, first_attempt: int = 0, work_stealing: bool = True
    ) -> None:
        super().__init__(first_attempt)
        self.allowed_failures = allowed_failures
        self.work_stealing = work_stealing
        self._generation = 0

    # -- Events: workers come and go ---------------------------------------------------------------

    def worker_joined(self, now: float, info: RegisterWorker) -> None:
        """A worker offers its threads, and what it has kept of an earlier time."""
        self.worker_lost(now, info.address, planned=True)  # it came back before we saw it go
        worker = self.workers[info.address] = WorkerRecord(now, info)
        if info.returns:
            self._take_up(now, worker, info)
        self.lanes.add(worker)
        for lane in [self.lanes.open, *worker.lanes]:
            stranded, lane.stranded = lane.stranded, {}
            for task in sorted(stranded, key=lambda task: task.priority):
                self._enqueue(task)
        self._fill(worker)
        self._relieve_others(worker, patience=True)
        if self.leaving and len(self.lanes.open.workers) == 1:
            self._somebody_stays()
        self._settle()

    def worker_lost(
        self, now: float, address: str, planned: bool = False, how: str = "its connection ended"
    ) -> None:
        """A worker is gone, with its runs and values.

        Parameters
        ----------
        planned : bool
            Whether it left on purpose; then no task is to blame. Nor is one if the worker was
            leaving, and was killed before it had done so.
        how : str
            What is known of its end: exit code or signal, last lines of its log.
        """
        worker = self.workers.pop(address, None)
        if worker is None:
            return
        self.outbox.pop(address, None)
        self._serve_no_more(worker)
        self.leaving.pop(worker, None)
        self.functions.worker_lost(worker)
        self._forget_kept(worker)
        self._leave_plans(worker)
        killed = [] if planned or worker.is_leaving else self._given_up(worker)
        # Nothing refers to the worker any more before anything is decided anew.
        runs = sorted(worker.processing, key=lambda task: task.priority)
        for task in runs:
            self._leave_worker(task)
            self._move(task, "waiting")
        held = sorted(worker.has_what, key=lambda task: task.priority)
        lost = [task for task in held if self._drop_copy(task, worker)]
        if self.leaving:
            self._target_lost(address)
            self._copies_are_gone(address, held)
        self._memory_to_released(lost)
        for task in killed:
            self._err(task, killed_worker(task, worker, how))
        self._err_actors(lost, worker, how)
        self._recover(lost)
        for task in runs:
            if task.state == "waiting" and not task.missing:
                self._place(task)
        self._settle()

    def _given_up(self, worker: WorkerRecord) -> list[Task]:
        """Blame those tasks of a dead worker that it may have been running.

        Returns
        -------
        list of Task
            Those that have been blamed too often.
        """
        running = _maybe_running(worker)
        for task in running:
            task.failures += 1
        return [task for task in running if task.failures > self.allowed_failures]

    def would_give_up(self, address: str) -> bool:
        """Whether the loss of this worker would make us give a task up, or an actor."""
        worker = self.workers.get(address)
        if worker is None or worker.is_leaving:
            return False
        running = _maybe_running(worker)
        given_up = any(task.failures >= self.allowed_failures for task in running)
        return given_up or bool(worker.actors)

    def heartbeat(self, now: float, address: str, msg: Heartbeat) -> None:
        """A worker tells how it is."""
        worker = self.workers.get(address)
        if worker is not None:
            worker.last_seen, worker.metrics = now, msg

    @property
    def has_work(self) -> bool:
        """Whether there are tasks that run or are to run, or actors, which are called unseen."""
        # Those that wait do so for others that do not.
        return (
            bool(self.held or self.resting)
            or any(worker.processing or worker.actors for worker in self.workers.values())
            or any(lane.n_queued or lane.stranded for lane in self.lanes)
        )

    def silent_workers(self, now: float, ttl: float) -> list[WorkerRecord]:
        """Workers of which nothing was heard for `ttl` seconds."""
        return [worker for worker in self.workers.values() if now - worker.last_seen > ttl]

    def workers_gone(self, addresses: tuple[str, ...]) -> None:
        """Tell the others that these have fallen silent, so that they expect no data of them."""
        for address in self.workers:
            self.send(address, WorkersGone(addresses))

    def threads_lent(self, now: float, address: str, msg: ThreadsLent) -> None:
        """A worker can run more tasks at a time, or fewer.

        Those that its tasks wait for must find room, or all would wait for ever; and what is behind
        a run that was given up, and does not end, would.
        """
        worker = self.workers.get(address)
        if worker is not None:
            worker.nthreads = max(worker.info.nthreads + msg.waiting, 0)
            if not worker.is_loaded and worker.n_runnable > worker.nthreads:
                self.loaded.add(worker)  # by fewer threads than it was given tasks for
            self._fill(worker)

    def tick(self, now: float) -> None:
        """Some time has passed: look for what no event brings up."""
        self._tick_hold(now)
        if self.resting:
            self._wake_resting()
        if self.loaded:
            for worker in self.lanes.open.placement.idle_workers(_RELIEVED_AT_A_TIME):
                self._relieve_others(worker, patience=False)
        self._settle()

    def _relieve_others(self, worker: WorkerRecord, patience: bool) -> None:
        """Ask another worker for tasks that it has not started, if this one has nothing to do."""
        if not self.work_stealing or not has_free_thread(worker) or worker.is_leaving:
            return
        hopeless = {t for t, tried in self._unreachable.items() if worker.address in tried}
        tasks = self.loaded.tasks_for(worker, patience, hopeless)
        if not tasks:
            return
        victim = tasks[0].worker
        assert victim is not None
        for task in tasks:
            victim.recalled[task] = worker
        versions = tuple(Version(task.key, task.attempt) for task in tasks)
        self.send(victim.address, TakeBack(versions))

    def given_back(self, now: float, address: str, msg: GivenBack) -> None:
        """A worker has not started these, and will not."""
        worker = self.workers.get(address)
        if worker is None:
            return
        for version in msg.versions:
            task = self.tasks.get(version.key)
            if task is not None and self._is_current(task, worker, version.attempt):
                self._vacated[worker] = None
                self._processing_to_waiting(task, worker.recalled.get(task))
        self._settle()

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
        self._drop_plans(name)
        self._drop_former(name)
        self._drop_told(name)
        self._drop_held_wants(client)
        self._depart(client)
        self._settle()

    def tasks_submitted(self, now: float, name: str, msg: SubmitTasks) -> None:
        """A client sends a chunk of a graph, dependencies first."""
        self._make_way([spec.key for spec in msg.tasks])
        client = self.clients[name]
        client.wants_read = msg.want or client.wants_read
        generation, hold = self._submission(client, msg)
        functions = [self.functions.declare(function) for function in msg.functions]
        lane = self.lanes.lane(msg.restriction)
        lane.uses += 1  # by this event, which may release the last task that it had
        tasks, refused = self._tasks_of(client, msg, functions, lane, generation)
        if hold is not None and msg.wanted is not None:  # else the client holds them itself
            for task in tasks:
                task.add_client(hold)
        if client.is_returning:
            self._hold(now)
        self._hold_tasks(client, tasks)
        if msg.wanted is None:
            for task in tasks:
                self._want(client, task)
            for key, reason in refused.items():
                self._write(client, KeyCancelled(key, reason, is_unknown=True))
        else:
            self._keys_wanted(now, client, msg.wanted, refused)
        held = self.held
        for task in tasks:
            if (task.waiters or task.wanted_by) and not (held and task in held):
                self._demand(task)
        if msg.final:
            self._end_submission(client, msg, hold, tasks)
        for function in functions:
            self.functions.keep_or_forget(function)
        lane.uses -= 1
        self.lanes.drop_if_unused(lane)
        self._settle()

    def _submission(
        self, client: ClientRecord, msg: SubmitTasks
    ) -> tuple[int, ClientRecord | None]:
        """Return the generation of a chunk, and who holds the tasks of those before the last."""
        generation, hold = client.generations.get(msg.submission, (0, None))
        if hold is None:
            self._generation += 1
            generation = self._generation
            if not msg.final:
                hold = ClientRecord(client.name, is_told=False)
                client.generations[msg.submission] = (generation, hold)
        return generation, hold

    def _tasks_of(
        self,
        client: ClientRecord,
        msg: SubmitTasks,
        functions: list[FunctionRecord],
        lane: Lane,
        generation: int,
    ) -> tuple[list[Task], dict[str, str]]:
        """Make tasks of a chunk; return them, and by key why there can be none."""
        tasks: list[Task] = []
        refused: dict[str, str] = {}
        # Clients take turns, task by task; the tasks of one stay in their order.
        first_turn = max(self._turn, client.turn)
        first = -msg.priority  # one object for all
        client.turn = first_turn + len(msg.tasks)
        for turn, spec in enumerate(msg.tasks, first_turn):
            priority = (first, turn, generation)
            task = self._known_or_new(client, spec, functions, priority, msg.retries, lane)
            if isinstance(task, str):
                refused[spec.key] = task
            else:
                tasks.append(task)
        return tasks, refused

    def _end_submission(
        self,
        client: ClientRecord,
        msg: SubmitTasks,
        hold: ClientRecord | None,
        tasks: list[Task],
    ) -> None:
        """All of a graph is there: what nobody wants of it by now may go."""
        client.generations.pop(msg.submission, None)
        if client.is_returning or self._has_predecessor:  # others who come may build on it
            for task in (*tasks, *(hold.wants if hold is not None else ())):
                task.add_client(self._until_told(client))
        if hold is not None:
            self._depart(hold)
        self._release_unneeded(tasks)

    def _known_or_new(
        self,
        client: ClientRecord,
        spec: TaskSpec,
        functions: list[FunctionRecord],
        priority: tuple[float, int, int],
        retries: int,
        lane: Lane,
    ) -> Task | str:
        """Return the task of a description, or the reason why there can be none."""
        task = self.tasks.get(spec.key)
        if task is not None and (client.is_returning or client.name in self._told):
            task = self._of_this_life(client, task, spec, functions)
        if task is not None and task.function is not None:
            return task
        reason = self._why_not(client, spec, functions)
        if reason is not None:
            return reason if task is None else task
        function = functions[spec.function]
        if task is None:
            return self._new_task(spec, function, priority, retries, lane)
        task.change_priority(priority)
        task.retries = retries
        self._give_recipe(task, spec, function, lane)
        return task

    def _why_not(
        self, client: ClientRecord, spec: TaskSpec, functions: list[FunctionRecord]
    ) -> str | None:
        """Why a task cannot be made of its description; None if it can."""
        for key in spec.dependencies:
            if key not in self.tasks:
                # Others may yet tell of it; nobody of a task that would need itself.
                if (client.is_returning or self._has_predecessor) and key != spec.key:
                    self.held[self._placeholder(key, self._attempt)] = None
                    continue
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
        lane: Lane,
    ) -> Task:
        dependencies: tuple[Task, ...] = ()
        if spec.dependencies:  # each once: they are counted
            dependencies = tuple([self.tasks[key] for key in dict.fromkeys(spec.dependencies)])
        function.uses += 1
        lane.uses += 1
        task = Task(
            spec.key, function, spec.arguments, dependencies, priority, retries, lane, self._attempt
        )
        self.tasks[spec.key] = task
        for dependency in dependencies:
            dependency.add_dependent(task)
        return task

    def keys_wanted(self, now: float, name: str, msg: WantKeys) -> None:
        """A client got hold of futures by another way than by submitting."""
        client = self.clients[name]
        client.wants_read = msg.want or client.wants_read
        self._keys_wanted(now, client, msg.keys, {})
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
            if self._held_wants:
                self._held_wants.get(key, {}).pop(client, None)
        self._release_unneeded(released)
        self._settle()

    def kept_until_done(self, now: float, msg: KeepUntilDone) -> None:
        """Tasks are to run even if nobody waits for them."""
        for key in msg.keys:
            task = self.tasks.get(key)
            if task is not None and task.state not in ("memory", "erred"):
                task.add_client(self._keeper)
                self._demand_or_hold(task)
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
        self._cancel(
            sorted(self.tasks.values(), key=lambda task: (task.priority, task.key)), reason
        )
        self._release_unneeded(list(self.doomed), math.inf)
        self._settle()

    # -- Events: runs end -----------------------------------------------------------------------

    def task_finished(self, now: float, address: str, msg: TaskFinished) -> None:
        """A worker ran a task, and holds its value."""
        task, worker = self.tasks.get(msg.key), self.workers.get(address)
        # A run that was given up got a FreeKeys, which reaches the worker after this answer left
        # it: there is nothing to do but not to believe it.
        if (
            task is None
            or worker is None
            or task.attempt != msg.attempt
            or task.worker is not worker
        ):
            if self._runs and worker is not None:
                self._kept_run_ended(now, worker, msg)
            return
        self._processing_to_memory(task, worker, msg)
        if worker.is_leaving and worker in task.who_has:
            self._has_new_value(task, worker)
        self._fill(worker)
        if self.loaded and not worker.n_runnable:
            self._relieve_others(worker, patience=True)
        if self._vacated or self._to_claim or self.leaving:
            self._settle()

    def task_erred(self, now: float, address: str, msg: TaskErred) -> None:
        """A task raised."""
        task, worker = self.tasks.get(msg.key), self.workers.get(address)
        if task is None or worker is None or not self._is_current(task, worker, msg.attempt):
            if self._runs and worker is not None:
                self._kept_run_ended(now, worker, msg)
            return
        if task.retries > 0:
            task.retries -= 1
            self._processing_to_waiting(task)
        else:
            self._err(task, msg.error)
        self._fill(worker)
        self._settle()

    def task_rescheduled(self, now: float, address: str, msg: TaskRescheduled) -> None:
        """A task wants another run."""
        task, worker = self.tasks.get(msg.key), self.workers.get(address)
        if worker is None:
            return
        if task is not None and self._is_current(task, worker, msg.attempt):
            self._rest(task, worker)
            self._fill(worker)
            self._settle()
        elif self._runs:
            self._kept_run_ended(now, worker, msg)

    def _is_current(self, task: Task, worker: WorkerRecord, attempt: int) -> bool:
        return task.attempt == attempt and task.worker is worker

    def keys_added(self, now: float, address: str, msg: KeysAdded) -> None:
        """A worker fetched copies, or a client has put values there."""
        worker = self.workers.get(address)
        if worker is None:
            return
        for version in msg.versions:
            task = self.tasks.get(version.key)
            if task is not None and task.state == "memory" and task.attempt == version.attempt:
                task.add_holder(worker)
            elif not self._is_expected(worker, version):  # released while it was on its way
                self.send(address, FreeKeys((version,)))
        if self.leaving:
            self._settle()

    def keys_dropped(self, now: float, address: str, msg: KeysDropped) -> None:
        """A worker has lost values without having been told to drop them."""
        worker = self.workers.get(address)
        if worker is not None:
            self._copies_lost(worker, msg.versions)
            self._settle()

    def _copies_lost(self, worker: WorkerRecord, versions: tuple[Version, ...]) -> None:
        held: dict[Task, None] = {}
        for version in versions:
            self._drop_kept(worker, version)
            self._leave_plans(worker, version)
            task = self.tasks.get(version.key)
            if task is not None and task.attempt == version.attempt and worker in task.who_has:
                held[task] = None
        lost = [task for task in held if self._drop_copy(task, worker)]
        if self.leaving:
            self._copies_are_gone(worker.address, list(held))
        self._memory_to_released(lost)
        self._recover(lost)

    def data_missing(self, now: float, address: str, msg: DataMissing) -> None:
        """A worker could not get an input from where we said it is."""
        source = self.workers.get(msg.address)
        value = self.tasks.get(msg.missing.key)
        task, worker = self.tasks.get(msg.key), self.workers.get(address)
        is_current = (
            task is not None and worker is not None and self._is_current(task, worker, msg.attempt)
        )
        if msg.unreachable and source is not None and value is not None:
            # The value is there, and may be all there is of scattered data.
            if is_current and task is not None and worker is not None:
                self._out_of_reach(task, value, worker, source)
        else:
            if source is not None and value is not None and value.attempt == msg.missing.attempt:
                self._copies_lost(source, (msg.missing,))
                self.send(msg.address, FreeKeys((msg.missing,)))
            if task is not None and worker and self._is_current(task, worker, msg.attempt):
                self._vacated[worker] = None
                self._processing_to_waiting(task)
        self._settle()

    def _out_of_reach(
        self, task: Task, value: Task, worker: WorkerRecord, source: WorkerRecord
    ) -> None:
        """Two workers cannot talk: run the task where the value is, or compute that elsewhere."""
        self._vacated[worker] = None
        tried = self._unreachable.setdefault(task, [])
        tried.append(worker.address)
        times = len(tried)
        is_all_there_is = value.function is None or value.lane.is_actor
        if times > (_MAX_UNREACHABLE if is_all_there_is else _HOPELESS):
            self._err(task, out_of_reach(task, value, worker, source))
            return
        self._leave_worker(task)
        self._move(task, "waiting")
        self._take_back_dependents(task)
        if times > _MAX_UNREACHABLE:
            version = Version(value.key, value.attempt)
            self._copies_lost(source, (version,))
            self.send(source.address, FreeKeys((version,)))
        if task.state != "waiting" or task.missing:
            return
        if times == 1 and source in task.lane.workers and not task.lane.resources:
            self._assign(task, source)
        else:
            self._place(task)

    # -- Questions ------------------------------------------------------------------------------

    def why_not_running(self, keys: Iterable[str] = ()) -> dict[str, str]:
        """Tasks that no worker may run, with the reason; of `keys`, or all."""
        stranded = [task for lane in self.lanes for task in lane.stranded]
        wanted = set(keys)
        return {
            task.key: self.lanes.why_stranded(task.lane)
            for task in stranded
            if not wanted or task.key in wanted
        }

    def locate(self, key: str) -> Dependency:
        """Where the value of a key is; no addresses if it is not in memory."""
        task = self.tasks.get(key)
        if task is None or task.state != "memory":
            return Dependency(key, 0, 0, ())
        return dependency_of(task)

    # -- Wants ----------------------------------------------------------------------------------

    def _keys_wanted(
        self, now: float, client: ClientRecord, keys: Iterable[str], refused: dict[str, str]
    ) -> None:
        if client.is_returning:
            self._want_all(now, client, (key for key in keys if key not in refused))
            for key, reason in refused.items():
                self._write(client, KeyCancelled(key, reason, is_unknown=True))
            return
        for key in keys:
            task = self.tasks.get(key)
            if task is not None:
                self._want(client, task)
                self._demand_or_hold(task)
            elif self._has_predecessor and key not in refused:  # it may be submitted again
                self._held_wants.setdefault(key, {})[client] = None
            else:
                reason = refused.get(key, "the scheduler does not know this key")
                self._write(client, KeyCancelled(key, reason, is_unknown=True))

    def _settle(self) -> None:
        super()._settle()
        if self.leaving:
            self._let_go()


def _maybe_running(worker: WorkerRecord) -> list[Task]:
    """Tasks that a worker may be running, which are those that come first."""
    runnable = (task for task in worker.processing if not task.missing)
    return nsmallest(worker.nthreads, runnable, key=lambda task: task.priority)
