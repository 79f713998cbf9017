"""What the tests of the core share: a started scheduler, its events in short, its messages in full.

Whatever a state sends goes through the wire and back before it is compared, and the state is
validated: each test of the core is a test of these, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.validation import validate_scheduler, validate_worker
from hpcdask.core.worker_state import WorkerState
from hpcdask.messages import (
    ComputeTask,
    DefineFunction,
    Dependency,
    FreeKeys,
    Function,
    Message,
    PlacedValue,
    RegisterWorker,
    TaskErred,
    TaskError,
    TaskFinished,
    TaskSpec,
    Version,
)
from hpcdask.messages.client import (
    CancelKeys,
    DataScattered,
    PlanScatter,
    ReleaseKeys,
    SubmitTasks,
    TaskDone,
)
from hpcdask.wire.codec import decode, encode

A, B, C, D = (f"tcp://10.0.0.{number}:1" for number in range(1, 5))
F = Function(b"f" * 16, "f", b"code of f")
DEFINE = DefineFunction(*F)
BOOM = TaskError(b"pickled ValueError", (("script.py", 3, "f"),), "x", A)


def worker_info(address: str, nthreads: int = 1) -> RegisterWorker:
    return RegisterWorker(
        address, f"name of {address}", nthreads, 0, "host", 7, "/tmp", "", 1, "0.1"
    )


def started(
    *addresses: str, nthreads: int = 1, allowed_failures: int = 3, clients: Sequence[str] = ("c",)
) -> SchedulerState:
    """Return a scheduler with these workers and clients."""
    state = SchedulerState(allowed_failures)
    for address in addresses:
        state.worker_joined(0.0, worker_info(address, nthreads))
    for client in clients:
        state.client_joined(0.0, client)
    return state


def through_the_wire(messages: Sequence[Message]) -> list[Message]:
    return decode(*encode(messages))


def sent(state: SchedulerState) -> dict[str, list[Message]]:
    """Empty the outbox."""
    validate_scheduler(state)
    outbox, state.outbox = state.outbox, {}
    return {address: through_the_wire(messages) for address, messages in outbox.items()}


def same(found: Sequence[Message], expected: Sequence[Message]) -> bool:
    """Compare types as well: records of two types with equal fields are equal tuples."""
    return list(found) == list(expected) and list(map(type, found)) == list(map(type, expected))


def assert_sent(state: SchedulerState, expected: Mapping[str, Sequence[Message]]) -> None:
    """These messages were sent, and no others."""
    found = sent(state)
    assert found.keys() == expected.keys(), found
    for address, messages in expected.items():
        assert same(found[address], messages), found[address]


def assert_worker_sent(state: WorkerState, *expected: Message) -> None:
    validate_worker(state)
    found, state.outbox = through_the_wire(state.outbox), []
    assert same(found, expected), found


def computed(state: SchedulerState, address: str) -> list[str]:
    """Empty the outbox, and return the keys that a worker is to run."""
    return [m.key for m in sent(state).get(address, ()) if type(m) is ComputeTask]


def submit(
    state: SchedulerState,
    graph: Mapping[str, Sequence[str]],
    *,
    client: str = "c",
    wanted: Sequence[str] | None = None,
    priority: float = 0.0,
    retries: int = 0,
    submission: int = 1,
    first: int = 0,
    final: bool = True,
    function: Function = F,
) -> None:
    """Submit key -> dependencies."""
    specs = tuple(TaskSpec(key, 0, b"", tuple(needs)) for key, needs in graph.items())
    names = None if wanted is None else tuple(wanted)
    msg = SubmitTasks(submission, (function,), specs, names, first, priority, retries, final)
    state.tasks_submitted(0.0, client, msg)


def compute(
    key: str,
    attempt: int,
    *dependencies: Dependency,
    submission: int = 1,
    position: int = 0,
    wanted: bool = True,
) -> ComputeTask:
    priority = (0.0, position, submission)
    return ComputeTask(key, attempt, F.function_id, b"", dependencies, priority, wanted)


def finish(
    state: SchedulerState, address: str, *keys: str, nbytes: int = 8, duration: float = 1.0
) -> None:
    for key in keys:
        attempt = state.tasks[key].attempt
        state.task_finished(
            1.0,
            address,
            TaskFinished(key, attempt, nbytes, duration, b"v" if nbytes < 99 else None),
        )


def err(state: SchedulerState, address: str, key: str, error: TaskError = BOOM) -> None:
    state.task_erred(1.0, address, TaskErred(key, state.tasks[key].attempt, error))


def release(state: SchedulerState, *keys: str, client: str = "c") -> None:
    state.keys_released(1.0, client, ReleaseKeys(keys))


def cancel(state: SchedulerState, *keys: str, client: str = "c", force: bool = False) -> None:
    state.keys_cancelled(1.0, client, CancelKeys(keys, force, "not needed"))


def plan(
    state: SchedulerState, *keys: str, client: str = "c", broadcast: bool = False
) -> list[PlacedValue]:
    items = tuple((key, 8) for key in keys)
    return state.scatter_planned(0.0, client, PlanScatter(1, items, (), broadcast))


def scatter(state: SchedulerState, *keys: str, client: str = "c", broadcast: bool = False) -> None:
    placements = tuple(plan(state, *keys, client=client, broadcast=broadcast))
    state.data_scattered(0.0, client, DataScattered(placements))


def done(key: str, nbytes: int = 8, value: bytes | None = b"v") -> TaskDone:
    return TaskDone(key, nbytes, value)


def free(*versions: tuple[str, int]) -> FreeKeys:
    return FreeKeys(tuple(Version(*version) for version in versions))
