"""Events into the scheduler's state, messages out: tasks, clients and errors."""

from __future__ import annotations

import pytest
from core_helpers import (
    BOOM,
    DEFINE,
    A,
    B,
    F,
    assert_sent,
    cancel,
    compute,
    computed,
    done,
    err,
    finish,
    free,
    release,
    sent,
    started,
    submit,
)

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.messages import (
    ComputeTask,
    Dependency,
    FreeKeys,
    Heartbeat,
    KeysAdded,
    TaskErred,
    TaskFinished,
    TaskSpec,
    Version,
)
from hpcdask.messages.client import KeepUntilDone, KeyCancelled, SubmitTasks, TaskFailed, WantKeys

# -- Graphs ---------------------------------------------------------------------------------------


def test_a_task_runs_and_its_client_hears_of_it() -> None:
    state = started(A)
    submit(state, {"x": []})
    assert_sent(state, {A: [DEFINE, compute("x", 1)]})
    finish(state, A, "x")
    assert_sent(state, {"c": [done("x")]})


@pytest.mark.usefixtures("nothing_ahead")
def test_a_task_waits_for_its_dependencies_and_is_told_where_they_are() -> None:
    state = started(A)
    submit(state, {"x": [], "y": [], "z": ["x", "y"]})
    assert computed(state, A) == ["x", "y"]
    finish(state, A, "x")
    assert_sent(state, {"c": [done("x")]})
    finish(state, A, "y", nbytes=100)
    x, y = Dependency("x", 1, 8, (A,)), Dependency("y", 2, 100, (A,))
    assert_sent(state, {A: [compute("z", 3, x, y, position=2)], "c": [done("y", 100, value=None)]})


@pytest.mark.usefixtures("nothing_ahead")
def test_a_value_that_only_a_dependant_needed_is_freed_when_that_has_run() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"]}, wanted=["y"])
    assert_sent(state, {A: [DEFINE, compute("x", 1, wanted=False)]})
    finish(state, A, "x")
    assert_sent(state, {A: [compute("y", 2, Dependency("x", 1, 8, (A,)), position=1)]})
    finish(state, A, "y")
    assert_sent(state, {A: [free(("x", 1))], "c": [done("y")]})


def test_what_a_released_value_needed_goes_with_it() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"], "z": ["y"]}, wanted=["z"])
    for key in "xyz":
        finish(state, A, key)
    sent(state)
    assert state.tasks.keys() == {"x", "y", "z"}  # how to compute z again
    release(state, "z")
    assert_sent(state, {A: [free(("z", 3))]})
    assert not state.tasks


def test_a_task_that_nobody_wants_does_not_run() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []}, wanted=["y"])
    assert computed(state, A) == ["y"]
    assert state.tasks.keys() == {"y"}


def test_an_input_that_is_named_twice_counts_once() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x", "x"]})
    finish(state, A, "x")
    assert computed(state, A) == ["x", "y"]


def test_a_task_with_an_unknown_dependency_is_refused_with_its_dependants() -> None:
    state = started(A)
    submit(state, {"x": ["?"], "y": ["x"]}, wanted=["y"])
    reason = "it depends on 'x', which the scheduler does not know (any more)"
    assert_sent(state, {"c": [KeyCancelled("y", reason, True)]})
    submit(state, {"x": ["?"]})
    reason = "it depends on '?', which the scheduler does not know (any more)"
    assert_sent(state, {"c": [KeyCancelled("x", reason, True)]})
    assert not state.tasks


def test_a_task_cannot_depend_on_itself() -> None:
    state = started(A)
    submit(state, {"x": ["x"]})
    assert [type(m) for m in sent(state)["c"]] == [KeyCancelled]


def test_a_task_whose_function_did_not_come_is_refused() -> None:
    state = started(A)
    msg = SubmitTasks(1, (F,), (TaskSpec("x", 1, b"", ()),), None, 0, 0.0, 0, True)
    state.tasks_submitted(0.0, "c", msg)
    assert_sent(state, {"c": [KeyCancelled("x", "its function was not sent", True)]})


def test_earlier_chunks_of_a_graph_are_held_until_its_last_has_come() -> None:
    state = started(A)
    submit(state, {"x": []}, wanted=[], final=False)
    finish(state, A, "x")
    # Nobody is told of x, so its value need not come along.
    assert_sent(state, {A: [DEFINE, compute("x", 1, wanted=False)]})
    submit(state, {"y": ["x"]}, wanted=["y"], first=1)
    assert_sent(state, {A: [compute("y", 2, Dependency("x", 1, 8, (A,)), position=1)]})
    finish(state, A, "y")
    assert_sent(state, {A: [free(("x", 1))], "c": [done("y")]})


def test_what_no_chunk_of_a_graph_needed_is_released_after_the_last() -> None:
    state = started(A)
    submit(state, {"x": []}, wanted=[], final=False)
    submit(state, {"y": []}, wanted=["y"], first=1)
    assert state.tasks.keys() == {"y"}


def test_a_client_that_leaves_while_it_sends_a_graph_leaves_nothing() -> None:
    state = started(A)
    submit(state, {"x": []}, wanted=[], final=False)
    sent(state)
    state.client_lost(1.0, "c")
    assert_sent(state, {A: [free(("x", 1))]})
    assert not state.tasks


# -- Priority -------------------------------------------------------------------------------------


def drained(state: SchedulerState) -> list[str]:
    """Run everything, and return the order in which it started."""
    order: list[str] = []
    while True:
        keys = computed(state, A)
        if not keys:
            return order
        order += keys
        for key in keys:
            finish(state, A, key)


def test_tasks_run_by_priority_then_submission_then_position() -> None:
    state = started(A)
    submit(state, {"b1": [], "b2": []}, submission=1)  # fill the worker
    submit(state, {"c1": [], "c2": []}, submission=2)
    submit(state, {"a1": []}, submission=3, priority=1.0)
    submit(state, {"z1": []}, submission=4, priority=-1.0)
    submit(state, {"d1": []}, submission=5)
    assert drained(state) == ["b1", "b2", "a1", "c1", "c2", "d1", "z1"]


def test_chunks_of_graphs_run_in_the_order_in_which_they_come() -> None:
    state = started(A)
    submit(state, {"a0": [], "a1": []}, submission=1, final=False)
    submit(state, {"b0": []}, submission=2, final=False)
    submit(state, {"a2": []}, submission=1, first=2)
    submit(state, {"b1": []}, submission=2, first=1)
    assert drained(state) == ["a0", "a1", "b0", "a2", "b1"]


def test_a_client_that_comes_late_does_not_wait_for_all_that_came_before() -> None:
    state = started(A, clients=("c", "late"))
    submit(state, {f"x{i}": [] for i in range(100)})
    sent(state)
    for i in range(10):
        finish(state, A, f"x{i}")
    submit(state, {"y0": [], "y1": []}, client="late")
    order = drained(state)
    assert order.index("y0") < 15
    assert order.index("y1") < 20


# -- Errors ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_ahead")
def test_an_error_reaches_all_that_depends_on_the_task() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"], "z": ["y"]}, wanted=["y", "z"])
    sent(state)
    err(state, A, "x")
    assert_sent(state, {"c": [TaskFailed("y", BOOM), TaskFailed("z", BOOM)]})
    submit(state, {"w": ["z"]}, submission=2)
    assert_sent(state, {"c": [TaskFailed("w", BOOM)]})
    release(state, "w", "y", "z")
    assert not state.tasks


@pytest.mark.usefixtures("nothing_ahead")
def test_an_error_frees_the_other_inputs_of_what_waited() -> None:
    state = started(A)
    submit(state, {"x": [], "y": [], "z": ["x", "y"]}, wanted=["z"])
    finish(state, A, "x")
    sent(state)
    err(state, A, "y")
    assert_sent(state, {A: [free(("x", 1))], "c": [TaskFailed("z", BOOM)]})


def test_a_task_with_retries_is_tried_again() -> None:
    state = started(A)
    submit(state, {"x": []}, retries=1)
    sent(state)
    err(state, A, "x")
    assert_sent(state, {A: [compute("x", 2)]})
    err(state, A, "x")
    assert_sent(state, {"c": [TaskFailed("x", BOOM)]})


def test_an_error_lets_the_next_task_run() -> None:
    state = started(A)
    submit(state, {"x": [], "y": [], "z": []})
    assert computed(state, A) == ["x", "y"]
    err(state, A, "x")
    assert computed(state, A) == ["z"]


def test_tasks_that_only_an_erred_task_needed_are_taken_back_and_others_run_there() -> None:
    state = started(A, B)
    submit(state, {"x": [], "y": [], "z": ["x", "y"], "u": [], "v": [], "w": []}, wanted="zuvw")
    assert computed(state, A) == ["x", "u"]
    err(state, A, "x")
    found = sent(state)
    assert free(("y", 2)) in found[B]
    keys = [m.key for box in (A, B) for m in found[box] if type(m) is ComputeTask]
    assert keys == ["w"]


# -- The same key again ---------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_ahead")
@pytest.mark.parametrize("spelling", ["processing", "waiting", "queued"])
def test_a_key_that_is_submitted_again_runs_once(spelling: str) -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"], "p": [], "q": []})
    key = {"processing": "x", "waiting": "y", "queued": "q"}[spelling]
    assert state.tasks[key].state == spelling
    sent(state)
    submit(state, {"x": [], "y": ["x"], "q": []}, wanted=[key], submission=2)
    assert_sent(state, {})


def test_a_second_client_hears_at_once_of_what_is_there() -> None:
    state = started(A, clients="cd")
    submit(state, {"x": [], "y": []})
    finish(state, A, "x")
    err(state, A, "y")
    sent(state)
    submit(state, {"x": [], "y": []}, client="d")
    assert_sent(state, {"d": [done("x", value=None), TaskFailed("y", BOOM)]})


def test_a_value_that_was_released_is_computed_again_for_who_asks() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"]}, wanted=["y"])
    finish(state, A, "x", "y")
    sent(state)
    submit(state, {"x": []}, submission=2)
    assert_sent(state, {A: [compute("x", 3)]})


def test_a_forgotten_key_is_a_new_task_with_a_new_attempt() -> None:
    state = started(A)
    submit(state, {"x": []})
    release(state, "x")
    sent(state)
    submit(state, {"x": []}, submission=2)
    assert_sent(state, {A: [compute("x", 2, submission=2, position=1)]})
    state.task_finished(1.0, A, TaskFinished("x", 1, 8, 1.0, b"old"))
    assert_sent(state, {})
    finish(state, A, "x")
    assert_sent(state, {"c": [done("x")]})


# -- Clients --------------------------------------------------------------------------------------


def test_a_value_lives_as_long_as_one_client_wants_it() -> None:
    state = started(A, clients="cd")
    submit(state, {"x": []}, client="c")
    submit(state, {"x": []}, client="d")
    finish(state, A, "x")
    assert_sent(state, {A: [DEFINE, compute("x", 1)], "c": [done("x")], "d": [done("x")]})
    release(state, "x", client="c")
    release(state, "x", client="c")
    assert_sent(state, {})
    state.client_lost(1.0, "d")
    state.client_lost(1.0, "d")
    assert_sent(state, {A: [free(("x", 1))]})


def test_a_key_can_be_wanted_by_name() -> None:
    state = started(A, clients="cd")
    submit(state, {"x": []})
    sent(state)
    state.keys_wanted(0.0, "d", WantKeys(("x", "?")))
    assert_sent(state, {"d": [KeyCancelled("?", "the scheduler does not know this key", True)]})
    release(state, "x")
    finish(state, A, "x")
    assert_sent(state, {"d": [done("x")]})


def test_a_release_takes_back_what_is_under_way() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    sent(state)
    release(state, "x", "y")
    assert_sent(state, {A: [free(("x", 1), ("y", 2))]})


def test_the_release_of_a_map_sends_none_of_it() -> None:
    state = started(A, B)
    keys = [f"x{i}" for i in range(1000)]
    submit(state, {key: [] for key in keys})
    sent(state)
    release(state, *keys)
    found = sent(state)
    assert [type(m) for m in found[A] + found[B]] == [FreeKeys, FreeKeys]


def test_fire_and_forget_outlives_its_client() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"]}, wanted=["y"])
    state.kept_until_done(0.0, KeepUntilDone(("y", "?")))
    state.client_lost(0.0, "c")
    finish(state, A, "x")
    assert computed(state, A) == ["x", "y"]
    finish(state, A, "y")
    assert_sent(state, {A: [free(("x", 1)), free(("y", 2))]})
    assert not state.tasks


def test_fire_and_forget_of_what_is_done_keeps_nothing() -> None:
    state = started(A)
    submit(state, {"x": []})
    finish(state, A, "x")
    state.kept_until_done(0.0, KeepUntilDone(("x",)))
    release(state, "x")
    assert not state.tasks


def test_fire_and_forget_of_what_fails_keeps_nothing() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"]}, wanted=["y"])
    state.kept_until_done(0.0, KeepUntilDone(("y",)))
    state.client_lost(0.0, "c")
    err(state, A, "x")
    sent(state)
    assert not state.tasks


# -- Cancel ---------------------------------------------------------------------------------------


def test_a_cancelled_task_goes_with_all_that_waits_for_it() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"], "z": ["y"], "w": []}, wanted=["x", "z", "w"])
    sent(state)
    cancel(state, "x")
    reason = "not needed"
    assert_sent(
        state, {A: [free(("x", 1))], "c": [KeyCancelled("x", reason), KeyCancelled("z", reason)]}
    )
    assert state.tasks.keys() == {"w"}


@pytest.mark.usefixtures("nothing_ahead")
def test_a_cancel_leaves_alone_what_another_client_wants() -> None:
    state = started(A, clients="cd")
    submit(state, {"x": [], "y": ["x"]}, client="c")
    submit(state, {"x": [], "z": ["x"]}, client="d", wanted=["z"])
    sent(state)
    cancel(state, "x", client="c")
    assert_sent(state, {"c": [KeyCancelled("x", "not needed"), KeyCancelled("y", "not needed")]})
    finish(state, A, "x")
    assert computed(state, A) == ["z"]


def test_a_cancel_leaves_alone_a_graph_that_another_client_is_sending() -> None:
    state = started(A, clients="cd")
    submit(state, {"x": []}, client="c")
    submit(state, {"x": []}, client="d", wanted=[], final=False)
    sent(state)
    cancel(state, "x", client="c")
    assert_sent(state, {"c": [KeyCancelled("x", "not needed")]})
    assert state.tasks["x"].state == "processing"


def test_a_forced_cancel_spares_nobody() -> None:
    state = started(A, clients="cd")
    submit(state, {"x": []}, client="c")
    submit(state, {"x": []}, client="d")
    sent(state)
    cancel(state, "x", client="c", force=True)
    cancelled = [KeyCancelled("x", "not needed")]
    assert_sent(state, {A: [free(("x", 1))], "c": cancelled, "d": cancelled})


def test_a_cancel_ends_fire_and_forget() -> None:
    state = started(A)
    submit(state, {"x": []})
    state.kept_until_done(0.0, KeepUntilDone(("x",)))
    cancel(state, "x", "?")
    sent(state)
    assert not state.tasks


def test_a_restart_forgets_every_task_and_sends_none() -> None:
    state = started(A, clients="cd")
    submit(state, {"x": [], "y": ["x"], "p": [], "q": []}, client="c")
    submit(state, {"u": []}, client="d", final=False)
    finish(state, A, "x")
    sent(state)
    state.restarted(1.0, "restart")
    found = sent(state)
    assert {type(m) for m in found[A]} == {FreeKeys}
    assert {m.key for m in found["c"]} == {"x", "y", "p", "q"}
    assert found["d"] == [KeyCancelled("u", "restart")]
    assert not state.tasks
    assert state.lanes.open.n_queued == 0


# -- Late and repeated messages -------------------------------------------------------------------


def test_answers_of_old_runs_and_unknown_workers_change_nothing() -> None:
    state = started(A, B)
    submit(state, {"x": []}, retries=5)
    err(state, A, "x")
    owner = state.tasks["x"].worker
    assert owner is not None
    sent(state)
    for address in (A, B, "tcp://unknown:1"):
        state.task_finished(1.0, address, TaskFinished("x", 1, 8, 1.0, None))
        state.task_erred(1.0, address, TaskErred("x", 1, BOOM))
        state.task_finished(1.0, address, TaskFinished("?", 2, 8, 1.0, None))
        state.task_erred(1.0, address, TaskErred("?", 2, BOOM))
        state.heartbeat(1.0, address, Heartbeat(0.0, 0, 0, 0, 0))
    assert_sent(state, {})
    finish(state, owner.address, "x")
    assert_sent(state, {"c": [done("x")]})
    finish(state, owner.address, "x")
    state.task_erred(1.0, owner.address, TaskErred("x", 2, BOOM))
    assert_sent(state, {})


def test_a_heartbeat_is_noted() -> None:
    state = started(A)
    beat = Heartbeat(50.0, 10**6, 0, 0, 0)
    state.heartbeat(5.0, A, beat)
    assert (state.workers[A].last_seen, state.workers[A].metrics) == (5.0, beat)


def test_a_copy_counts_as_a_holder_unless_it_comes_too_late() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    finish(state, A, "x")
    sent(state)
    state.keys_added(1.0, B, KeysAdded((Version("x", 1), Version("x", 0), Version("?", 9))))
    assert_sent(state, {B: [free(("x", 0)), free(("?", 9))]})
    assert state.locate("x").addresses == (A, B)
    release(state, "x")
    assert_sent(state, {A: [free(("x", 1))], B: [free(("x", 1))]})
    state.keys_added(1.0, B, KeysAdded((Version("x", 1),)))
    state.keys_added(1.0, "tcp://unknown:1", KeysAdded((Version("x", 1),)))
    assert_sent(state, {B: [free(("x", 1))]})
