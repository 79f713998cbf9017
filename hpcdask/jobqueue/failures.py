"""When to try again, and when no more: failures in a row, and the pauses that follow them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hpcdask.jobqueue.job_record import JobRecord
from hpcdask.jobqueue.records import Limits
from hpcdask.jobqueue.status import End

#: Ends that are the batch system's own doing: they say nothing about the job.
BLAMELESS = (End.TIMEOUT, End.PREEMPTED, End.NODE_FAIL)


@dataclass(slots=True)
class Streak:
    """Failures in a row: each of something that was begun when the one before was known.

    So an array of which every job fails is one failure, at whatever times they do: nobody had a
    chance to do better.
    """

    n: int = 0
    known: float = -math.inf  # when the last one was counted
    why: str = ""

    def note(self, now: float, begun: float, why: str) -> bool:
        """Note a failure of what was begun then; return whether it counts."""
        self.why = why
        if begun < self.known:
            return False
        self.n, self.known = self.n + 1, now
        return True


@dataclass(slots=True)
class Troubles:
    """What has gone wrong in a pool of late."""

    limits: Limits
    #: Jobs and submissions that came to nothing: a worker of a new job ends this streak.
    starts: Streak = field(default_factory=Streak)
    #: Jobs that somebody else has cancelled, then those in their place, and so on: it is meant.
    cancels: Streak = field(default_factory=Streak)
    #: Jobs lost before their time for any reason: for how long to pause, not whether to go on.
    losses: Streak = field(default_factory=Streak)
    pause_until: float = -math.inf

    def submission_failed(self, now: float, begun: float, why: str) -> None:
        """A command was refused, or nothing came of it."""
        for streak in (self.starts, self.losses):
            streak.note(now, begun, why)
        self._pause(now, True)

    def submission_unclear(self, now: float, begun: float, why: str) -> None:
        """A batch system is too busy, perhaps, to answer: a reason to be slow."""
        self.losses.note(now, begun, why)
        self._pause(now, True)

    def fell_silent(self, now: float, job: JobRecord, why: str) -> None:
        """A job that runs has had no worker for too long; perhaps it had one before."""
        streaks = [self.losses] if job.up_since is not None else [self.losses, self.starts]
        counts = [streak.note(now, job.requested, why) for streak in streaks]
        self._pause(now, any(counts))

    def job_lost(self, now: float, job: JobRecord) -> None:
        """A wanted job has ended before its time."""
        end, begun, why = job.status.end or End.UNKNOWN, job.requested, job.describe_end()
        if end is End.TIMEOUT:
            return
        streaks = [self.losses]
        if end is End.CANCELLED:
            if now - self.cancels.known > self.limits.forget_cancels:
                self.cancels = Streak()
            streaks.append(self.cancels)
        if not job.has_reported and end not in BLAMELESS:
            streaks.append(self.starts)
        if job.started is not None and now - job.started > self.limits.longest_pause:
            self.losses = streaks[0] = Streak()
        counts = [streak.note(now, begun, why) for streak in streaks]
        self._pause(now, any(counts))

    def job_started(self) -> None:
        """A new job has brought a worker."""
        self.starts = Streak(known=self.starts.known)

    def forgive(self) -> None:
        """Begin anew: somebody who knows more has asked for it."""
        self.starts, self.cancels, self.losses = Streak(), Streak(), Streak()
        self.pause_until = -math.inf

    @property
    def has_stopped(self) -> bool:
        """Whether nothing more is tried."""
        most = self.limits.max_failures
        return self.starts.n >= most or self.cancels.n >= most

    def in_words(self) -> str:
        """Why nothing more is tried, if that is so."""
        if self.cancels.n >= self.limits.max_failures:
            what = f"jobs were cancelled by somebody else {self.cancels.n} times in a row"
            last = self.cancels.why
        else:
            what, last = f"{self.starts.n} starts in a row have failed", self.starts.why
        return f"{what}, so no more are tried until scale() or adapt() is called; the last: {last}"

    def _pause(self, now: float, counts: bool) -> None:
        if counts:
            n = max(self.starts.n, self.cancels.n, self.losses.n)
            pause = self.limits.first_pause * 2.0 ** min(n - 1, 30)
            self.pause_until = max(self.pause_until, now + min(pause, self.limits.longest_pause))
