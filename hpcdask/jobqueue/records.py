"""What a controller keeps of each job, each submission and each kind of job."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from hpcdask.jobqueue.status import End, JobStatus, Phase


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What each job of a pool brings; see also `Limits`.

    Parameters
    ----------
    n_workers : int
        Processes that register from one job.
    walltime : float
        Seconds; `math.inf` if it has no limit.
    """

    n_workers: int
    walltime: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How patient and how eager the controller is; times in seconds."""

    max_failures: int = 3  # failed starts in a row, of submissions or jobs, before it gives up
    first_pause: float = 1.0  # after the first of them; doubled by each
    longest_pause: float = 300.0
    max_array: int = 1000  # jobs of one submission
    max_missed: int = 3  # complete listings without a job, and no word of its end, until it is gone
    # Nor is it gone before these: Grid Engine tells of an end up to 15 s later, and a system that
    # lists nothing at all may only be restarting.
    missing: float = 20.0
    missing_with_all: float = 300.0
    start_timeout: float = 300.0  # that a job may run without a worker
    lead: float = 60.0  # a job that ends within this, or within the usual wait, is replaced now
    ending: float = 60.0  # that a job takes to end, before another is submitted in its place
    grace: float = 30.0  # for the other workers of a job to come, or of an ended job to go
    cancel_again: float = 10.0  # after a cancelled job is still listed; doubled each time
    look_again: float = 5.0  # after a look for an unclear submission; doubled each time
    unclear: float = 60.0  # until a submission that is not found is taken for failed
    remember: float = 3600.0  # that jobs which seem to be gone are looked for
    forget_cancels: float = 3600.0  # after which a job cancelled by others is the first one again
    max_history: int = 1000  # jobs


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
    """A job that was submitted, until `history` forgets it."""

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
    cancelled: float | None = None  # when this was last asked for
    n_cancels: int = 0

    @property
    def phase(self) -> Phase:
        """Where it is."""
        return self.status.phase

    def forget_start(self) -> None:
        """It waits, perhaps again."""
        self.started = self.ends = self.silent_since = self.ending_since = None
        self.lead = 0.0

    def describe_end(self) -> str:
        """How it has ended, as part of a sentence."""
        status = self.status
        text = f"job {self.id}: {(status.end or End.UNKNOWN).value}"
        if status.exit_code:
            text += f", exit code {status.exit_code}"
        if status.signal:
            text += f", signal {status.signal}"
        return f"{text} ({status.reason})" if status.reason else text


@dataclass(slots=True, eq=False)
class Request:
    """A submission, until it is known what came of it."""

    number: int
    pool: str
    count: int
    begun: float
    why_unclear: str = ""
    unclear_since: float = math.inf
    look_at: float = math.inf
    n_looks: int = 0
    n_not_found: int = 0

    @property
    def is_unclear(self) -> bool:
        """Whether the command has not said what came of it."""
        return self.unclear_since < math.inf


@dataclass(slots=True, eq=False)
class Leftover:
    """Workers of a job that is gone, or of a former life of it: its node was out of reach, say.

    They may work, but count for nothing.
    """

    pool: str
    since: float
    workers: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)  # to retire


class Row(NamedTuple):
    """A job in a table for users; times in seconds."""

    id: str
    pool: str
    state: str  # "pending", "running", "retiring", "ending", or how it has ended
    reason: str  # the batch system's own words
    nodes: str
    elapsed: float | None
    left: float | None
    workers: int
