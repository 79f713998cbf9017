"""How soon a nanny starts another worker, and when it gives up."""

from __future__ import annotations

#: Starts in a row that may fail before a nanny gives up, and the longest pause between them.
MAX_FAILED_STARTS, MAX_PAUSE = 5, 10.0
#: The longest pause while the scheduler is not reached: it may be there again any moment.
MAX_PAUSE_CUT_OFF = 2.0
#: A worker that lived this long was started well, in seconds.
HEALTHY = 30.0


class Restarts:
    """Counts unplanned ends of workers.

    The first is followed by a start at once, later ones after pauses that double. A worker that
    dies soon after it has started only costs pauses, since a task may be to blame, which the
    scheduler gives up in time; workers that cannot even start are given up here.

    Parameters
    ----------
    patience : float
        Seconds for which workers may fail to start because they do not reach the scheduler: that
        is the network's fault, or the scheduler's. It begins with the first that gives up.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self.failed_starts = 0  # in a row
        self._short_lives = 0  # in a row, failed starts among them
        self._started = 0.0
        self._patience = patience
        self._cut_off_since: float | None = None

    def why_hopeless(self, now: float) -> str:
        """Why to give up, as the end of a sentence about the worker; empty if there is hope."""
        if self.failed_starts >= MAX_FAILED_STARTS:
            return f"failed to start {self.failed_starts} times in a row"
        if self._cut_off_since is not None and now - self._cut_off_since > self._patience:
            return f"has not reached the scheduler for {now - self._cut_off_since:.0f} s"
        return ""

    def pause(self) -> float:
        """Seconds to wait before the next start."""
        if self._short_lives <= 1:
            return 0.0
        longest = MAX_PAUSE if self._cut_off_since is None else MAX_PAUSE_CUT_OFF
        return min(0.2 * 2.0 ** (self._short_lives - 1), longest)

    def started(self, now: float) -> None:
        """A worker has started and registered."""
        self._started = now
        self.failed_starts = 0
        self._cut_off_since = None

    def died(self, now: float) -> None:
        """A worker that had started has ended, and nobody had asked it to."""
        is_short = now - self._started < HEALTHY
        self._short_lives = self._short_lives + 1 if is_short else 1

    def failed_to_start(self) -> None:
        """A worker has ended before it had started."""
        self.failed_starts += 1
        self._short_lives += 1

    def was_cut_off(self, now: float) -> None:
        """A worker has ended before it had started, since it did not reach the scheduler."""
        if not self._patience:
            return self.failed_to_start()
        if self._cut_off_since is None:
            self._cut_off_since = now
        self._short_lives += 1
