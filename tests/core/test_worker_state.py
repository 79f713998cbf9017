"""Events into a worker's state, instructions and messages out."""

from __future__ import annotations

from core_helpers import BOOM, DEFINE, A, B, C, assert_worker_sent, compute, free

from hpcdask.core.fetching import MAX_FETCH_KEYS, MAX_PEERS
from hpcdask.core.held_task import Instruction
from hpcdask.core.validation import validate_worker
from hpcdask.core.worker_state import (
    MAX_LOOKAHEAD,
    Abandon,
    Execute,
    Fetch,
    NotStarted,
    Raised,
    Ran,
    WorkerState,
)
from hpcdask.messages import (
    DataMissing,
    Dependency,
    ForgetFunctions,
    FreeKeys,
    GivenBack,
    KeysAdded,
    TaskErred,
    TaskFinished,
    Version,
)


def worker(nthreads: int = 1) -> WorkerState:
    state = WorkerState(A, nthreads)
    state.function_defined(0.0, DEFINE)
    return state


def told(state: WorkerState) -> list[Instruction]:
    """Empty the instructions."""
    validate_worker(state)
    instructions, state.instructions = state.instructions, []
    return instructions


def executed(state: WorkerState) -> list[str]:
    return [i.key for i in told(state) if isinstance(i, Execute)]


def ran(value: object = 1, duration: float = 1.0, nbytes: int = 8) -> Ran:
    return Ran(value, nbytes, duration, None)


def on(key: str, *addresses: str, attempt: int = 1, nbytes: int = 8) -> Dependency:
    return Dependency(key, attempt, nbytes, addresses)


def test_a_task_runs_and_its_value_stays() -> None:
    state = worker()
    state.compute_task(0.0, compute("x", 1))
    assert told(state) == [Execute("x", 1, DEFINE, b"", {}, True)]
    state.task_ran(1.0, "x", 1, Ran("value", 8, 0.5, b"pickle"))
    assert_worker_sent(state, TaskFinished("x", 1, 8, 0.5, b"pickle"))
    held = state.value_of(Version("x", 1))
    assert held is not None
    assert (held.value, state.nbytes) == ("value", 8)
    assert state.value_of(Version("x", 2)) is None
    state.keys_freed(2.0, free(("x", 2)))
    assert state.tasks
    state.keys_freed(2.0, free(("x", 1), ("?", 1)))
    assert (state.tasks, state.nbytes) == ({}, 0)


def test_a_task_that_raises_leaves_nothing() -> None:
    state = worker()
    state.compute_task(0.0, compute("x", 1))
    state.task_ran(1.0, "x", 1, Raised(BOOM, 0.1))
    assert_worker_sent(state, TaskErred("x", 1, BOOM))
    assert not state.tasks


def test_no_more_long_tasks_are_handed_over_than_there_are_threads() -> None:
    state = worker(nthreads=2)
    for number in (3, 1, 2):
        state.compute_task(0.0, compute(f"x{number}", number, position=number))
    assert executed(state) == ["x3", "x1"]
    assert state.n_ready == 1
    state.task_ran(1.0, "x1", 1, ran())
    assert executed(state) == ["x2"]


def test_ready_tasks_start_by_priority() -> None:
    state = worker()
    for number in (5, 3, 4):
        state.compute_task(0.0, compute(f"x{number}", number, position=number))
    assert executed(state) == ["x5"]
    state.task_ran(1.0, "x5", 5, ran())
    assert executed(state) == ["x3"]


def test_short_tasks_are_handed_over_many_at_a_time() -> None:
    state = worker()
    for number in range(500):
        state.compute_task(0.0, compute(f"x{number}", number + 1, position=number))
    assert executed(state) == ["x0"]
    state.task_ran(0.0, "x0", 1, ran(duration=1e-6))
    assert len(executed(state)) == MAX_LOOKAHEAD


def test_abandoned_runs_do_not_shrink_the_lookahead_for_ever() -> None:
    state = worker(nthreads=2)
    state.compute_task(0.0, compute("long", 1))
    state.compute_task(0.0, compute("gone", 2))
    state.keys_freed(0.0, free(("gone", 2)))
    state.task_ran(0.0, "gone", 2, NotStarted())
    assert state._executing_cost == state.tasks["long"].cost


def test_what_is_freed_before_it_starts_never_does() -> None:
    state = worker()
    state.compute_task(0.0, compute("x", 1))
    state.compute_task(0.0, compute("y", 2))
    state.keys_freed(0.0, free(("y", 2)))
    assert executed(state) == ["x"]
    state.task_ran(1.0, "x", 1, ran())
    assert executed(state) == []


def test_the_outcome_of_an_abandoned_run_is_dropped() -> None:
    state = worker()
    state.compute_task(0.0, compute("x", 1))
    told(state)
    state.keys_freed(0.0, free(("x", 1)))
    assert told(state) == [Abandon("x", 1)]
    state.compute_task(0.0, compute("x", 2))
    assert told(state) == []  # the thread is still busy
    state.task_ran(1.0, "x", 1, ran("old"))
    assert_worker_sent(state)
    assert [i.attempt for i in told(state) if isinstance(i, Execute)] == [2]
    state.task_ran(1.0, "x", 2, ran("new"))
    assert state.tasks["x"].value == "new"
    assert not state.abandoned


def test_a_compute_said_twice_runs_once_and_a_new_attempt_replaces_the_old() -> None:
    state = worker()
    state.compute_task(0.0, compute("x", 1))
    state.compute_task(0.0, compute("x", 1))
    assert executed(state) == ["x"]
    state.compute_task(0.0, compute("x", 2))
    assert told(state) == [Abandon("x", 1)]
    state.task_ran(1.0, "x", 1, ran())
    assert_worker_sent(state)
    assert executed(state) == ["x"]


def test_an_input_is_fetched_once_for_all_that_need_it() -> None:
    state = worker(nthreads=2)
    state.compute_task(0.0, compute("y", 2, on("x", B)))
    state.compute_task(0.0, compute("z", 3, on("x", B)))
    assert told(state) == [Fetch(B, (Version("x", 1),))]
    state.data_arrived(1.0, B, [(Version("x", 1), "value", 9)])
    assert_worker_sent(state, KeysAdded((Version("x", 1),)))
    first, second = told(state)
    assert isinstance(first, Execute)
    assert isinstance(second, Execute)
    assert first.inputs == second.inputs == {"x": "value"}
    assert state.nbytes == 9


def test_an_input_that_is_here_is_not_fetched() -> None:
    state = worker()
    state.value_stored(0.0, Version("x", 1), "value", 8)
    state.compute_task(0.0, compute("y", 2, on("x", A)))
    assert executed(state) == ["y"]


def test_an_input_is_asked_of_one_holder_after_the_other_then_reported() -> None:
    state = worker()
    state.compute_task(0.0, compute("y", 2, on("x", B, C)))
    (first,) = told(state)
    assert isinstance(first, Fetch)
    state.fetch_failed(1.0, first.address)
    (second,) = told(state)
    assert isinstance(second, Fetch)
    assert {first.address, second.address} == {B, C}
    state.data_arrived(2.0, second.address, [])
    missing = [
        DataMissing("y", 2, Version("x", 1), first.address, unreachable="no answer"),
        DataMissing("y", 2, Version("x", 1), second.address, unreachable=""),
    ]
    assert_worker_sent(state, *missing)
    assert not state.tasks


def test_an_input_that_nobody_else_holds_is_reported_at_once() -> None:
    state = worker()
    state.compute_task(0.0, compute("y", 2, on("x", A)))
    assert_worker_sent(state, DataMissing("y", 2, Version("x", 1), A))
    assert not state.tasks


def test_late_data_is_not_kept() -> None:
    state = worker()
    state.compute_task(0.0, compute("y", 2, on("x", B)))
    state.keys_freed(0.0, free(("y", 2)))
    assert not state.tasks
    state.data_arrived(1.0, B, [(Version("x", 1), "value", 8)])
    state.data_arrived(1.0, B, [(Version("x", 1), "value", 8)])
    assert_worker_sent(state)
    assert (state.tasks, state.nbytes) == ({}, 0)


def test_a_late_answer_does_not_disturb_a_newer_request() -> None:
    state = worker()
    state.compute_task(0.0, compute("y", 2, on("x", B)))
    state.keys_freed(0.0, free(("y", 2)))
    state.compute_task(0.0, compute("z", 4, on("x", C, attempt=3)))
    asked = told(state)[-1]
    assert isinstance(asked, Fetch)
    assert (asked.address, state.tasks["x"].state) == (C, "flight")
    state.data_arrived(1.0, B, [])
    assert told(state) == []
    state.data_arrived(1.0, C, [(Version("x", 3), "value", 8)])
    assert_worker_sent(state, KeysAdded((Version("x", 3),)))
    assert executed(state) == ["z"]


def test_a_freed_input_sends_back_what_waits_for_it() -> None:
    state = worker()
    state.value_stored(0.0, Version("x", 1), "value", 8)
    state.compute_task(0.0, compute("busy", 9))
    state.compute_task(0.0, compute("y", 2, on("x", A)))
    state.keys_freed(0.0, free(("x", 1)))
    assert_worker_sent(state, KeysAdded((Version("x", 1),)), GivenBack((Version("y", 2),)))


def test_an_input_freed_under_a_run_does_not_hurt_it() -> None:
    state = worker()
    state.value_stored(0.0, Version("x", 1), "value", 8)
    state.compute_task(0.0, compute("y", 2, on("x", A)))
    state.keys_freed(0.0, free(("x", 1)))
    state.task_ran(1.0, "y", 2, ran())
    finished = TaskFinished("y", 2, 8, 1.0, None)
    assert_worker_sent(state, KeysAdded((Version("x", 1),)), finished)


def test_a_new_version_of_an_input_sends_back_what_waits_for_the_old() -> None:
    state = worker()
    state.value_stored(0.0, Version("x", 1), "old", 8)
    state.compute_task(0.0, compute("busy", 9))
    state.compute_task(0.0, compute("y", 2, on("x", A)))
    told(state)
    state.compute_task(0.0, compute("z", 4, on("x", B, attempt=3)))
    assert_worker_sent(state, KeysAdded((Version("x", 1),)), GivenBack((Version("y", 2),)))
    assert told(state) == [Fetch(B, (Version("x", 3),))]


def test_an_unreadable_input_is_the_error_of_what_needs_it() -> None:
    state = worker()
    state.compute_task(0.0, compute("y", 2, on("x", B)))
    told(state)
    state.input_unusable(1.0, Version("x", 1), BOOM)
    state.data_arrived(1.0, B, [])
    state.input_unusable(1.0, Version("x", 1), BOOM)
    assert_worker_sent(state, TaskErred("y", 2, BOOM))
    assert not state.tasks


def test_requests_are_bounded_in_keys_and_in_peers() -> None:
    state = worker()
    inputs = [on(f"x{i}", B) for i in range(MAX_FETCH_KEYS + 1)]
    inputs += [on(f"y{i}", f"tcp://10.1.0.{i}:1") for i in range(MAX_PEERS)]
    state.compute_task(0.0, compute("z", 2, *inputs))
    fetches = [i for i in told(state) if isinstance(i, Fetch)]
    assert len(fetches) == MAX_PEERS
    assert len(fetches[0].versions) == MAX_FETCH_KEYS
    state.data_arrived(1.0, B, [(version, 1, 8) for version in fetches[0].versions])
    assert [i.versions for i in told(state) if isinstance(i, Fetch)] == [
        (Version(f"x{MAX_FETCH_KEYS}", 1),)
    ]


def test_the_bounds_can_be_others() -> None:
    state = WorkerState(A, 1, max_peers=2, max_fetch_bytes=100)
    state.function_defined(0.0, DEFINE)
    inputs = [on("x0", B, nbytes=60), on("x1", B, nbytes=60)]
    inputs += [on(f"y{i}", f"tcp://10.1.0.{i}:1") for i in range(2)]
    state.compute_task(0.0, compute("z", 2, *inputs))
    fetches = [i for i in told(state) if isinstance(i, Fetch)]
    assert len(fetches) == 2
    assert fetches[0] == Fetch(B, (Version("x0", 1),))


def test_a_large_input_fills_a_request() -> None:
    state = worker()
    state.compute_task(0.0, compute("z", 2, on("x", B, nbytes=10**9), on("y", B)))
    assert told(state) == [Fetch(B, (Version("x", 1),))]


def test_a_value_put_here_while_its_key_is_computed_harms_neither() -> None:
    state = worker()
    state.compute_task(0.0, compute("x", 1))
    state.value_stored(0.0, Version("x", 2), "stored", 8)
    state.task_ran(1.0, "x", 1, ran("computed"))
    finished = TaskFinished("x", 1, 8, 1.0, None)
    assert_worker_sent(state, KeysAdded((Version("x", 2),)), finished)
    assert state.nbytes == 16
    state.keys_freed(1.0, free(("x", 2)))
    held = state.value_of(Version("x", 1))
    assert held is not None
    assert (held.value, state.nbytes) == ("computed", 8)


def test_of_two_values_of_a_key_the_scheduler_frees_the_one_it_does_not_want() -> None:
    for freed, kept in ((1, 2), (2, 1)):
        state = worker()
        state.value_stored(0.0, Version("x", 1), 1, 8)
        state.value_stored(0.0, Version("x", 2), 2, 8)
        state.value_stored(0.0, Version("x", 2), 2, 8)
        assert state.value_of(Version("x", 1)) is not None
        assert state.value_of(Version("x", 2)) is not None
        state.keys_freed(0.0, free(("x", freed)))
        state.compute_task(0.0, compute("y", 3, on("x", A, attempt=kept)))
        (run,) = told(state)
        assert isinstance(run, Execute)
        assert run.inputs == {"x": kept}
        assert state.nbytes == 8


def test_a_new_run_of_a_key_leaves_stored_values_to_the_scheduler() -> None:
    state = worker()
    state.value_stored(0.0, Version("x", 1), 1, 8)
    state.value_stored(0.0, Version("x", 2), 2, 8)
    state.compute_task(0.0, compute("x", 3))
    assert executed(state) == ["x"]
    assert state.nbytes == 16
    state.keys_freed(0.0, free(("x", 1), ("x", 2), ("x", 3)))
    assert (state.tasks, state.nbytes) == ({}, 0)


def test_an_input_does_not_displace_a_newer_value_that_a_client_put_here() -> None:
    state = worker()
    state.value_stored(0.0, Version("x", 9), 1, 8)
    state.compute_task(0.0, compute("y", 4, Dependency("x", 3, 8, (B,))))
    assert state.value_of(Version("x", 9)) is not None
    state.keys_freed(0.0, free(("y", 4)))
    assert state.value_of(Version("x", 9)) is not None
    state.keys_freed(0.0, free(("x", 9)))
    assert (state.tasks, state.nbytes) == ({}, 0)


def test_forgotten_functions_are_dropped() -> None:
    state = worker()
    state.functions_forgotten(0.0, ForgetFunctions((DEFINE.function_id, b"?")))
    assert not state.functions


def test_a_value_that_was_freed_before_it_came_is_not_kept():
    state = WorkerState(A, 1)
    state.keys_freed(0.0, FreeKeys((Version("x", 7),)))
    state.value_stored(1.0, Version("x", 7), "late", 10)
    assert not state.tasks
    assert state.nbytes == 0
    state.value_stored(2.0, Version("x", 8), "wanted", 10)
    assert state.tasks["x"].value == "wanted"
