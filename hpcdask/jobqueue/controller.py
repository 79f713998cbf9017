"""How many jobs there should be, and what to do about it: a pure state machine over a batch system.

Events come in with the time, actions go out in `outbox`. It never asks the system, the clock or the
network; `hpcdask.jobqueue.cluster` does, and tests do in its place.

The rule: per pool, the jobs that are wanted less the jobs that will still be there are submitted, as
one array; so whatever is lost, to a walltime, preemption or a fault, is replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from hpcdask.jobqueue.status import End, JobStatus, Phase


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What each job of a pool brings; see also `Limits`.

    Parameters
    ----------
    n_workers : int
        Processes that register from one job.
    walltime : float
        Seconds.
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
    start_timeout: float = 300.0  # from a job's start to its first worker
    lead: float = 60.0  # a job that ends within this, or within the usual wait, is replaced now


# ---------------------------------------------------------------- actions


class Submit(NamedTuple):
    """Submit an array of `count` jobs; answer with `submitted` or `submit_failed`."""

    request: int
    pool: str
    count: int


class Cancel(NamedTuple):
    """Cancel these jobs; nothing has to be answered, the next listing tells."""

    ids: tuple[str, ...]


class Retire(NamedTuple):
    """Let workers of a job hand over and end; answer with `retired`."""

    id: str
    workers: tuple[str, ...]


class AskEnds(NamedTuple):
    """Ask how these ended, which the queue no longer lists; answer with `ends_known`."""

    ids: tuple[str, ...]


Action: TypeAlias = Submit | Cancel | Retire | AskEnds


# ---------------------------------------------------------------- what is known of a job


@dataclass(slots=True, eq=False)
class JobRecord:
    """A job that was submitted, until `history` forgets it."""

    id: str
    pool: str
    submitted: float
    status: JobStatus
    started: float | None = None
    ends: float | None = None  # when its walltime is over
    workers: set[str] = field(default_factory=set)  # names of those registered
    has_reported: bool = False  # a worker of it has registered, ever
    is_wanted: bool = True  # else it is being retired or cancelled
    n_missed: int = 0

    @property
    def phase(self) -> Phase:
        """Where it is."""
        return self.status.phase


class Controller:
    """Keeps as many jobs as are wanted.

    Attributes
    ----------
    jobs : dict
        By id, those that may be in the queue.
    history : list of JobRecord
        The last that have ended.
    outbox : list of Action
        What is to be done; whoever calls an event empties it.
    """

    def __init__(self, limits: Limits | None = None) -> None: ...

    def add_pool(self, name: str, shape: Shape) -> None: ...

    # -- What is wanted

    def scale(self, now: float, pool: str, n_jobs: int) -> None:
        """From now on want so many jobs; what has failed before is forgiven."""

    def release(self, now: float, ids: Collection[str]) -> None:
        """Want these no more, and so many fewer of their pools."""

    def close(self, now: float) -> None:
        """Cancel everything; want nothing any more."""

    def adopt(self, now: float, pool: str, ids: Collection[str]) -> None:
        """Take over jobs that somebody else has submitted: an earlier session of the user."""

    # -- What happens

    def submitted(self, now: float, request: int, ids: Collection[str]) -> None: ...

    def submit_failed(self, now: float, request: int, why: str) -> None: ...

    def listed(self, now: float, statuses: Mapping[str, JobStatus]) -> None:
        """A complete listing: of jobs that are missing from it, the end is asked for."""

    def listing_failed(self, now: float, why: str) -> None:
        """Nothing is known; nothing is concluded."""

    def ends_known(self, now: float, statuses: Mapping[str, JobStatus]) -> None: ...

    def worker_joined(self, now: float, name: str) -> None: ...

    def worker_left(self, now: float, name: str) -> None: ...

    def retired(self, now: float, id: str) -> None: ...

    def tick(self, now: float) -> None:
        """Time has passed: a pause is over, a walltime near."""

    # -- What it says

    def wake_at(self) -> float | None:
        """When `tick` is due next."""

    def wanted(self, pool: str) -> int: ...

    def why_not(self, now: float, n_workers: int) -> str:
        """Why so many workers will not come, if that is so; empty while they may still."""


def job_of(worker: str) -> str:
    """The id of the job in a worker's name, as job scripts make it: ``ID``, ``ID-2``, ``IDr1-2``."""


__all__ = ["Action", "AskEnds", "Cancel", "Controller", "End", "JobRecord", "Limits", "Retire",
           "Shape", "Submit", "job_of"]
