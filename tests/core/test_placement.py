"""Who gets a task, how much is sent ahead, and that neither takes a look at everything."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from core_helpers import A, B, computed, finish, release, scatter, sent, started, submit

from hpcdask.core.placement import MAX_PREFETCH
from hpcdask.core.scheduler_state import SchedulerState


def test_a_task_goes_where_its_inputs_are() -> None:
    state = started(A, B)
    submit(state, {"small": [], "large": [], "z": ["small", "large"]})
    finish(state, A, "small")
    finish(state, B, "large", nbytes=10**9)
    assert computed(state, B) == ["large", "z"]


def test_a_task_leaves_its_small_input_for_a_free_worker() -> None:
    state = started(A, B)
    scatter(state, "d")
    holder = state.locate("d").addresses[0]
    other = {A: B, B: A}[holder]
    submit(state, {"y0": ["d"], "y1": ["d"]})
    found = sent(state)
    assert "y0" in [getattr(m, "key", None) for m in found[holder]]
    assert "y1" in [getattr(m, "key", None) for m in found[other]]


def test_a_task_stays_with_a_large_input_although_its_worker_is_busy() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    finish(state, A, "x", nbytes=10**11)
    submit(state, {f"y{i}": ["x"] for i in range(4)}, submission=2)
    assert computed(state, A) == ["x", "y0", "y1", "y2", "y3"]


def test_a_large_input_that_many_hold_is_not_fetched_by_a_worker_that_lacks_it() -> None:
    holders = [f"tcp://10.0.2.{i}:1" for i in range(20)]
    state = started(*holders)
    scatter(state, "d", broadcast=True)
    state.tasks["d"].nbytes = 10**11
    for worker in state.workers.values():
        worker.nbytes = 10**11
    submit(state, {f"f{i}": [] for i in range(40)})  # everyone is busy
    state.worker_joined(1.0, state.workers[holders[0]].info._replace(address=B, name="new"))
    submit(state, {"y": ["d"]}, submission=2)
    assert state.tasks["y"].worker is not state.workers[B]


def test_tasks_without_inputs_spread_over_free_threads_first() -> None:
    state = started(A, B, nthreads=2)
    submit(state, {f"x{i}": [] for i in range(4)})
    assert {len(worker.processing) for worker in state.workers.values()} == {2}


def test_of_tasks_of_unknown_length_one_more_than_threads_is_sent_ahead() -> None:
    state = started(A)
    submit(state, {f"x{i}": [] for i in range(10)})
    assert len(computed(state, A)) == 2
    assert state.lanes.open.n_queued == 8


def test_of_long_tasks_one_more_than_threads_is_sent_ahead() -> None:
    state = started(A, nthreads=3)
    submit(state, {f"x{i}": [] for i in range(20)})
    assert len(computed(state, A)) == 4
    finish(state, A, "x0", duration=2.0)
    assert len(computed(state, A)) == 1


def test_short_tasks_are_sent_ahead_by_hundreds() -> None:
    state = started(A)
    submit(state, {f"x{i}": [] for i in range(2000)})
    assert len(computed(state, A)) == 2
    finish(state, A, "x0", "x1", duration=0.0)
    assert 200 < len(computed(state, A)) <= MAX_PREFETCH


def test_the_queue_keeps_no_million_of_released_tasks() -> None:
    state = started(A)
    submit(state, {"first": [], "second": []})
    submit(state, {"waits": []}, submission=2)
    for number in range(50):
        keys = [f"x{number}-{i}" for i in range(100)]
        submit(state, dict.fromkeys(keys, ()), submission=3 + number)
        release(state, *keys)
    assert state.lanes.open.n_queued == 1
    assert len(state.lanes.open._queue) < 1200
    finish(state, A, "first")
    assert computed(state, A)[-1] == "waits"


def operations(state: SchedulerState, n_tasks: int) -> float:
    """Python lines and calls that one task takes, from submission to release."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        keys = [f"x{i}" for i in range(n_tasks)]
        submit(state, {key: ["d"] if i % 2 else [] for i, key in enumerate(keys)})
        left = set(keys)
        while left:
            running = [state.tasks[key] for key in left if state.tasks[key].worker]
            for task in running:
                assert task.worker is not None
                finish(state, task.worker.address, task.key, duration=0.001)
                left.discard(task.key)
        release(state, *keys)
    finally:
        sys.settrace(before)
    return count / n_tasks


def test_a_task_costs_as_much_among_two_thousand_workers_as_among_ten() -> None:
    few = started(*[f"tcp://few:{i}" for i in range(10)])
    many = started(*[f"tcp://many:{i}" for i in range(2000)])
    for state in (few, many):
        scatter(state, "d", broadcast=True)
        state.outbox = {}
        submit(state, {"warm": []})
        warm = state.tasks["warm"].worker
        assert warm is not None
        finish(state, warm.address, "warm", duration=0.001)
    assert operations(many, 300) < 2 * operations(few, 300)


def test_a_task_costs_as_much_among_many_tasks_as_among_few() -> None:
    few, many = started(A, B), started(A, B)
    for state in (few, many):
        scatter(state, "d", broadcast=True)
    assert operations(many, 3000) < 2 * operations(few, 300)


def test_tasks_that_share_a_small_input_wait_in_line_and_not_all_where_it_is() -> None:
    state = started(A, B)
    submit(state, {"x": [], **{f"y{i}": ["x"] for i in range(100)}})
    finish(state, A, "x")
    assert len(state.workers[A].processing) + len(state.workers[B].processing) == 4
    assert state.lanes.open.n_queued == 96
