"""What a cluster starts and ends as a whole: a worker, or in batch systems a job of several.

`adapt` thinks in these. A kind of cluster tells it by a `Units` what one brings and which are
there, and starts and ends them at its word.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcdask import host as hosts
from hpcdask.core.records import UNKNOWN_DURATION
from hpcdask.errors import ConfigError

if TYPE_CHECKING:
    from hpcdask.launchers.cluster import Cluster
    from hpcdask.launchers.stock import Stock

#: Seconds that a worker which got a task at the last moment has to end it, before it is ended.
_RETIREMENT = 24 * 3600.0
#: Seconds of work for which it is worth to queue for a unit more: its start alone takes several.
_WORTH_QUEUEING = 60.0
#: Seconds that a task is taken to last when nobody knows.
_UNKNOWN = 5.0
#: Least and most seconds for which a unit that had to be queued for is kept without work.
_KEPT_LEAST, _KEPT_MOST = 60.0, 600.0


class UnitShape(NamedTuple):
    """What one unit more brings; 0 stands for what is not known."""

    n_workers: int = 1
    nthreads: int = 0  # of all its workers
    memory: int = 0  # bytes, the limits of all its workers
    resources: tuple[tuple[str, float], ...] = ()  # of each of its workers
    wait: float = 0.0  # seconds from asking for one until it is there, as of late


class Unit(NamedTuple):
    """A unit that is there: one of its workers at least has registered."""

    name: Hashable
    workers: tuple[str, ...]  # names of those that have
    left: float = math.inf  # seconds until it ends by itself


class Fleet(NamedTuple):
    """The units of a cluster, or of one of its pools, that are not about to end.

    One in whose place another has been asked for, since its walltime is near, is in it no more.
    """

    units: tuple[Unit, ...]
    n_pending: int  # asked for, and still waiting for their turn: they can be withdrawn
    n_starting: int  # neither: their turn has come, and no worker has registered
    strangers: tuple[str, ...] = ()  # workers that somebody else has added

    @property
    def n_here_or_coming(self) -> int:
        """Units that will do their part."""
        return len(self.units) + self.n_pending + self.n_starting


class Units(abc.ABC):
    """How `adapt` deals with a cluster, or with one pool of it.

    Methods are called on the cluster's event loop. While one of the three that change something
    goes on, the others may be called; what it is about must not be in `fleet` any more (or already,
    as pending or starting) from its first await on.
    """

    @abc.abstractmethod
    def shape(self) -> UnitShape:
        """What one more would bring."""

    @abc.abstractmethod
    def fleet(self, stock: Stock) -> Fleet:
        """Which units there are, given the workers that the scheduler knows."""

    @abc.abstractmethod
    async def grow(self, n: int) -> None:
        """Ask for `n` more; raise if that fails."""

    @abc.abstractmethod
    async def shrink(self, names: Collection[Any]) -> None:
        """Let units, which were idle, hand over what only they hold, and end them.

        Tasks that they have got meanwhile end first.
        """

    @abc.abstractmethod
    async def withdraw(self, n: int) -> None:
        """Take back `n` of the pending ones, those last asked for first."""

    def begin_anew(self) -> None:  # noqa: B027 - not every kind gives up
        """Try again what has failed: a user, who knows more, has asked to adapt."""

    def demand(self, stock: Stock) -> Stock:
        """Of all work, what these units are for; a pool gives its part."""
        return stock

    def title(self, cluster: str) -> str:
        """What is adapted, for messages, given the name of the cluster."""
        return cluster

    def keep_idle(self) -> float:
        """Seconds for which units without work are kept if the user does not say."""
        return 0.0

    def target_duration(self) -> float:
        """Seconds in which the known work should be done if the user does not say."""
        return 5.0

    def unknown_duration(self) -> float:
        """Seconds that a task is taken to last of a kind that has never run."""
        return UNKNOWN_DURATION


class WorkerUnits(Units):
    """What is in `Cluster.workers`, and is there soon after it is asked for."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._leaving: set[Hashable] = set()

    def shape(self) -> UnitShape:
        return self._cluster._worker_shape()

    def fleet(self, stock: Stock) -> Fleet:
        cluster = self._cluster
        cluster._forget_ended()
        known = {worker.name for worker in stock.workers}
        there, n_starting, ours = [], len(cluster._coming), set[str]()
        for name in (*cluster.workers, *cluster._coming):
            ours.update(cluster._members_of(name))
        for name in cluster.workers:
            members = tuple(member for member in cluster._members_of(name) if member in known)
            if name in self._leaving:
                continue
            if members:
                there.append(Unit(name, members))
            else:  # or its nanny starts another in its place
                n_starting += 1
        return Fleet(tuple(there), 0, n_starting, strangers=tuple(known - ours))

    async def grow(self, n: int) -> None:
        await self._cluster._start_workers(n)

    async def shrink(self, names: Collection[Any]) -> None:
        self._leaving.update(names)
        try:
            await self._cluster._retire_workers(names, _RETIREMENT, None)
        finally:
            self._leaving.difference_update(names)

    async def withdraw(self, n: int) -> None:
        raise AssertionError(f"{n} of no pending workers")


class QueuedUnits(Units):
    """Units that have to be queued for: the jobs of a batch system."""

    def keep_idle(self) -> float:
        """As long as it would take to get a unit again.

        That costs at most twice what is best, which only who knows the next work could do.
        """
        return min(max(self.shape().wait, _KEPT_LEAST), _KEPT_MOST)

    def target_duration(self) -> float:
        return _WORTH_QUEUEING

    def unknown_duration(self) -> float:
        """More than elsewhere: who has asked for too few queues again for the others."""
        return _UNKNOWN


def given_memory(limit: Any) -> int:
    """Bytes of a worker by its ``memory_limit``; 0 for no limit, and for what its host decides."""
    text = str(limit).strip().lower()
    if text in ("none", "auto"):
        return 0
    nbytes = hosts.parse_bytes(text)
    return nbytes if nbytes > 1 else 0  # a bare number up to 1 is a part of what there is


class Bounds(NamedTuple):
    """Fewest and most units."""

    least: int
    most: float  # a whole number, or infinite


def bounds(shape: UnitShape, least: Mapping[str, float], most: Mapping[str, float]) -> Bounds:
    """The stricter of what a user gave, in units.

    Parameters
    ----------
    least, most : mapping
        By "workers", "jobs", "cores" and "memory" (bytes), as far as given.

    Raises
    ------
    ConfigError
        If they contradict each other, or cannot be counted in such units.
    """
    for given in (least, most):
        for what, amount in given.items():
            if amount < 0 or math.isnan(amount):
                raise ConfigError(f"a cluster cannot have {amount:g} {what}")
    low = {what: math.ceil(amount / _of_one(shape, what)) for what, amount in least.items()}
    high = {what: _floor(amount / _of_one(shape, what)) for what, amount in most.items()}
    found = Bounds(max(low.values(), default=0), min(high.values(), default=math.inf))
    if found.most < 1:
        what = min(high, key=high.__getitem__)
        raise ConfigError(
            f"a maximum of {_amount(what, most[what])} is less than {_one(shape)}, "
            "so there would never be a worker; give more"
        )
    if found.least > found.most:
        lower, upper = max(low, key=low.__getitem__), min(high, key=high.__getitem__)
        raise ConfigError(
            f"a cluster cannot have at least {_amount(lower, least[lower])} and at most "
            f"{_amount(upper, most[upper])}: of {_one(shape)} each that is at least "
            f"{found.least} and at most {found.most:g}"
        )
    return found


def _of_one(shape: UnitShape, what: str) -> float:
    per_unit = {
        "jobs": 1,
        "workers": shape.n_workers,
        "cores": shape.nthreads,
        "memory": shape.memory,
    }[what]
    if not per_unit:
        hint = {
            "cores": "wait until the cluster has started, or give it in workers",
            "memory": "give the workers a memory_limit in bytes, or give it in workers",
        }[what]
        raise ConfigError(
            f"how much of the {what} one worker of this cluster brings is not known; {hint}"
        )
    return per_unit


def _floor(number: float) -> float:
    return number if math.isinf(number) else math.floor(number)


def _amount(what: str, amount: float) -> str:
    return (
        f"{hosts.format_bytes(int(amount))} of memory" if what == "memory" else f"{amount:g} {what}"
    )


def _one(shape: UnitShape) -> str:
    workers = "one worker" if shape.n_workers == 1 else f"one job of {shape.n_workers} workers"
    parts = [f"{shape.nthreads} threads"] if shape.nthreads else []
    if shape.memory:
        parts.append(hosts.format_bytes(shape.memory))
    return f"{workers} ({', '.join(parts)})" if parts else workers
