"""Tasks that have failed run again when somebody asks for it."""

from __future__ import annotations

from core_helpers import (
    BOOM,
    A,
    B,
    assert_sent,
    compute,
    computed,
    done,
    err,
    finish,
    sent,
    started,
    submit,
)

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.messages.client import KeyLost, TaskFailed


def failed(*, wanted: tuple[str, ...] = ("x", "y")) -> SchedulerState:
    """A scheduler where x failed, and y with it."""
    state = started(A)
    submit(state, {"x": [], "y": ["x"]}, wanted=wanted)
    err(state, A, "x")
    sent(state)
    return state


def test_a_retried_task_runs_and_so_does_what_failed_with_it() -> None:
    state = failed()
    assert state.keys_retried(1.0, ["x"]) == 2
    messages = sent(state)
    assert messages["c"] == [KeyLost("x"), KeyLost("y")]
    assert [m.key for m in messages[A]] == ["x", "y"]
    finish(state, A, "x")
    finish(state, A, "y")
    assert sent(state)["c"] == [done("x"), done("y")]


def test_retrying_what_failed_for_its_input_runs_that_input_first() -> None:
    state = failed(wanted=("y",))
    assert state.tasks["x"].state == "released"  # for nobody needs its error
    assert state.keys_retried(1.0, ["y"]) == 1
    assert computed(state, A) == ["x", "y"]


def test_a_retried_task_may_fail_again() -> None:
    state = failed(wanted=("x",))
    state.keys_retried(1.0, ["x"])
    err(state, A, "x")
    assert sent(state)["c"] == [KeyLost("x"), TaskFailed("x", BOOM)]
    assert state.tasks["x"].state == "erred"


def test_another_failed_input_lets_it_fail_at_once() -> None:
    state = started(A)
    submit(state, {"x": [], "z": [], "y": ["x", "z"]}, wanted=["x", "y", "z"])
    err(state, A, "x")
    err(state, A, "z")
    sent(state)
    assert state.keys_retried(1.0, ["x"]) == 2
    messages = sent(state)
    assert [m.key for m in messages[A]] == ["x"]
    assert messages["c"][-1] == TaskFailed("y", BOOM)
    assert state.tasks["z"].state == "erred"


def test_what_has_not_failed_stays_as_it_is() -> None:
    state = started(A)
    submit(state, {"x": [], "run": []})
    finish(state, A, "x")
    sent(state)
    assert state.keys_retried(1.0, ["x", "run", "nonsense"]) == 0
    assert_sent(state, {})


def test_a_task_that_was_given_up_for_its_workers_starts_with_a_clean_record() -> None:
    state = started(A, allowed_failures=0)
    submit(state, {"x": []})
    state.worker_lost(1.0, A)
    assert state.tasks["x"].state == "erred"
    state = started(A, B, allowed_failures=1)
    submit(state, {"x": []})
    state.worker_lost(1.0, A)
    state.worker_lost(1.0, B)
    assert state.tasks["x"].state == "erred"
    assert state.keys_retried(2.0, ["x"]) == 1
    assert state.tasks["x"].failures == 0
    assert state.tasks["x"].state == "no-worker"


def test_all_who_want_it_are_told() -> None:
    state = started(A, clients=("c", "d"))
    submit(state, {"x": []})
    submit(state, {"x": []}, client="d")
    err(state, A, "x")
    sent(state)
    state.keys_retried(1.0, ["x"])
    messages = sent(state)
    assert messages["c"] == messages["d"] == [KeyLost("x")]
    assert messages[A] == [compute("x", 2)]
