"""Each state of a task is explained: what it waits for, and what would help."""

from __future__ import annotations

from core_helpers import (
    BOOM,
    A,
    B,
    F,
    cancel,
    err,
    finish,
    release,
    scatter,
    started,
    submit,
    worker_info,
)

from hpcdask.core.explaining import explain
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.messages import Restriction, TaskSpec
from hpcdask.messages.client import SubmitTasks


def restricted(state: SchedulerState, restriction: Restriction, *keys: str) -> None:
    specs = tuple(TaskSpec(key, 0, b"", ()) for key in keys)
    msg = SubmitTasks(9, (F,), specs, None, 0, 0.0, 0, True, 0, restriction)
    state.tasks_submitted(0.0, "c", msg)


def test_a_key_that_is_not_known_any_more() -> None:
    state = started(A)
    submit(state, {"x": []})
    cancel(state, "x")
    assert explain(state, "x") == (
        "The scheduler does not know 'x': it was never submitted here, or nobody holds a future of "
        "it any more, or it was cancelled."
    )


def test_a_task_that_waits_tells_for_which_inputs_in_which_state() -> None:
    state = started(A, B)
    submit(state, {"a": [], "b": [], "c": [], "d": ["a", "b", "c"]}, wanted=["d"])
    text = explain(state, "d")
    assert text.startswith("'d' is waiting for inputs. It waits for 3 of its 3 inputs: ")
    assert "'a' (with a worker), 'b' (with a worker), 'c' (with a worker)." in text
    finish(state, A, "a")
    assert "It waits for 2 of its 3 inputs: 'b' (with a worker), 'c' " in explain(state, "d")


def test_a_task_far_down_tells_what_all_waits_for_in_the_end() -> None:
    state = started(A)
    restricted(state, Restriction((), False, (("GPU", 1.0),)), "a")
    submit(state, {"b": ["a"], "c": ["b"]}, submission=10)
    text = explain(state, "c")
    assert "It waits for 1 of its 1 inputs: 'b' (waiting itself)." in text
    assert "In the end it waits for 1 task without a worker." in text
    assert text.endswith(
        "'a' is without a worker. No worker may run it: it needs GPU=1: 0 of 1 workers have that. "
        f"Of these worker 'name of {A}' ({A}) has GPU=0. "
        "It is kept until a worker joins that may run it."
    )


def test_a_queued_task_tells_who_has_no_room_and_who_comes_before_it() -> None:
    state = started(A)
    submit(state, {f"x{i}": [] for i in range(6)})
    assert [state.tasks[f"x{i}"].state for i in (1, 2, 5)] == ["processing", "queued", "queued"]
    assert explain(state, "x4") == (
        "'x4' is queued. Its inputs are there, but of 1 worker that may run it 1 has no room: "
        f"worker 'name of {A}' ({A}) has 2 tasks for 1 thread. "
        "2 queued tasks come before it, 1 after it."
    )


def test_a_task_that_waits_for_a_resource_tells_how_much_is_free() -> None:
    state = started()
    info = worker_info(A, nthreads=4)._replace(resources=(("GPU", 2.0),))
    state.worker_joined(0.0, info)
    restricted(state, Restriction(("host",), False, (("GPU", 2.0),)), "x", "y")
    assert explain(state, "y") == (
        "'y' is queued. Its inputs are there, but of 1 worker that may run it 1 has no room: "
        f"worker 'name of {A}' ({A}) has 1 task for 4 threads, GPU=0 free. "
        "0 queued tasks come before it, 0 after it. It may run on 'host' only. "
        "It takes GPU=2 of its worker while it runs."
    )


def test_a_task_without_a_worker_tells_which_names_are_missing() -> None:
    state = started(A)
    restricted(state, Restriction(("far",), False, ()), "x")
    assert explain(state, "x") == (
        "'x' is without a worker. No worker may run it: it may only run on 'far': 0 of these are "
        "here. It is kept until a worker joins that may run it."
    )


def test_a_task_with_a_worker_tells_where_and_how_many_come_first() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []}, retries=2)
    assert explain(state, "x") == (
        f"'x' is with a worker. It was sent to worker 'name of {A}' ({A}). "
        "The worker has 1 thread: it runs, or is about to. "
        "If it raises it is tried again, 2 times more."
    )
    assert "1 tasks that were sent there come before it, for 1 thread" in explain(state, "y")
    state.worker_leaving(1.0, A, "walltime", waits=True)
    assert "That worker is to end" in explain(state, "x")


def test_a_task_that_was_sent_ahead_tells_of_what() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"]}, wanted=["y"])
    assert "It was sent ahead of 'x', which is being computed there." in explain(state, "y")


def test_a_task_that_killed_a_worker_tells_so() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    state.worker_lost(1.0, A)
    assert "1 worker died that may have been running it." in explain(state, "x")


def test_a_value_tells_where_it_is_and_for_whom() -> None:
    state = started(A)
    submit(state, {"x": []})
    finish(state, A, "x", nbytes=80)
    assert explain(state, "x") == (
        f"'x' is done. Its value of 80 bytes is on worker 'name of {A}' ({A}). "
        "It is kept for 1 client and 0 tasks still to run."
    )
    scatter(state, "data")
    assert explain(state, "data").endswith("if its workers are lost it cannot be computed again.")


def test_a_released_task_tells_what_it_is_kept_for() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"]}, wanted=["y"])
    finish(state, A, "x")
    finish(state, A, "y")
    assert explain(state, "x") == (
        "'x' is released. Nobody needs its value now; it is remembered as an input of 'y', should "
        "that have to be computed again."
    )
    release(state, "y")
    assert "does not know 'y'" in explain(state, "y")


def test_a_failed_task_tells_where_it_failed_and_its_dependents_of_which() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"]}, wanted=["x", "y"])
    err(state, A, "x", BOOM)
    assert explain(state, "x") == (
        f"'x' is in error. It failed on {A}, in f (script.py, line 3). Client.retry runs it again."
    )
    assert "It was not run, since 'x', which it depends on, failed on" in explain(state, "y")


def test_every_state_has_an_explanation() -> None:
    from hpcdask.core import explaining
    from hpcdask.core.transitions import MOVES

    known = set(MOVES) - {"forgotten"}
    assert set(explaining._EXPLANATIONS) == set(explaining._STATES) == known
