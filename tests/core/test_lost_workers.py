"""A worker goes, and with it runs and values: what is needed is computed again."""

from __future__ import annotations

import pickle

import pytest
from core_helpers import (
    DEFINE,
    A,
    B,
    C,
    assert_sent,
    compute,
    computed,
    done,
    finish,
    free,
    release,
    scatter,
    sent,
    started,
    submit,
    worker_info,
)

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.errors import KilledWorker
from hpcdask.messages import ComputeTask, DataMissing, Dependency, KeysAdded, TaskFinished, Version
from hpcdask.messages.client import KeyLost, TaskFailed


def test_the_task_of_a_lost_worker_moves_to_another() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    assert_sent(state, {A: [DEFINE, compute("x", 1)]})
    state.worker_lost(1.0, A)
    state.worker_lost(1.0, A)
    assert_sent(state, {B: [DEFINE, compute("x", 2)]})
    state.task_finished(1.0, A, TaskFinished("x", 1, 8, 1.0, None))
    assert_sent(state, {})


def test_a_lost_value_is_computed_again_and_its_client_knows() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    finish(state, A, "x")
    sent(state)
    state.worker_lost(1.0, A)
    assert_sent(state, {B: [DEFINE, compute("x", 2)], "c": [KeyLost("x")]})


def test_a_value_with_another_copy_is_not_lost() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    finish(state, A, "x")
    state.keys_added(1.0, B, KeysAdded((Version("x", 1),)))
    sent(state)
    state.worker_lost(1.0, A)
    assert_sent(state, {})


@pytest.mark.usefixtures("nothing_ahead")
def test_a_lost_value_is_computed_again_from_its_released_inputs_on() -> None:
    state = started(A, B)
    submit(state, {"x": [], "y": ["x"], "z": ["y"]}, wanted=["z"])
    for key in "xyz":
        finish(state, A, key)
    sent(state)
    state.worker_lost(1.0, A)
    assert_sent(state, {B: [DEFINE, compute("x", 4, wanted=False)], "c": [KeyLost("z")]})
    finish(state, B, "x")
    assert computed(state, B) == ["y"]
    finish(state, B, "y")
    assert computed(state, B) == ["z"]
    finish(state, B, "z")
    assert done("z") in sent(state)["c"]


def test_several_values_lost_at_once_are_each_computed_once() -> None:
    state = started(A, B)
    graph = {"x": [], "y": ["x"], "p": ["x", "y"], "q": ["y", "p"]}
    submit(state, graph)
    for key in graph:
        finish(state, A, key)
    sent(state)
    state.worker_lost(1.0, A)
    order = []
    while keys := computed(state, B):
        order += keys
        finish(state, B, *keys)
    assert order == ["x", "y", "p", "q"]


@pytest.mark.usefixtures("nothing_ahead")
def test_a_run_elsewhere_that_lost_an_input_is_taken_back() -> None:
    state = started(A, B)
    submit(state, {"x": [], "u": [], "y": ["x", "u"]}, wanted=["y"])
    finish(state, A, "x")
    finish(state, B, "u", nbytes=10**9)
    y = state.tasks["y"]
    assert y.worker is state.workers[B]
    attempt = y.attempt
    sent(state)
    state.worker_lost(1.0, A)
    assert_sent(state, {B: [free(("y", attempt)), compute("x", attempt + 1, wanted=False)]})


def test_a_worker_whose_only_run_was_taken_back_gets_queued_tasks() -> None:
    state = started(A, B)
    submit(state, {"x": [], "u": [], "y": ["x", "u"]}, wanted=["y"])
    finish(state, A, "x")
    finish(state, B, "u", nbytes=10**9)
    submit(state, {f"z{i}": [] for i in range(6)}, submission=2)
    assert state.lanes.open.n_queued > 0
    state.worker_lost(1.0, A, planned=True)
    sent(state)  # validates that nobody idles while tasks wait


@pytest.mark.usefixtures("nothing_ahead")
def test_without_workers_tasks_wait_for_one() -> None:
    state = started()
    submit(state, {"x": [], "y": ["x"], "z": []})
    assert_sent(state, {})
    assert {task.key for task in state.lanes.open.stranded} == {"x", "z"}
    state.worker_joined(1.0, worker_info(A))
    assert computed(state, A) == ["x", "z"]
    assert not state.lanes.open.stranded


def test_when_the_last_worker_goes_its_tasks_wait_for_the_next() -> None:
    state = started(A)
    submit(state, {f"x{i}": [] for i in range(5)})
    finish(state, A, "x0")
    sent(state)
    state.worker_lost(1.0, A)
    assert_sent(state, {"c": [KeyLost("x0")]})
    assert len(state.lanes.open.stranded) == 5
    assert state.lanes.open.n_queued == 0
    release(state, "x4")
    state.worker_joined(1.0, worker_info(B))
    assert computed(state, B) == ["x0", "x1"]


def test_a_new_worker_gets_what_others_have_no_room_for() -> None:
    state = started(A)
    submit(state, {f"x{i}": [] for i in range(5)})
    sent(state)
    state.worker_joined(1.0, worker_info(B))
    assert computed(state, B) == ["x2", "x3"]


def kill_workers(state: SchedulerState, count: int) -> list[TaskFailed]:
    failed = []
    for number in range(count):
        address = f"tcp://10.0.1.{number}:1"
        state.worker_joined(1.0, worker_info(address))
        state.worker_lost(2.0, address)
        failed += [m for m in sent(state).get("c", ()) if type(m) is TaskFailed]
    return failed


def test_a_task_that_kills_worker_after_worker_is_given_up() -> None:
    state = started(allowed_failures=2)
    submit(state, {"x": [], "y": ["x"]}, wanted=["y"])
    assert kill_workers(state, 2) == []
    (failed,) = kill_workers(state, 1)
    error = pickle.loads(failed.error.exception)
    assert isinstance(error, KilledWorker)
    assert "pid 7 on host" in str(error)
    assert (failed.key, failed.error.key) == ("y", "x")


def test_a_task_that_kills_the_workers_that_hold_its_inputs_is_given_up_too() -> None:
    state = started(allowed_failures=1)
    submit(state, {"x": [], "killer": ["x"]}, wanted=["killer"])
    for address in (A, B):
        state.worker_joined(1.0, worker_info(address))
        finish(state, address, "x")
        assert "killer" in {task.key for task in state.workers[address].processing}
        if address == B:
            state.worker_joined(1.0, worker_info(C))
            sent(state)
        state.worker_lost(2.0, address)
    found = sent(state)
    assert [type(m) for m in found.pop("c")] == [TaskFailed]
    assert not found  # x is not computed again for nothing
    assert state.tasks["killer"].state == "erred"


def test_only_tasks_that_may_have_been_running_are_blamed() -> None:
    state = started(allowed_failures=0)
    submit(state, {"x": [], "y": []})
    (failed,) = kill_workers(state, 1)
    assert failed.key == "x"
    assert state.tasks["y"].failures == 0


def test_a_planned_loss_is_no_failure() -> None:
    state = started(A, allowed_failures=0)
    submit(state, {"x": []})
    state.worker_lost(1.0, A, planned=True)
    sent(state)
    assert state.tasks["x"].state == "no-worker"
    assert state.tasks["x"].failures == 0


def test_a_lost_value_that_cannot_be_computed_again_is_reported_lost_then_failed() -> None:
    # A client that hears of the failure first would wait for ever after the KeyLost.
    state = started(A, B)
    scatter(state, "d")
    holder = state.locate("d").addresses[0]
    submit(state, {"y": ["d"]})
    finish(state, holder, "y")
    release(state, "d")
    sent(state)
    state.worker_lost(1.0, holder)
    found = sent(state)["c"]
    assert [type(m) for m in found] == [KeyLost, TaskFailed]


def test_nothing_is_sent_to_a_worker_that_is_gone() -> None:
    # Its scattered data fails z, so that y is needed no more while it runs on the lost worker.
    state = started(A)
    scatter(state, "d")
    submit(state, {"y": [], "z": ["d", "y"]}, wanted=["z"])
    submit(state, {f"q{i}": [] for i in range(5)}, submission=2)
    sent(state)
    state.worker_lost(1.0, A)
    assert sent(state).keys() == {"c"}
    state.worker_joined(2.0, worker_info(B))
    assert computed(state, B) == ["q0", "q1"]


def test_a_missing_input_is_asked_of_its_other_holder() -> None:
    state = started(A, B, C)
    submit(state, {"x": [], "u": [], "y": ["x", "u"]}, wanted=["y"])
    finish(state, A, "x")
    state.keys_added(1.0, C, KeysAdded((Version("x", 1),)))
    finish(state, B, "u", nbytes=10**9)
    attempt = state.tasks["y"].attempt
    sent(state)
    state.data_missing(1.0, B, DataMissing("y", attempt, Version("x", 1), A))
    x, u = Dependency("x", 1, 8, (C,)), Dependency("u", 2, 10**9, (B,))
    assert_sent(state, {A: [free(("x", 1))], B: [compute("y", attempt + 1, x, u, position=2)]})


def test_an_input_missing_everywhere_is_computed_again() -> None:
    state = started(A, B)
    submit(state, {"x": [], "u": [], "y": ["x", "u"]}, wanted=["y"])
    finish(state, A, "x")
    finish(state, B, "u", nbytes=10**9)
    attempt = state.tasks["y"].attempt
    sent(state)
    state.data_missing(1.0, B, DataMissing("y", attempt, Version("x", 1), A))
    found = sent(state)
    runs = [m for box in found.values() for m in box if type(m) is ComputeTask]
    assert [(m.key, m.attempt) for m in runs] == [("x", attempt + 1)]
    assert state.tasks["y"].state == "waiting"
    state.data_missing(1.0, B, DataMissing("y", attempt, Version("x", 1), A))  # said twice
    assert [m for box in sent(state).values() for m in box if type(m) is ComputeTask] == []


def test_a_task_that_never_reaches_its_input_ends_with_an_error_that_names_the_two() -> None:
    """As where a restriction lets the input be computed at one place only."""
    state = started(A, B)
    submit(state, {"x": [], "y": ["x"]}, wanted=["y"])
    for _ in range(100):
        x, y = state.tasks["x"], state.tasks["y"]
        if y.state == "erred":
            break
        if x.state == "processing":
            assert x.worker is not None
            finish(state, x.worker.address, "x")
        assert y.worker is not None
        # Whoever is to run it finds that the other one is out of reach.
        missing = Version("x", x.attempt)
        source = A if y.worker.address == B else B
        state.data_missing(
            1.0, y.worker.address, DataMissing("y", y.attempt, missing, source, "no answer")
        )
    [failed] = [m for m in sent(state)["c"] if type(m) is TaskFailed]
    text = str(pickle.loads(failed.error.exception))
    assert "'y' needs the data of 'x', which is on tcp://10.0.0." in text
    assert "Look for a firewall" in text


@pytest.mark.usefixtures("nothing_ahead")
def test_data_missing_of_what_nobody_knows_changes_nothing() -> None:
    state = started(A)
    state.data_missing(1.0, A, DataMissing("y", 1, Version("x", 1), B))
    state.data_missing(1.0, B, DataMissing("y", 1, Version("x", 1), A))
    assert_sent(state, {})


def test_a_worker_that_registers_twice_starts_afresh() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    finish(state, A, "x")
    sent(state)
    state.worker_joined(1.0, worker_info(A))
    found = sent(state)
    assert found[A][0] == DEFINE
    assert [m.key for m in found[A][1:]] == ["x", "y"]
