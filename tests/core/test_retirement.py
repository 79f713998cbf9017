"""Workers that leave on purpose lose nothing."""

from __future__ import annotations

from core_helpers import A, B, C, computed, finish, free, release, sent, started, submit

from hpcdask.messages import (
    AcquireKeys,
    CloseWorker,
    Dependency,
    GivenBack,
    KeysAdded,
    NotAcquired,
    TakeBack,
    Version,
)

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
