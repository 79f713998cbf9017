"""Workers that are registered, and not of a job in the queue."""

from __future__ import annotations

from collections.abc import Collection

from hpcdask.jobqueue.job_record import JobRecord
from hpcdask.jobqueue.records import Leftover, Limits
from hpcdask.jobqueue.worker_names import candidates, life_of


class Leftovers:
    """Workers of jobs that are gone, or not known yet; they may work, but count for nothing.

    A node that is out of the batch system's reach goes on, for one, and so do the workers on it
    while others have taken their place.

    Attributes
    ----------
    by_job : dict of str to Leftover
        By the id of a job that is gone, or was put back into the queue since.
    strangers : set of str
        Workers of no known job: one may start before its submission is answered.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.by_job: dict[str, Leftover] = {}
        self.strangers: set[str] = set()

    def add(self, now: float, job: JobRecord, workers: Collection[str]) -> None:
        """Keep account of workers that a job has lost then."""
        if workers:
            leftover = self.by_job.setdefault(job.id, Leftover(job.pool, now))
            leftover.since = min(leftover.since, now)
            leftover.workers.update(workers)

    def discard(self, name: str) -> bool:
        """Forget a worker; return whether it was one of these."""
        if name in self.strangers:
            self.strangers.remove(name)
            return True
        for id, _ in candidates(name):
            leftover = self.by_job.get(id)
            if leftover is not None and name in leftover.workers:
                leftover.workers.remove(name)
                leftover.asked.discard(name)
                if not leftover.workers:
                    del self.by_job[id]
                return True
        return False

    def reclaim(self, job: JobRecord) -> list[str]:
        """Hand over those of a job's present life and of later ones, the latest first."""
        leftover = self.by_job.get(job.id)
        names = [*self.strangers, *(leftover.workers if leftover else ())]
        ours = [name for name in names if life_of(name, job.id) >= job.life]
        for name in ours:
            self.discard(name)
        return sorted(ours, key=lambda name: (-life_of(name, job.id), name))

    def to_retire(self, now: float, pool: str) -> list[tuple[str, set[str]]]:
        """Those of a pool who have had time to end by themselves, by job; each only once."""
        found = []
        for id, leftover in self.by_job.items():
            new = leftover.workers - leftover.asked
            if leftover.pool == pool and new and leftover.since + self._limits.grace <= now:
                leftover.asked |= new
                found.append((id, new))
        return found

    def changes_at(self) -> list[float]:
        """Times at which some have had that time."""
        return [leftover.since + self._limits.grace for leftover in self.by_job.values()]
