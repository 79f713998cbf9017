"""Jobs of one shape: which will still be there, and which to give back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from hpcdask.jobqueue.failures import Troubles
from hpcdask.jobqueue.job_record import JobRecord
from hpcdask.jobqueue.records import Limits, Request, Shape
from hpcdask.jobqueue.status import Phase

#: Waits in the queue that are remembered.
_N_WAITS = 15

#: The part of a walltime that a job may lose to a successor which comes at once.
_PART = 20


@dataclass(slots=True, eq=False)
class Pool:
    """What is wanted of one shape, and what there is."""

    name: str
    shape: Shape
    limits: Limits
    troubles: Troubles
    n_wanted: int = 0
    jobs: dict[str, JobRecord] = field(default_factory=dict)  # in the order of submission
    requests: dict[int, Request] = field(default_factory=dict)  # not known to have failed
    balanced: float = -math.inf  # when this was last done
    lead: float = 0.0  # seconds before a job's end at which its successor is submitted
    n_due: int = 0  # wanted jobs that are that near to it
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=_N_WAITS))
    is_held: bool = False  # none is submitted, since it could not work now

    def __post_init__(self) -> None:
        self._set_lead(0.0)

    def note_wait(self, seconds: float) -> None:
        """Learn from a job that has started.

        The usual wait is that of three in four: a successor that comes too early ends its
        predecessor, one that comes too late leaves a gap.
        """
        self.waits.append(seconds)
        self._set_lead(sorted(self.waits)[3 * len(self.waits) // 4])

    def _set_lead(self, usual_wait: float) -> None:
        margin, longest = self.shape.margin, (self.shape.walltime - self.shape.margin) / 2
        # A minute is nothing of an hour, and much of five minutes.
        least = min(self.limits.lead, self.shape.walltime / _PART)
        self.lead = margin + min(max(least, usual_wait), longest)

    @property
    def n_under_way(self) -> int:
        """Jobs that are being submitted, or may be in the queue for all that is known."""
        return sum(request.count for request in self.requests.values())

    @property
    def is_submitting(self) -> bool:
        """Whether a submission has not been answered at all."""
        return any([not request.is_unclear for request in self.requests.values()])

    def due_at(self, job: JobRecord) -> float:
        """When a job is so near to its end that another has to take its place."""
        at = math.inf
        if job.ends is not None and not self.shape.is_service:
            at = job.ends - max(self.lead, job.lead)
        if job.ending_since is not None:
            at = min(at, job.ending_since + self.limits.ending)
        return at

    def note_due(self, now: float) -> None:
        """Let jobs that are due be due, though their end or the usual wait seems to move a little.

        Else their successors would be cancelled, and submitted again at the end of the queue.
        """
        self.n_due = 0
        for job in self.jobs.values():
            if job.ends is not None and job.ends - self.lead <= now:
                job.lead = max(job.lead, self.lead + self.limits.lead)
                self.n_due += job.is_wanted

    def silent_at(self, job: JobRecord) -> float:
        """When a job has run without a worker for too long."""
        if job.silent_since is None or (self.shape.is_service and job.has_reported):
            return math.inf  # a service that we do not reach may be of use to others
        return job.silent_since + self.limits.start_timeout

    def staying(self, now: float) -> list[JobRecord]:
        """Wanted jobs that will still be there."""
        return [job for job in self.jobs.values() if job.is_wanted and self.due_at(job) > now]

    def is_up(self, job: JobRecord, now: float) -> bool:
        """Whether a job's workers are here, as many as will come."""
        return self._up_at(job) <= now

    def _up_at(self, job: JobRecord) -> float:
        if job.up_since is None or not job.workers:
            return math.inf
        is_complete = len(job.workers) >= self.shape.n_workers
        return job.up_since if is_complete else job.up_since + self.limits.grace

    def superfluous(self, now: float, idle: Collection[str]) -> list[JobRecord]:
        """Wanted jobs that are too many: what waits comes first, then who is done soonest.

        Parameters
        ----------
        idle : collection of str
            Ids of jobs that are the first to go of those that work, in this order.
        """
        staying = self.staying(now)
        surplus = len(staying) - self.n_wanted
        if surplus <= 0:
            return []
        rank = {id: n for n, id in enumerate(idle)}

        def cost(position: int) -> tuple[float, ...]:
            job = staying[position]
            youth = -job.submitted, -position
            if not job.workers:
                return job.phase is not Phase.PENDING, *youth
            return 2, rank.get(job.id, len(rank)), job.ends or math.inf, *youth

        return [staying[position] for position in sorted(range(len(staying)), key=cost)[:surplus]]

    def relieved(self, now: float) -> list[JobRecord]:
        """Wanted jobs near their end whose successors are there, or that need none any more."""
        due = [
            job
            for job in self.jobs.values()
            if job.is_wanted and self.due_at(job) <= now and self._stays_behind(job, now)
        ]
        if not due:
            return []
        surplus = len(due) + self.n_up(now) - self.n_wanted
        due.sort(key=lambda job: (bool(job.workers), job.ends or math.inf))
        return due[: max(surplus, 0)]

    def _stays_behind(self, job: JobRecord, now: float) -> bool:
        """Whether a job does not end by itself, as far as one can see."""
        return job.ending_since is None or job.ending_since + self.limits.ending <= now

    def n_up(self, now: float) -> int:
        """Jobs that are up, and will still be there."""
        return sum(self.is_up(job, now) for job in self.staying(now))

    def n_missing(self, now: float) -> int:
        """Jobs to submit now: one at a time while it is open whether any of them can start."""
        if self.is_submitting or self.troubles.has_stopped or now < self.troubles.pause_until:
            return 0
        if self.is_held:
            return 0
        staying = self.staying(now)
        n_missing = self.n_wanted - len(staying) - self.n_under_way
        is_in_doubt = self.troubles.starts.n and not any([job.workers for job in staying])
        if n_missing > 0 and is_in_doubt:
            known = self.troubles.starts.known
            has_probe = self.requests or any([job.requested >= known for job in staying])
            n_missing = 0 if has_probe else 1
        return max(0, min(n_missing, self.limits.max_array))

    def changes_at(self) -> Iterator[float]:
        """Times at which something is to be decided, whatever happens until then or does not."""
        yield self.troubles.pause_until
        for request in self.requests.values():
            yield request.look_at
        for job in self.jobs.values():
            if job.is_wanted:
                yield self.due_at(job)
                yield self.silent_at(job)
                yield self._up_at(job)
