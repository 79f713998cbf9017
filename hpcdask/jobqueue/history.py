"""Jobs that have ended."""

from __future__ import annotations

from collections.abc import Iterator

from hpcdask.jobqueue.job_record import JobRecord
from hpcdask.jobqueue.records import Limits
from hpcdask.jobqueue.status import End, JobStatus


class History:
    """The last jobs that have ended, and all that may be in the queue after all."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jobs: dict[str, JobRecord] = {}  # in the order of their ends

    def __iter__(self) -> Iterator[JobRecord]:
        return iter(self._jobs.values())

    def get(self, id: str) -> JobRecord | None:
        """The record of a job, if it is one of these."""
        return self._jobs.get(id)

    def pop(self, id: str) -> JobRecord | None:
        """Give a job back to those that are there, if it is one of these."""
        return self._jobs.pop(id, None)

    def add(self, now: float, job: JobRecord) -> None:
        """Keep a job, and forget another if there are too many."""
        self._jobs[job.id] = job
        if len(self._jobs) > self._limits.max_history:
            known = (each.id for each in self if not self._may_return(now, each))
            oldest = next(known, None)
            if oldest is not None:
                del self._jobs[oldest]

    def learn(self, id: str, status: JobStatus) -> None:
        """Hear of the end of a job that was only taken for gone."""
        job = self._jobs.get(id)
        if job is not None and job.is_presumed and status.end not in (None, End.UNKNOWN):
            job.learn_end(status)
            job.is_presumed = False

    def presumed(self, now: float) -> list[JobRecord]:
        """Those that may be in the queue after all."""
        return [job for job in self if self._may_return(now, job)]

    def _may_return(self, now: float, job: JobRecord) -> bool:
        is_recent = job.ended is not None and now - job.ended < self._limits.remember
        return job.is_presumed and is_recent
