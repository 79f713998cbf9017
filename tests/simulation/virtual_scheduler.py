"""The scheduler of a simulated cluster: the real SchedulerState behind its links."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from virtual_clock import VirtualClock
from virtual_network import SCHEDULER, Batch, Closed, Process, VirtualNetwork

from hpcdask.core.copying import Rebalancing, Replication
from hpcdask.core.definition import definition_of
from hpcdask.core.records import Task
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.validation import validate_scheduler
from hpcdask.messages import (
    ComputeTask,
    DataMissing,
    FreeKeys,
    GivenBack,
    Heartbeat,
    HeldRun,
    HeldValue,
    KeysAdded,
    KeysDropped,
    NotAcquired,
    RegisterClient,
    RegisterWorker,
    TaskErred,
    TaskFinished,
    TaskRescheduled,
    ThreadsLent,
    Version,
    WorkerLeaving,
)
from hpcdask.messages.client import (
    AllTold,
    CancelKeys,
    ClientClosing,
    DataScattered,
    KeepUntilDone,
    PlanScatter,
    ReleaseKeys,
    RetryKeys,
    ScatterPlan,
    SubmitTasks,
    WantKeys,
)

#: What a worker says to the scheduler, and the event that it is.
OF_WORKER: dict[type[Any], str] = {
    TaskFinished: "task_finished",
    TaskErred: "task_erred",
    TaskRescheduled: "task_rescheduled",
    KeysAdded: "keys_added",
    KeysDropped: "keys_dropped",
    GivenBack: "given_back",
    NotAcquired: "not_acquired",
    DataMissing: "data_missing",
    Heartbeat: "heartbeat",
    ThreadsLent: "threads_lent",
}
#: What a client says to the scheduler, likewise.
OF_CLIENT: dict[type[Any], str] = {
    SubmitTasks: "tasks_submitted",
    WantKeys: "keys_wanted",
    ReleaseKeys: "keys_released",
    CancelKeys: "keys_cancelled",
    DataScattered: "data_scattered",
}

#: Virtual seconds between two calls of `tick`.
TICK = 0.1
#: Virtual seconds for which the wants of a client that has vanished are kept.
CLIENT_GRACE = 5.0
#: Virtual seconds after which a worker that says nothing is given up: three heartbeats.
TTL = 15.0


class Survivors:
    """What returning workers have kept, which is not to be computed again.

    Until the scheduler tells them to drop it, or it is lost.
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, HeldValue | HeldRun]] = {}  # by key, then address

    def worker_joined(self, info: RegisterWorker) -> None:
        for kept in (*info.values, *info.runs):
            self._kept.setdefault(kept.key, {})[info.address] = kept

    def worker_lost(self, address: str) -> None:
        for kept in self._kept.values():
            kept.pop(address, None)

    def gone(self, address: str, message: Any) -> None:
        """A worker says how its runs end, or what it holds no more."""
        if isinstance(message, (KeysDropped, GivenBack)):
            for version in message.versions:
                self._pop(address, version)
        elif isinstance(message, (TaskErred, TaskRescheduled)):
            self._pop(address, Version(message.key, message.attempt))
        elif isinstance(message, DataMissing) and not message.unreachable:
            self._pop(message.address, message.missing)

    def _pop(self, address: str, version: Version) -> None:
        found = self._kept.get(version.key, {})
        if address in found and found[address].attempt == version.attempt:
            del found[address]

    def check(self, outbox: dict[str, list[Any]]) -> None:
        """Raise AssertionError if a task is sent of which a value or a run is there."""
        sent = [(address, message) for address in outbox for message in outbox[address]]
        for address, message in sent:
            if isinstance(message, FreeKeys):
                for version in message.versions:
                    self._pop(address, version)
        for _, message in sent:
            if isinstance(message, ComputeTask):
                means = definition_of(message.function_id, message.arguments)
                for kept in self._kept.get(message.key, {}).values():
                    assert kept.definition != means, (message, "again, in spite of", kept)


class VirtualScheduler(Process):
    """The scheduler process.

    Parameters
    ----------
    on_message : callable of (str, message)
        Called before each message of a client or worker is handled.
    before : VirtualScheduler, optional
        The one that is gone and whose place it takes.
    """

    def __init__(
        self,
        clock: VirtualClock,
        network: VirtualNetwork,
        random: Random,
        allowed_failures: int,
        on_message: Callable[[str, Any], None],
        before: VirtualScheduler | None = None,
    ) -> None:
        super().__init__(SCHEDULER, clock)
        self.network = network
        self.random = random
        last_attempt = before.state._attempt if before is not None else 0
        self.state = SchedulerState(allowed_failures, max(int(clock.now * 1e6), last_attempt))
        self.state.drop_at_once = random.choice([1, 5, 1000])
        self.connections: dict[str, int] = {}
        self.on_message = on_message
        self.n_lost = before.n_lost if before is not None else 0  # that tasks may be blamed for
        self.survivors = Survivors()
        self._ticked = clock.now
        self._joined: dict[str, float] = {}  # when each worker came, last
        self._lets_go = False  # later, with some more of what it drops
        self._said_goodbye: set[str] = set()
        self._planned: list[tuple[str, ScatterPlan]] = []

    def refused(self, target: str) -> None:
        """Who is gone dials us when it is back."""

    def receive(self, source: str, batch: Batch) -> None:
        for message in batch.messages:
            if not isinstance(message, (RegisterWorker, RegisterClient)) and (
                self.connections.get(source) != batch.connection
            ):
                continue  # of an earlier connection
            self.on_message(source, message)
            self._handle(source, message, batch.connection)
            if type(message) is not Heartbeat:
                validate_scheduler(self.state)
        self.flush()

    def _handle(self, source: str, message: Any, connection: int) -> None:
        state, now, kind = self.state, self.clock.now, type(message)
        event = OF_WORKER.get(kind) or OF_CLIENT.get(kind)
        self.survivors.gone(source, message)
        if event is not None:
            getattr(state, event)(now, source, message)
        elif kind is WorkerLeaving:
            state.worker_leaving(now, source, message.reason, message.waits)
        elif kind is RetryKeys:
            state.keys_retried(now, message.keys)
        elif kind is KeepUntilDone:
            state.kept_until_done(now, message)
        elif kind is PlanScatter:
            planned = tuple(state.scatter_planned(now, source, message))
            self._planned.append((source, ScatterPlan(message.request, planned)))
        elif kind is RegisterWorker:
            self.connections[source] = connection
            self.survivors.worker_lost(source)
            self.survivors.worker_joined(message)
            self._joined[source] = now
            state.worker_joined(now, message)
        elif kind is RegisterClient:
            self.connections[source] = connection
            if message.returns:
                state.client_returned(now, source)
            else:
                state.client_joined(now, source)
        elif kind is AllTold:
            state.all_told(now, source)
        elif kind is ClientClosing:
            self._said_goodbye.add(source)
        elif kind is Closed:
            del self.connections[source]
            if source in state.workers:
                self.lose(source)
            elif source in self._said_goodbye:
                state.client_lost(now, source)
            else:
                self.later(CLIENT_GRACE, self._forget_client, source)
        else:
            raise AssertionError(f"no event of the scheduler for {message}")

    def _forget_client(self, name: str) -> None:
        if name not in self.connections:
            self.on_message(name, Closed())
            self.state.client_lost(self.clock.now, name)
            validate_scheduler(self.state)
            self.flush()

    def _let_go(self) -> None:
        self._lets_go = False
        self.state.drop_more(self.clock.now)
        validate_scheduler(self.state)
        self.flush()

    def lose(self, address: str) -> None:
        """A worker is gone."""
        self.survivors.worker_lost(address)
        planned = self.random.random() < 0.3
        self.n_lost += not planned
        self.state.worker_lost(self.clock.now, address, planned)

    def tick(self) -> None:
        """Do what is due by time alone."""
        now, late = self.clock.now, self.clock.now - self._ticked - TICK
        self._ticked = now
        self.state.tick(now)
        silent = self.state.silent_workers(now - max(late, 0.0), TTL)
        for worker in silent:
            connection = self.connections.pop(worker.address)
            self.network.end_connection(SCHEDULER, worker.address, connection)
            self.lose(worker.address)
        if silent:
            self.state.workers_gone(tuple([worker.address for worker in silent]))
        validate_scheduler(self.state)
        self.flush()

    def flush(self) -> None:
        """Send all that the state has to say."""
        if self.state.has_more_to_drop and not self._lets_go:
            self._lets_go = True
            self.later(self.random.expovariate(100.0), self._let_go)
        outbox, self.state.outbox = self.state.outbox, {}
        self.survivors.check(outbox)
        self._check_preferred(outbox)
        for address, messages in outbox.items():
            if address in self.connections:
                self.network.send(SCHEDULER, address, messages, self.connections[address])
        planned, self._planned = self._planned, []
        for name, plan in planned:
            self.network.send(SCHEDULER, name, [plan], self.connections[name])

    def _check_preferred(self, outbox: dict[str, list[Any]]) -> None:
        """Raise AssertionError if a task goes to others though one of its own workers is there."""
        for address, messages in outbox.items():
            for message in messages:
                task = self.state.tasks.get(message.key) if type(message) is ComputeTask else None
                if task is None or task.lane.restriction is None or task.attempt != message.attempt:
                    continue
                lane, worker = task.lane, self.state.workers[address]
                assert lane.has_enough(worker), (task, address)
                if lane.is_named(worker):
                    continue
                # One that comes back in this very moment is first taken for gone.
                staying = [
                    w
                    for w in self.state.workers.values()
                    if not w.is_leaving and self._joined[w.address] < self.clock.now
                ]
                better = [w for w in staying if lane.is_named(w) and lane.has_enough(w)]
                assert not better, (task, "goes to", address, "and not to", better)

    def values(self) -> list[Task]:
        """Tasks whose values are on workers."""
        found = [task for task in self.state.tasks.values() if task.state == "memory"]
        return sorted(found, key=lambda task: task.key)  # the table has them by their hash

    def copy(self, tasks: list[Task], n: int, branching_factor: int) -> None:
        """Have so many workers hold values."""
        workers = self.state.find_workers(())
        self.do(self._start, Replication(self.state.workers, tasks, workers, n, branching_factor))

    def spread(self) -> None:
        """Have all workers hold as much."""
        workers = self.state.find_workers(())
        self.do(self._start, Rebalancing(self.state.workers, workers, set()))

    def _start(self, plan: Replication | Rebalancing) -> None:
        self.state.copy_plans.append(plan)
        self._look(plan, self.clock.now + 5.0)

    def _look(self, plan: Replication | Rebalancing, deadline: float) -> None:
        """See how copies get on, until none goes on or time is over."""
        result = plan.next_round()
        self.state.copies_wanted(self.clock.now, result.wanted)
        self.state.copies_unwanted(self.clock.now, result.unwanted)
        validate_scheduler(self.state)
        self.flush()
        if plan.goes_on and self.clock.now < deadline:
            self.later(0.05, self._look, plan, deadline)
        else:
            self.state.copy_plans.remove(plan)

    def restart(self, reason: str) -> None:
        """Forget all tasks, as a user may ask."""
        self.state.restarted(self.clock.now, reason)
        validate_scheduler(self.state)
        self.flush()
