"""What a controller says of its jobs: a table, and why workers will not come."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from hpcdask.jobqueue.job_record import JobRecord
from hpcdask.jobqueue.pools import Pool
from hpcdask.jobqueue.records import Row
from hpcdask.jobqueue.status import End, Phase

#: Ids that are named in a sentence; of more, the number.
_N_NAMED = 3


def why_not(pools: Collection[Pool], is_closed: bool, now: float, n_workers: int) -> str:
    """Why so many workers will not come, if that is so; empty while they may still.

    Workers that nobody has asked for yet may: somebody still can.
    """
    if is_closed:
        return "the cluster is closed"
    missing = [pool for pool in pools if pool.shape.is_service and _obstacles(pool, now)]
    if missing:  # without it nothing works
        pools = missing
    elif sum(_n_possible(pool, now) for pool in pools) >= n_workers:
        return ""
    reasons = [(pool.name, reason) for pool in pools for reason in _obstacles(pool, now)]
    if len(pools) > 1:
        return "; ".join(f"pool {name!r}: {reason}" for name, reason in reasons)
    return "; ".join(reason for _, reason in reasons)


def _n_possible(pool: Pool, now: float) -> int:
    """Workers that will come if nothing else happens."""
    staying = pool.staying(now)
    n_jobs = sum(not job.can_never_run for job in staying) + pool.n_under_way
    if not pool.troubles.has_stopped:
        n_jobs += max(pool.n_wanted - len(staying) - pool.n_under_way, 0)
    return n_jobs * pool.shape.n_workers


def _obstacles(pool: Pool, now: float) -> list[str]:
    """What will not go away by itself."""
    found = []
    stuck = [job for job in pool.staying(now) if job.can_never_run]
    if stuck:
        reasons = ", ".join(dict.fromkeys(job.status.reason for job in stuck))
        found.append(
            f"{_named([job.id for job in stuck])} can never run: {reasons}; close the cluster, or "
            "scale it to 0, and ask for what the batch system can grant"
        )
    troubles = pool.troubles
    n_missing = pool.n_wanted - len(pool.staying(now)) - pool.n_under_way
    if n_missing > 0 and troubles.has_stopped:
        found.append(troubles.in_words())
    return found


def _named(ids: Sequence[str]) -> str:
    """Some jobs, in words."""
    noun = "job" if len(ids) == 1 else "jobs"
    more = f" and {len(ids) - _N_NAMED} more" if len(ids) > _N_NAMED else ""
    return f"{noun} {', '.join(ids[:_N_NAMED])}{more}"


def row(job: JobRecord, now: float) -> Row:
    """A job as users see it."""
    status, elapsed, left = job.status, job.status.elapsed, None
    if job.ended is None:
        elapsed = None if job.started is None else now - job.started
        if job.ends is not None and job.ends < math.inf:
            left = max(job.ends - now, 0.0)
    elif elapsed is None and job.started is not None:
        elapsed = job.ended - job.started
    return Row(
        id=job.id,
        pool=job.pool,
        state=_state(job),
        reason=status.reason,
        nodes=status.nodes,
        elapsed=elapsed,
        left=left,
        workers=len(job.workers),
    )


def _state(job: JobRecord) -> str:
    if job.phase is Phase.ENDED:
        if job.was_retired and job.status.end is End.CANCELLED:
            return "retired"
        return (job.status.end or End.UNKNOWN).value
    if job.cancelled is not None:
        return "ending"
    return job.phase.value if job.is_wanted else "retiring"
