"""When to ask for units, to take back what was asked for, and which to end: pure decisions."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Hashable, Iterable
from typing import NamedTuple

from hpcdask.launchers.stock import Assumed, Running
from hpcdask.launchers.units import Bounds, Fleet
from hpcdask.launchers.worth import Worth


class Decision(NamedTuple):
    """What to do now."""

    n_new: int = 0  # units to ask for
    n_withdrawn: int = 0  # pending ones to take back
    ended: tuple[Hashable, ...] = ()  # names of units to end


class Choice:
    """Chooses how many units to ask for, and which to end.

    More are asked for at once. Those that are not needed are kept, in case the work comes in waves:
    only as many may go as were not needed at any look for some time; the pending ones first, which
    have cost nothing yet, then those that were found idle several times in a row.
    """

    def __init__(self) -> None:
        self._idle: dict[Hashable, int] = {}  # looks in a row
        self._looks: deque[tuple[float, int]] = deque()  # when, and units wanted

    def make(
        self,
        now: float,
        n_wanted: int,
        fleet: Fleet,
        idle: Collection[Hashable],
        bounds: Bounds,
        wait_count: int,
        keep_idle: float,
    ) -> Decision:
        """Decide.

        Parameters
        ----------
        now : float
            Seconds, of any clock.
        n_wanted : int
            Units that the work is worth.
        idle : collection
            Names of units with nothing to do; first those whose end costs least.
        wait_count : int
            Looks in a row that must find that a unit is not needed.
        keep_idle : float
            Seconds for which at least it must not have been needed.
        """
        held = self._held(now, n_wanted, wait_count, keep_idle)
        self._idle = {name: self._idle.get(name, 0) + 1 for name in idle}
        there = fleet.n_here_or_coming
        target, kept = _within(bounds, n_wanted), _within(bounds, held)
        if target > there:
            return Decision(n_new=int(target) - there)
        if kept >= there:
            return Decision()
        surplus = there - int(kept)
        n_withdrawn = min(surplus, fleet.n_pending)
        # Those that start are not counted on: they may yet fail.
        n_ended = min(surplus - n_withdrawn, max(len(fleet.units) - int(kept), 0))
        ripe = [name for name, n_looks in self._idle.items() if n_looks >= wait_count]
        return Decision(n_withdrawn=n_withdrawn, ended=tuple(ripe[:n_ended]))

    def _held(self, now: float, n_wanted: int, wait_count: int, keep_idle: float) -> float:
        """The most units that were wanted in the time for which one that is not is kept."""
        looks = self._looks
        looks.append((now, n_wanted))
        # The oldest that stays is from before that time, so that all of it is looked upon.
        while len(looks) > wait_count and looks[1][0] <= now - keep_idle:
            looks.popleft()
        if len(looks) < wait_count or looks[0][0] > now - keep_idle:
            return math.inf  # since we do not look on for so long
        return max(n for _, n in looks)


def _within(bounds: Bounds, n: float) -> float:
    return min(max(n, bounds.least), bounds.most)


class Shortage:
    """Whether it is time to ask for units that the work is worth now, but not when they come.

    Units that have to be queued for come too late for what the others do meanwhile. But where more
    would have been of use for as long as one is queued for, in one computation or in several, it
    will be so again, as far as one can know.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last: float | None = None  # look

    def wanted(self, now: float, worth: Worth, there: int, wait: float) -> int:
        """Number of units to have.

        Parameters
        ----------
        now : float
            Seconds, of any clock.
        there : int
            Units that are there or come.
        wait : float
            Seconds for which units are queued for.
        """
        passed = 0.0 if self._last is None else now - self._last
        self._last = now
        self._seconds = max(self._seconds + (passed if worth.now > there else -passed), 0.0)
        if worth.now > there and self._seconds >= wait:
            return worth.now
        # Those that have been asked for are worth their place while there is work for them now.
        return min(max(worth.later, there), worth.now)


class Assumptions:
    """How long tasks take of a kind of which none has ended yet: twice what the oldest has taken.

    For what has gone on for a while goes on for about as long again, of all that one can say.

    Parameters
    ----------
    least : float
        Seconds, of a kind that does not run yet.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._since: dict[Running, float] = {}

    def update(self, now: float, running: Iterable[Running]) -> Assumed:
        """Note what runs now, as it is in a `Stock`."""
        self._since = {each: self._since.get(each, now) for each in running}
        by_kind: dict[str, float] = {}
        for each, since in self._since.items():
            by_kind[each.kind] = max(by_kind.get(each.kind, 0.0), 2 * (now - since))
        return Assumed(self._least, by_kind)
