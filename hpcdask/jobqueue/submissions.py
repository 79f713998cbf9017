"""Submissions under way, and those of which nobody knows what came of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count

from hpcdask.jobqueue.actions import Find, Submit
from hpcdask.jobqueue.pools import Pool
from hpcdask.jobqueue.records import Limits, Request


class Submissions:
    """Remembers what was asked for until its answer is known.

    Until then its jobs count as submitted: in `Pool.requests`.
    """

    def __init__(self, pools: Mapping[str, Pool], limits: Limits, first: int) -> None:
        self._pools, self._limits = pools, limits
        self._numbers = count(first)
        #: Taken for failed, since they were not found in time; they may yet be.
        self._lost: dict[int, Request] = {}
        self._is_closed = False

    def begin(self, now: float, pool: Pool, count: int) -> Submit:
        """Ask for so many jobs."""
        request = Request(next(self._numbers), pool.name, count, now)
        pool.requests[request.number] = request
        return Submit(request.number, pool.name, count)

    def resolve(self, number: int) -> Request | None:
        """Forget a submission, for it is known what came of it; None if that is known already."""
        for pool in self._pools.values():
            if number in pool.requests:
                return pool.requests.pop(number)
        return self._lost.pop(number, None)

    def make_unclear(self, now: float, number: int, why: str) -> Request | None:
        """Begin to look for a submission; None if what came of it is known."""
        for pool in self._pools.values():
            request = pool.requests.get(number)
            if request is not None and not request.is_unclear:
                request.why_unclear, request.unclear_since, request.look_at = why, now, now
                return request
        return None

    def not_found(self, now: float, number: int) -> Request | None:
        """Note that nothing was found; return the submission if it has to be taken for failed."""
        for request in self._unclear():
            if request.number == number:
                request.n_not_found += 1
                waited = now - request.unclear_since
                if (
                    request.n_not_found >= self._limits.max_missed
                    and waited >= self._limits.unclear
                ):
                    self.resolve(number)
                    self._lost[number] = request
                    request.look_at = self._next_look(now, request)
                    return request
        return None

    def looks(self, now: float) -> list[Find]:
        """What to look for now: less and less often."""
        due = [r for r in (*self._unclear(), *self._lost.values()) if r.look_at <= now]
        for request in due:
            request.look_at = self._next_look(now, request)
            request.n_looks += 1
        return [Find(request.number, request.pool, request.count) for request in due]

    def _next_look(self, now: float, request: Request) -> float:
        pause = self._limits.look_again * 2.0 ** min(request.n_looks, 10)
        if request.number not in self._lost:
            return now + min(pause, self._limits.unclear)
        if self._is_closed or now - request.unclear_since > self._limits.remember:
            return math.inf
        return now + min(pause, self._limits.longest_pause)

    def lost_at(self) -> list[float]:
        """When to look for what is lost."""
        return [request.look_at for request in self._lost.values()]

    def look_for_lost(self, now: float) -> None:
        """Look once more for what is lost or unclear: there is a sign of it."""
        for request in (*self._unclear(), *self._lost.values()):
            request.look_at = now

    @property
    def has_lost(self) -> bool:
        """Whether any of them was not found, and may yet be."""
        return bool(self._lost)

    def close(self, now: float) -> None:
        """Look for everything once more; a complete look that finds nothing is the last one."""
        self._is_closed = True
        for number, request in list(self._lost.items()):
            request.n_not_found = self._limits.max_missed - 1
            self._pools[request.pool].requests[number] = self._lost.pop(number)
        for request in self._unclear():
            request.look_at, request.n_looks = now, 0

    def _unclear(self) -> list[Request]:
        requests = [r for pool in self._pools.values() for r in pool.requests.values()]
        return [request for request in requests if request.is_unclear]
