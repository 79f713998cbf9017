"""The scheduler of a simulated cluster: the real SchedulerState behind its links."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from virtual_clock import VirtualClock
from virtual_network import SCHEDULER, Batch, Closed, Process, VirtualNetwork

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.validation import validate_scheduler
from hpcdask.messages import (
    CancelKeys,
    DataMissing,
    DataScattered,
    GivenBack,
    Heartbeat,
    KeepUntilDone,
    KeysAdded,
    KeysDropped,
    NotAcquired,
    PlanScatter,
    RegisterClient,
    RegisterWorker,
    ReleaseKeys,
    ScatterPlan,
    SubmitTasks,
    TaskErred,
    TaskFinished,
    ThreadsLent,
    WantKeys,
    WorkerLeaving,
)

#: What a worker says to the scheduler, and the event that it is.
OF_WORKER: dict[type[Any], str] = {
    TaskFinished: "task_finished",
    TaskErred: "task_erred",
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
#: Virtual seconds after which a worker that says nothing is given up: three heartbeats.
TTL = 15.0


class VirtualScheduler(Process):
    """The scheduler process.

    Parameters
    ----------
    on_message : callable of (str, message)
        Called before each message of a client or worker is handled.
    """

    def __init__(
        self,
        clock: VirtualClock,
        network: VirtualNetwork,
        random: Random,
        allowed_failures: int,
        on_message: Callable[[str, Any], None],
    ) -> None:
        super().__init__(SCHEDULER, clock)
        self.network = network
        self.random = random
        self.state = SchedulerState(allowed_failures)
        self.connections: dict[str, int] = {}
        self.on_message = on_message
        self.n_lost = 0  # workers that tasks may be blamed for
        self._ticked = 0.0
        self._planned: list[tuple[str, ScatterPlan]] = []

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
        if event is not None:
            getattr(state, event)(now, source, message)
        elif kind is WorkerLeaving:
            state.worker_leaving(now, source, message.reason)
        elif kind is KeepUntilDone:
            state.kept_until_done(now, message)
        elif kind is PlanScatter:
            planned = tuple(state.scatter_planned(now, source, message))
            self._planned.append((source, ScatterPlan(message.request, planned)))
        elif kind is RegisterWorker:
            self.connections[source] = connection
            state.worker_joined(now, message)
        elif kind is RegisterClient:
            self.connections[source] = connection
            state.client_joined(now, source)
        elif kind is Closed:
            del self.connections[source]
            if source in state.clients:
                state.client_lost(now, source)
            else:
                self.lose(source)
        else:
            raise AssertionError(f"no event of the scheduler for {message}")

    def lose(self, address: str) -> None:
        """A worker is gone."""
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
        outbox, self.state.outbox = self.state.outbox, {}
        for address, messages in outbox.items():
            if address in self.connections:
                self.network.send(SCHEDULER, address, messages, self.connections[address])
        planned, self._planned = self._planned, []
        for name, plan in planned:
            self.network.send(SCHEDULER, name, [plan], self.connections[name])

    def restart(self, reason: str) -> None:
        """Forget all tasks, as a user may ask."""
        self.state.restarted(self.clock.now, reason)
        validate_scheduler(self.state)
        self.flush()
