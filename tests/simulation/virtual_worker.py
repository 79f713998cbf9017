"""A worker of a simulated cluster: the real WorkerState, and threads that take virtual seconds."""

from __future__ import annotations

import pickle
from collections import deque
from random import Random
from typing import Any, NamedTuple

from recipes import DURATIONS, Recipes
from virtual_clock import Timer, VirtualClock
from virtual_network import SCHEDULER, Batch, Closed, Process, VirtualNetwork

from hpcdask.core.validation import validate_worker
from hpcdask.core.worker_state import (
    Abandon,
    Execute,
    Fetch,
    NotStarted,
    Outcome,
    Postponed,
    Raised,
    Ran,
    WorkerState,
)
from hpcdask.messages import (
    AcquireKeys,
    CloseWorker,
    ComputeTask,
    DefineFunction,
    ForgetFunctions,
    FreeKeys,
    Heartbeat,
    KeysDropped,
    RegisterWorker,
    TakeBack,
    TaskError,
    ThreadsLent,
    Version,
    WorkerLeaving,
    WorkersGone,
)

#: What the scheduler says to a worker, and the event that it is.
ON_WORKER: dict[type[Any], str] = {
    ComputeTask: "compute_task",
    FreeKeys: "keys_freed",
    TakeBack: "take_back",
    AcquireKeys: "acquire_keys",
    WorkersGone: "workers_gone",
    DefineFunction: "function_defined",
    ForgetFunctions: "functions_forgotten",
}
#: Seconds after which a worker gives up on a peer that does not answer.
FETCH_TIMEOUT = 10.0
#: Seconds between a worker's heartbeats.
HEARTBEAT = 5.0


class Request(NamedTuple):
    """worker -> worker: send me these."""

    number: int
    versions: tuple[Version, ...]


class Answer(NamedTuple):
    """worker -> worker."""

    number: int
    values: tuple[tuple[Version, Any, int], ...]


class Store(NamedTuple):
    """client -> worker: hold this."""

    version: Version
    value: Any
    nbytes: int


class Stored(NamedTuple):
    """worker -> client."""

    version: Version


class Ledger:
    """What was run in the whole cluster, to hold every worker to."""

    def __init__(self, recipes: Recipes) -> None:
        self.recipes = recipes
        self.started: set[tuple[str, int]] = set()
        self.n_runs: dict[str, int] = {}

    def run_starts(self, run: Execute, worker: VirtualWorker) -> None:
        """Check that a run may start: once, with the right inputs, and where it may."""
        assert (run.key, run.attempt) not in self.started, ("runs twice", run.key, run.attempt)
        self.started.add((run.key, run.attempt))
        self.n_runs[run.key] = self.n_runs.get(run.key, 0) + 1
        _, _, right = pickle.loads(run.arguments)  # type: ignore[arg-type]
        assert run.inputs == right, (f"inputs of {run.key} #{run.attempt}", run.inputs, right)

        restriction = self.recipes.by_key[run.key].restriction
        if restriction is not None and restriction.workers and not restriction.allow_others:
            names = {worker.host, worker.label, worker.name}
            assert names & set(restriction.workers), (run.key, worker.name)
        for name, amount in worker.resources.items():
            taken = sum(self._takes(busy.key, name) for busy in [run, *worker.busy])
            assert taken <= amount, (name, "is taken by too many on", worker.name, taken)

    def _takes(self, key: str, name: str) -> float:
        restriction = self.recipes.by_key[key].restriction
        return dict(restriction.resources).get(name, 0.0) if restriction is not None else 0.0

    def result(self, run: Execute) -> int | None:
        """Really compute, of what the worker passed; None if the task raises."""
        number, n_failures, _ = pickle.loads(run.arguments)  # type: ignore[arg-type]
        name = run.function.name
        if name == "raise" or (name == "flaky" and self.n_runs[run.key] <= n_failures):
            return None
        return int(number + sum(run.inputs.values()))


class VirtualWorker(Process):
    """One worker process."""

    def __init__(
        self,
        name: str,
        clock: VirtualClock,
        network: VirtualNetwork,
        random: Random,
        ledger: Ledger,
        nthreads: int,
        host: str,
        resources: dict[str, float],
        label: str,
    ) -> None:
        super().__init__(name, clock)
        self.label = label
        self.network = network
        self.random = random
        self.ledger = ledger
        self.state = WorkerState(name, nthreads, resources)
        self.host, self.resources = host, dict(resources)
        self.is_connected = False
        self.is_leaving = False
        self.n_lent = 0
        self.n_stuck = 0  # threads that are said to be busy with what was given up
        self.slowest = 0.8  # of its returns, log10 of seconds
        self.nthreads = nthreads
        self.slowness = 1.0
        self.refusals = 0.0  # share of requests at which the connection ends
        self.connection = 0
        self._queue: deque[Execute] = deque()
        self._running: dict[tuple[str, int], tuple[Execute, Timer]] = {}
        self._abandoned: set[tuple[str, int]] = set()
        self._requests: dict[int, tuple[str, Timer]] = {}
        self._n_requests = 0

    @property
    def busy(self) -> list[Execute]:
        """What the threads have."""
        return [run for run, _ in self._running.values()]

    @property
    def runs(self) -> list[Execute]:
        """What the threads have, and what waits for them."""
        return [*self._queue, *self.busy]

    def start(self) -> None:
        """Register, and beat from then on."""
        self._register(self._about())

    def _about(self) -> RegisterWorker:
        resources = tuple(sorted(self.resources.items()))
        return RegisterWorker(
            self.name, self.label, self.nthreads, 0, self.host, 1, "/", "", 1, "1", resources
        )

    def _register(self, hello: RegisterWorker) -> None:
        self.connection += 1
        self.is_connected = True
        self.network.send(self.name, SCHEDULER, [hello], self.connection)
        self._beat(self.connection)

    def scheduler_lost(self) -> None:
        """Come back after a while."""
        self.is_connected = False
        self.connection += 1  # what is still on its way belongs to the one that has ended
        self.later(10 ** self.random.uniform(-3, self.slowest), self._return, self.connection)

    def _return(self, search: int) -> None:
        """Tell the scheduler, or the next one, what was kept."""
        if search != self.connection:
            return  # another search has begun
        values, runs = self.state.came_back(self.clock.now)
        validate_worker(self.state)
        self._register(self._about()._replace(returns=True, values=values, runs=runs))
        if self.is_leaving:
            self._send(WorkerLeaving("enough"))
        if self.n_lent or self.n_stuck:
            self._send(ThreadsLent(self.n_lent - self.n_stuck))
        self.act()

    def _send(self, message: Any) -> None:
        self.network.send(self.name, SCHEDULER, [message], self.connection)

    def _beat(self, connection: int) -> None:
        if not self.is_dead and connection == self.connection:
            beat = Heartbeat(0.0, 0, self.state.nbytes, self.state.executing, self.state.n_ready)
            self.network.send(self.name, SCHEDULER, [beat], self.connection, idle=True)
            self.clock.after(HEARTBEAT, self.do, self._beat, connection, idle=True)

    # -- What comes in ----------------------------------------------------------------------------

    def receive(self, source: str, batch: Batch) -> None:
        if source == SCHEDULER and batch.connection != self.connection:
            return  # of an earlier connection
        for message in batch.messages:
            event = ON_WORKER.get(type(message))
            if event is not None:
                getattr(self.state, event)(self.clock.now, message)
            elif isinstance(message, Request):
                self._serve(source, message)
            elif isinstance(message, Answer):
                self._answered(message)
            elif isinstance(message, Store):
                version, value, nbytes = message
                self.state.value_stored(self.clock.now, version, value, nbytes)
                self.network.send_plain(self.name, source, [Stored(version)])
            elif isinstance(message, CloseWorker):
                self.network.remove(self.name, self.connection)
                return
            elif isinstance(message, Closed) and source == SCHEDULER:
                self.scheduler_lost()
            elif isinstance(message, Closed):
                self.refused(source)
            else:
                raise AssertionError(f"no event of a worker for {message}")
            validate_worker(self.state)
        self.act()

    def die(self) -> None:
        super().die()
        for _, timer in [*self._running.values(), *self._requests.values()]:
            timer.cancel()

    def _serve(self, source: str, message: Request) -> None:
        if self.random.random() < self.refusals:
            self.network.send_plain(self.name, source, [Closed()])
            return
        held = [(version, self.state.value_of(version)) for version in message.versions]
        values = tuple([(version, task.value, task.nbytes) for version, task in held if task])
        self.network.send_plain(self.name, source, [Answer(message.number, values)])

    def _answered(self, message: Answer) -> None:
        request = self._requests.pop(message.number, None)
        if request is not None:
            address, timer = request
            timer.cancel()
            self.state.data_arrived(self.clock.now, address, message.values)

    def _fetch_failed(self, number: int) -> None:
        request = self._requests.pop(number, None)
        if request is not None:
            address, timer = request
            timer.cancel()
            self.state.fetch_failed(self.clock.now, address)
            validate_worker(self.state)
            self.act()

    def refused(self, target: str) -> None:
        if target == SCHEDULER:
            self.scheduler_lost()
            return
        for number, (address, _) in list(self._requests.items()):
            if address == target:
                self._fetch_failed(number)

    # -- What goes out ----------------------------------------------------------------------------

    def act(self) -> None:
        """Do what the state says, and tell the scheduler."""
        instructions, self.state.instructions = self.state.instructions, []
        for instruction in instructions:
            if isinstance(instruction, Execute):
                self._queue.append(instruction)
            elif isinstance(instruction, Abandon):
                self._abandoned.add((instruction.key, instruction.attempt))
            elif isinstance(instruction, Fetch):
                self._fetch(instruction)
            else:
                raise AssertionError(f"no action of a worker for {instruction}")
        self._start_runs()
        if not self.is_connected:
            return
        messages, self.state.outbox = self.state.outbox, []
        self.network.send(self.name, SCHEDULER, messages, self.connection)

    def _fetch(self, fetch: Fetch) -> None:
        self._n_requests += 1
        number = self._n_requests
        timer = self.later(FETCH_TIMEOUT, self._fetch_failed, number)
        self._requests[number] = (fetch.address, timer)
        self.network.send_plain(self.name, fetch.address, [Request(number, fetch.versions)])

    def _start_runs(self) -> None:
        """Give the threads what they can take."""
        while self._queue and len(self._running) < self.state.nthreads:
            run = self._queue.popleft()
            if (run.key, run.attempt) in self._abandoned:
                self._take(run, 1e-6, NotStarted())
                continue
            self.ledger.run_starts(run, self)
            usual = DURATIONS[run.function.name] * self.slowness
            duration = usual * 10 ** self.random.uniform(-0.5, 0.5)
            self._take(run, duration, self._outcome(run, duration))

    def _take(self, run: Execute, duration: float, outcome: Outcome) -> None:
        timer = self.later(duration, self._run_ended, run, outcome)
        self._running[run.key, run.attempt] = (run, timer)

    def _outcome(self, run: Execute, duration: float) -> Outcome:
        if run.function.name == "moody" and self.random.random() < 0.5:
            return Postponed()
        value = self.ledger.result(run)
        if value is None:
            return Raised(TaskError(b"boom", (), run.key, self.name), duration)
        pickled = pickle.dumps(value) if run.wanted else None
        return Ran(value, self.random.choice([28, 10**6, 10**9]), duration, pickled)

    def _run_ended(self, run: Execute, outcome: Outcome) -> None:
        del self._running[run.key, run.attempt]
        self._abandoned.discard((run.key, run.attempt))
        self.state.task_ran(self.clock.now, run.key, run.attempt, outcome)
        validate_worker(self.state)
        self.act()

    def leave(self) -> None:
        """Let the scheduler save what only this worker has; every other one has time for that."""
        self.is_leaving = True
        self._send(WorkerLeaving("enough", waits=self.connection % 2 == 0))

    def drop_a_value(self) -> None:
        """Lose a value, for want of memory."""
        held = [task for task in self.state.tasks.values() if task.state == "memory"]
        if held:
            task = self.random.choice(held)
            self.state._withdraw(task)
            self.state.outbox.append(KeysDropped((Version(task.key, task.attempt),)))
            validate_worker(self.state)
            self.act()

    def stick_threads(self, count: int) -> None:
        """So many threads are busy with runs that were given up."""
        self.n_stuck = count
        self._tell_threads()

    def _tell_threads(self) -> None:
        if self.is_connected:
            self._send(ThreadsLent(self.n_lent - self.n_stuck))

    def lend_threads(self, count: int) -> None:
        """So many tasks here wait for other tasks from now on."""
        self.n_lent = count
        self._tell_threads()
        self.state.threads_changed(self.clock.now, self.nthreads + count)
        validate_worker(self.state)
        self.act()
