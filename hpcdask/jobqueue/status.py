"""What a batch system says of its jobs, in words that all of them have: pure records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Phase(Enum):
    """Where a job is on its way."""

    PENDING = "pending"
    RUNNING = "running"
    ENDING = "ending"  # asked to end, or being cleared up; it may still hold its nodes
    ENDED = "ended"


class End(Enum):
    """Why a job has ended; the values are what users read."""

    COMPLETED = "completed"  # exit code 0
    FAILED = "failed"  # another exit code, or a signal that nobody explains
    TIMEOUT = "walltime"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    NODE_FAIL = "node failure"
    OUT_OF_MEMORY = "out of memory"
    LAUNCH_FAILED = "could not be started"
    UNKNOWN = "gone"  # the system has forgotten it

    @property
    def is_failure(self) -> bool:
        """Whether the same may happen to the next job, for the job's own reasons."""
        return self in (End.FAILED, End.OUT_OF_MEMORY, End.LAUNCH_FAILED)


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """One job, or one job of an array, as the system sees it now.

    Parameters
    ----------
    id : str
        As `BatchSystem.elements` gives it.
    phase : Phase
    reason : str
        The system's own word or sentence: why it waits, or how it has ended.
    nodes : str
        Names, as the system writes them; empty until it runs.
    elapsed : float, optional
        Seconds that it has run.
    left : float, optional
        Seconds until its walltime is over.
    end : End, optional
        Of a job that has ended.
    exit_code, signal : int, optional
        Of a job that has ended, where the system knows.
    restarts : int
        How often it was put back into the queue.
    """

    id: str
    phase: Phase
    reason: str = ""
    nodes: str = ""
    elapsed: float | None = None
    left: float | None = None
    end: End | None = None
    exit_code: int | None = None
    signal: int | None = None
    restarts: int = 0


class Answer(NamedTuple):
    """What a command of a batch system has printed."""

    code: int
    out: str
    err: str
