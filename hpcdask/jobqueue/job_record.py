"""One job as a controller knows it: what its batch system and its workers have said of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from hpcdask.jobqueue.records import Limits
from hpcdask.jobqueue.status import End, JobStatus, Phase
from hpcdask.jobqueue.worker_names import life_of


@dataclass(slots=True)
class Misses:
    """Listings in a row without a job."""

    n: int = 0
    since: float = math.inf

    def note(self, now: float) -> None:
        """Another one."""
        self.n, self.since = self.n + 1, min(self.since, now)

    def are_enough(self, now: float, n: int, seconds: float) -> bool:
        """Whether there are so many, for so long."""
        return self.n >= n and now - self.since >= seconds


@dataclass(slots=True)
class Absence:
    """What complete listings say against a job of which no other word is to be had."""

    all: Misses = field(default_factory=Misses)
    with_others: Misses = field(default_factory=Misses)  # in which other jobs are listed

    def note(self, now: float, have_others: bool) -> None:
        """A listing does not have it."""
        self.all.note(now)
        if have_others:
            self.with_others.note(now)

    def is_clear(self, now: float, limits: Limits) -> bool:
        """Whether it is missed often and long enough to believe who says: no such job."""
        return self.all.are_enough(now, limits.max_missed, limits.missing)

    def is_proof(self, now: float, have_others: bool, limits: Limits) -> bool:
        """Whether one more makes it to be taken for gone, though nobody says anything."""
        if have_others:
            return self.with_others.are_enough(now, limits.max_missed, limits.missing)
        return self.all.are_enough(now, limits.max_missed, limits.missing_with_all)


@dataclass(slots=True, eq=False)
class JobRecord:
    """A job that was submitted, until `History` forgets it."""

    id: str
    pool: str
    submitted: float
    status: JobStatus
    requested: float = -math.inf  # when its submission began; unknown of adopted jobs
    started: float | None = None
    has_started: bool = False  # ever
    ends: float | None = None  # when its walltime is over
    ended: float | None = None
    workers: set[str] = field(default_factory=set)  # names of those registered
    has_reported: bool = False  # a worker of it has registered, ever
    is_wanted: bool = True  # else it is being retired or cancelled
    can_never_run: bool = False  # as its batch system says while it waits
    # Its life, of several if it was put back into the queue.
    life: int = 0
    is_ahead: bool = False  # its first worker has come, and no listing since
    up_since: float | None = None  # a worker of this life has registered
    n_silent_lives: int = 0  # before, in a row
    silent_since: float | None = None  # runs without a worker
    ending_since: float | None = None
    lead: float = 0.0  # with which a successor was submitted
    # What the queue says, without what workers tell.
    listed: Phase | None = None
    absence: Absence = field(default_factory=Absence)
    is_presumed: bool = False  # its end; the batch system has not said so
    # How it is given back.
    n_retiring: int = 0  # `Retire` actions under way
    was_retired: bool = False  # workers of it were, when it was given back
    cancelled: float | None = None  # when this was last asked for
    n_cancels: int = 0

    @property
    def phase(self) -> Phase:
        """Where it is."""
        return self.status.phase

    def take(self, now: float, status: JobStatus, walltime: float) -> float | None:
        """Learn from a batch system that it is there.

        Returns
        -------
        float or None
            Seconds that it has waited in the queue, the first time that it has started.
        """
        self.status = status
        if status.phase is Phase.PENDING:
            self._forget_start()
            return None
        if self.started is None or status.elapsed is not None:
            self.started = now - (status.elapsed or 0.0)
        self.ends = self.started + walltime if status.left is None else now + status.left
        if status.phase is Phase.ENDING:
            self.silent_since = None
            self.ending_since = now if self.ending_since is None else self.ending_since
        else:
            self.ending_since = None
            if not self.workers and self.silent_since is None:
                self.silent_since = now if self.has_reported else max(self.started, self.submitted)
        if self.has_started:
            return None
        self.has_started = True
        # Nobody knows since when an adopted one has waited.
        return max(self.started - self.submitted, 0.0) if self.requested > -math.inf else None

    def begin_life(self, now: float, life: int) -> set[str]:
        """It was put back into the queue; return its workers of the life before.

        Where lives are not counted, or only the first two, `life` is the number of the last one.
        """
        is_counted = life > self.life
        new = {name for name in self.workers if is_counted and life_of(name, self.id) >= life}
        former, self.workers, self.life = self.workers - new, new, life
        self.n_silent_lives = self.n_silent_lives + 1 if self.up_since is None else 0
        self.up_since = now if new else None
        self.be_pending()
        return former

    def be_pending(self) -> None:
        """It waits, as far as is known; others may know better."""
        self.status = JobStatus(id=self.id, phase=Phase.PENDING, restarts=self.life)
        self._forget_start()

    def _forget_start(self) -> None:
        self.started = self.ends = self.silent_since = self.ending_since = None
        self.lead = 0.0

    def join(self, now: float, worker: str) -> bool:
        """A worker of its present life has registered; return whether it is the first one."""
        self.workers.add(worker)
        self.silent_since = None
        if self.up_since is not None:
            return False
        self.up_since, self.has_reported, self.n_silent_lives = now, True, 0
        return True

    def end(self, now: float, status: JobStatus, is_presumed: bool = False) -> set[str]:
        """It has ended; return the workers that are still registered."""
        left, self.workers = self.workers, set()
        self.ended, self.is_presumed = now, is_presumed or status.end in (None, End.UNKNOWN)
        self.learn_end(status)
        return left

    def learn_end(self, status: JobStatus) -> None:
        """Take over how it has ended, without losing what was known before."""
        before = self.status
        self.status = replace(
            status,
            nodes=status.nodes or before.nodes,
            elapsed=before.elapsed if status.elapsed is None else status.elapsed,
            end=status.end or End.UNKNOWN,
            left=None,
            restarts=max(before.restarts, status.restarts),
        )

    def outlives_cancel(self, now: float, first_pause: float) -> bool:
        """Whether it was cancelled, long ago for how often that was, and shows no sign of it."""
        if self.cancelled is None or self.absence.all.n or self.phase is Phase.ENDING:
            return False
        return now - self.cancelled >= first_pause * 2.0 ** min(self.n_cancels - 1, 5)

    def describe_end(self) -> str:
        """How it has ended, as part of a sentence."""
        status = self.status
        text = f"job {self.id}: {(status.end or End.UNKNOWN).value}"
        if status.exit_code:
            text += f", exit code {status.exit_code}"
        if status.signal:
            text += f", signal {status.signal}"
        return f"{text} ({status.reason})" if status.reason else text
