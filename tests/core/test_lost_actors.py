"""Actors as the scheduler sees them: each on one worker, made once, and gone with it."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
from core_helpers import (
    A,
    B,
    C,
    F,
    computed,
    finish,
    free,
    release,
    sent,
    started,
    submit,
    worker_info,
)

from hpcdask.core.copying import Replication, Round
from hpcdask.core.definition import definition_of
from hpcdask.core.explaining import explain
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.validation import validate_scheduler
from hpcdask.errors import LostActorError
from hpcdask.launchers.stock import take_stock
from hpcdask.messages import (
    CloseWorker,
    ComputeTask,
    DataMissing,
    HeldValue,
    KeysAdded,
    KeysDropped,
    Message,
    Restriction,
    TaskSpec,
    Version,
)
from hpcdask.messages.client import SubmitTasks, TaskDone, TaskFailed, WantKeys

ACTOR = Restriction((), False, (), True)
MEANT = definition_of(F.function_id, b"")


def submit_actor(state: SchedulerState, key: str, *needs: str, submission: int = 9) -> None:
    spec = TaskSpec(key, 0, b"", needs)
    msg = SubmitTasks(submission, (F,), (spec,), None, 0, 0.0, 0, True, 0, ACTOR)
    state.tasks_submitted(0.0, "c", msg)


def with_actor(*addresses: str) -> tuple[SchedulerState, str, str]:
    """A state, where the actor "a" lives, and another worker."""
    state = started(*addresses)
    submit_actor(state, "a")
    found = sent(state)
    home = next(w for w in found if any(type(m) is ComputeTask for m in found[w]))
    finish(state, home, "a", nbytes=100)
    sent(state)
    return state, home, next(address for address in addresses if address != home)


def failed(messages: list[Message]) -> dict[str, str]:
    """Keys that failed since an actor was lost, and what was said."""
    found = {}
    for message in messages:
        assert type(message) is TaskFailed, message
        exc = pickle.loads(message.error.exception)  # type: ignore[arg-type]
        assert isinstance(exc, LostActorError)
        found[message.key] = str(exc)
    return found


@pytest.mark.parametrize("has_copy", [False, True])
@pytest.mark.parametrize("planned", [False, True])
def test_an_actor_ends_with_its_worker_whatever_copies_there_are(
    has_copy: bool, planned: bool
) -> None:
    state, home, other = with_actor(A, B)
    version = Version("a", state.tasks["a"].attempt)
    if has_copy:
        state.keys_added(1.0, other, KeysAdded((version,)))
    assert sent(state) == {}
    state.worker_lost(2.0, home, planned, "was killed by SIGKILL")
    found = sent(state)
    said = failed(found.pop("c"))
    assert home in said["a"]
    assert "was killed by SIGKILL" in said["a"]
    assert found == ({other: [free(version)]} if has_copy else {})
    assert state.tasks["a"].state == "erred"


def test_what_needs_a_lost_actor_fails_now_and_later() -> None:
    state, home, _other = with_actor(A, B)
    submit(state, {"x": ["a"]})
    state.worker_lost(2.0, home)
    sent(state)
    assert state.tasks["x"].state == "erred"
    submit(state, {"y": ["a"]}, submission=2)
    assert failed(sent(state)["c"]).keys() == {"y"}


def test_a_worker_with_an_actor_is_not_idle() -> None:
    state, home, other = with_actor(A, B)
    assert state.has_work
    scheduler = SimpleNamespace(
        state=state, hooks=SimpleNamespace(workers_to_spare=lambda workers: workers)
    )
    stock = {worker.name: worker.is_busy for worker in take_stock(scheduler).workers}
    assert stock == {f"name of {home}": True, f"name of {other}": False}
    release(state, "a")
    assert not state.has_work


def test_a_copy_is_no_actor() -> None:
    state, home, other = with_actor(A, B)
    version = Version("a", state.tasks["a"].attempt)
    state.keys_added(1.0, other, KeysAdded((version,)))
    state.worker_lost(2.0, other)
    assert sent(state) == {}
    assert list(state.workers[home].actors) == [state.tasks["a"]]


def test_a_worker_that_says_it_has_lost_an_actor_has() -> None:
    state, home, _ = with_actor(A, B)
    state.keys_dropped(1.0, home, KeysDropped((Version("a", state.tasks["a"].attempt),)))
    assert failed(sent(state)["c"]).keys() == {"a"}


def test_an_actor_whose_worker_dies_while_it_is_made_is_made_elsewhere() -> None:
    state = started(A, B)
    submit_actor(state, "a")
    found = sent(state)
    [home] = [w for w in found if any(type(m) is ComputeTask for m in found[w])]
    state.worker_lost(1.0, home)
    assert computed(state, B if home == A else A) == ["a"]


def test_an_actor_is_not_made_again_for_what_was_computed_by_it() -> None:
    state, _home, _other = with_actor(A, B)
    submit(state, {"x": ["a"]})
    at = state.tasks["x"].worker
    assert at is not None
    finish(state, at.address, "x")
    release(state, "a")
    sent(state)
    assert state.tasks["a"].state == "released"
    state.keys_dropped(2.0, at.address, KeysDropped((Version("x", state.tasks["x"].attempt),)))
    found = sent(state)["c"]
    assert failed(found[1:])["x"].endswith("is not made a second time")  # first that it is lost


def test_a_key_may_be_given_to_another_actor() -> None:
    state, home, other = with_actor(A, B)
    submit(state, {"x": ["a"]})
    state.worker_lost(2.0, home)
    sent(state)
    submit_actor(state, "a", submission=10)
    assert computed(state, other) == ["a"]


def test_a_leaving_worker_neither_moves_its_actors_nor_waits_for_them() -> None:
    state, home, _other = with_actor(A, B)
    assert state.would_give_up(home)
    state.worker_leaving(1.0, home, "enough")
    assert sent(state) == {home: [CloseWorker("it has retired")]}
    assert state.would_lose(home) == 0
    state.worker_lost(1.1, home, planned=True)
    assert failed(sent(state)["c"]).keys() == {"a"}


def test_an_actor_out_of_reach_of_others_is_left_alone() -> None:
    state, home, _other = with_actor(A, B, C)
    attempt = state.tasks["a"].attempt
    submit(state, {"x": ["a"]})
    for _ in range(20):
        task = state.tasks["x"]
        if task.worker is None:
            break
        where = task.worker.address
        missing = DataMissing("x", task.attempt, Version("a", attempt), home, "no route")
        state.data_missing(1.0, where, missing)
    assert state.tasks["x"].state == "erred"
    assert state.tasks["a"].state == "memory"
    assert state.tasks["a"].attempt == attempt


def returns(state: SchedulerState, address: str, *values: HeldValue) -> None:
    state.worker_joined(3.0, worker_info(address)._replace(returns=True, values=values))


def test_an_actor_that_was_only_out_of_touch_comes_back() -> None:
    state, home, other = with_actor(A, B)
    attempt = state.tasks["a"].attempt
    state.keys_added(1.0, other, KeysAdded((Version("a", attempt),)))
    state.worker_lost(2.0, home)
    state.worker_lost(2.0, other)
    sent(state)
    returns(state, other, HeldValue("a", attempt, 8, 0))
    assert sent(state) == {other: [free(("a", attempt))]}, "a copy is no actor"
    returns(state, home, HeldValue("a", attempt, 8, MEANT))
    assert sent(state) == {"c": [TaskDone("a", 8, None)]}
    assert list(state.workers[home].actors) == [state.tasks["a"]]
    state.worker_lost(4.0, home)
    assert failed(sent(state)["c"]).keys() == {"a"}


def test_an_actor_of_another_life_of_its_key_does_not_come_back() -> None:
    state, home, other = with_actor(A, B)
    old = state.tasks["a"].attempt
    submit(state, {"x": ["a"]})
    state.worker_lost(2.0, home)
    submit_actor(state, "a", submission=10)
    finish(state, other, "a")
    state.worker_lost(2.5, other)
    sent(state)
    returns(state, home, HeldValue("a", old, 8, MEANT))
    assert sent(state) == {home: [free(("a", old))]}


@pytest.mark.parametrize("has_home", [True, False])
def test_a_new_scheduler_finds_an_actor_where_it_was_made(has_home: bool) -> None:
    state = SchedulerState(first_attempt=1000)
    if has_home:
        returns(state, A, HeldValue("a", 7, 8, MEANT))
    returns(state, B, HeldValue("a", 7, 8, 0))
    state.client_returned(3.0, "c")
    submit_actor(state, "a")  # it had not heard that the actor is there
    state.all_told(3.0, "c")
    state.tick(100.0)
    found = sent(state)
    if has_home:
        assert list(state.workers[A].actors) == [state.tasks["a"]]
        assert state.tasks["a"].attempt == 7
    else:
        assert free(("a", 7)) in found[B]
        assert state.tasks["a"].state == "processing"  # it is made, as nothing is known of it


@pytest.mark.parametrize("first", [A, B], ids=["the actor first", "a copy first"])
def test_an_actor_whose_recipe_is_lost_with_its_scheduler_stays_one(first: str) -> None:
    state = SchedulerState(first_attempt=1000)
    held = {A: HeldValue("a", 7, 8, MEANT, is_actor=True), B: HeldValue("a", 7, 8, 0)}
    for address in (first, *{A, B} - {first}):
        returns(state, address, held[address])
    state.client_returned(3.0, "c")
    state.keys_wanted(3.0, "c", WantKeys(("a",), 1))
    state.all_told(3.0, "c")
    state.tick(100.0)
    task = state.tasks["a"]
    assert task.lane.is_actor
    assert task.who_has.keys() == {state.workers[A], state.workers[B]}
    assert list(state.workers[A].actors) == [task]
    assert "scattered" not in explain(state, "a")
    validate_scheduler(state)
    sent(state)
    state.worker_lost(200.0, A)
    assert failed(sent(state)["c"]).keys() == {"a"}
    validate_scheduler(state)


def test_a_released_actor_is_freed_everywhere() -> None:
    state, home, other = with_actor(A, B)
    version = Version("a", state.tasks["a"].attempt)
    state.keys_added(1.0, other, KeysAdded((version,)))
    release(state, "a")
    assert sent(state) == {home: [free(version)], other: [free(version)]}
    assert not state.tasks


def test_an_actor_is_not_replicated_and_tells_where_it_lives() -> None:
    state, home, _other = with_actor(A, B)
    plan = Replication(state.workers, [state.tasks["a"]], state.named_workers(()), 0, 2)
    assert plan.next_round() == Round([], [], {})
    assert not plan.goes_on
    assert f"It is an actor, which lives on worker 'name of {home}'" in explain(state, "a")
