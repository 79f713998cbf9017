"""What `adapt` starts and ends in a batch system: whole jobs of one pool."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from hpcdask.errors import SubmitError
from hpcdask.jobqueue.controller import JobRecord
from hpcdask.jobqueue.shares import Division, share
from hpcdask.jobqueue.status import Phase
from hpcdask.launchers.units import Fleet, QueuedUnits, Unit, UnitShape
from hpcdask.resources import checked_resources

if TYPE_CHECKING:
    from hpcdask.jobqueue.keeper import Keeper
    from hpcdask.jobqueue.pools import Pool
    from hpcdask.launchers.stock import Stock


class JobUnits(QueuedUnits):
    """Jobs of one pool.

    Parameters
    ----------
    keeper : Keeper
        Of all jobs.
    pool : str
        Which of them.
    open_pools : callable
        Returns the names of all pools that are there for some part of the work.
    """

    def __init__(self, keeper: Keeper, pool: str, open_pools: Callable[[], Sequence[str]]) -> None:
        self._keeper, self._pool, self._open_pools = keeper, pool, open_pools

    @property
    def _state(self) -> Pool:
        return self._keeper.controller.pools[self._pool]

    def _staying(self) -> list[JobRecord]:
        """Wanted jobs, but for those that are near their end: others come in their place."""
        return self._state.staying(self._keeper.now())

    def shape(self) -> UnitShape:
        job, waits = self._keeper.pools[self._pool], self._state.waits
        return UnitShape(
            n_workers=job.n_workers,
            nthreads=job.n_workers * job.nthreads,
            memory=job.n_workers * job.memory_limit,
            resources=checked_resources(job.resources),
            wait=statistics.median(list(waits)) if waits else 0.0,
        )

    def fleet(self, stock: Stock) -> Fleet:
        now, staying = self._keeper.now(), self._staying()
        of_jobs = {name for job in self._keeper.controller.jobs.values() for name in job.workers}
        units = tuple(
            Unit(
                job.id, tuple(sorted(job.workers)), math.inf if job.ends is None else job.ends - now
            )
            for job in staying
            if job.workers
        )
        starting = [job for job in staying if not job.workers and job.phase is not Phase.PENDING]
        return Fleet(
            units=units,
            # Those as well that are to be submitted, at once or after a pause.
            n_pending=max(self._state.n_wanted - len(units) - len(starting), 0),
            n_starting=len(starting),
            strangers=tuple(w.name for w in stock.workers if w.name not in of_jobs),
        )

    def demand(self, stock: Stock) -> Stock:
        pools, jobs = self._keeper.pools, self._keeper.controller.jobs.values()
        division = Division(
            open=self._open_pools(),
            resources={name: checked_resources(job.resources) for name, job in pools.items()},
            homes={name: job.pool for job in jobs for name in job.workers},
        )
        return share(stock, self._pool, division)

    def title(self, cluster: str) -> str:
        return f"pool {self._pool} of {cluster}" if len(self._keeper.pools) > 1 else cluster

    def begin_anew(self) -> None:
        self._keeper.forgive(self._pool)

    async def grow(self, n: int) -> None:
        # A refusal is told and tried again as one of all jobs, whoever has asked for them.
        with contextlib.suppress(SubmitError):
            await self._keeper.scale(self._pool, self._state.n_wanted + n, forgives=False)

    async def shrink(self, names: Collection[str]) -> None:
        self._keeper.release(names)
        while any(name in self._keeper.controller.jobs for name in names):
            await self._keeper.news()

    async def withdraw(self, n: int) -> None:
        staying = self._staying()
        n_unknown = min(max(self._state.n_wanted - len(staying), 0), n)  # to the batch system
        if n_unknown:
            await self._keeper.scale(self._pool, self._state.n_wanted - n_unknown, forgives=False)
        pending = [job.id for job in staying if job.phase is Phase.PENDING and not job.workers]
        self._keeper.release(pending[max(len(pending) - (n - n_unknown), 0) :])
