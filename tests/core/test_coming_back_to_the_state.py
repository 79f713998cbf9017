"""Workers and clients that lost the scheduler, and come back to it or to its successor."""

from __future__ import annotations

from core_helpers import (
    BOOM,
    DEFINE,
    A,
    B,
    F,
    computed,
    done,
    finish,
    free,
    release,
    scatter,
    sent,
    started,
    submit,
    worker_info,
)

from hpcdask.core.definition import definition_of
from hpcdask.core.returning import QUIET, UNCLAIMED
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.validation import validate_scheduler
from hpcdask.messages import (
    ComputeTask,
    Function,
    HeldRun,
    HeldValue,
    KeysAdded,
    KeysDropped,
    PlacedValue,
    RegisterWorker,
    Restriction,
    TaskErred,
    TaskFinished,
    TaskSpec,
    Version,
)
from hpcdask.messages.client import (
    DataScattered,
    KeyCancelled,
    SubmitTasks,
    TaskDone,
    TaskFailed,
    WantKeys,
)

MEANT = definition_of(F.function_id, b"")
NOW = 1_000_000  # attempts of the first scheduler are smaller


def back(address: str, *kept: HeldValue | HeldRun) -> RegisterWorker:
    return worker_info(address)._replace(
        returns=True,
        values=tuple(item for item in kept if isinstance(item, HeldValue)),
        runs=tuple(item for item in kept if isinstance(item, HeldRun)),
    )


def successor(*workers: RegisterWorker) -> SchedulerState:
    """A new scheduler to which workers and the client c come back."""
    state = SchedulerState(first_attempt=NOW)
    for info in workers:
        state.worker_joined(0.0, info)
    state.client_returned(0.0, "c")
    return state


# -- To the same scheduler ------------------------------------------------------------------------


def test_values_that_survived_are_not_computed_again() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    finish(state, A, "x")
    state.worker_lost(1.0, A)
    sent(state)
    assert state.tasks["x"].worker is state.workers[B]
    state.worker_joined(2.0, back(A, HeldValue("x", 1, 8, MEANT)))
    assert sent(state) == {B: [free(("x", 2))], "c": [TaskDone("x", 8, None)]}


def test_a_run_that_goes_on_is_taken_up() -> None:
    state = started(A)
    submit(state, {"x": []})
    state.worker_lost(1.0, A)
    state.worker_joined(2.0, back(A, HeldRun("x", 1, MEANT)))
    assert sent(state) == {}
    finish(state, A, "x")
    assert sent(state)["c"][-1] == done("x")


def test_a_run_that_another_worker_does_by_now_is_given_up() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    state.worker_lost(1.0, A)
    sent(state)
    state.worker_joined(2.0, back(A, HeldRun("x", 1, MEANT)))
    assert sent(state) == {A: [free(("x", 1))]}


def test_a_value_of_an_earlier_life_of_the_key_is_not_believed() -> None:
    state = started(A, B)
    submit(state, {"x": []})
    finish(state, A, "x")
    state.worker_lost(1.0, A)
    release(state, "x")
    submit(state, {"x": []}, submission=2)
    sent(state)
    state.worker_joined(2.0, back(A, HeldValue("x", 1, 8, MEANT)))
    assert sent(state) == {A: [free(("x", 1))]}


def test_a_client_that_comes_back_keeps_what_it_still_wants_and_loses_the_rest() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    finish(state, A, "x", "y")
    sent(state)
    state.client_returned(2.0, "c")
    state.keys_wanted(2.0, "c", WantKeys(("x",)))
    state.all_told(2.0, "c")
    assert sent(state) == {"c": [TaskDone("x", 8, None)], A: [free(("y", 2))]}


# -- To another scheduler -------------------------------------------------------------------------


def test_a_new_scheduler_computes_only_what_did_not_survive() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, MEANT)), back(B, HeldRun("y", 2, MEANT)))
    submit(state, {"x": [], "y": [], "z": ["x", "y"], "u": []}, wanted=["z", "u"])
    state.all_told(0.1, "c")
    sent(state)
    state.tick(QUIET + 0.2)
    messages = sent(state)
    assert [type(m) for m in messages[A]] == [type(DEFINE), type(messages[A][1])]
    assert [m.key for m in messages[A][1:]] == ["u"]
    assert B not in messages or [m.key for m in messages[B] if hasattr(m, "arguments")] == ["z"]
    finish(state, B, "y")
    sent(state)
    assert state.tasks["z"].state == "processing"


def test_a_graph_whose_end_comes_after_all_is_told_stays_for_clients_that_come_later() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, MEANT)))
    submit(state, {"y": [], "z": ["y"]}, wanted=[], submission=4, final=False)
    state.all_told(0.1, "c")
    submit(state, {"u": ["z"]}, wanted=["u"], submission=4, first=2)
    submit(state, {"v": []}, wanted=["v"], submission=5)
    release(state, "u")
    state.client_returned(1.0, "d")
    state.keys_wanted(1.0, "d", WantKeys(("z",)))
    state.all_told(1.0, "d")
    state.tick(1.0 + QUIET + 0.1)
    assert "d" not in sent(state)
    assert state.tasks["y"].state == "processing"
    assert state.tasks.keys() == {"y", "z", "v"}


def test_who_comes_back_to_the_same_scheduler_has_others_keep_nothing() -> None:
    state = started(A)
    state.client_joined(0.0, "d")
    state.client_returned(0.0, "d")
    submit(state, {"y": [], "z": ["y"]}, wanted=["y"], submission=4)
    validate_scheduler(state)
    assert state.tasks["y"].state == "processing"
    assert state.tasks.keys() == {"y"}


def test_what_another_definition_gave_is_not_believed() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, MEANT ^ 1)))
    submit(state, {"x": []})
    state.all_told(0.1, "c")
    state.tick(QUIET + 0.2)
    messages = sent(state)
    assert free(("x", 1)) in messages[A]
    assert state.tasks["x"].state == "processing"


def test_a_finished_key_is_found_or_cancelled_with_the_reason() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, MEANT)))
    state.keys_wanted(0.0, "c", WantKeys(("x", "gone")))
    state.all_told(0.0, "c")
    assert sent(state) == {}
    state.tick(QUIET + 0.1)
    cancelled, found = sent(state)["c"][::-1]
    assert found == TaskDone("x", 8, None) or cancelled == TaskDone("x", 8, None)
    assert any(isinstance(m, KeyCancelled) and m.key == "gone" for m in (cancelled, found))


def test_it_waits_for_the_others_as_long_as_they_come() -> None:
    state = successor()
    submit(state, {"x": []})
    state.all_told(0.0, "c")
    state.worker_joined(QUIET - 0.1, back(A))
    state.tick(QUIET + 0.1)
    state.worker_joined(QUIET + 1.0, back(B, HeldValue("x", 1, 8, MEANT)))
    state.tick(QUIET + 0.2)
    messages = sent(state)
    assert not any(hasattr(m, "arguments") for a in (A, B) for m in messages.get(a, ()))


def test_what_nobody_comes_for_is_freed() -> None:
    state = SchedulerState(first_attempt=NOW)
    state.worker_joined(0.0, back(A, HeldValue("x", 1, 8, MEANT), HeldRun("y", 2, MEANT)))
    state.tick(UNCLAIMED - 1)
    assert sent(state) == {}
    state.tick(UNCLAIMED + 1)
    assert sent(state) == {A: [free(("x", 1), ("y", 2))]}


def test_scattered_data_is_found_again() -> None:
    state = successor(back(A, HeldValue("data", 1, 8, 0)))
    submit(state, {"x": ["data"]})
    state.keys_wanted(0.0, "c", WantKeys(("data",)))
    state.all_told(0.0, "c")
    state.tick(QUIET + 0.1)
    assert computed(state, A) == ["x"]
    assert state.tasks["data"].state == "memory"


def test_a_run_that_ends_before_anybody_has_come_for_it_is_a_value() -> None:
    state = successor(back(A, HeldRun("x", 1, MEANT)))
    state.task_finished(0.1, A, TaskFinished("x", 1, 8, 1.0, None))
    submit(state, {"x": []})
    state.all_told(0.1, "c")
    state.tick(QUIET + 0.2)
    assert sent(state) == {"c": [TaskDone("x", 8, None)]}


def test_a_run_that_fails_before_anybody_has_come_for_it_is_run_again() -> None:
    state = successor(back(A, HeldRun("x", 1, MEANT)))
    state.task_erred(0.1, A, TaskErred("x", 1, BOOM))
    submit(state, {"x": []})
    state.all_told(0.1, "c")
    state.tick(QUIET + 0.2)
    assert computed(state, A) == ["x"]


def test_of_two_runs_of_one_key_one_goes_on() -> None:
    state = successor(back(A, HeldRun("x", 1, MEANT)), back(B, HeldRun("x", 2, MEANT)))
    assert sent(state) == {B: [free(("x", 2))]}


def test_a_recipe_that_comes_after_what_builds_on_it_is_used() -> None:
    state = successor(back(A))
    state.client_returned(0.0, "d")
    submit(state, {"y": ["x"]})
    state.all_told(0.0, "c")
    submit(state, {"x": []}, client="d")
    state.all_told(0.0, "d")
    state.tick(QUIET + 0.1)
    assert computed(state, A) == ["x", "y"]


def test_even_after_what_builds_on_it_was_given_up() -> None:
    state = successor(back(A))
    submit(state, {"y": ["x"]})
    state.keys_wanted(0.0, "c", WantKeys(("x",)))
    state.all_told(0.0, "c")
    state.tick(QUIET + 0.1)
    assert state.tasks["x"].state == "erred"
    state.client_returned(QUIET + 1, "d")
    submit(state, {"x": []}, client="d")
    state.all_told(QUIET + 1, "d")
    sent(state)
    state.tick(2 * QUIET + 2)
    assert computed(state, A) == ["x"]


def test_a_recipe_that_would_need_itself_is_not_taken() -> None:
    state = successor(back(A))
    submit(state, {"y": ["x"]})
    submit(state, {"x": ["y"]}, submission=2)
    assert state.tasks["x"].dependencies == ()
    state.all_told(0.0, "c")
    state.tick(QUIET + 0.1)
    assert state.tasks["x"].state == "erred"
    sent(state)


def test_a_key_let_go_before_all_are_back_is_not_wanted_any_more() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, 0)))
    state.keys_wanted(0.0, "c", WantKeys(("x",)))
    state.all_told(0.0, "c")
    release(state, "x")
    state.tick(QUIET + 0.1)
    assert not state.tasks
    sent(state)


def test_what_was_told_is_known_until_all_is_told() -> None:
    """The wants of a key may follow the submission that it is of."""
    state = successor(back(A))
    submit(state, {"x": [], "y": []}, wanted=["y"])
    state.keys_wanted(0.0, "c", WantKeys(("x",)))
    state.all_told(0.0, "c")
    state.tick(QUIET + 0.1)
    assert state.tasks["x"].state == "processing"
    sent(state)


def test_a_dependant_that_survived_keeps_its_inputs_from_being_given_to_others() -> None:
    state = started(A, B)
    submit(state, {"x": [], "u": [], "y": ["x", "u"]}, wanted=["y"])
    finish(state, A, "x")
    finish(state, B, "u")
    holder = state.tasks["y"].worker
    assert holder is not None
    attempt = state.tasks["y"].attempt
    finish(state, holder.address, "y")
    sent(state)
    other = B if holder.address == A else A
    state.worker_lost(1.0, holder.address)
    assert computed(state, other)
    kept = HeldValue("x", 1, 8, MEANT), HeldValue("y", attempt, 8, MEANT)
    state.worker_joined(2.0, back(holder.address, *kept))
    assert all(m.key != "y" for m in sent(state).get(other, ()) if isinstance(m, ComputeTask))
    assert state.tasks["y"].state == "memory"


def test_a_dependant_that_survived_is_found_before_its_recomputed_input_lets_it_run() -> None:
    state = started(A, B)
    submit(state, {"x": [], "y": ["x"]}, wanted=["x", "y"])
    attempts = {key: state.tasks[key].attempt for key in ("x", "y")}
    assert computed(state, A) == ["x", "y"]
    state.worker_lost(1.0, A, planned=True)
    assert computed(state, B) == ["x", "y"]
    # What x is by now was computed after what y is.
    x = HeldValue("x", attempts["y"] + 9, 8, MEANT)
    state.worker_joined(2.0, back(A, x, HeldValue("y", attempts["y"], 8, MEANT)))
    assert {key: state.tasks[key].state for key in ("x", "y")} == {"x": "memory", "y": "memory"}
    found = [message for messages in sent(state).values() for message in messages]
    assert not any(isinstance(message, ComputeTask) for message in found)


def test_a_long_chain_that_survived_is_found_whatever_the_order_of_its_attempts() -> None:
    state = started(A, B)
    keys = [f"x{number}" for number in range(2000)]
    submit(state, {key: keys[max(i - 1, 0) : i] for i, key in enumerate(keys)}, wanted=keys)
    state.worker_lost(1.0, A, planned=True)
    first = HeldValue(keys[0], 10_000, 8, MEANT)
    rest = [HeldValue(key, 5_000 + i, 8, MEANT) for i, key in enumerate(keys[1:])]
    state.worker_joined(2.0, back(A, first, *rest))
    assert {task.state for task in state.tasks.values()} == {"memory"}
    sent(state)


def test_a_copy_counts_as_what_the_original_is() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, 0)), back(B, HeldValue("x", 1, 8, MEANT)))
    submit(state, {"x": []})
    state.all_told(0.0, "c")
    state.tick(QUIET + 0.1)
    assert set(state.locate("x").addresses) == {A, B}
    sent(state)


def test_a_client_that_comes_back_twice_wants_no_more_than_it_says_then() -> None:
    state = started(A)
    submit(state, {"x": [], "y": []})
    for now in (1.0, 2.0):
        state.client_returned(now, "c")
        state.keys_wanted(now, "c", WantKeys(("x",)))
    state.all_told(2.0, "c")
    assert list(state.tasks) == ["x"]
    sent(state)


def test_a_key_that_means_something_else_by_now_is_computed_anew() -> None:
    state = started(A)
    submit(state, {"x": [], "y": ["x"]}, wanted=["y"])
    finish(state, A, "x", "y")
    sent(state)
    state.client_returned(1.0, "c")
    other = Function(b"g" * 16, "g", b"code of g")
    submit(state, {"x": [], "y": ["x"]}, wanted=["y"], submission=2, function=other)
    state.all_told(1.0, "c")
    assert computed(state, A) == ["x", "y"]


def test_what_is_submitted_meanwhile_waits_for_what_it_builds_on() -> None:
    state = successor(back(A))
    state.client_joined(0.0, "d")
    submit(state, {"x": []})
    state.all_told(0.0, "c")
    submit(state, {"y": ["x"]}, client="d")
    assert sent(state) == {}
    state.worker_joined(1.0, back(B, HeldValue("x", 1, 8, MEANT)))
    state.tick(QUIET + 1.1)
    assert computed(state, B) == ["y"]


def test_what_is_submitted_meanwhile_waits_for_values_that_are_yet_to_come() -> None:
    state = successor()
    state.keys_wanted(0.0, "c", WantKeys(("x", "lost"), 1))
    state.all_told(0.1, "c")
    submit(state, {"y": ["x"], "z": ["lost"]}, submission=2)
    assert sent(state) == {}
    state.worker_joined(0.2, back(A, HeldValue("x", 5, 8, MEANT)))
    state.tick(QUIET + 0.2)
    messages = sent(state)
    assert [m.key for m in messages[A] if isinstance(m, ComputeTask)] == ["y"]
    assert TaskDone("x", 8, None) in messages["c"]
    failed = [m.key for m in messages["c"] if isinstance(m, TaskFailed)]
    assert sorted(failed) == ["lost", "z"]


def test_what_is_submitted_meanwhile_frees_nothing_that_others_may_come_for() -> None:
    """It names a key whose value it does not need, but a client that is still to come does."""
    state = successor(back(A, HeldValue("x", 1, 8, MEANT), HeldValue("y", 2, 8, MEANT)))
    submit(state, {"w": []}, wanted=[], final=False)
    state.all_told(0.0, "c")
    submit(state, {"x": [], "y": ["w", "x"]}, wanted=["y"], first=1)
    state.client_returned(1.0, "d")
    state.keys_wanted(1.0, "d", WantKeys(("x",)))
    state.all_told(1.0, "d")
    assert sent(state) == {}
    state.tick(QUIET + 1.1)
    assert {key: state.tasks[key].state for key in ("x", "y")} == {"x": "memory", "y": "memory"}
    assert A not in sent(state)


def test_a_key_that_is_scattered_and_let_go_meanwhile_is_not_wanted_at_the_end() -> None:
    state = successor(back(A))
    state.keys_wanted(0.0, "c", WantKeys(("x",)))
    state.all_told(0.0, "c")
    scatter(state, "x")
    release(state, "x")
    sent(state)
    state.tick(QUIET + 0.1)
    assert not state.tasks
    assert sent(state) == {}


def test_a_lent_future_waits_for_its_lender_to_come_back() -> None:
    state = successor(back(A))
    state.client_joined(0.0, "d")
    state.keys_wanted(0.0, "d", WantKeys(("x",)))
    assert sent(state) == {}
    submit(state, {"x": []})
    state.all_told(0.0, "c")
    state.tick(QUIET + 0.1)
    finish(state, A, "x")
    assert done("x") in sent(state)["d"]


def test_a_value_that_was_dropped_meanwhile_cannot_be_claimed() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, MEANT)))
    state.keys_dropped(0.0, A, KeysDropped((Version("x", 1),)))
    submit(state, {"x": []})
    state.all_told(0.0, "c")
    state.tick(QUIET + 0.1)
    assert computed(state, A) == ["x"]


def test_data_put_where_the_scheduler_before_had_planned_is_found() -> None:
    state = successor(back(A))
    state.all_told(0.0, "c")
    state.keys_added(0.1, A, KeysAdded((Version("data", 7),)))
    state.data_scattered(0.2, "c", DataScattered((PlacedValue("data", 7, 8, (A,)),)))
    state.tick(QUIET + 0.3)
    assert state.locate("data").addresses == (A,)
    sent(state)


def test_what_a_lost_client_put_there_for_the_scheduler_before_is_freed() -> None:
    state = successor(back(A))
    state.all_told(0.0, "c")
    state.keys_added(0.1, A, KeysAdded((Version("data", 7),)))
    assert sent(state) == {}
    state.tick(UNCLAIMED + QUIET + 1)
    assert sent(state) == {A: [free(("data", 7))]}


def test_what_one_dependant_needs_no_more_is_kept_for_the_next() -> None:
    state = successor(back(A, HeldValue("x", 1, 8, MEANT)))
    submit(state, {"x": [], "bad": ["x", "gone"], "good": ["x"]}, wanted=["bad", "good"])
    state.all_told(0.0, "c")
    state.tick(QUIET + 0.1)
    assert computed(state, A) == ["good"]


def test_a_borrower_that_comes_back_later_finds_the_recipe_of_its_lender() -> None:
    state = successor(back(A))
    submit(state, {"x": []}, wanted=[])
    state.all_told(0.0, "c")
    state.client_returned(0.1, "d")
    state.keys_wanted(0.1, "d", WantKeys(("x",)))
    state.all_told(0.1, "d")
    state.tick(QUIET + 0.2)
    assert computed(state, A) == ["x"]


def test_a_borrower_that_comes_back_earlier_finds_it_too() -> None:
    state = successor(back(A))
    state.client_returned(0.0, "d")
    state.keys_wanted(0.0, "d", WantKeys(("x",)))
    state.all_told(0.0, "d")
    submit(state, {"x": []}, wanted=[])
    state.all_told(0.1, "c")
    state.tick(QUIET + 0.2)
    assert computed(state, A) == ["x"]


def test_a_key_used_anew_before_all_are_back_has_its_new_meaning() -> None:
    state = successor(back(A))
    submit(state, {"x": []})
    state.all_told(0.0, "c")
    release(state, "x")
    other = Function(b"g" * 16, "g", b"code of g")
    submit(state, {"x": []}, submission=2, function=other)
    state.tick(QUIET + 0.1)
    (run,) = [m for m in sent(state)[A] if isinstance(m, ComputeTask)]
    assert run.function_id == other.function_id


def test_a_restriction_is_known_although_the_last_task_with_it_gives_way_to_a_new_one() -> None:
    state = started(A)
    restrictions = [Restriction((A, str(number)), False, ()) for number in range(6)]

    def submit_restricted(number: int, function: Function) -> None:
        specs = (TaskSpec(f"x{number}", 0, b"", ()),)
        how = (0, 0.0, 0, True, 0, restrictions[number])
        state.tasks_submitted(0.0, "c", SubmitTasks(number, (function,), specs, None, *how))

    for number in range(6):
        submit_restricted(number, F)
    state.client_returned(1.0, "c")
    submit_restricted(0, Function(b"g" * 16, "g", b"code of g"))
    state.all_told(1.0, "c")
    assert state.tasks["x0"].lane in list(state.lanes)
    sent(state)


def test_a_key_used_anew_while_an_earlier_return_is_being_let_go_of_has_its_new_meaning() -> None:
    state = successor(back(A))
    submit(state, {"x": []})
    state.all_told(0.0, "c")
    state.client_returned(1.0, "c")
    submit(state, {"x": []})
    state.drop_at_once = 0  # nothing of the earlier return has had its turn yet
    state.all_told(1.0, "c")
    assert state.departed
    release(state, "x")
    other = Function(b"g" * 16, "g", b"code of g")
    submit(state, {"x": []}, submission=2, function=other)
    assert state.tasks["x"].function is state.functions.records[other.function_id]
    sent(state)
