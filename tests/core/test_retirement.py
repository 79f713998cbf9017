"""Workers that leave on purpose lose nothing."""

from __future__ import annotations

import pytest
from core_helpers import (
    A,
    B,
    C,
    D,
    F,
    computed,
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
from hpcdask.messages import (
    AcquireKeys,
    CloseWorker,
    ComputeTask,
    Dependency,
    GivenBack,
    KeysAdded,
    KeysDropped,
    NotAcquired,
    Restriction,
    TakeBack,
    TaskSpec,
    Version,
)
from hpcdask.messages.client import SubmitTasks

END = CloseWorker("it has retired")
X = Version("x", 1)


def test_a_value_moves_before_its_only_holder_ends() -> None:
    state = started(A)
    submit(state, {"x": []})
    finish(state, A, "x")
    state.worker_joined(1.0, started(B).workers[B].info)
    sent(state)
    state.worker_leaving(2.0, A, "enough")
    assert sent(state) == {B: [AcquireKeys((Dependency("x", 1, 8, (A,)),))]}
    state.keys_added(2.1, B, KeysAdded((X,)))
    assert sent(state) == {A: [END]}
    state.worker_lost(2.2, A, planned=True)
    assert sent(state) == {}
    assert state.tasks["x"].state == "memory"


def test_what_it_runs_is_awaited_and_what_it_does_not_is_taken_back() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    state.worker_joined(1.0, started(B).workers[B].info)
    state.worker_leaving(2.0, A, "enough")
    state.given_back(2.1, A, GivenBack((Version("y", 2),)))
    messages = sent(state)
    assert messages[A][-1] == TakeBack((X, Version("y", 2)))
    assert [m.key for m in messages[B][1:]] == ["y"]
    finish(state, A, "x")
    assert sent(state)[B] == [AcquireKeys((Dependency("x", 1, 8, (A,)),))]
    state.keys_added(3.0, B, KeysAdded((X,)))
    assert sent(state) == {A: [END]}


def test_it_gets_no_new_tasks() -> None:
    state = started(A, B)
    state.worker_leaving(1.0, A, "enough")
    assert sent(state) == {A: [END]}
    submit(state, {"x": [], "y": [], "z": []})
    assert computed(state, A) == []


def test_a_copy_that_cannot_be_made_is_made_elsewhere() -> None:
    state = started(A)
    submit(state, {"x": []})
    finish(state, A, "x")
    for address in (B, C):
        state.worker_joined(1.0, started(address).workers[address].info)
    sent(state)
    state.worker_leaving(2.0, A, "enough")
    (first,) = sent(state)
    state.not_acquired(2.1, first, NotAcquired((X,)))
    (second,) = sent(state)
    assert {first, second} == {B, C}
    state.worker_lost(2.2, second)
    assert sent(state).keys() == {first}


def test_a_value_that_is_released_meanwhile_keeps_nobody() -> None:
    state = started(A)
    submit(state, {"x": []})
    finish(state, A, "x")
    state.worker_joined(1.0, started(B).workers[B].info)
    state.worker_leaving(2.0, A, "enough")
    sent(state)
    release(state, "x")
    assert sent(state) == {A: [free(("x", 1)), END]}


def test_the_last_worker_waits_for_nobody() -> None:
    state = started(A)
    submit(state, {"x": []})
    finish(state, A, "x")
    sent(state)
    state.worker_leaving(2.0, A, "enough")
    assert sent(state) == {A: [END]}
    assert state.would_lose(A) == 1


def test_a_copy_that_nobody_can_make_is_given_up_after_three() -> None:
    state = started(A)
    submit(state, {"x": []})
    finish(state, A, "x")
    state.worker_joined(1.0, started(B).workers[B].info)
    sent(state)
    state.worker_leaving(2.0, A, "enough")
    for _ in range(2):
        assert [type(m) for m in sent(state)[B]] == [AcquireKeys]
        state.not_acquired(2.1, B, NotAcquired((X,)))
    assert [type(m) for m in sent(state)[B]] == [AcquireKeys]
    state.not_acquired(2.2, B, NotAcquired((X,)))
    assert sent(state) == {A: [END]}


def test_only_what_a_lost_worker_was_to_save_is_asked_of_others() -> None:
    state = started(A)
    submit(state, {f"x{i}": [] for i in range(4)})
    finish(state, A, *[f"x{i}" for i in range(4)])
    for address in (B, C):
        state.worker_joined(1.0, started(address).workers[address].info)
    sent(state)
    state.worker_leaving(2.0, A, "enough")
    asked = {a: {d.key for d in m[0].dependencies} for a, m in sent(state).items()}
    assert {len(keys) for keys in asked.values()} == {2}
    state.worker_lost(2.1, B)
    assert {d.key for d in sent(state)[C][0].dependencies} == asked[B]


@pytest.mark.parametrize("how", ["its holder dies", "its holder drops it"])
def test_a_value_that_was_safe_elsewhere_moves_when_it_is_so_no_more(how) -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    finish(state, A, "x")
    for address in (B, C):
        state.worker_joined(1.0, worker_info(address))
    state.keys_added(1.1, B, KeysAdded((X,)))
    state.worker_leaving(2.0, A, "enough")  # and stays for what it runs
    sent(state)
    if how == "its holder dies":
        state.worker_lost(3.0, B)
    else:
        state.keys_dropped(3.0, B, KeysDropped((X,)))
    [(target, asked)] = sent(state).items()
    assert asked == [TAKE_X]
    finish(state, A, "y")
    sent(state)
    state.keys_added(4.0, target, KeysAdded((X,)))
    state.keys_added(4.0, target, KeysAdded((Version("y", state.tasks["y"].attempt),)))
    assert sent(state) == {A: [END]}


def test_a_value_whose_copies_are_lost_one_after_the_other_moves_again() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    finish(state, A, "x", "y")
    for address in (B, C, D):
        state.worker_joined(1.0, worker_info(address))
    sent(state)
    state.worker_leaving(2.0, A, "enough")
    asked = {m.dependencies[0].key: address for address, [m] in sent(state).items()}
    others = [address for address in (B, C, D) if address != asked["x"]]
    last = next(address for address in others if address != asked["y"])
    for address in (asked["x"], last):  # and `y` is on its way
        state.keys_added(3.0, address, KeysAdded((X,)))
    state.worker_lost(4.0, asked["x"])
    assert sent(state) == {}
    state.worker_lost(5.0, last)
    [(_, messages)] = sent(state).items()
    assert [d.key for m in messages for d in m.dependencies] == ["x"]


# -- Those that are killed before they are done ---------------------------------------------------


@pytest.mark.parametrize("warned", [True, False])
def test_no_task_is_to_blame_for_a_worker_that_is_killed_while_it_leaves(warned) -> None:
    state = started(A, allowed_failures=0)
    submit(state, {"x": []})
    state.worker_joined(1.0, worker_info(B))
    if warned:
        state.worker_leaving(2.0, A, "its job is to end")
    assert state.would_give_up(A) is not warned
    sent(state)
    state.worker_lost(3.0, A)
    assert (state.tasks["x"].failures, state.tasks["x"].state) == (
        (0, "processing") if warned else (1, "erred")
    )


def test_what_cannot_be_computed_again_moves_first_and_then_what_is_small() -> None:
    state = started(A)
    submit(state, {"large": [], "small": []})
    finish(state, A, "large", nbytes=1_000_000)
    finish(state, A, "small", nbytes=100)
    scatter(state, "scattered")
    state.worker_joined(1.0, worker_info(B))
    sent(state)
    state.worker_leaving(2.0, A, "enough")
    [acquire] = sent(state)[B]
    assert [d.key for d in acquire.dependencies] == ["scattered", "small", "large"]


# -- Those that wait for others -------------------------------------------------------------------


def waiting(*others: str) -> SchedulerState:
    """A scheduler with A, which holds x and is leaving, and waits if nobody can take that."""
    state = started(A)
    submit(state, {"x": []})
    finish(state, A, "x")
    for address in others:
        state.worker_joined(1.0, worker_info(address))
    sent(state)
    state.worker_leaving(2.0, A, "its job is to end", waits=True)
    return state


TAKE_X = AcquireKeys((Dependency("x", 1, 8, (A,)),))


def test_a_value_waits_for_a_worker_that_can_take_it() -> None:
    state = waiting()
    state.tick(3.0)
    assert sent(state) == {}
    assert state.would_lose(A) == 0
    state.worker_joined(4.0, worker_info(B))
    assert sent(state) == {B: [TAKE_X]}
    state.worker_joined(5.0, worker_info(C))
    assert sent(state) == {}
    state.keys_added(6.0, B, KeysAdded((X,)))
    assert sent(state) == {A: [END]}


def test_when_nobody_stays_any_more_it_waits_for_the_next() -> None:
    state = waiting(B)
    assert sent(state) == {B: [TAKE_X]}
    state.worker_lost(3.0, B)
    assert sent(state) == {}
    state.worker_joined(4.0, worker_info(C))
    assert sent(state) == {C: [TAKE_X]}


def test_who_was_to_take_a_value_and_leaves_as_well_does_not_count() -> None:
    state = waiting(B)
    sent(state)
    state.worker_leaving(3.0, B, "so is its", waits=True)
    assert sent(state) == {B: [END]}
    state.keys_added(3.1, B, KeysAdded((X,)))
    state.worker_joined(4.0, worker_info(C))
    assert [d.key for d in sent(state)[C][0].dependencies] == ["x"]
    state.worker_lost(5.0, B, planned=True)
    assert sent(state) == {}
    state.keys_added(6.0, C, KeysAdded((X,)))
    assert sent(state) == {A: [END]}


def test_what_has_come_to_one_that_leaves_has_to_move_on() -> None:
    state = waiting(B)
    state.keys_added(3.0, B, KeysAdded((X,)))
    sent(state)
    state.worker_leaving(4.0, B, "so is its", waits=True)
    assert sent(state) == {}
    state.worker_joined(5.0, worker_info(C))
    assert [d.key for d in sent(state)[C][0].dependencies] == ["x"]
    state.keys_added(6.0, C, KeysAdded((X,)))
    assert sent(state) == {B: [END]}


def test_who_has_nothing_that_is_needed_waits_for_nobody() -> None:
    state = waiting()
    release(state, "x")
    assert sent(state) == {A: [free(("x", 1)), END]}


# -- Names are no addresses -----------------------------------------------------------------------


def test_workers_may_share_a_name_and_each_has_a_life_of_its_own() -> None:
    """As when a job was started again, and the node of its first life has only lost its network."""
    state = started()
    for address in (A, B):
        state.worker_joined(0.0, worker_info(address)._replace(name="5_1-0"))
    assert [worker.address for worker in state.find_workers(["5_1-0"])] == [A, B]
    specs = tuple(TaskSpec(key, 0, b"", ()) for key in "xy")
    here = Restriction(("5_1-0",), False, ())
    state.tasks_submitted(
        0.0, "c", SubmitTasks(1, (F,), specs, None, 0, 0.0, 0, True, restriction=here)
    )
    messages = sent(state)
    assert [m.key for a in (A, B) for m in messages[a] if type(m) is ComputeTask] == ["x", "y"]
    state.worker_lost(1.0, A)
    assert computed(state, B) == ["x"]
    assert [worker.address for worker in state.find_workers(["5_1-0"])] == [B]
