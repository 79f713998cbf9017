"""Which pool is for which work: what several could do counts for one of them, and only once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from hpcdask.launchers.stock import Stock, Waiting, WorkerStock


class Division(NamedTuple):
    """How a cluster is divided into pools."""

    open: Sequence[str]  # pools that have or get workers, the first choice first
    resources: Mapping[str, tuple[tuple[str, float], ...]]  # by pool, of each of its workers
    homes: Mapping[str, str]  # by the name of a worker, its pool

    def owner(self, line: Waiting) -> str | None:
        """The pool that has to run waiting tasks; None if none can, or only one that is not open.

        A worker that they name says it. Else it is the first whose workers have what they take.
        """
        restriction = line.restriction
        if restriction is None:
            return self.open[0]
        for name in restriction.workers:
            if name in self.homes:
                return self.homes[name]
        able = (pool for pool in self.open if _has(self.resources[pool], restriction.resources))
        # There may be workers with more than is known of their pool.
        return next(able, self.open[0] if line.n_able else None)


def share(stock: Stock, pool: str, division: Division) -> Stock:
    """The part of all work, and of all values in memory, that counts for a pool.

    Workers run whatever they can. So those of a pool with more to offer often have tasks that need
    nothing of it, and hold values that others could. These count for the first pool as soon as it
    has a worker: else a single GPU would be kept for as long as there is anything to do.

    Parameters
    ----------
    stock : Stock
        Of the whole cluster.
    pool : str
        One of those that are open.
    """
    if len(division.open) < 2:
        return stock
    first, homes = division.open[0], division.homes
    may_leave = any(homes.get(w.name) == first and not w.is_leaving for w in stock.workers)
    workers: list[WorkerStock] = []
    for worker in stock.workers:
        home = homes.get(worker.name, first)  # somebody else's are a help for the first
        if home == first or not may_leave:
            own, rest = worker, None
        else:
            own, rest = _divided(worker)
        if home == pool:
            workers.append(own)
        elif rest is not None and pool == first:
            workers.append(rest)
    waiting = tuple(line for line in stock.waiting if division.owner(line) == pool)
    return stock._replace(workers=tuple(workers), waiting=waiting)


def _divided(worker: WorkerStock) -> tuple[WorkerStock, WorkerStock]:
    """A worker as its own pool sees it, and as the first pool does."""
    idle = worker._replace(seconds=0.0, n_runnable=0, is_busy=False)
    if worker.is_bound:
        return worker._replace(nbytes=0), idle
    return idle._replace(nbytes=0), worker


def _has(have: Iterable[tuple[str, float]], need: Iterable[tuple[str, float]]) -> bool:
    amounts = dict(have)
    return all(amounts.get(name, 0.0) >= amount for name, amount in need)
