"""Hypothesis drives each state alone, with whatever events it likes, and shrinks what fails."""

from __future__ import annotations

from core_helpers import BOOM, DEFINE, A, B, C, cancel, release, sent, started, submit, worker_info
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hpcdask.core.validation import validate_worker
from hpcdask.core.worker_state import Abandon, Execute, Fetch, NotStarted, Raised, Ran, WorkerState
from hpcdask.messages import (
    ComputeTask,
    Dependency,
    FreeKeys,
    GivenBack,
    KeysAdded,
    KeysDropped,
    TakeBack,
    TaskErred,
    TaskFinished,
    Version,
)

KEYS = st.sampled_from([f"k{i}" for i in range(5)])
ADDRESSES = st.sampled_from([A, B, C])
SETTINGS = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class SchedulerMachine(RuleBasedStateMachine):
    """A scheduler whose workers and clients say anything, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.state = started(A, B)

    def version(self, key: str, is_right: bool) -> Version:
        task = self.state.tasks.get(key)
        return Version(key, task.attempt if task is not None and is_right else 7)

    @rule(graph=st.dictionaries(KEYS, st.lists(KEYS, max_size=3), max_size=5), final=st.booleans())
    def submitted(self, graph: dict[str, list[str]], final: bool) -> None:
        submit(self.state, graph, wanted=sorted(graph)[:2], final=final, retries=1)

    @rule(key=KEYS, address=ADDRESSES, is_right=st.booleans(), size=st.integers(0, 10**9))
    def finished(self, key: str, address: str, is_right: bool, size: int) -> None:
        task = self.state.tasks.get(key)
        if task is not None and task.worker is not None and is_right:
            address = task.worker.address
        msg = TaskFinished(*self.version(key, is_right), size, 1e-3, None)
        self.state.task_finished(1.0, address, msg)

    @rule(key=KEYS, address=ADDRESSES)
    def erred(self, key: str, address: str) -> None:
        self.state.task_erred(1.0, address, TaskErred(*self.version(key, True), BOOM))

    @rule(key=KEYS, address=ADDRESSES, is_right=st.booleans())
    def given_back(self, key: str, address: str, is_right: bool) -> None:
        self.state.given_back(1.0, address, GivenBack((self.version(key, is_right),)))

    @rule(key=KEYS, address=ADDRESSES, is_right=st.booleans())
    def copied(self, key: str, address: str, is_right: bool) -> None:
        self.state.keys_added(1.0, address, KeysAdded((self.version(key, is_right),)))

    @rule(key=KEYS, address=ADDRESSES)
    def dropped(self, key: str, address: str) -> None:
        self.state.keys_dropped(1.0, address, KeysDropped((self.version(key, True),)))

    @rule(address=ADDRESSES, nthreads=st.integers(1, 3))
    def worker_joined(self, address: str, nthreads: int) -> None:
        self.state.worker_joined(1.0, worker_info(address, nthreads))

    @rule(address=ADDRESSES, planned=st.booleans())
    def worker_lost(self, address: str, planned: bool) -> None:
        self.state.worker_lost(1.0, address, planned)

    @rule(address=ADDRESSES)
    def worker_leaving(self, address: str) -> None:
        self.state.worker_leaving(1.0, address, "enough")

    @rule(keys=st.lists(KEYS, max_size=3))
    def released(self, keys: list[str]) -> None:
        release(self.state, *keys)

    @rule(key=KEYS, force=st.booleans())
    def cancelled(self, key: str, force: bool) -> None:
        cancel(self.state, key, force=force)

    @rule()
    def ticked(self) -> None:
        self.state.tick(1.0)

    @invariant()
    def contradicts_itself_nowhere(self) -> None:
        sent(self.state)  # validates, and tries the wire

    def teardown(self) -> None:
        self.state.client_lost(2.0, "c")
        sent(self.state)
        assert not self.state.tasks


class WorkerMachine(RuleBasedStateMachine):
    """A worker whose scheduler asks for anything, and whose shell obeys in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.state = WorkerState(A, 2)
        self.state.function_defined(0.0, DEFINE)
        self.attempt = 0
        self.versions: dict[str, int] = {}
        self.runs: list[Execute] = []
        self.fetches: list[Fetch] = []

    @rule(key=KEYS, inputs=st.lists(KEYS, max_size=3, unique=True))
    def computes(self, key: str, inputs: list[str]) -> None:
        self.attempt += 1
        self.versions[key] = self.attempt
        needs = tuple(
            Dependency(k, self.versions.setdefault(k, 1000 + self.attempt), 8, (B, C))
            for k in inputs
            if k != key
        )
        msg = ComputeTask(key, self.attempt, DEFINE.function_id, b"", needs, (0.0, 1, 1), True)
        self.state.compute_task(0.0, msg)

    @rule(key=KEYS, is_right=st.booleans())
    def freed(self, key: str, is_right: bool) -> None:
        attempt = self.versions.get(key, 0) if is_right else 0
        self.state.keys_freed(0.0, FreeKeys((Version(key, attempt),)))

    @rule(key=KEYS)
    def taken_back(self, key: str) -> None:
        self.state.take_back(0.0, TakeBack((Version(key, self.versions.get(key, 0)),)))

    @rule(key=KEYS)
    def stored(self, key: str) -> None:
        self.attempt += 1
        self.state.value_stored(0.0, Version(key, self.attempt), "value", 8)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), outcome=st.sampled_from([Ran("v", 8, 0.1, None), Raised(BOOM, 0.1)]))
    def ran(self, data: st.DataObject, outcome: Ran | Raised) -> None:
        run = self.runs.pop(data.draw(st.integers(0, len(self.runs) - 1)))
        is_abandoned = (run.key, run.attempt) in self.state.abandoned
        ended = NotStarted() if is_abandoned else outcome
        self.state.task_ran(0.0, run.key, run.attempt, ended)

    @precondition(lambda self: self.fetches)
    @rule(count=st.integers(0, 3), fails=st.booleans())
    def answered(self, count: int, fails: bool) -> None:
        fetch = self.fetches.pop(0)
        if fails:
            self.state.fetch_failed(0.0, fetch.address)
        else:
            values = [(version, "value", 8) for version in fetch.versions[:count]]
            self.state.data_arrived(0.0, fetch.address, values)

    @invariant()
    def contradicts_itself_nowhere(self) -> None:
        validate_worker(self.state)
        for instruction in self.state.instructions:
            if isinstance(instruction, Execute):
                assert all(value is not None for value in instruction.inputs.values())
                self.runs.append(instruction)
            elif isinstance(instruction, Fetch):
                self.fetches.append(instruction)
            else:
                assert isinstance(instruction, Abandon)
        self.state.instructions = []

    def teardown(self) -> None:
        """All is freed and all runs end: nothing is left."""
        while self.state.tasks:
            held = list(self.state.tasks.values())
            self.state.keys_freed(0.0, FreeKeys(tuple(Version(t.key, t.attempt) for t in held)))
        for run in self.runs + [i for i in self.state.instructions if isinstance(i, Execute)]:
            self.state.task_ran(0.0, run.key, run.attempt, NotStarted())
        assert not self.state.abandoned
        assert (self.state.executing, self.state.nbytes) == (0, 0)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = SETTINGS
TestWorker = WorkerMachine.TestCase
TestWorker.settings = SETTINGS
