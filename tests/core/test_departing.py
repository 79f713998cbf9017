"""Wants of somebody who is gone: dropped a few at a time."""

from __future__ import annotations

from core_helpers import A, computed, finish, free, sent, started, submit

from hpcdask.core.scheduler_state import SchedulerState

MANY = [f"x{number}" for number in range(10)]


def patient(*clients: str) -> SchedulerState:
    state = started(A, clients=clients)
    state.drop_at_once = 4
    return state


def test_the_wants_of_a_lost_client_are_dropped_in_several_goes() -> None:
    state = patient("c")
    submit(state, {key: [] for key in MANY})
    sent(state)
    state.client_lost(1.0, "c")
    sizes = []
    while state.departed:
        sizes.append(len(state.tasks))
        sent(state)
        state.had_time(1.0)
    assert sizes == [6, 2]
    assert not state.tasks
    assert sent(state)[A][-1] == free(("x1", 2), ("x0", 1))


def test_what_others_want_outlives_the_goes() -> None:
    state = patient("c", "d")
    submit(state, {key: [] for key in MANY})
    submit(state, {MANY[0]: [], MANY[-1]: []}, client="d")
    state.client_lost(1.0, "c")
    while state.departed:
        state.had_time(1.0)
    assert state.tasks.keys() == {MANY[0], MANY[-1]}


def test_the_wants_of_one_who_leaves_later_do_not_wait_for_those_of_one_with_many() -> None:
    state = patient("c", "d")
    submit(state, {key: [] for key in MANY})
    submit(state, {"y": []}, client="d")
    state.client_lost(1.0, "c")
    state.client_lost(1.0, "d")
    assert "y" not in state.tasks
    assert state.departed


def test_a_client_that_is_gone_is_told_nothing_of_what_it_still_wants() -> None:
    state = patient("c")
    submit(state, {key: [] for key in MANY})
    assert computed(state, A)[0] == MANY[0]
    state.client_lost(1.0, "c")
    state.client_joined(2.0, "c")
    sent(state)
    finish(state, A, MANY[0])
    assert "c" not in sent(state)


def test_the_hold_on_a_large_graph_ends_in_several_goes() -> None:
    state = patient("c")
    submit(state, {key: [] for key in MANY}, wanted=[], final=False)
    submit(state, {"y": []}, wanted=["y"], first=len(MANY))
    while state.departed:
        state.had_time(1.0)
    assert state.tasks.keys() == {"y"}
