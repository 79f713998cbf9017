"""Values that clients put onto workers, and what can come between."""

from __future__ import annotations

import pickle

from core_helpers import (
    DEFINE,
    A,
    B,
    assert_sent,
    compute,
    done,
    err,
    finish,
    free,
    plan,
    release,
    scatter,
    sent,
    started,
    submit,
    worker_info,
)

from hpcdask.errors import LostDataError
from hpcdask.messages import Dependency, HeldValue, KeysAdded, KeysDropped, PlacedValue, Version
from hpcdask.messages.client import DataScattered, TaskDone, TaskFailed, WantKeys


def test_scattered_values_are_spread_and_their_client_is_told() -> None:
    state = started(A, B)
    scatter(state, "x", "y")
    assert_sent(state, {"c": [done("x", value=None), done("y", value=None)]})
    assert {state.locate(key).addresses for key in "xy"} == {(A,), (B,)}
    release(state, "x", "y")
    found = sent(state)
    assert sorted(m.versions[0].key for box in (A, B) for m in found[box]) == ["x", "y"]
    assert not state.tasks


def test_values_scattered_one_at_a_time_do_not_all_go_to_one_worker() -> None:
    state = started(A, B)
    for number in range(4):
        scatter(state, f"x{number}")
    assert len(state.workers[A].has_what) == len(state.workers[B].has_what) == 2


def test_a_broadcast_value_is_everywhere() -> None:
    state = started(A, B)
    scatter(state, "x", broadcast=True)
    assert state.locate("x").addresses == (A, B)


def test_data_is_not_planned_for_nobody() -> None:
    state = started()
    assert plan(state, "x") == []


def test_workers_are_found_by_address_or_name() -> None:
    state = started(A, B)
    assert [w.address for w in state.find_workers([f"name of {B}"])] == [B]
    assert [w.address for w in state.find_workers([A, "?"])] == [A]
    assert len(state.find_workers([])) == 2


def test_a_key_that_is_not_in_memory_is_nowhere() -> None:
    state = started(A)
    submit(state, {"x": []})
    assert state.locate("x") == Dependency("x", 0, 0, ())
    assert state.locate("?") == Dependency("?", 0, 0, ())


def test_a_task_uses_scattered_data() -> None:
    state = started(A)
    scatter(state, "x")
    submit(state, {"y": ["x"]})
    x = Dependency("x", 1, 8, (A,))
    assert_sent(state, {A: [DEFINE, compute("y", 2, x)], "c": [done("x", value=None)]})


def test_data_whose_worker_died_before_it_was_announced_is_lost() -> None:
    state = started(A)
    placements = plan(state, "x")
    state.worker_lost(1.0, A)
    state.data_scattered(1.0, "c", DataScattered(tuple(placements)))
    (failed,) = sent(state)["c"]
    assert isinstance(pickle.loads(failed.error.exception), LostDataError)


def test_data_that_lost_one_of_its_workers_is_on_the_other() -> None:
    state = started(A, B)
    placements = plan(state, "x", broadcast=True)
    state.worker_lost(1.0, A)
    state.data_scattered(1.0, "c", DataScattered(tuple(placements)))
    assert_sent(state, {"c": [done("x", value=None)]})


def test_data_of_a_client_that_left_before_it_announced_it_is_freed() -> None:
    state = started(A)
    plan(state, "x")
    state.client_lost(1.0, "c")
    assert_sent(state, {A: [free(("x", 1))]})


def test_data_scattered_twice_is_kept_once() -> None:
    state = started(A, clients="cd")
    scatter(state, "x", "x", client="c")
    scatter(state, "x", client="d")
    told = [done("x", value=None)]
    assert_sent(state, {A: [free(("x", 2)), free(("x", 3))], "c": told * 2, "d": told})


def test_data_that_was_not_planned_is_not_believed() -> None:
    state = started(A)
    state.data_scattered(1.0, "c", DataScattered((PlacedValue("x", 9, 8, (A,)),)))
    assert_sent(state, {})
    assert not state.tasks


def test_data_for_a_key_that_is_being_computed_is_freed() -> None:
    state = started(A, clients="cd")
    submit(state, {"x": []})
    sent(state)
    scatter(state, "x", client="d")
    assert_sent(state, {A: [free(("x", 2))]})
    finish(state, A, "x")
    assert_sent(state, {"c": [done("x")], "d": [done("x")]})


def test_data_replaces_the_error_of_its_key() -> None:
    state = started(A, clients="cd")
    submit(state, {"x": []})
    err(state, A, "x")
    sent(state)
    scatter(state, "x", client="d")
    assert_sent(state, {"c": [done("x", value=None)], "d": [done("x", value=None)]})


def test_lost_data_fails_what_needs_it_and_can_be_scattered_again() -> None:
    state = started(A, B)
    (placed,) = plan(state, "x")
    state.data_scattered(0.0, "c", DataScattered((placed,)))
    submit(state, {"y": ["x"], "z": []})
    sent(state)
    state.worker_lost(1.0, placed.addresses[0], planned=True)
    failed = [m for m in sent(state)["c"] if type(m) is TaskFailed]
    assert [m.key for m in failed] == ["x", "y"]
    assert {m.error.key for m in failed} == {"x"}
    scatter(state, "x")
    assert TaskDone("x", 8, None) in sent(state)["c"]


def test_a_value_dropped_before_its_client_tells_of_it_is_not_there() -> None:
    state = started(A, B)
    placements = tuple(plan(state, "x", broadcast=True))
    state.keys_dropped(0.0, A, KeysDropped((Version("x", placements[0].attempt),)))
    state.data_scattered(0.0, "c", DataScattered(placements))
    assert state.locate("x").addresses == (B,)
    sent(state)


def test_a_worker_that_was_away_is_believed_only_what_it_brings_back() -> None:
    state = started(A, B)
    placements = tuple(plan(state, "x", "y", broadcast=True))
    state.worker_lost(0.0, A)
    kept = (HeldValue("x", placements[0].attempt, 8, 0),)
    state.worker_joined(0.0, worker_info(A)._replace(returns=True, values=kept))
    state.data_scattered(0.0, "c", DataScattered(placements))
    assert set(state.locate("x").addresses) == {A, B}
    assert state.locate("y").addresses == (B,)
    sent(state)


def test_a_value_that_a_worker_announces_early_is_left_to_its_client() -> None:
    state = started(A)
    placements = tuple(plan(state, "x"))
    state.keys_added(0.0, A, KeysAdded((Version("x", placements[0].attempt),)))
    assert sent(state) == {}


def test_data_of_which_the_news_was_lost_is_found_when_its_client_comes_back() -> None:
    state = started(A)
    plan(state, "x")
    state.client_returned(1.0, "c")
    state.keys_wanted(1.0, "c", WantKeys(("x",)))
    state.all_told(1.0, "c")
    assert state.locate("x").addresses == (A,)
    sent(state)


def test_data_that_was_let_go_before_its_client_came_back_is_not_kept() -> None:
    state = started(A)
    placements = tuple(plan(state, "x"))
    state.client_returned(1.0, "c")
    state.data_scattered(1.0, "c", DataScattered(placements))
    state.all_told(1.0, "c")
    assert not state.tasks
    sent(state)
