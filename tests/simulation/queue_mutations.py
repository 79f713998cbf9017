"""Deliberate breakages of the controller, each small and plausible, to see whether one notices.

A breakage is a function that gets pytest's monkeypatch and puts a subtly wrong method in the place
of a right one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpcdask.jobqueue import controller, leftovers, worker_names
from hpcdask.jobqueue.controller import Controller
from hpcdask.jobqueue.failures import Troubles
from hpcdask.jobqueue.job_record import Absence, JobRecord
from hpcdask.jobqueue.leftovers import Leftovers
from hpcdask.jobqueue.pools import Pool
from hpcdask.jobqueue.status import End, JobStatus, Phase

Patch = pytest.MonkeyPatch
Breakage = Callable[[Patch], None]
BREAKAGES: list[Breakage] = []


#: Seeds that notice those which few others do, to begin with; they change with the simulator.
FIRST_SEEDS = {"the_longest_wait_is_for_ever": 108}


def breakage(function: Breakage) -> Breakage:
    BREAKAGES.append(function)
    return function


@breakage
def a_submission_of_which_nobody_knows_has_failed(patch: Patch) -> None:
    patch.setattr(Controller, "submit_unclear", Controller.submit_failed)


@breakage
def it_does_not_count_while_it_is_looked_for(patch: Patch) -> None:
    patch.setattr(Pool, "n_under_way", 0)


@breakage
def a_late_answer_is_not_heard(patch: Patch) -> None:
    right = Controller.submitted

    def submitted(self: Controller, now: float, request: int, ids: Any) -> None:
        if not any(r.is_unclear for pool in self.pools.values() for r in pool.requests.values()):
            right(self, now, request, ids)

    patch.setattr(Controller, "submitted", submitted)


@breakage
def a_listing_of_nothing_is_as_good_as_any(patch: Patch) -> None:
    right = Controller._miss
    patch.setattr(Controller, "_miss", lambda self, now, job, _: right(self, now, job, True))


@breakage
def a_job_that_one_listing_does_not_have_is_gone(patch: Patch) -> None:
    patch.setattr(Absence, "is_proof", lambda self, *args: True)


@breakage
def a_failed_listing_is_an_empty_one(patch: Patch) -> None:
    patch.setattr(
        Controller, "listing_failed", lambda self, now, why: [self.listed(now, {}) for _ in "123"]
    )


@breakage
def it_is_gone_though_its_workers_are_here(patch: Patch) -> None:
    right = Controller._miss

    def miss(self: Controller, now: float, job: JobRecord, have_others: bool) -> bool:
        if job.absence.is_clear(now, self.limits):
            self.leftovers.add(now, job, job.workers)
            job.workers = set()
        return right(self, now, job, have_others)

    patch.setattr(Controller, "_miss", miss)


@breakage
def a_job_that_shows_up_again_is_nobodys(patch: Patch) -> None:
    right = Controller._see

    def see(self: Controller, now: float, id: str, status: JobStatus) -> None:
        if id in self.jobs:
            right(self, now, id, status)

    patch.setattr(Controller, "_see", see)


@breakage
def a_job_that_is_put_back_has_ended(patch: Patch) -> None:
    right = Controller._see

    def see(self: Controller, now: float, id: str, status: JobStatus) -> None:
        job = self.jobs.get(id)
        if job is not None and job.listed is Phase.RUNNING and status.phase is Phase.PENDING:
            status = JobStatus(id=id, phase=Phase.ENDED, end=End.PREEMPTED)
        right(self, now, id, status)

    patch.setattr(Controller, "_see", see)


@breakage
def workers_of_former_lives_count(patch: Patch) -> None:
    right = worker_names.candidates
    for module in (worker_names, controller, leftovers):
        patch.setattr(module, "candidates", lambda name: ((id, 0) for id, _ in right(name)))


@breakage
def workers_that_nobody_needs_are_never_let_go(patch: Patch) -> None:
    patch.setattr(Leftovers, "to_retire", lambda self, now, pool: [])


@breakage
def a_worker_that_comes_before_its_job_is_known_is_forgotten(patch: Patch) -> None:
    patch.setattr(Leftovers, "reclaim", lambda self, job: [])


@breakage
def a_job_is_cancelled_while_its_workers_hand_over(patch: Patch) -> None:
    patch.setattr(Controller, "_retire", lambda self, job, workers: self._cancel(self._now, [job]))


@breakage
def a_job_whose_workers_have_retired_is_left_to_itself(patch: Patch) -> None:
    patch.setattr(Controller, "retired", lambda self, now, id: None)


@breakage
def a_cancel_is_not_repeated(patch: Patch) -> None:
    patch.setattr(JobRecord, "outlives_cancel", lambda self, now, first_pause: False)


@breakage
def what_is_released_is_replaced(patch: Patch) -> None:
    right = Controller.release

    def release(self: Controller, now: float, ids: Any) -> None:
        n_wanted = {name: pool.n_wanted for name, pool in self.pools.items()}
        right(self, now, ids)
        for name, pool in self.pools.items():
            pool.n_wanted = n_wanted[name]
        self.tick(now)

    patch.setattr(Controller, "release", release)


@breakage
def there_are_no_pauses(patch: Patch) -> None:
    patch.setattr(Troubles, "_pause", lambda self, now, counts: None)


@breakage
def the_longest_wait_is_for_ever(patch: Patch) -> None:
    patch.setattr(Pool, "silent_at", lambda self, job: float("inf"))
