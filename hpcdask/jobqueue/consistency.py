"""What always holds in a controller, between two events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcdask.jobqueue.job_record import JobRecord
from hpcdask.jobqueue.status import Phase

if TYPE_CHECKING:
    from hpcdask.jobqueue.controller import Controller
    from hpcdask.jobqueue.pools import Pool


def check(controller: Controller) -> None:
    """Compare all that is known twice, and what is wanted with what there is.

    Raises
    ------
    AssertionError
        With what contradicts itself.
    """
    in_pools = [job for pool in controller.pools.values() for job in pool.jobs.values()]
    assert {job.id: job for job in in_pools} == controller.jobs, "jobs of no pool"
    assert len(in_pools) == len(controller.jobs), "a job of two pools"
    for pool in controller.pools.values():
        _check_pool(pool, pool.balanced)
        if controller.is_closed:
            assert not pool.n_wanted, (pool.name, "wants jobs after its end")
    for id, job in controller.jobs.items():
        assert id == job.id
        assert id in controller.pools[job.pool].jobs, id
        _check_job(job)
        assert not (controller.is_closed and job.cancelled is None), (id, "outlives the end")
    names = [name for job in in_pools for name in job.workers]
    names += [
        name for leftover in controller.leftovers.by_job.values() for name in leftover.workers
    ]
    names += controller.leftovers.strangers
    assert len(names) == len(set(names)), ("a worker of two jobs", sorted(names))
    for id, leftover in controller.leftovers.by_job.items():
        assert leftover.workers, id
        assert leftover.asked <= leftover.workers, (id, leftover)


def _check_job(job: JobRecord) -> None:
    assert job.phase is not Phase.ENDED, (job.id, "has ended")
    if not job.is_wanted:
        assert job.n_retiring or job.cancelled is not None, (job.id, "is in limbo")
    else:
        assert job.cancelled is None, (job.id, "is wanted, and cancelled")
    if job.workers:
        assert job.started is not None, (job.id, "has workers, and has not started")
        assert job.silent_since is None, (job.id, "is silent with workers")
    assert job.absence.with_others.n <= job.absence.all.n, job.id
    assert job.n_retiring >= 0, job.id


def _check_pool(pool: Pool, now: float) -> None:
    requests = pool.requests.values()
    assert sum(not request.is_unclear for request in requests) <= 1, "two submissions at once"
    assert all(request.count > 0 for request in requests), list(requests)
    assert pool.n_wanted >= 0, pool.name
    n_staying = len(pool.staying(now))
    assert n_staying <= pool.n_wanted, (pool.name, n_staying, "jobs for", pool.n_wanted)
    assert not pool.n_missing(now), (pool.name, "lacks jobs that could be submitted")
