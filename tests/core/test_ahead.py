"""Tasks that are sent to a worker ahead of inputs which are being computed there."""

from __future__ import annotations

from core_helpers import (
    BOOM,
    DEFINE,
    A,
    B,
    assert_sent,
    compute,
    computed,
    done,
    err,
    finish,
    free,
    sent,
    started,
    submit,
)

from hpcdask.core import ahead
from hpcdask.messages import Dependency, GivenBack, Version

CHAIN = {"x": [], "y": ["x"], "z": ["y"]}


def test_a_chain_is_sent_at_once_to_one_worker() -> None:
    state = started(A, B)
    submit(state, CHAIN, wanted=["z"])
    to_come = Dependency("x", 1, 0, (A,)), Dependency("y", 2, 0, (A,))
    assert_sent(
        state,
        {
            A: [
                DEFINE,
                compute("x", 1, wanted=False),
                compute("y", 2, to_come[0], position=1, wanted=False),
                compute("z", 3, to_come[1], position=2),
            ]
        },
    )
    finish(state, A, "x")
    assert_sent(state, {})
    finish(state, A, "y")
    assert_sent(state, {A: [free(("x", 1))]})
    finish(state, A, "z")
    assert_sent(state, {A: [free(("y", 2))], "c": [done("z")]})


def test_what_was_sent_ahead_takes_no_room_of_what_can_run() -> None:
    state = started(A)
    submit(state, CHAIN)
    submit(state, {"u": []}, submission=2)
    assert computed(state, A) == ["x", "y", "z", "u"]
    (worker,) = state.workers.values()
    assert (worker.n_ahead, worker.n_runnable) == (2, 2)


def test_inputs_on_two_workers_send_nothing_ahead() -> None:
    state = started(A, B)
    submit(state, {"x": [], "y": [], "z": ["x", "y"]})
    assert "z" not in computed(state, A)
    finish(state, A, "x")
    assert state.tasks["z"].state == "waiting" or state.tasks["z"].worker is state.workers[B]


def test_a_task_follows_the_input_that_is_still_to_come() -> None:
    state = started(A, B)
    submit(state, {"x": [], "y": [], "z": ["x", "y"]})
    sent(state)
    finish(state, A, "x")
    x, y = Dependency("x", 1, 8, (A,)), Dependency("y", 2, 0, (B,))
    assert sent(state)[B] == [compute("z", 3, x, y, position=2)]


def test_inputs_of_many_are_not_followed_by_all_of_them() -> None:
    state = started(A, B)
    submit(state, {"x": [], **{f"y{i}": ["x"] for i in range(10)}})
    assert computed(state, A) == ["x"]


def test_how_much_is_sent_ahead_is_bounded(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(ahead, "MAX_AHEAD", 3)
    state = started(A)
    submit(state, {"x0": [], **{f"x{i}": [f"x{i - 1}"] for i in range(1, 10)}}, wanted=["x9"])
    assert computed(state, A) == ["x0", "x1", "x2", "x3"]
    for i in range(3):
        finish(state, A, f"x{i}")
    assert computed(state, A) == ["x4", "x5", "x6"]


def test_an_error_takes_back_all_that_was_sent_ahead_of_it() -> None:
    state = started(A)
    submit(state, CHAIN, wanted=["z"])
    sent(state)
    err(state, A, "x")
    messages = sent(state)
    assert messages[A] == [free(("y", 2)), free(("z", 3))]
    assert state.tasks["z"].state == "erred"
    assert state.tasks["z"].error == BOOM


def test_a_retry_is_followed_again() -> None:
    state = started(A)
    submit(state, CHAIN, wanted=["z"], retries=1)
    sent(state)
    err(state, A, "x")
    messages = sent(state)[A]
    assert messages[:2] == [free(("y", 2)), free(("z", 3))]
    assert [m.key for m in messages[2:]] == ["x", "y", "z"]


def test_a_lost_worker_takes_the_chain_with_it_and_another_gets_it_whole() -> None:
    state = started(A, B)
    submit(state, CHAIN, wanted=["z"])
    sent(state)
    finish(state, A, "x")
    sent(state)
    state.worker_lost(1.0, A)
    assert computed(state, B) == ["x", "y", "z"]


def test_a_task_given_back_takes_along_what_was_sent_ahead_of_it() -> None:
    state = started(A)
    submit(state, CHAIN, wanted=["z"])
    sent(state)
    versions = (Version("z", 3), Version("y", 2), Version("x", 1))
    state.given_back(1.0, A, GivenBack(versions))
    assert computed(state, A) == ["x", "y", "z"]
