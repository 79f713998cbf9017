"""What a controller is told of jobs, and what it keeps of submissions: plain records."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What each job of a pool brings; see also `Limits`.

    Parameters
    ----------
    n_workers : int
        Processes that register from one job.
    walltime : float
        Seconds; `math.inf` if it has no limit.
    margin : float
        Seconds before the end of the walltime at which workers begin to leave by themselves.
    is_service : bool
        Whether each job is something that must not be there twice, as a scheduler: no successor
        comes before its end. If it has ended of its own accord none comes at all. It registers
        under the job's id, and counts for no worker.
    """

    n_workers: int
    walltime: float
    margin: float = 0.0
    is_service: bool = False


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
    lead: float = 60.0  # a job whose workers leave within this, or the usual wait, is replaced now
    ending: float = 60.0  # that a job takes to end, before another is submitted in its place
    grace: float = 30.0  # for the other workers of a job to come, or of an ended job to go
    cancel_again: float = 10.0  # after a cancelled job is still listed; doubled each time
    cancel_again_at_end: float = 2.0  # the same when all is cancelled, and nobody waits for long
    look_again: float = 5.0  # after a look for an unclear submission; doubled each time
    unclear: float = 60.0  # until a submission that is not found is taken for failed
    remember: float = 3600.0  # that jobs which seem to be gone are looked for
    forget_cancels: float = 3600.0  # after which a job cancelled by others is the first one again
    max_history: int = 1000  # jobs


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
