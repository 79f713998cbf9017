"""Wants of somebody who is gone: dropped a few at a time."""

from __future__ import annotations

from core_helpers import (
    A,
    F,
    cancel,
    computed,
    finish,
    free,
    release,
    scatter,
    sent,
    started,
    submit,
)

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.validation import validate_scheduler
from hpcdask.messages import ComputeTask, Function
from hpcdask.messages.client import WantKeys

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
        state.drop_more(1.0)
    assert sizes == [6, 2]
    assert not state.tasks
    assert sent(state)[A][-1] == free(("x1", 2), ("x0", 1))


def test_what_others_want_outlives_the_goes() -> None:
    state = patient("c", "d")
    submit(state, {key: [] for key in MANY})
    submit(state, {MANY[0]: [], MANY[-1]: []}, client="d")
    state.client_lost(1.0, "c")
    while state.departed:
        state.drop_more(1.0)
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
        state.drop_more(1.0)
    assert state.tasks.keys() == {"y"}


def departing(*others: str) -> SchedulerState:
    """The client c has gone, and most of what it wanted is still there."""
    state = patient("c", *others)
    scatter(state, "data")
    submit(state, {key: [] for key in MANY})
    submit(state, {"z": [MANY[0]]}, submission=2)
    state.client_lost(1.0, "c")
    sent(state)
    assert {"data", MANY[0], MANY[1]} < state.tasks.keys()
    return state


def test_a_key_that_is_used_for_something_else_meanwhile_has_its_new_meaning() -> None:
    state = departing("d")
    submit(state, {MANY[0]: []}, client="d", function=Function(b"g" * 16, "g", b"code of g"))
    assert state.tasks[MANY[0]].function is state.functions.records[b"g" * 16]
    assert MANY[1] in state.tasks, "what is not in the way is left for later"
    while state.departed:
        state.drop_more(1.0)
    assert state.tasks.keys() == {MANY[0]}
    sent(state)


def test_a_key_that_somebody_else_builds_on_keeps_its_meaning() -> None:
    state = patient("c", "d")
    submit(state, {key: [] for key in MANY})
    submit(state, {"y": [MANY[0]]}, client="d")
    state.client_lost(1.0, "c")
    submit(state, {MANY[0]: []}, client="d", function=Function(b"g" * 16, "g", b"code of g"))
    assert state.tasks[MANY[0]].function is state.functions.records[F.function_id]
    sent(state)


def test_data_that_is_scattered_anew_meanwhile_is_the_new_data() -> None:
    state = departing("d")
    before = state.tasks["data"].attempt
    scatter(state, "data", client="d")
    assert state.tasks["data"].attempt > before
    assert free(("data", before)) in sent(state)[A]


def test_a_key_that_is_wanted_meanwhile_stays() -> None:
    state = departing("d")
    state.keys_wanted(1.0, "d", WantKeys((MANY[0],)))
    while state.departed:
        state.drop_more(1.0)
    assert state.tasks.keys() == {MANY[0]}
    sent(state)


def test_who_has_departed_keeps_nobody_from_cancelling() -> None:
    state = departing("d")
    state.keys_wanted(1.0, "d", WantKeys((MANY[0],)))
    cancel(state, MANY[0], client="d")
    assert MANY[0] not in state.tasks
    sent(state)


def test_a_restart_forgets_what_is_still_to_be_dropped() -> None:
    state = departing()
    state.restarted(2.0, "restart")
    assert not state.tasks
    while state.departed:
        state.drop_more(1.0)
    sent(state)


def test_a_client_of_the_same_name_wants_only_what_it_says() -> None:
    state = departing()
    state.client_joined(2.0, "c")
    submit(state, {MANY[0]: []})
    while state.departed:
        state.drop_more(1.0)
    assert state.tasks.keys() == {MANY[0]}
    assert not any(isinstance(m, ComputeTask) and m.key == "z" for m in sent(state)[A])


def chain(length: int) -> dict[str, list[str]]:
    return {f"x{n}": [f"x{n - 1}"] if n else [] for n in range(length)}


def test_a_graph_of_which_the_only_result_is_released_goes_in_several_goes() -> None:
    state = patient("c")
    submit(state, chain(10), wanted=["x9"])
    for n in range(10):
        sent(state)
        finish(state, A, f"x{n}")
    release(state, "x9")
    sizes = []
    while state.has_more_to_drop:
        validate_scheduler(state)
        sizes.append(len(state.tasks))
        state.drop_more(1.0)
    assert sizes == [6, 2]
    assert not state.tasks


def test_what_is_to_be_released_may_be_wanted_again() -> None:
    state = patient("c")
    submit(state, chain(10), wanted=["x9"])
    for n in range(10):
        sent(state)
        finish(state, A, f"x{n}")
    release(state, "x9")
    sent(state)
    submit(state, {"y": ["x3"]})
    while state.has_more_to_drop:
        state.drop_more(1.0)
    validate_scheduler(state)
    assert state.tasks.keys() == {"y", "x3", "x2", "x1", "x0"}
    assert computed(state, A)[0] == "x0"


def test_a_key_of_what_is_to_be_released_begins_anew() -> None:
    state = patient("c")
    submit(state, chain(10), wanted=["x9"])
    release(state, "x9")
    assert "x2" in state.tasks
    other = Function(b"g" * 16, "g", b"")
    submit(state, {"x2": []}, function=other)
    assert state.tasks["x2"].function.function_id == other.function_id
    while state.has_more_to_drop:
        state.drop_more(1.0)
    validate_scheduler(state)
    assert state.tasks.keys() == {"x2"}
