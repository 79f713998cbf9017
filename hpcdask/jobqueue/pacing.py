"""How fast commands may follow each other, so that a cluster is no burden to a batch system."""

from __future__ import annotations

#: Seconds between two looks at the queue while all jobs run and have their workers, and the longest
#: while something is expected.
STEADY = 30.0
#: While nothing happens, looks come ever later: after this part of the time it has been so.
_SLOWER = 1 / 20


def next_look(quiet: float, is_steady: bool, interval: float) -> float:
    """Seconds until the queue is looked at again.

    Parameters
    ----------
    quiet : float
        Seconds since something has happened last.
    is_steady : bool
        Whether nothing is expected: all jobs run, and have their workers.
    interval : float
        The shortest, in seconds.
    """
    if is_steady:
        return max(interval, STEADY)
    return min(max(interval, quiet * _SLOWER), max(interval, STEADY))


class Pace:
    """A token bucket, in the form that keeps one number: when the next command is due.

    Parameters
    ----------
    burst : int
        Commands that may be run at once after a rest.
    rate : float
        Commands per second in the long run.

    Examples
    --------
    >>> pace = Pace(burst=2, rate=0.5)
    >>> [pace.take(now=0.0) for _ in range(4)]
    [0.0, 0.0, 2.0, 4.0]
    >>> pace.take(now=60.0)
    0.0
    """

    def __init__(self, burst: int = 5, rate: float = 1.0) -> None:
        if burst < 1 or not rate > 0:
            raise ValueError(f"no command would ever be due with burst={burst} and rate={rate}")
        self._interval = 1 / rate  # seconds between two commands
        self._slack = (burst - 1) * self._interval
        self._due = float("-inf")  # when the next command would be due, if there were no bursts

    def take(self, now: float) -> float:
        """Take the next place, and say in how many seconds that is.

        Places are given in the order of the calls; who takes one runs one command.
        """
        due = max(self._due, now)
        self._due = due + self._interval
        return max(0.0, due - self._slack - now)
