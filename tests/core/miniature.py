"""A cluster in one thread: the real states, and between them links that deliver when told to.

Every link keeps its order and none keeps any order with another, as with TCP connections. All that
happens is drawn from one seed, so a seed that fails does so again in the same way.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.validation import validate_scheduler, validate_worker
from hpcdask.core.worker_state import (
    Abandon,
    Execute,
    Fetch,
    NotStarted,
    Outcome,
    Raised,
    Ran,
    WorkerState,
)
from hpcdask.errors import KilledWorker, LostDataError
from hpcdask.messages import (
    AcquireKeys,
    CancelKeys,
    CloseWorker,
    ComputeTask,
    DataMissing,
    DataScattered,
    DefineFunction,
    ForgetFunctions,
    FreeKeys,
    Function,
    GivenBack,
    KeepUntilDone,
    KeyCancelled,
    KeyLost,
    KeysAdded,
    Message,
    NotAcquired,
    PlacedValue,
    PlanScatter,
    RegisterWorker,
    ReleaseKeys,
    Restriction,
    SubmitTasks,
    TakeBack,
    TaskDone,
    TaskErred,
    TaskError,
    TaskFailed,
    TaskFinished,
    TaskSpec,
    Version,
    WantKeys,
    WorkerLeaving,
)
from hpcdask.wire.codec import decode, encode

SCHEDULER = "scheduler"
#: How the tasks of each function end: with a value, with an error, or with errors at first.
FUNCTIONS = ("add", "raise", "flaky")

ON_WORKER = {
    ComputeTask: WorkerState.compute_task,
    FreeKeys: WorkerState.keys_freed,
    TakeBack: WorkerState.take_back,
    AcquireKeys: WorkerState.acquire_keys,
    DefineFunction: WorkerState.function_defined,
    ForgetFunctions: WorkerState.functions_forgotten,
}
OF_WORKER = {
    TaskFinished: SchedulerState.task_finished,
    TaskErred: SchedulerState.task_erred,
    KeysAdded: SchedulerState.keys_added,
    DataMissing: SchedulerState.data_missing,
    GivenBack: SchedulerState.given_back,
    NotAcquired: SchedulerState.not_acquired,
    WorkerLeaving: lambda state, now, address, msg: state.worker_leaving(now, address, msg.reason),
}
OF_CLIENT = {
    SubmitTasks: SchedulerState.tasks_submitted,
    WantKeys: SchedulerState.keys_wanted,
    ReleaseKeys: SchedulerState.keys_released,
    CancelKeys: SchedulerState.keys_cancelled,
    DataScattered: SchedulerState.data_scattered,
}


class Lost(NamedTuple):
    """worker or client -> scheduler: the connection ended."""


class Request(NamedTuple):
    """worker -> worker."""

    versions: tuple[Version, ...]


class Answer(NamedTuple):
    """worker -> worker; None: the peer could not be asked."""

    values: tuple[tuple[Version, Any, int], ...] | None


class Planned(NamedTuple):
    """scheduler -> client."""

    placements: tuple[PlacedValue, ...]


class Recipe(NamedTuple):
    """What a key stands for."""

    function: str  # one of FUNCTIONS, or "data" for a scattered value
    number: int
    dependencies: tuple[str, ...]


@dataclass
class MiniClient:
    """What a client remembers."""

    name: str
    futures: dict[str, str] = field(default_factory=dict)  # pending, done, erred
    errors: dict[str, TaskError] = field(default_factory=dict)
    gave_up: set[str] = field(default_factory=set)  # keys that it cancelled
    unsent: list[SubmitTasks] = field(default_factory=list)  # further chunks of a graph
    submissions: int = 0
    storing: list[tuple[PlacedValue, ...]] = field(default_factory=list)


class Miniature:
    """A scheduler, workers and clients, and what is on its way between them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.allowed_failures = self.random.choice([0, 1, 1000, 1000])
        self.scheduler = SchedulerState(self.allowed_failures)
        self.workers: dict[str, WorkerState] = {}
        self.runs: list[tuple[str, Execute]] = []
        self.abandoned: set[tuple[str, str, int]] = set()
        self.clients: dict[str, MiniClient] = {}
        self.links: dict[tuple[str, str], deque[Any]] = {}
        self.recipes: dict[str, Recipe] = {}
        self.flaked: dict[str, int] = {}
        self.forced: set[str] = set()  # keys that were cancelled whoever wanted them
        self.moves: set[tuple[str, str]] = set()
        self.joined = 0
        for _ in range(self.random.randint(1, 4)):
            self.join_worker()
        for name in ("alice", "bob"):
            self.join_client(name)

    # -- Links ------------------------------------------------------------------------------------

    def send(self, source: str, target: str, message: Any) -> None:
        self.links.setdefault((source, target), deque()).append(message)

    def send_messages(self, source: str, target: str, messages: Iterable[Message]) -> None:
        for message in decode(*encode(list(messages))):
            self.send(source, target, message)

    def cut(self, name: str) -> None:
        """Lose what is on its way to or from somebody."""
        for source, target in list(self.links):
            if name in (source, target):
                link = self.links.pop((source, target))
                if target == SCHEDULER:  # some of it may have arrived
                    kept = self.random.randint(0, len(link))
                    self.links[source, target] = deque(list(link)[:kept])

    def is_quiet(self, name: str) -> bool:
        """Whether nothing is on its way between a client and the scheduler."""
        return not self.links.get((name, SCHEDULER)) and not self.links.get((SCHEDULER, name))

    def flush(self) -> None:
        """Put all that the states have to say onto the links, and check them."""
        outbox, self.scheduler.outbox = self.scheduler.outbox, {}
        for address, messages in outbox.items():
            if address in self.workers or address in self.clients:
                self.send_messages(SCHEDULER, address, messages)
        for address, worker in self.workers.items():
            messages, worker.outbox = worker.outbox, []
            self.send_messages(address, SCHEDULER, messages)
            instructions, worker.instructions = worker.instructions, []
            for instruction in instructions:
                if isinstance(instruction, Execute):
                    self.runs.append((address, instruction))
                elif isinstance(instruction, Abandon):
                    self.abandoned.add((address, instruction.key, instruction.attempt))
                elif isinstance(instruction, Fetch):
                    self.send(address, instruction.address, Request(instruction.versions))
            validate_worker(worker)
        validate_scheduler(self.scheduler)

    # -- What can happen by itself ----------------------------------------------------------------

    def step(self) -> bool:
        """Let one thing happen; False if nothing is under way."""
        links = [ends for ends, link in self.links.items() if link]
        chosen = self.random.randrange(len(links) + min(len(self.runs), 3) or 1)
        if chosen < len(links):
            self.deliver(*links[chosen])
        elif self.runs:
            self.end_run(self.random.randrange(len(self.runs)))
        else:
            return False
        self.now += 0.001
        self.flush()
        return True

    def deliver(self, source: str, target: str) -> None:
        message = self.links[source, target].popleft()
        state = self.scheduler
        if target in self.clients:
            self.hear(self.clients[target], message)
        elif isinstance(message, Request):
            peer = self.workers.get(target)
            if peer is None or self.random.random() < 0.02:
                self.send(target, source, Answer(None))
            else:
                held = [(v, peer.value_of(v)) for v in message.versions]
                values = tuple((v, task.value, task.nbytes) for v, task in held if task)
                self.send(target, source, Answer(values))
        elif isinstance(message, Answer):
            if message.values is None:
                self.workers[target].fetch_failed(self.now, source)
            else:
                self.workers[target].data_arrived(self.now, source, message.values)
        elif isinstance(message, CloseWorker):
            self.end_worker(target)
        elif target in self.workers:
            ON_WORKER[type(message)](self.workers[target], self.now, message)
        elif isinstance(message, Lost):
            if source in ("alice", "bob"):
                state.client_lost(self.now, source)
            else:
                state.worker_lost(self.now, source, planned=self.random.random() < 0.3)
        elif isinstance(message, KeepUntilDone):
            state.kept_until_done(self.now, message)
        elif isinstance(message, PlanScatter):
            planned = tuple(state.scatter_planned(self.now, source, message))
            if source in self.clients:
                self.send(SCHEDULER, source, Planned(planned))
        elif type(message) in OF_CLIENT:
            OF_CLIENT[type(message)](state, self.now, source, message)  # type: ignore[operator]
        else:
            OF_WORKER[type(message)](state, self.now, source, message)  # type: ignore[operator]

    def end_run(self, index: int) -> None:
        address, run = self.runs.pop(index)
        worker = self.workers[address]
        outcome = self.outcome(run)
        version = (address, run.key, run.attempt)
        if version in self.abandoned:
            self.abandoned.remove(version)
            if self.random.random() < 0.5:
                outcome = NotStarted()
        worker.task_ran(self.now, run.key, run.attempt, outcome)

    def outcome(self, run: Execute) -> Outcome:
        """Really compute, of what the worker passed."""
        duration = self.random.choice([1e-5, 1e-5, 1e-3, 1.0])
        number, failures = pickle.loads(run.arguments)  # type: ignore[arg-type]
        self.flaked[run.key] = self.flaked.get(run.key, 0) + 1
        name = run.function.name
        if name == "raise" or (name == "flaky" and self.flaked[run.key] <= failures):
            return Raised(TaskError(b"boom", (), run.key, "w"), duration)
        value = number + sum(run.inputs.values())
        pickled = pickle.dumps(value) if run.wanted else None
        return Ran(value, self.random.choice([28, 10**6, 10**9]), duration, pickled)

    # -- What is right ----------------------------------------------------------------------------

    def value(self, key: str) -> int:
        """What a key has to be worth."""
        recipe = self.recipes[key]
        return recipe.number + sum(map(self.value, recipe.dependencies))

    def ancestors(self, key: str) -> set[str]:
        """Return the key and all that it depends on."""
        return {key}.union(*map(self.ancestors, self.recipes[key].dependencies))

    def hear(self, client: MiniClient, message: Any) -> None:
        """A client gets a message."""
        if isinstance(message, Planned):
            client.storing.append(message.placements)
            return
        key = message.key
        if key not in client.futures:
            return
        if isinstance(message, TaskDone):
            assert message.value is None or pickle.loads(message.value) == self.value(key)
            client.futures[key] = "done"
        elif isinstance(message, TaskFailed):
            client.futures[key] = "erred"
            client.errors[key] = message.error
        elif isinstance(message, KeyLost):
            assert client.futures[key] in ("pending", "done")
            client.futures[key] = "pending"
        elif isinstance(message, KeyCancelled):
            assert (client.gave_up | self.forced) & self.ancestors(key), (client.name, message)
            del client.futures[key]

    def check_outcomes(self) -> None:
        """Nothing is under way: every wanted key has its value, or the error it should have."""
        state = self.scheduler
        for client in self.clients.values():
            wanted = {task.key for task in state.clients[client.name].wants}
            assert wanted >= set(client.futures), set(client.futures) - wanted
            # A KeyCancelled that crossed a new submission on its way cost the client that future.
            for key in wanted - set(client.futures):
                assert (client.gave_up | self.forced) & self.ancestors(key), key
            for key, status in client.futures.items():
                task = state.tasks[key]
                if status == "done":
                    assert task.state == "memory", task
                    for holder in task.who_has:
                        held = self.workers[holder.address].value_of(Version(key, task.attempt))
                        assert held is not None, (holder, key)
                        assert held.value == self.value(key)
                else:
                    assert status == "erred", (key, status, task)
                    assert task.state == "erred", task
                    self.check_error(client.errors[key], key)

    def check_error(self, error: TaskError, key: str) -> None:
        if error.exception == b"boom":
            assert error.key in self.ancestors(key)
            assert self.recipes[error.key].function in ("raise", "flaky"), error
            return
        exception = pickle.loads(error.exception)  # type: ignore[arg-type]
        if isinstance(exception, LostDataError):
            assert self.recipes[error.key].function == "data"
        else:
            assert isinstance(exception, KilledWorker)
            assert self.allowed_failures < 2

    def check_nothing_is_left(self) -> None:
        """All was released: nobody holds or does anything."""
        state = self.scheduler
        assert not state.tasks
        assert not state.lanes.open.n_queued
        assert not state.lanes.open.stranded
        assert not any(list(lane.queued) for lane in state.lanes)
        assert not any(state._scattering.values())
        for record in state.workers.values():
            assert not record.processing
            assert not record.has_what
            assert (record.nbytes, record.occupancy) == (0, 0.0)
        for worker in self.workers.values():
            assert not worker.tasks, worker.tasks
            assert not worker.abandoned
            assert not worker._spare
            assert not worker._in_flight
            assert not worker._to_fetch
            assert (worker.executing, worker.nbytes, worker._executing_cost) == (0, 0, 0.0)

    # -- What may be done to it -------------------------------------------------------------------

    def join_worker(self, gpus: dict[str, float] | None = None) -> None:
        self.joined += 1
        address = f"w{self.joined}"
        nthreads = self.random.choice([1, 1, 2, 3])
        gpus = gpus or self.random.choice([{}, {"gpu": 1.0}, {"gpu": 2.0}])
        self.workers[address] = WorkerState(address, nthreads, gpus)
        info = RegisterWorker(
            address, address, nthreads, 0, "h", 1, "/", "", 1, "1", tuple(gpus.items())
        )
        self.scheduler.worker_joined(self.now, info)

    def leave(self) -> None:
        if self.workers:
            address = self.random.choice(list(self.workers))
            self.send(address, SCHEDULER, WorkerLeaving("enough"))

    def tick(self) -> None:
        self.scheduler.tick(self.now)

    def lose_worker(self) -> None:
        if self.workers:
            self.end_worker(self.random.choice(list(self.workers)))

    def end_worker(self, address: str) -> None:
        if address in self.workers:
            del self.workers[address]
            self.runs = [run for run in self.runs if run[0] != address]
            self.abandoned = {run for run in self.abandoned if run[0] != address}
            asked = [
                target
                for (source, target), link in self.links.items()
                if target != SCHEDULER and any(isinstance(m, Answer) for m in link)
                if source == address
            ]
            asked += [
                source
                for (source, target), link in self.links.items()
                if target == address and any(isinstance(m, Request) for m in link)
            ]
            self.cut(address)
            self.send(address, SCHEDULER, Lost())
            for target in asked:
                if target in self.workers:
                    self.send(address, target, Answer(None))

    def join_client(self, name: str) -> None:
        self.clients[name] = MiniClient(name)
        self.scheduler.client_joined(self.now, name)

    def lose_client(self) -> None:
        client = self.some_client()
        if client is not None:
            del self.clients[client.name]
            self.cut(client.name)
            self.send(client.name, SCHEDULER, Lost())

    def some_client(self) -> MiniClient | None:
        return self.random.choice(list(self.clients.values())) if self.clients else None

    def submit(self) -> None:
        client = self.some_client()
        if client is None or client.unsent:
            return
        client.submissions += 1
        inputs = [key for key in client.futures if not client.gave_up & self.ancestors(key)]
        specs: list[TaskSpec] = []
        prefix = f"{client.name}{len(self.recipes)}"
        for number in range(self.random.randint(1, 12)):
            known = inputs + [spec.key for spec in specs]
            count = min(len(known), self.random.choice([0, 0, 1, 2, 3]))
            dependencies = tuple(sorted(self.random.sample(known, count)))
            function = self.random.choice(["add"] * 16 + ["raise", "flaky"])
            key = f"{prefix}-{number}"
            self.recipes[key] = Recipe(function, number, dependencies)
            specs.append(self.spec(key))
        wanted = [spec.key for spec in specs if self.random.random() < 0.5]
        self.send_graph(client, specs, wanted)

    def spec(self, key: str) -> TaskSpec:
        recipe = self.recipes[key]
        arguments = pickle.dumps((recipe.number, self.random.randint(1, 3)))
        return TaskSpec(key, FUNCTIONS.index(recipe.function), arguments, recipe.dependencies)

    def send_graph(self, client: MiniClient, specs: list[TaskSpec], wanted: list[str]) -> None:
        functions = tuple(Function(name.encode(), name, b"code") for name in FUNCTIONS)
        cut = self.random.choice([len(specs), self.random.randint(1, len(specs))])
        for first, chunk in ((0, specs[:cut]), (cut, specs[cut:])):
            if not chunk:
                continue
            here = tuple(spec.key for spec in chunk if spec.key in wanted)
            is_final = first + len(chunk) == len(specs)
            retries = self.random.choice([0, 1, 2])
            priority = float(self.random.choice([0, 0, 1]))
            restriction = self.random.choice(
                [None] * 3
                + [
                    Restriction((), False, (("gpu", 1.0),)),
                    Restriction(("w1", "w2", "w3"), True, ()),
                    Restriction(("w1",), True, (("gpu", 1.0),)),
                ]
            )
            order = (first, priority, retries, is_final, 0, restriction)
            message = SubmitTasks(client.submissions, functions, tuple(chunk), here, *order)
            client.unsent.append(message)
        self.send_chunk(client)

    def send_chunk(self, client: MiniClient) -> None:
        if client.unsent:
            message = client.unsent.pop(0)
            for key in message.wanted or ():
                client.futures.setdefault(key, "pending")
            self.send_messages(client.name, SCHEDULER, [message])

    def resubmit(self) -> None:
        """Submit old tasks once more, with all that they depend on."""
        client = self.some_client()
        keys = [key for key, recipe in self.recipes.items() if recipe.function != "data"]
        if client is None or client.unsent or not keys or not self.is_quiet(client.name):
            return
        key = self.random.choice(keys)
        graph = sorted(self.ancestors(key), key=list(self.recipes).index)
        if (client.gave_up | self.forced).intersection(graph) or any(
            self.recipes[k].function == "data" for k in graph
        ):
            return
        client.submissions += 1
        self.send_graph(client, [self.spec(k) for k in graph], [key])

    def release(self) -> None:
        client = self.some_client()
        if client is None or not client.futures:
            return
        count = self.random.randint(1, len(client.futures))
        keys = tuple(self.random.sample(sorted(client.futures), count))
        # A graph that is still to be sent needs its inputs.
        needed = {d for m in client.unsent for spec in m.tasks for d in spec.dependencies}
        keys = tuple(key for key in keys if key not in needed)
        for key in keys:
            del client.futures[key]
        self.send_messages(client.name, SCHEDULER, [ReleaseKeys(keys)])

    def want(self) -> None:
        """Hand a future from one client to the other."""
        if len(self.clients) < 2:
            return
        giver, taker = self.random.sample(list(self.clients.values()), 2)
        record = self.scheduler.clients[giver.name]
        keys = [t.key for t in record.wants if t.key in giver.futures and t.is_needed]
        if keys and self.is_quiet(giver.name) and self.is_quiet(taker.name):
            key = self.random.choice(keys)
            if not (taker.gave_up | self.forced) & self.ancestors(key):
                taker.futures.setdefault(key, "pending")
                message = WantKeys((key,))
                OF_CLIENT[WantKeys](self.scheduler, self.now, taker.name, message)  # type: ignore[operator]

    def cancel(self) -> None:
        client = self.some_client()
        if client is not None and client.futures:
            key = self.random.choice(list(client.futures))
            force = self.random.random() < 0.3
            client.gave_up.add(key)
            if force:
                self.forced.add(key)
            self.send_messages(client.name, SCHEDULER, [CancelKeys((key,), force, "enough")])

    def keep_until_done(self) -> None:
        client = self.some_client()
        if client is not None and client.futures:
            keys = (self.random.choice(list(client.futures)),)
            self.send_messages(client.name, SCHEDULER, [KeepUntilDone(keys)])

    def scatter(self) -> None:
        client = self.some_client()
        if client is None:
            return
        old = [key for key, recipe in self.recipes.items() if recipe.function == "data"]
        items = []
        for _ in range(self.random.randint(1, 3)):
            if old and self.random.random() < 0.4 and self.is_quiet(client.name):
                key = self.random.choice(old)
            else:
                key = f"data-{len(self.recipes)}"
                self.recipes[key] = Recipe("data", len(self.recipes), ())
            if not (client.gave_up | self.forced) & {key}:
                items.append((key, 8))
        broadcast = self.random.random() < 0.3
        self.send_messages(client.name, SCHEDULER, [PlanScatter(1, tuple(items), (), broadcast)])

    def store(self) -> None:
        """A client sends what it scatters to the workers, and tells the scheduler afterwards."""
        client = self.some_client()
        # A KeyCancelled on its way is about the time before, which a real client has to sort out.
        if client is not None and client.storing and self.is_quiet(client.name):
            placements = client.storing.pop(0)
            for placed in placements:
                for address in placed.addresses:
                    version = Version(placed.key, placed.attempt)
                    if address in self.workers:
                        worker = self.workers[address]
                        worker.value_stored(self.now, version, self.value(placed.key), 8)
                client.futures.setdefault(placed.key, "pending")
            self.send_messages(client.name, SCHEDULER, [DataScattered(placements)])

    def restart(self) -> None:
        if self.random.random() < 0.2:
            self.forced.update(self.recipes)
            self.scheduler.restarted(self.now, "restart")

    def disturb(self) -> None:
        """Do something to the cluster that may happen at any time."""
        deed = self.random.choice(
            [self.submit] * 5
            + [self.release, self.send_chunk_of_someone, self.store, self.store, self.scatter] * 2
            + [self.resubmit, self.want, self.cancel, self.keep_until_done, self.restart]
            + [self.lose_worker, self.join_worker, self.leave, self.tick, self.tick]
            + [self.lose_client] * (self.random.random() < 0.2)
        )
        deed()
        self.flush()

    def send_chunk_of_someone(self) -> None:
        client = self.some_client()
        if client is not None:
            self.send_chunk(client)

    # -- From the start to the end ----------------------------------------------------------------

    def live(self, steps: int) -> None:
        """Live through troubled times."""
        for _ in range(steps):
            if self.random.random() < 0.25:
                self.disturb()
            self.step()

    def drain(self) -> None:
        """Let all that is under way come to its end."""
        for client in self.clients.values():
            while client.unsent:
                self.send_chunk(client)
        for _ in range(100_000):
            if not self.step():
                if not any(client.storing for client in self.clients.values()):
                    return
                self.store()
                self.flush()
        raise AssertionError("it never comes to rest")

    def release_all(self) -> None:
        for client in self.clients.values():
            keys = tuple(task.key for task in self.scheduler.clients[client.name].wants)
            client.futures.clear()
            self.send_messages(client.name, SCHEDULER, [ReleaseKeys(keys)])


def live_through(seed: int, steps: int = 250) -> Miniature:
    """Run a cluster with faults until nobody wants anything, checking it all the way."""
    cluster = Miniature(seed)
    cluster.flush()
    cluster.live(steps)
    cluster.join_worker({"gpu": 1.0})
    cluster.flush()
    if not cluster.workers:
        cluster.join_worker()
        cluster.flush()
    cluster.drain()
    cluster.check_outcomes()
    cluster.release_all()
    cluster.drain()
    cluster.check_nothing_is_left()
    return cluster
