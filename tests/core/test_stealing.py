"""Work is taken back for workers that have none."""

from __future__ import annotations

from core_helpers import A, B, C, assert_sent, computed, finish, sent, started, submit, worker_info

from hpcdask.messages import DataMissing, GivenBack, TakeBack, ThreadsLent, Version


def test_a_worker_that_joins_gets_what_another_has_not_started() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    assert computed(state, A) == ["x", "y"]
    state.worker_joined(1.0, worker_info(B))
    assert sent(state) == {A: [TakeBack((Version("y", 2),))]}
    state.given_back(1.1, A, GivenBack((Version("y", 2),)))
    assert computed(state, B) == ["y"]


def test_nothing_is_taken_back_where_that_is_switched_off() -> None:
    state = started(A)
    state.work_stealing = False
    submit(state, {"x": [], "y": []})
    assert computed(state, A) == ["x", "y"]
    state.worker_joined(1.0, worker_info(B))
    state.tick(2.0)
    assert sent(state) == {}


def test_what_has_started_meanwhile_stays() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    state.worker_joined(1.0, worker_info(B))
    sent(state)
    finish(state, A, "x", "y")
    state.given_back(1.1, A, GivenBack((Version("y", 2),)))
    sent(state)
    assert state.tasks["y"].state == "memory"


def test_a_task_is_asked_back_once() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    state.worker_joined(1.0, worker_info(B))
    sent(state)
    state.tick(2.0)
    assert sent(state) == {}


def test_a_worker_that_is_slower_than_thought_is_relieved_by_the_clock() -> None:
    state = started(A, B)
    submit(state, {f"w{i}": [] for i in range(4)})
    for key in ("w0", "w1", "w2", "w3"):
        where = state.tasks[key].worker
        assert where is not None
        finish(state, where.address, key, duration=1e-5)
    submit(state, {f"x{i}": [] for i in range(20)}, submission=2)
    sent(state)
    for task in list(state.workers[B].processing):
        finish(state, B, task.key, duration=1e-5)
    assert sent(state).keys() == {"c"}  # they take microseconds, it seems
    state.tick(1.0)
    (message,) = sent(state)[A]
    assert len(message.versions) == 5
    assert Version("x0", state.tasks["x0"].attempt) not in message.versions


def test_nobody_is_relieved_of_the_only_task_that_runs() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    sent(state)
    state.tick(1.0)
    assert sent(state) == {}


def test_what_is_given_back_goes_to_who_asked_for_it_although_its_input_is_elsewhere() -> None:
    state = started(A)
    submit(state, {"x": [], "y0": ["x"], "y1": ["x"]})
    finish(state, A, "x", nbytes=250_000_000)
    sent(state)
    state.worker_joined(1.0, worker_info(B))
    (message,) = sent(state)[A]
    state.given_back(2.1, A, GivenBack(message.versions))
    assert computed(state, B) == ["y1"]


def test_what_a_worker_cannot_get_the_inputs_of_is_not_taken_back_for_it_and_all_else_is() -> None:
    state = started(A)
    submit(state, {"x": [], **{f"y{i}": ["x"] for i in range(5)}})
    finish(state, A, "x")
    sent(state)
    state.worker_joined(1.0, worker_info(B))
    asked = sent(state)[A][0].versions
    assert [version.key for version in asked] == ["y4", "y3"]
    for version in asked:
        state.given_back(1.1, A, GivenBack((version,)))
        task = state.tasks[version.key]
        assert task.worker is state.workers[B]
        missing = DataMissing(task.key, task.attempt, Version("x", 1), A, "no answer")
        state.data_missing(1.2, B, missing)
    assert [task.key for task in state.workers[A].processing] == ["y0", "y1", "y2", "y4", "y3"]
    sent(state)
    state.tick(2.0)
    asked = sent(state)[A][0].versions
    assert [version.key for version in asked] == ["y2", "y1"]
    state.worker_joined(3.0, worker_info(C))  # which has not tried
    assert [version.key for version in sent(state)[A][0].versions] == ["y3"]


def test_a_worker_whose_threads_are_busy_with_what_was_given_up_gets_no_task() -> None:
    state = started(A, B)
    state.threads_lent(1.0, A, ThreadsLent(-1))
    submit(state, {f"x{i}": [] for i in range(4)})
    assert computed(state, A) == []
    assert len(state.workers[B].processing) == 2
    state.threads_lent(2.0, A, ThreadsLent(0))
    assert len(computed(state, A)) == 2


def test_what_a_worker_was_sent_before_its_threads_got_stuck_goes_to_another() -> None:
    state = started(A)
    submit(state, {"x": []})
    sent(state)
    state.worker_joined(1.0, worker_info(B))
    state.threads_lent(1.0, A, ThreadsLent(-1))
    sent(state)
    state.tick(1.1)
    assert_sent(state, {A: [TakeBack((Version("x", 1),))]})


def test_an_input_at_a_worker_whose_threads_are_stuck_goes_to_one_with_a_thread() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    finish(state, A, "x")
    sent(state)
    state.threads_lent(1.0, A, ThreadsLent(-1))
    submit(state, {"y": ["x"]}, submission=2)
    assert state.tasks["y"].worker is state.workers[B]
    sent(state)
