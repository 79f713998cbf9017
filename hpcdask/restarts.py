"""How soon a nanny starts another worker, and when it gives up."""

from __future__ import annotations

#: Starts in a row that may fail before a nanny gives up, and the longest pause between them.
MAX_FAILED_STARTS, MAX_PAUSE = 5, 10.0
#: A worker that lived this long was started well, in seconds.
HEALTHY = 30.0


class Restarts:
    """Counts unplanned ends of workers.

    The first is followed by a start at once, later ones after pauses that double. A worker that
    dies soon after it has started only costs pauses, since a task may be to blame, which the
    scheduler gives up in time; workers that cannot even start are given up here.
    """

    def __init__(self) -> None:
        self.failed_starts = 0  # in a row
        self._short_lives = 0  # in a row, failed starts among them
        self._started = 0.0

    @property
    def is_hopeless(self) -> bool:
        """Whether to give up."""
        return self.failed_starts >= MAX_FAILED_STARTS

    def pause(self) -> float:
        """Seconds to wait before the next start."""
        if self._short_lives <= 1:
            return 0.0
        return min(0.2 * 2.0 ** (self._short_lives - 1), MAX_PAUSE)

    def started(self, now: float) -> None:
        """A worker has started and registered."""
        self._started = now
        self.failed_starts = 0

    def died(self, now: float) -> None:
        """A worker that had started has ended, and nobody had asked it to."""
        is_short = now - self._started < HEALTHY
        self._short_lives = self._short_lives + 1 if is_short else 1

    def failed_to_start(self) -> None:
        """A worker has ended before it had started."""
        self.failed_starts += 1
        self._short_lives += 1
