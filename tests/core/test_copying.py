"""Values are copied to as many workers as is asked, and spread evenly."""

from __future__ import annotations

import pytest
from core_helpers import (
    A,
    B,
    C,
    assert_sent,
    finish,
    free,
    release,
    scatter,
    sent,
    started,
    submit,
    worker_info,
)

from hpcdask.core.copying import Copy, Rebalancing, Replication, Round
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.messages import AcquireKeys, ComputeTask, Dependency, KeysAdded, NotAcquired, Version

MANY = [f"tcp://10.0.1.{i}:1" for i in range(9)]


def replication(state: SchedulerState, key: str, n: int = 0, branching: int = 2) -> Replication:
    workers = state.named_workers(())
    plan = Replication(state.workers, [state.tasks[key]], workers, n, branching)
    state.copy_plans.append(plan)
    return plan


def take(state: SchedulerState, plan: Replication | Rebalancing) -> Round:
    result = plan.next_round()
    state.copies_wanted(1.0, result.wanted)
    state.copies_unwanted(1.0, result.unwanted)
    return result


def come(state: SchedulerState, copies: list[Copy]) -> None:
    for task, worker in copies:
        state.keys_added(1.0, worker.address, KeysAdded((Version(task.key, task.attempt),)))


def holder_of(state: SchedulerState, key: str) -> str:
    return next(iter(state.tasks[key].who_has)).address


# -- Replication -----------------------------------------------------------------------------------


def test_a_value_is_copied_to_all_workers() -> None:
    state = started(A, B, C)
    scatter(state, "x")
    sent(state)
    first = holder_of(state, "x")
    plan = replication(state, "x", branching=9)
    copies = take(state, plan).wanted
    value = Dependency("x", state.tasks["x"].attempt, 8, (first,))
    assert_sent(state, {a: [AcquireKeys((value,))] for a in (A, B, C) if a != first})
    come(state, copies)
    assert take(state, plan) == Round([], [], {})
    assert not plan.goes_on
    assert len(state.tasks["x"].who_has) == 3


def test_copies_are_made_of_copies() -> None:
    state = started(*MANY)
    scatter(state, "x")
    plan = replication(state, "x", branching=2)
    sizes = []
    while True:
        result = take(state, plan)
        if not result.wanted:
            break
        sizes.append(len(result.wanted))
        come(state, result.wanted)
    assert sizes == [2, 6]
    assert len(state.tasks["x"].who_has) == 9


def test_copies_that_are_under_way_are_not_asked_for_again() -> None:
    state = started(A, B, C)
    scatter(state, "x")
    plan = replication(state, "x", branching=9)
    copies = take(state, plan).wanted
    assert len(copies) == 2
    assert take(state, plan) == Round([], [], {"x": 2})
    assert plan.goes_on
    come(state, copies[:1])
    assert take(state, plan) == Round([], [], {"x": 1})


def test_workers_that_hold_the_least_get_the_copies() -> None:
    state = started(*MANY[:4])
    submit(state, {"x": [], "big": []})
    big, x = state.tasks["big"].worker, state.tasks["x"].worker
    assert big is not None
    assert x is not None
    finish(state, big.address, "big", nbytes=1000)
    finish(state, x.address, "x")
    copies = take(state, replication(state, "x", n=3, branching=9)).wanted
    assert big not in [copy.worker for copy in copies]
    assert len(copies) == 2


def test_copies_beyond_what_is_asked_are_dropped_but_never_the_last() -> None:
    state = started(A, B, C)
    scatter(state, "x", broadcast=True)
    sent(state)
    plan = replication(state, "x", n=1)
    take(state, plan)
    [left] = state.tasks["x"].who_has
    attempt = state.tasks["x"].attempt
    assert_sent(state, {a: [free(("x", attempt))] for a in (A, B, C) if a != left.address})
    state.copies_unwanted(1.0, [Copy(state.tasks["x"], left)])
    assert_sent(state, {})


def test_a_copy_that_cannot_be_had_is_given_up_after_some_tries() -> None:
    state = started(A, B)
    scatter(state, "x")
    plan = replication(state, "x")
    for _ in range(3):
        [copy] = take(state, plan).wanted
        version = Version("x", state.tasks["x"].attempt)
        state.not_acquired(1.0, copy.worker.address, NotAcquired((version,)))
    assert take(state, plan) == Round([], [], {"x": 1})
    assert not plan.goes_on


def test_a_worker_that_leaves_is_replaced_by_another() -> None:
    state = started(A, B, C)
    scatter(state, "x")
    plan = replication(state, "x", n=2, branching=1)
    [copy] = take(state, plan).wanted
    state.worker_lost(1.0, copy.worker.address, planned=True)
    [other] = take(state, plan).wanted
    assert other.worker is not copy.worker


def test_a_value_that_is_lost_and_computed_again_is_waited_for() -> None:
    state = started(A, B, C)
    submit(state, {"x": []})
    first = state.tasks["x"].worker
    assert first is not None
    finish(state, first.address, "x")
    plan = replication(state, "x", n=2)
    state.worker_lost(1.0, first.address, planned=True)
    assert take(state, plan).missing == {"x": 2}
    assert plan.goes_on
    second = state.tasks["x"].worker
    assert second is not None
    finish(state, second.address, "x")
    come(state, take(state, plan).wanted)
    assert take(state, plan).missing == {}


def test_a_value_that_was_released_ends_the_plan() -> None:
    state = started(A, B)
    scatter(state, "x")
    plan = replication(state, "x")
    take(state, plan)
    release(state, "x")
    assert take(state, plan).missing == {"x": 2}
    assert not plan.goes_on


# -- Spreading -------------------------------------------------------------------------------------


def full_and_empty(sizes: list[int]) -> SchedulerState:
    """A scheduler whose worker A holds values of these sizes, and B nothing."""
    state = started(A, nthreads=9)
    submit(state, {f"x{i}": [] for i in range(len(sizes))})
    for i, size in enumerate(sizes):
        finish(state, A, f"x{i}", nbytes=size)
    state.worker_joined(1.0, worker_info(B))
    sent(state)
    return state


def rebalancing(state: SchedulerState, keys: set[str] | None = None) -> Rebalancing:
    plan = Rebalancing(state.workers, state.named_workers(()), keys or set())
    state.copy_plans.append(plan)
    return plan


def test_values_move_to_the_empty_worker_and_are_dropped_when_they_are_there() -> None:
    state = full_and_empty([100, 100, 100, 100])
    plan = rebalancing(state)
    copies = take(state, plan).wanted
    assert [copy.worker.address for copy in copies] == [B, B]
    sent(state)
    come(state, copies[:1])
    take(state, plan)
    moved = copies[0].task
    assert_sent(state, {A: [free((moved.key, moved.attempt))]})
    assert (plan.n_moved, plan.n_left) == (1, 1)
    come(state, copies[1:])
    take(state, plan)
    assert not plan.goes_on
    assert [state.workers[a].nbytes for a in (A, B)] == [200, 200]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1000], []),  # it would only be elsewhere
        ([1000, 10], [1000]),
        ([60, 50, 40, 30, 20], [60, 50]),
        ([100, 100], [100]),
        ([], []),
    ],
)
def test_what_moves_leaves_workers_less_apart(sizes: list[int], expected: list[int]) -> None:
    state = full_and_empty(sizes)
    moved = take(state, rebalancing(state)).wanted
    assert [copy.task.nbytes for copy in moved] == expected


def test_only_what_is_named_moves() -> None:
    state = full_and_empty([100, 100, 100, 100])
    moved = take(state, rebalancing(state, {"x3"})).wanted
    assert [copy.task.key for copy in moved] == ["x3"]


def test_what_a_run_there_takes_stays() -> None:
    state = full_and_empty([100, 100])
    submit(state, {"y": ["x0"]}, submission=2)
    [run] = [m for m in sent(state)[A] if type(m) is ComputeTask]
    assert run.key == "y"
    moved = take(state, rebalancing(state)).wanted
    assert [copy.task.key for copy in moved] == ["x1"]


def test_a_worker_that_cannot_get_a_value_leaves_it_where_it_is() -> None:
    state = full_and_empty([100, 100])
    plan = rebalancing(state)
    [copy] = take(state, plan).wanted
    version = Version(copy.task.key, copy.task.attempt)
    state.not_acquired(1.0, B, NotAcquired((version,)))
    take(state, plan)
    assert (plan.n_moved, plan.n_left, plan.goes_on) == (0, 0, False)
    assert holder_of(state, copy.task.key) == A


# -- Names of workers ------------------------------------------------------------------------------


def test_workers_are_named_by_address_or_name_and_those_that_leave_too() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    leaving = state.tasks["x"].worker
    assert leaving is not None
    state.worker_leaving(1.0, leaving.address, "walltime")
    assert state.named_workers([leaving.info.name]) == [leaving]
    assert leaving not in state.named_workers(())
    assert len(state.named_workers([A, f"name of {A}", B])) == 2
    with pytest.raises(ValueError, match="no worker has the address or name 'nobody', '7'"):
        state.named_workers([A, "nobody", "7"])
