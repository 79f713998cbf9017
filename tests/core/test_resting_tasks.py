"""Tasks that want to be run again, elsewhere or later."""

from __future__ import annotations

from core_helpers import A, B, computed, err, finish, release, sent, started, submit, worker_info

from hpcdask.core.explaining import explain
from hpcdask.core.held_task import Postponed
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.validation import validate_worker
from hpcdask.core.worker_state import Execute, WorkerState
from hpcdask.messages import (
    ComputeTask,
    DefineFunction,
    Dependency,
    GivenBack,
    TaskRescheduled,
    Version,
)


def reschedule(state: SchedulerState, address: str, key: str) -> None:
    msg = TaskRescheduled(key, state.tasks[key].attempt)
    state.task_rescheduled(1.0, address, msg)


def where(state: SchedulerState, key: str) -> str:
    worker = state.tasks[key].worker
    assert worker is not None
    return worker.address


def test_a_task_goes_to_another_worker_at_the_next_tick() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    first = where(state, "x")
    sent(state)
    for n in range(6):  # to and fro
        reschedule(state, where(state, "x"), "x")
        assert sent(state) == {}, "not at once"
        assert state.has_work
        state.tick(2.0)
        assert computed(state, where(state, "x")) == ["x"]
        assert (where(state, "x") == first) == (n % 2 == 1)


def test_a_task_that_rests_is_explained() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    first = where(state, "x")
    reschedule(state, first, "x")
    text = explain(state, "x")
    assert text.startswith("'x' rests: it has asked to be run again, by raising Reschedule. ")
    assert f"Worker 'name of {first}' ({first}) has run it last" in text
    state.tick(2.0)
    assert explain(state, "x").startswith("'x' is with a worker.")


def test_the_only_worker_gets_it_again_after_all_else() -> None:
    state = started(A)
    submit(state, {"x": [], "y": [], "z": []})
    sent(state)
    reschedule(state, A, "x")
    assert computed(state, A) == ["z"]
    state.tick(2.0)
    assert sent(state) == {}, "there is no room"
    finish(state, A, "y")
    assert computed(state, A) == ["x"]


def test_a_busy_other_worker_does_not_keep_it_waiting() -> None:
    state = started(A, B)
    submit(state, {"w": [], "x": [], "y": [], "z": []})
    sent(state)
    full = where(state, "w")
    [key] = [k for k in "xyz" if where(state, k) != full][:1]
    here = where(state, key)
    reschedule(state, here, key)
    state.tick(2.0)
    assert where(state, key) == here


def test_it_counts_neither_as_a_failure_nor_as_a_retry() -> None:
    state = started(A, allowed_failures=0)
    submit(state, {"x": []}, retries=1)
    for _ in range(3):
        reschedule(state, A, "x")
        state.tick(2.0)
    task = state.tasks["x"]
    assert (task.failures, task.retries, task.state) == (0, 1, "processing")
    err(state, A, "x")
    assert (task.retries, task.state) == (0, "processing")


def test_what_was_sent_ahead_of_it_comes_back() -> None:
    state = started(A, B)
    submit(state, {"x": [], "y": ["x"]})
    assert {m.key for m in sent(state)[A] if type(m) is ComputeTask} == {"x", "y"}
    reschedule(state, A, "x")
    assert state.tasks["y"].state == "waiting"
    state.given_back(1.0, A, GivenBack((Version("y", 2),)))
    sent(state)
    state.tick(2.0)
    assert computed(state, B) == ["x", "y"]


def test_one_that_rests_may_be_released() -> None:
    state = started(A)
    submit(state, {"x": []})
    reschedule(state, A, "x")
    release(state, "x")
    sent(state)
    state.tick(2.0)
    assert sent(state) == {}
    assert not state.tasks
    assert not state.has_work


def test_an_old_run_says_nothing_about_a_new_one() -> None:
    state = started(A)
    submit(state, {"x": []})
    sent(state)
    old = state.tasks["x"].attempt
    state.worker_lost(1.0, A)
    state.worker_joined(1.5, worker_info(A))
    sent(state)
    state.task_rescheduled(2.0, A, TaskRescheduled("x", old))
    assert state.tasks["x"].state == "processing"


def test_a_worker_lets_the_task_go_and_what_waits_for_it() -> None:
    state = WorkerState(A, 1)
    state.function_defined(0.0, DefineFunction(b"f" * 16, "f", b"code"))
    dependency = ComputeTask("x", 1, b"f" * 16, b"", (), (0.0, 0, 1), True)
    state.compute_task(0.0, dependency)
    on_x = (Dependency("x", 1, 0, (A,)),)
    state.compute_task(0.0, ComputeTask("y", 2, b"f" * 16, b"", on_x, (0.0, 1, 1), True))
    assert [i.key for i in state.instructions if isinstance(i, Execute)] == ["x"]
    state.task_ran(1.0, "x", 1, Postponed())
    validate_worker(state)
    assert state.outbox == [GivenBack((Version("y", 2),)), TaskRescheduled("x", 1)]
    assert not state.tasks
    assert state.executing == 0
