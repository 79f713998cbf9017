"""As many workers as the work is worth: `Adaptive` looks, and acts on what `Choice` decides.

What the work is worth is in `hpcdask.launchers.worth`, what can be started and ended in
`hpcdask.launchers.units`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Hashable
from typing import TYPE_CHECKING, Any

from hpcdask import host as hosts
from hpcdask.errors import ConfigError
from hpcdask.launchers.choice import Assumptions, Choice, Shortage
from hpcdask.launchers.stock import Stock
from hpcdask.launchers.units import Bounds, Fleet, Units
from hpcdask.launchers.worth import idle_units, learn_hopeless, worth
from hpcdask.messages import Restriction

if TYPE_CHECKING:
    from hpcdask.launchers.cluster import Cluster

log = logging.getLogger("hpcdask.adaptive")

#: The longest pause after workers could not be started, in seconds.
_LONGEST_PAUSE = 60.0
#: Decisions that are remembered for a user to look at.
_REMEMBERED = 1000


class Adaptive:
    """Looks again and again at what there is to do, and has a cluster follow.

    Made by `Cluster.adapt`, whose parameters it takes. A class derived from it, which ``adapt``
    takes as ``Adaptive=``, can override `target`, `workers_to_close`, `scale_up` and `scale_down`.

    Parameters
    ----------
    cluster : Cluster
    units : Units
        What may be started and ended.
    minimum, maximum : int
        Fewest and most workers.
    former : Adaptive, optional
        One whose place it takes.

    Attributes
    ----------
    minimum, maximum, target_duration, wait_count, keep_idle, interval
        As given to ``adapt``, times in seconds; they may be changed meanwhile. `keep_idle` is None
        for what the cluster holds to be right.
    log : deque of (float, dict)
        The last decisions: when, in seconds since the epoch, and what: ``{"status": "up", "n": 8}``
        for having 8 workers, ``{"status": "down", "workers": [...]}`` for the end of these,
        ``{"status": "withdraw", "n": 2}`` for 2 units less of those that are waited for.
    state : str
        "starting", "running" or "stopped".
    """

    def __init__(
        self,
        cluster: Cluster,
        units: Units,
        *,
        minimum: int = 0,
        maximum: float = math.inf,
        interval: float | str = "1s",
        target_duration: float | str | None = None,
        wait_count: int = 3,
        keep_idle: float | str | None = None,
        worker_key: Callable[[Any], Hashable] | None = None,
        former: Adaptive | None = None,
    ) -> None:
        if wait_count < 1:
            raise ConfigError(f"wait_count is {wait_count}; a worker must be found idle once")
        self.minimum, self.maximum, self.wait_count = minimum, maximum, wait_count
        self.interval = hosts.parse_timedelta(interval)
        if target_duration is None:
            target_duration = units.target_duration()
        self.target_duration = hosts.parse_timedelta(target_duration)
        if not self.interval or not self.target_duration:
            raise ConfigError("interval and target_duration of adapt must be more than 0 s")
        self.keep_idle = None if keep_idle is None else hosts.parse_timedelta(keep_idle)
        self.worker_key = worker_key
        self.log: deque[tuple[float, dict[str, Any]]] = deque(maxlen=_REMEMBERED)
        self.state = "starting"
        self.cluster, self._units, self._former = cluster, units, former
        self._choice, self._assumptions = Choice(), Assumptions(units.unknown_duration())
        self._shortage = Shortage()
        self._assumed = self._assumptions.update(0.0, ())
        self._hopeless: frozenset[Restriction] = frozenset()
        self._stock = Stock()
        self._fleet = Fleet((), 0, 0)
        self._task: asyncio.Task[None] | None = None
        self._changes: set[asyncio.Task[None]] = set()
        self._failures = 0  # in a row, of starting workers
        self._pause_until = 0.0

    @property
    def _title(self) -> str:
        return self._units.title(self.cluster.name)

    # -- Life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin; called on the cluster's loop."""
        if self._task is None and self.state == "starting":
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self, reason: str = "asked to stop") -> None:
        """Let the cluster be as it is; what has begun is finished."""
        if self.state != "stopped":
            log.info("%s adapts no more: %s", self._title, reason)
        self.state = "stopped"
        if self._task is not None:
            self.cluster.loop.call_soon_threadsafe(self._task.cancel)

    async def stopped(self) -> None:
        """Stop, and wait until nothing is being changed any more."""
        self.state = "stopped"
        tasks = self._changes | ({self._task} if self._task is not None else set())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self) -> None:
        if self._former is not None:
            await self._former.stopped()
            self._former = None
        await asyncio.gather(self.cluster._started(), return_exceptions=True)
        self.state = "running"
        self._units.begin_anew()
        while self.cluster.status == "running":
            try:
                await self._look()
            except Exception as exc:  # a scheduler that is busy, or away for a moment
                log.warning("%s could not be adapted: %s", self._title, exc)
            await asyncio.sleep(self.interval)

    # -- What it does at each look ----------------------------------------------------------------

    async def _look(self) -> None:
        stock = await self.cluster._take_stock(self._assumed, self.worker_key)
        now = asyncio.get_running_loop().time()
        self._assumed = self._assumptions.update(now, stock.unknown)
        self._stock = self._units.demand(stock)
        self._fleet = fleet = self._units.fleet(stock)
        self._hopeless = learn_hopeless(self._stock, fleet, self._hopeless)
        n_each = self._units.shape().n_workers
        target = await self.target()
        decision = self._choice.make(
            now,
            math.ceil(target / n_each),
            fleet,
            self._whole(await self.workers_to_close(target)),
            self._bounds(n_each),
            self.wait_count,
            self._units.keep_idle() if self.keep_idle is None else self.keep_idle,
        )
        if decision.n_new and now >= self._pause_until:
            n = n_each * (fleet.n_here_or_coming + decision.n_new)
            self._note({"status": "up", "n": n})
            self._change(self._grow(n))
        if decision.n_withdrawn:
            self._note({"status": "withdraw", "n": decision.n_withdrawn})
            self._change(self._shrink(self._units.withdraw(decision.n_withdrawn)))
        if decision.ended:
            workers = [name for u in fleet.units if u.name in decision.ended for name in u.workers]
            self._note({"status": "down", "workers": workers})
            self._change(self._shrink(self.scale_down(workers)))
        await asyncio.sleep(0)  # so that what has begun is seen in the fleet

    def _bounds(self, n_each: int) -> Bounds:
        """In units; `minimum` and `maximum` may have been changed."""
        most = self.maximum if math.isinf(self.maximum) else max(self.maximum // n_each, 1)
        return Bounds(math.ceil(self.minimum / n_each), most)

    def _whole(self, workers: Collection[str]) -> list[Hashable]:
        """Names of the units all of whose workers are among these, in their order, and idle."""
        place = {name: position for position, name in enumerate(workers)}
        idle = set(idle_units(self._stock, self._fleet.units))
        whole = [u for u in self._fleet.units if u.name in idle and place.keys() >= set(u.workers)]
        return [u.name for u in sorted(whole, key=lambda u: max(place[name] for name in u.workers))]

    def _note(self, what: dict[str, Any]) -> None:
        self.log.append((time.time(), what))
        log.info("%s adapts: %s; %s", self._title, in_words(what), self._stock)

    def _change(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that may take long, while looking on."""
        task = asyncio.get_running_loop().create_task(work)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    async def _grow(self, n: int) -> None:
        try:
            await self.scale_up(n)
            self._failures = 0
        except Exception as exc:
            self._failures += 1
            pause = min(self.interval * 2.0**self._failures, _LONGEST_PAUSE)
            self._pause_until = asyncio.get_running_loop().time() + pause
            log.warning("%s; more workers are tried for in %.3g s", exc, pause)

    async def _shrink(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as exc:
            log.warning("%s could not be made smaller: %s", self._title, exc)

    # -- What a derived class may change ----------------------------------------------------------

    async def target(self) -> int:
        """Number of workers that the work is worth now, whatever `minimum` and `maximum` are."""
        shape = self._units.shape()
        found = worth(self._stock, self._fleet, shape, self.target_duration, self._hopeless)
        now, there = asyncio.get_running_loop().time(), self._fleet.n_here_or_coming
        return self._shortage.wanted(now, found, there, shape.wait) * shape.n_workers

    async def workers_to_close(self, target: int) -> list[str]:
        """Names of the workers that might end if only `target` were left, the best first.

        Of these some end if they are idle, have been for `wait_count` looks, and are all that there
        are in what the cluster ends as a whole.
        """
        place = {name: i for i, name in enumerate(idle_units(self._stock, self._fleet.units))}
        idle = sorted(
            (u for u in self._fleet.units if u.name in place), key=lambda u: place[u.name]
        )
        return [name for unit in idle for name in unit.workers]

    async def scale_up(self, n: int) -> None:
        """Have `n` workers: ask for those that are neither there nor coming."""
        n_units = math.ceil(n / self._units.shape().n_workers)
        await self._units.grow(n_units - self._fleet.n_here_or_coming)

    async def scale_down(self, workers: Collection[str]) -> None:
        """Let workers, by name, hand over what only they hold, and end.

        With them ends all that the cluster can only end as a whole.
        """
        gone = set(workers)
        await self._units.shrink([u.name for u in self._fleet.units if gone & set(u.workers)])

    def __repr__(self) -> str:
        return f"<Adaptive {self._title}, {self.minimum} to {self.maximum} workers, {self.state}>"


def in_words(what: dict[str, Any]) -> str:
    """A decision, for a log."""
    if what["status"] == "up":
        return f"it is to have {what['n']} workers"
    if what["status"] == "down":
        return f"{', '.join(what['workers'])} are to end"
    return f"{what['n']} of those that are waited for are withdrawn"
