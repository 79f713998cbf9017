"""Deliberate breakages of the states, each small and plausible, to see whether anything notices.

A breakage is a function that gets pytest's monkeypatch and puts a subtly wrong method in the place
of a right one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from calm import replace_the_scheduler, take_turns
from simulator import SeedFailed, live_through

from hpcdask.core import copying, returning
from hpcdask.core.functions import Functions
from hpcdask.core.lanes import Lane, Lanes
from hpcdask.core.records import ClientRecord, Task, WorkerRecord
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.worker_state import HeldTask, WorkerState
from hpcdask.messages import FreeKeys, GivenBack, KeysAdded, TaskFinished, Version
from hpcdask.messages.client import TaskFailed

Patch = pytest.MonkeyPatch
Breakage = Callable[[Patch], None]
BREAKAGES: list[Breakage] = []


#: Seeds with troubles, and those without, by which each is noticed.
MAX_SEEDS, MAX_CALM = 150, 10
#: Seeds that notice those which the first ones do not, to begin with: the others take minutes. They
#: change with the simulator and with what it runs; ``python tests/simulation/mutations.py`` finds
#: them anew.
FIRST_SEEDS = {
    "a_copy_beyond_what_is_asked_stays_on_its_worker": 20,
    "the_answer_of_a_run_that_was_given_up_is_believed": 182,
    "a_task_leaves_its_queue_when_its_worker_is_lost": 3,
    "a_leaving_worker_ends_before_its_values_are_safe": 16,
    "a_dropped_value_still_counts_as_held": 6,
    "an_old_copy_counts_as_the_present_value": 16,
    "what_others_want_is_cancelled_too": 17,
    "half_a_graph_of_a_lost_client_is_kept": 15,
    "scattered_data_that_nobody_takes_stays": 17,
    "what_a_client_wanted_before_its_return_is_kept": 6,
    "a_value_is_believed_to_be_of_any_life_of_its_key": 41,
    "the_next_holder_is_never_asked": 22,
    "a_run_does_not_wait_for_resources": 5,
    "resources_of_an_abandoned_run_are_never_put_back": 5,
    "a_copy_that_was_to_be_saved_is_not_asked_for": 17,
}


def seeds_for(breakage: Breakage) -> list[int]:
    """The seeds within which a breakage must be noticed, the most promising first."""
    return [FIRST_SEEDS.get(breakage.__name__, 0), *range(MAX_SEEDS)]


def is_noticed(seed: int) -> bool:
    """Whether something contradicts itself, or does not end as it has to."""
    try:
        live_through(seed)
        if seed < MAX_CALM:
            replace_the_scheduler(seed)
            take_turns(seed)
    except SeedFailed:
        return True
    return False


def breakage(function: Breakage) -> Breakage:
    BREAKAGES.append(function)
    return function


def replace(patch: Patch, owner: type, name: str, make: Callable[..., Any]) -> None:
    """Put ``make(right)`` in the place of a method."""
    patch.setattr(owner, name, make(getattr(owner, name)))


# -- The scheduler ------------------------------------------------------------------------------


@breakage
def a_copy_beyond_what_is_asked_stays_on_its_worker(patch: Patch) -> None:
    def unwanted(self: Any, now: float, copies: Any) -> None:
        for task, worker in copies:
            if worker in task.who_has and copying._others_hold(task, worker):
                task.drop_holder(worker)

    patch.setattr(SchedulerState, "copies_unwanted", unwanted)


@breakage
def a_task_that_rests_is_never_woken(patch: Patch) -> None:
    patch.setattr(SchedulerState, "_wake_resting", lambda self: None)


@breakage
def inputs_keep_a_waiter_that_has_run(patch: Patch) -> None:
    patch.setattr(SchedulerState, "_ran", lambda self, task: None)


@breakage
def the_answer_of_a_run_that_was_given_up_is_believed(patch: Patch) -> None:
    def is_current(self: Any, task: Task, worker: WorkerRecord, attempt: int) -> bool:
        return task.worker is worker

    patch.setattr(SchedulerState, "_is_current", is_current)


@breakage
def released_values_are_not_freed(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def release(self: Any, tasks: Any) -> None:
            send = self.send
            self.send = lambda address, msg: None if type(msg) is FreeKeys else send(address, msg)
            right(self, tasks)
            del self.send

        return release

    replace(patch, SchedulerState, "_release_unneeded", make)


@breakage
def a_task_leaves_its_queue_when_its_worker_is_lost(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def lost(self: Any, now: float, address: str, *args: Any, **options: Any) -> None:
            right(self, now, address, *args, **options)
            self.lanes.open.pop()

        return lost

    replace(patch, SchedulerState, "worker_lost", make)


@breakage
def the_runs_of_a_lost_worker_are_not_placed_again(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def lost(self: Any, *args: Any, **options: Any) -> None:
            self._place = lambda task: None
            right(self, *args, **options)
            del self._place

        return lost

    replace(patch, SchedulerState, "worker_lost", make)


@breakage
def the_resources_of_an_ended_run_are_not_given_back(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def leave(self: Any, task: Task) -> WorkerRecord:
            taken = dict(task.worker.resources) if task.worker is not None else {}
            worker: WorkerRecord = right(self, task)
            worker.resources.update(taken)
            return worker

        return leave

    replace(patch, SchedulerState, "_leave_worker", make)


@breakage
def what_a_worker_gave_back_is_forgotten(patch: Patch) -> None:
    patch.setattr(SchedulerState, "given_back", lambda self, now, address, msg: None)


@breakage
def a_leaving_worker_ends_before_its_values_are_safe(patch: Patch) -> None:
    patch.setattr(SchedulerState, "_move_away", lambda self, *args: None)


@breakage
def a_dropped_value_still_counts_as_held(patch: Patch) -> None:
    patch.setattr(SchedulerState, "keys_dropped", lambda self, now, address, msg: None)


@breakage
def a_returning_worker_keeps_what_nobody_needs(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def take_up(self: Any, now: float, worker: WorkerRecord, info: Any) -> None:
            right(self, now, worker, info)
            self.outbox.pop(worker.address, None)

        return take_up

    replace(patch, SchedulerState, "_take_up", make)


@breakage
def an_old_copy_counts_as_the_present_value(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def added(self: Any, now: float, address: str, msg: KeysAdded) -> None:
            here = [self.tasks[v.key] for v in msg.versions if v.key in self.tasks]
            versions = tuple(Version(task.key, task.attempt) for task in here)
            right(self, now, address, KeysAdded(versions))

        return added

    replace(patch, SchedulerState, "keys_added", make)


@breakage
def who_asks_late_is_not_told(patch: Patch) -> None:
    def want(self: Any, client: Any, task: Task) -> None:
        task.add_client(client)

    patch.setattr(SchedulerState, "_want", want)


@breakage
def only_the_task_that_failed_is_reported(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def tell(self: Any, task: Task, message: Any) -> None:
            if type(message) is not TaskFailed or message.error.key == task.key:
                right(self, task, message)

        return tell

    replace(patch, SchedulerState, "_tell", make)


@breakage
def bytes_of_a_dropped_copy_still_count(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def drop(self: Task, worker: WorkerRecord) -> None:
            before = worker.nbytes
            right(self, worker)
            worker.nbytes = before

        return drop

    replace(patch, Task, "drop_holder", make)


@breakage
def code_counts_as_known_though_it_was_not_sent(patch: Patch) -> None:
    def define(self: Functions, function: Any, worker: WorkerRecord) -> None:
        function.known_by[worker] = None

    patch.setattr(Functions, "define", define)


@breakage
def what_others_want_is_cancelled_too(patch: Patch) -> None:
    def make(right: Any) -> Any:
        return lambda self, tasks, reason, name=None: right(self, tasks, reason, None)

    replace(patch, SchedulerState, "_cancel", make)


@breakage
def half_a_graph_of_a_lost_client_is_kept(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def lost(self: Any, now: float, name: str) -> None:
            if name in self.clients:
                self.clients[name].generations.clear()
            right(self, now, name)

        return lost

    replace(patch, SchedulerState, "client_lost", make)


@breakage
def scattered_data_that_nobody_takes_stays(patch: Patch) -> None:
    patch.setattr(SchedulerState, "_free_placed", lambda self, placed: None)


@breakage
def values_that_survived_a_scheduler_are_dropped(patch: Patch) -> None:
    patch.setattr(SchedulerState, "_take_up_value", lambda self, now, worker, value: False)


@breakage
def runs_that_survived_a_scheduler_are_not_claimed(patch: Patch) -> None:
    patch.setattr(SchedulerState, "_claim_run", lambda self, task: False)


@breakage
def a_new_scheduler_waits_for_nobody(patch: Patch) -> None:
    patch.setattr(returning, "QUIET", 0.0)


@breakage
def the_end_of_a_run_that_nobody_has_come_for_is_not_heard(patch: Patch) -> None:
    patch.setattr(SchedulerState, "_kept_run_ended", lambda self, now, worker, msg: None)


@breakage
def what_a_client_wanted_before_its_return_is_kept(patch: Patch) -> None:
    patch.setattr(SchedulerState, "_drop_former", lambda self, name: None)


@breakage
def a_value_is_believed_to_be_of_any_life_of_its_key(patch: Patch) -> None:
    patch.setattr(SchedulerState, "_is_same", lambda self, task, kept: True)


@breakage
def any_worker_may_run_what_is_restricted_to_some(patch: Patch) -> None:
    patch.setattr(Lane, "is_named", lambda self, worker: True)


@breakage
def workers_that_come_are_not_preferred_by_those_they_are_named_by(patch: Patch) -> None:
    patch.setattr(Lanes, "_stop_serving", lambda self, lane: None)


@breakage
def half_of_what_a_lost_client_wants_is_kept(patch: Patch) -> None:
    patch.setattr(SchedulerState, "drop_more", lambda self, now: self.departed.clear())


@breakage
def a_key_begins_anew_although_it_is_still_there_for_want_of_time(patch: Patch) -> None:
    patch.setattr(SchedulerState, "_make_way", lambda self, keys: None)


@breakage
def clients_do_not_take_turns(patch: Patch) -> None:
    first = count(0, 1_000_000)
    patch.setattr(ClientRecord, "turn", property(lambda self: next(first), lambda self, turn: None))


# -- The worker -----------------------------------------------------------------------------------


@breakage
def the_next_holder_is_never_asked(patch: Patch) -> None:
    patch.setattr(WorkerState, "_not_there", lambda self, key, address, unreachable: None)


@breakage
def a_run_is_not_freed(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def freed(self: WorkerState, now: float, msg: FreeKeys) -> None:
            def is_running(version: Version) -> bool:
                task = self.tasks.get(version.key)
                return task is not None and task.state == "executing"

            right(self, now, FreeKeys(tuple(v for v in msg.versions if not is_running(v))))

        return freed

    replace(patch, WorkerState, "keys_freed", make)


@breakage
def the_end_of_a_task_that_no_client_wants_is_not_reported(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def ended(self: WorkerState, task: HeldTask, ran: Any) -> None:
            right(self, task, ran)
            if not task.wanted:
                self.outbox = [m for m in self.outbox if type(m) is not TaskFinished]

        return ended

    replace(patch, WorkerState, "_executing_to_memory", make)


@breakage
def a_thread_is_free_as_soon_as_its_run_is_abandoned(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def drop(self: WorkerState, task: HeldTask) -> None:
            self.executing -= task.state == "executing"
            right(self, task)

        return drop

    replace(patch, WorkerState, "_drop", make)


@breakage
def a_task_starts_with_one_input_missing(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def compute(self: WorkerState, now: float, msg: Any) -> None:
            right(self, now, msg)
            task = self.tasks.get(msg.key)
            if task is not None and task.state == "waiting" and task.missing > 1:
                task.missing -= 1

        return compute

    replace(patch, WorkerState, "compute_task", make)


@breakage
def inputs_that_nobody_needs_are_fetched_and_kept(patch: Patch) -> None:
    def leave(self: WorkerState, task: HeldTask) -> None:
        dependencies, task.dependencies = task.dependencies, ()
        for key in dependencies:
            if key in self.tasks:
                self.tasks[key].dependents.pop(task.key, None)

    patch.setattr(WorkerState, "_leave_dependencies", leave)


@breakage
def a_task_that_has_started_is_given_back_too(patch: Patch) -> None:
    def make(right: Any) -> Any:
        def take_back(self: WorkerState, now: float, msg: Any) -> None:
            started = [
                v for v in msg.versions if (t := self.tasks.get(v.key)) and t.state == "executing"
            ]
            right(self, now, msg)
            if started:
                self.outbox.append(GivenBack(tuple(started)))

        return take_back

    replace(patch, WorkerState, "take_back", make)


@breakage
def a_run_does_not_wait_for_resources(patch: Patch) -> None:
    patch.setattr(WorkerState, "_are_free", lambda self, task: True)


@breakage
def resources_of_an_abandoned_run_are_never_put_back(patch: Patch) -> None:
    def make(right: Any) -> Any:
        return lambda self, task: right(self, task) if task.state != "gone" else None

    replace(patch, WorkerState, "_put_back", make)


@breakage
def a_copy_that_was_to_be_saved_is_not_asked_for(patch: Patch) -> None:
    patch.setattr(WorkerState, "acquire_keys", lambda self, now, msg: None)


def main() -> None:
    """Print what FIRST_SEEDS should be."""
    for each in BREAKAGES:
        with pytest.MonkeyPatch.context() as patch:
            each(patch)
            first = next(filter(is_noticed, range(MAX_SEEDS)), None)
        if first is None or first > 1:
            print(f'    "{each.__name__}": {first},', flush=True)


if __name__ == "__main__":
    main()
