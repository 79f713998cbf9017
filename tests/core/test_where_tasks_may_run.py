"""Restrictions and resources, as the scheduler's state sees them."""

from __future__ import annotations

from core_helpers import A, B, C, F, computed, finish, sent, started, worker_info

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.messages import Restriction, TaskSpec
from hpcdask.messages.client import SubmitTasks

GPU = Restriction((), False, (("GPU", 1.0),))


def submit(state: SchedulerState, restriction: Restriction, *keys: str, needs: str = "") -> None:
    specs = tuple(TaskSpec(key, 0, b"", (needs,) if needs else ()) for key in keys)
    msg = SubmitTasks(len(state.tasks), (F,), specs, None, 0, 0.0, 0, True, 0, restriction)
    state.tasks_submitted(0.0, "c", msg)


def join(state: SchedulerState, address: str, nthreads: int = 1, **resources: float) -> None:
    info = worker_info(address, nthreads)
    state.worker_joined(1.0, info._replace(resources=tuple(sorted(resources.items()))))


def test_a_task_runs_where_its_resources_are_and_no_more_at_a_time_than_there_is() -> None:
    state = started(A)
    join(state, B, nthreads=4, GPU=2)
    submit(state, GPU, "x", "y", "z")
    messages = sent(state)
    assert [m.key for m in messages[B][1:]] == ["x", "y"]
    assert [m.resources for m in messages[B][1:]] == [(("GPU", 1.0),)] * 2
    assert A not in messages
    finish(state, B, "x")
    assert computed(state, B) == ["z"]


def test_a_task_that_no_worker_may_run_says_why_and_runs_when_one_comes() -> None:
    state = started(A)
    submit(state, GPU, "x")
    assert sent(state) == {}
    assert state.tasks["x"].state == "no-worker"
    assert state.why_not_running() == {"x": "it needs GPU=1: 0 of 1 workers have that"}
    join(state, B, GPU=1)
    assert computed(state, B) == ["x"]
    assert state.why_not_running() == {}


def test_a_worker_is_named_by_address_name_or_host() -> None:
    for name in (B, f"name of {B}", "far"):
        state = started(A)
        submit(state, Restriction((name,), False, ()), "x")
        assert "only run on" in state.why_not_running()["x"]
        state.worker_joined(1.0, worker_info(B)._replace(host="far"))
        assert computed(state, B) == ["x"]


def test_others_may_run_it_while_the_named_one_is_not_there() -> None:
    state = started(A)
    loose = Restriction((B,), True, ())
    submit(state, loose, "x")
    assert computed(state, A) == ["x"]
    state.worker_joined(1.0, worker_info(B))
    submit(state, loose, "y")
    assert computed(state, B) == ["y"]
    state.worker_lost(2.0, B, planned=True)
    assert computed(state, A) == ["y"]


def test_those_that_stand_in_for_named_ones_do_so_only_when_the_last_of_these_is_gone() -> None:
    state = started(A)
    loose = Restriction((B, C), True, ())
    submit(state, loose, "x")
    assert computed(state, A) == ["x"]
    for address in (B, C):
        state.worker_joined(1.0, worker_info(address))
        sent(state)
    state.worker_lost(2.0, B, planned=True)
    submit(state, loose, "y")
    assert computed(state, C) == ["y"]
    state.worker_joined(3.0, worker_info("tcp://10.0.0.4:1"))
    state.worker_lost(4.0, C, planned=True)
    finish(state, A, "x")
    submit(state, loose, "z")
    assert {key: state.tasks[key].state for key in ("y", "z")} == dict.fromkeys("yz", "processing")
    sent(state)


def test_a_restricted_task_goes_to_its_worker_and_not_to_its_input() -> None:
    state = started(A, B)
    submit(state, Restriction((A,), False, ()), "x")
    finish(state, A, "x")
    submit(state, Restriction((B,), False, ()), "y", needs="x")
    sent(state)
    assert state.tasks["y"].worker is state.workers[B]


def test_a_lost_worker_leaves_its_restricted_tasks_stranded() -> None:
    state = started(A)
    join(state, B, GPU=1)
    submit(state, GPU, "x", "y")
    state.worker_lost(2.0, B)
    sent(state)
    assert {task.state for task in state.tasks.values()} == {"no-worker"}
    join(state, C, GPU=8, nthreads=2)
    assert computed(state, C) == ["x", "y"]
