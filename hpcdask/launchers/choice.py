"""When to ask for units, to take back what was asked for, and which to end: pure decisions."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable
from typing import NamedTuple

from hpcdask.launchers.stock import Running
from hpcdask.launchers.units import Bounds, Fleet


class Decision(NamedTuple):
    """What to do now."""

    n_new: int = 0  # units to ask for
    n_withdrawn: int = 0  # pending ones to take back
    ended: tuple[str, ...] = ()  # names of units to end


class Choice:
    """Chooses how many units to ask for, and which to end.

    More are asked for at once. Those that are not needed are kept, in case the work comes in waves:
    only as many may go as were not needed at any look for some time; the pending ones first, which
    have cost nothing yet, then those that were found idle several times in a row.
    """

    def __init__(self) -> None:
        self._idle: dict[str, int] = {}  # looks in a row
        self._looks: deque[tuple[float, int]] = deque()  # when, and units wanted

    def make(
        self,
        now: float,
        n_wanted: int,
        fleet: Fleet,
        idle: Collection[str],
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
        idle : collection of str
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


class Assumptions:
    """How long tasks take of a kind of which none has ended yet: twice what the oldest has taken.

    For what has gone on for a while goes on for about as long again, of all that one can say.
    """

    def __init__(self) -> None:
        self._since: dict[Running, float] = {}

    def update(self, now: float, running: Iterable[Running]) -> dict[str, float]:
        """Note what runs now; seconds by kind, where that is worth saying.

        Parameters
        ----------
        running : iterable of Running
            As in `Stock`.
        """
        self._since = {each: self._since.get(each, now) for each in running}
        assumed: dict[str, float] = {}
        for each, since in self._since.items():
            assumed[each.kind] = max(assumed.get(each.kind, 0.0), 2 * (now - since))
        return assumed
