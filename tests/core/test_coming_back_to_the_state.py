"""Workers and clients that lost the scheduler, and come back to it or to its successor."""

from __future__ import annotations

from core_helpers import (
    DEFINE,
    A,
    B,
    F,
    computed,
    done,
    finish,
    free,
    release,
    sent,
    started,
    submit,
    worker_info,
)

from hpcdask.core.definition import definition_of
from hpcdask.core.returning import QUIET, UNCLAIMED
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.messages import (
    HeldRun,
    HeldValue,
    KeyCancelled,
    RegisterWorker,
    TaskDone,
    WantKeys,
)

MEANT = definition_of(F.function_id, b"")
NOW = 1_000_000  # attempts of the first scheduler are smaller


def back(address: str, *kept: HeldValue | HeldRun) -> RegisterWorker:
    return worker_info(address)._replace(
        returns=True,
        values=tuple(item for item in kept if isinstance(item, HeldValue)),
        runs=tuple(item for item in kept if isinstance(item, HeldRun)),
    )


def successor(*workers: RegisterWorker) -> SchedulerState:
    """A new scheduler to which workers and the client c come back."""
    state = SchedulerState(first_attempt=NOW)
    for info in workers:
        state.worker_joined(0.0, info)
    state.client_returned(0.0, "c")
    return state


# -- To the same scheduler ------------------------------------------------------------------------


def test_values_that_survived_are_not_computed_again() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    finish(state, A, "x")
    state.worker_lost(1.0, A)
    sent(state)
    assert state.tasks["x"].worker is state.workers[B]
    state.worker_joined(2.0, back(A, HeldValue("x", 1, 8, MEANT)))
    assert sent(state) == {B: [free(("x", 2))], "c": [TaskDone("x", 8, None)]}


def test_a_run_that_goes_on_is_taken_up() -> None:
    state = started(A)
    submit(state, {"x": []})
    state.worker_lost(1.0, A)
    state.worker_joined(2.0, back(A, HeldRun("x", 1, MEANT)))
    assert sent(state) == {}
    finish(state, A, "x")
    assert sent(state)["c"][-1] == done("x")


def test_a_run_that_another_worker_does_by_now_is_given_up() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    state.worker_lost(1.0, A)
    sent(state)
    state.worker_joined(2.0, back(A, HeldRun("x", 1, MEANT)))
    assert sent(state) == {A: [free(("x", 1))]}


def test_a_value_of_an_earlier_life_of_the_key_is_not_believed() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    finish(state, A, "x")
    state.worker_lost(1.0, A)
    release(state, "x")
    submit(state, {"x": []}, submission=2)
    sent(state)
    state.worker_joined(2.0, back(A, HeldValue("x", 1, 8, MEANT)))
    assert sent(state) == {A: [free(("x", 1))]}


def test_a_client_that_comes_back_keeps_what_it_still_wants_and_loses_the_rest() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    finish(state, A, "x", "y")
    sent(state)
    state.client_returned(2.0, "c")
    state.keys_wanted(2.0, "c", WantKeys(("x",)))
    state.all_told(2.0, "c")
    assert sent(state) == {"c": [TaskDone("x", 8, None)], A: [free(("y", 2))]}


# -- To another scheduler -------------------------------------------------------------------------


def test_a_new_scheduler_computes_only_what_did_not_survive() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, MEANT)), back(B, HeldRun("y", 2, MEANT)))
    submit(state, {"x": [], "y": [], "z": ["x", "y"], "u": []}, wanted=["z", "u"])
    state.all_told(0.1, "c")
    sent(state)
    state.tick(QUIET + 0.2)
    messages = sent(state)
    assert [type(m) for m in messages[A]] == [type(DEFINE), type(messages[A][1])]
    assert [m.key for m in messages[A][1:]] == ["u"]
    assert B not in messages or [m.key for m in messages[B] if hasattr(m, "arguments")] == ["z"]
    finish(state, B, "y")
    sent(state)
    assert state.tasks["z"].state == "processing"


def test_what_another_definition_gave_is_not_believed() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, MEANT ^ 1)))
    submit(state, {"x": []})
    state.all_told(0.1, "c")
    state.tick(QUIET + 0.2)
    messages = sent(state)
    assert free(("x", 1)) in messages[A]
    assert state.tasks["x"].state == "processing"


def test_a_finished_key_is_found_or_cancelled_with_the_reason() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, MEANT)))
    state.keys_wanted(0.0, "c", WantKeys(("x", "gone")))
    state.all_told(0.0, "c")
    assert sent(state) == {}
    state.tick(QUIET + 0.1)
    cancelled, found = sent(state)["c"][::-1]
    assert found == TaskDone("x", 8, None) or cancelled == TaskDone("x", 8, None)
    assert any(isinstance(m, KeyCancelled) and m.key == "gone" for m in (cancelled, found))


def test_it_waits_for_the_others_as_long_as_they_come() -> None:
    state = successor()
    submit(state, {"x": []})
    state.all_told(0.0, "c")
    state.worker_joined(QUIET - 0.1, back(A))
    state.tick(QUIET + 0.1)
    state.worker_joined(QUIET + 1.0, back(B, HeldValue("x", 1, 8, MEANT)))
    state.tick(QUIET + 0.2)
    messages = sent(state)
    assert not any(hasattr(m, "arguments") for a in (A, B) for m in messages.get(a, ()))


def test_what_nobody_comes_for_is_freed() -> None:
    state = SchedulerState(first_attempt=NOW)
    state.worker_joined(0.0, back(A, HeldValue("x", 1, 8, MEANT), HeldRun("y", 2, MEANT)))
    state.tick(UNCLAIMED - 1)
    assert sent(state) == {}
    state.tick(UNCLAIMED + 1)
    assert sent(state) == {A: [free(("x", 1), ("y", 2))]}


def test_scattered_data_is_found_again() -> None:
    state = successor(back(A, HeldValue("data", 1, 8, 0)))
    submit(state, {"x": ["data"]})
    state.keys_wanted(0.0, "c", WantKeys(("data",)))
    state.all_told(0.0, "c")
    state.tick(QUIET + 0.1)
    assert computed(state, A) == ["x"]
    assert state.tasks["data"].state == "memory"
