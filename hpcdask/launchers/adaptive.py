"""As many workers as the work is worth: `wanted` and `Choice` decide, `Adaptive` acts.

`take_stock` runs where the scheduler is; what it returns is all that the decision needs.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Coroutine
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcdask import host as hosts
from hpcdask.errors import ConfigError

if TYPE_CHECKING:
    from hpcdask.core.lanes import Lane
    from hpcdask.core.scheduler_state import SchedulerState
    from hpcdask.launchers.cluster import Cluster

log = logging.getLogger("hpcdask.adaptive")

#: Waiting tasks of a kind that are looked at to learn what all of them cost.
_SAMPLE = 100
#: The part of all workers' memory that the values which they hold may fill.
_FULL = 0.6
#: The longest pause after workers could not be started, in seconds.
_LONGEST_PAUSE = 60.0
#: Seconds that a worker which got a task at the last moment has to end it, before it is ended.
_RETIREMENT = 24 * 3600.0


class Stock(NamedTuple):
    """What a scheduler has to do, and who does it."""

    seconds: float  # of known work: of tasks that run or could
    n_runnable: int  # such tasks
    nthreads: int  # of all workers
    nbytes: int  # of the values that they hold, copies counted each
    memory_limit: int  # of all workers; 0 if one has none
    workers: tuple[str, ...]  # their names
    idle: tuple[str, ...]  # of these, those with nothing to do; first whose end costs least


def take_stock(dask_scheduler: Any) -> Stock:
    """Look at a scheduler; called where it is."""
    state: SchedulerState = dask_scheduler.state
    records = list(state.workers.values())
    lanes = [_cost_of(lane, bool(records)) for lane in state.lanes]
    idle = sorted((w.nbytes, w.info.name) for w in records if not (w.processing or w.is_leaving))
    limits = [worker.info.memory_limit for worker in records]
    return Stock(
        seconds=sum(worker.occupancy for worker in records) + sum(cost for _, cost in lanes),
        n_runnable=sum(worker.n_runnable for worker in records) + sum(n for n, _ in lanes),
        nthreads=sum(worker.info.nthreads for worker in records),
        nbytes=sum(worker.nbytes for worker in records),
        memory_limit=sum(limits) if all(limits) else 0,
        workers=tuple(worker.info.name for worker in records),
        idle=tuple(name for _, name in idle),
    )


def _cost_of(lane: Lane, has_workers: bool) -> tuple[int, float]:
    """Number and seconds of the tasks that wait for room.

    Those that no worker may run count only while there is none: more of the same would not help.
    """
    sample = list(islice(lane.queued, _SAMPLE))
    n = lane.n_queued
    if not has_workers:
        sample = sample or list(islice(lane.stranded, _SAMPLE))
        n += len(lane.stranded)
    known = [task.function.prefix.cost for task in sample if task.function is not None]
    return n, n * sum(known) / len(known) if known else 0.0


def wanted(stock: Stock, target_duration: float, nthreads: int) -> int:
    """Number of workers that would do the known work in `target_duration` seconds.

    Parameters
    ----------
    nthreads : int
        Threads of one worker, while there is none to look at.
    """
    if not stock.n_runnable:
        workers = 0
    else:
        threads = min(math.ceil(stock.seconds / target_duration), stock.n_runnable)
        per_worker = stock.nthreads / len(stock.workers) if stock.nthreads else nthreads
        workers = max(math.ceil(threads / max(per_worker, 1)), 1)
    if stock.nbytes:  # with no worker they would be lost
        workers = max(workers, 1)
    if stock.memory_limit:
        memory = stock.memory_limit / len(stock.workers)
        workers = max(workers, math.ceil(stock.nbytes / (_FULL * memory)))
    return workers


class Choice:
    """Chooses how many workers to add, or which to end.

    Adding is done at once. To end, a worker must be found idle, and not needed, several times in a
    row: work often comes in waves.

    Parameters
    ----------
    minimum, maximum : int
        Fewest and most workers.
    wait_count : int
        How often.
    """

    def __init__(self, minimum: int, maximum: float, wait_count: int) -> None:
        self._minimum, self._maximum, self._wait_count = minimum, maximum, wait_count
        self._idle: dict[str, int] = {}  # looks in a row

    def make(
        self,
        n_wanted: int,
        running: Collection[str],
        coming: int,
        idle: Collection[str],
        others: int = 0,
    ) -> tuple[int, list[str]]:
        """Decide.

        Parameters
        ----------
        n_wanted : int
            Workers that the work is worth.
        running : collection of str
            Names of the workers that may be ended.
        coming : int
            Workers that have been asked for and are not there yet.
        idle : collection of str
            Names of workers with nothing to do; first whose end costs least.
        others : int
            Workers that somebody else has added, and that do their part.

        Returns
        -------
        int, list of str
            Number of workers to start, and names of those to end: one of both is nothing.
        """
        target = int(min(max(n_wanted - others, self._minimum), self._maximum))
        surplus = len(running) + coming - target
        if surplus <= 0:
            self._idle.clear()
            return -surplus, []
        self._idle = {name: self._idle.get(name, 0) + 1 for name in idle if name in running}
        ripe = [name for name in self._idle if self._idle[name] >= self._wait_count]
        return 0, ripe[: min(surplus, max(len(running) - target, 0))]


class Adaptive:
    """Looks again and again at what there is to do, and has a cluster follow.

    Takes what `Cluster.adapt` takes; `former` is one whose place it takes.
    """

    def __init__(
        self,
        cluster: Cluster,
        minimum: int,
        maximum: float,
        interval: float | str,
        target_duration: float | str,
        wait_count: int,
        former: Adaptive | None = None,
    ) -> None:
        if not 0 <= minimum <= maximum or maximum < 1:
            raise ConfigError(f"a cluster cannot have between {minimum} and {maximum} workers")
        if wait_count < 1:
            raise ConfigError(f"wait_count is {wait_count}; a worker must be found idle once")
        self.minimum, self.maximum = minimum, maximum
        self._interval = hosts.parse_timedelta(interval)
        self._target_duration = hosts.parse_timedelta(target_duration)
        if not self._interval or not self._target_duration:
            raise ConfigError("interval and target_duration of adapt must be more than 0 s")
        self._cluster, self._former = cluster, former
        self._choice = Choice(minimum, maximum, wait_count)
        self._task: asyncio.Task[None] | None = None
        self._changes: set[asyncio.Task[None]] = set()
        self._leaving: set[str] = set()
        self._is_over = False
        self._failures = 0  # in a row, of starting workers
        self._pause_until = 0.0

    def start(self) -> None:
        """Begin; called on the cluster's loop."""
        if self._task is None and not self._is_over:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Let the cluster be as it is; what has begun is finished."""
        self._is_over = True
        if self._task is not None:
            self._cluster.loop.call_soon_threadsafe(self._task.cancel)

    async def stopped(self) -> None:
        """Stop, and wait until nothing is being changed any more."""
        self._is_over = True
        tasks = self._changes | ({self._task} if self._task is not None else set())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self) -> None:
        if self._former is not None:
            await self._former.stopped()
            self._former = None
        await asyncio.gather(self._cluster._started(), return_exceptions=True)
        while self._cluster.status == "running":
            try:
                await self._look()
            except Exception as exc:  # a scheduler that is busy, or away for a moment
                log.warning("%s could not be adapted: %s", self._cluster.name, exc)
            await asyncio.sleep(self._interval)

    async def _look(self) -> None:
        cluster = self._cluster
        stock = await cluster._take_stock()
        cluster._forget_ended()
        n_wanted = wanted(stock, self._target_duration, cluster._threads_of_one())
        running, coming = cluster.workers.keys() - self._leaving, cluster._coming
        others = set(stock.workers) - cluster.workers.keys() - coming.keys()
        n_new, to_end = self._choice.make(n_wanted, running, len(coming), stock.idle, len(others))
        if n_new and asyncio.get_running_loop().time() >= self._pause_until:
            log.info("%s grows by %d workers: %s", cluster.name, n_new, in_words(stock))
            self._change(self._add(n_new))
            await asyncio.sleep(0)  # so that they are noted as coming
        elif to_end:
            log.info("%s shrinks by %d workers: %s", cluster.name, len(to_end), in_words(stock))
            self._leaving.update(to_end)
            self._change(self._take_away(to_end))

    def _change(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that may take long, while looking on."""
        task = asyncio.get_running_loop().create_task(work)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    async def _add(self, n: int) -> None:
        try:
            await self._cluster._start_workers(n)
            self._failures = 0
        except Exception as exc:
            self._failures += 1
            pause = min(self._interval * 2.0**self._failures, _LONGEST_PAUSE)
            self._pause_until = asyncio.get_running_loop().time() + pause
            log.warning("%s; more workers are tried for in %.3g s", exc, pause)

    async def _take_away(self, names: list[str]) -> None:
        try:
            await self._cluster._retire_workers(names, _RETIREMENT, None)
        except Exception as exc:
            log.warning("%s could not be made smaller: %s", self._cluster.name, exc)
        finally:
            self._leaving.difference_update(names)

    def __repr__(self) -> str:
        state = "stopped" if self._is_over else "running"
        return f"<Adaptive {self._cluster.name}, {self.minimum} to {self.maximum}, {state}>"


def in_words(stock: Stock) -> str:
    """What there is to do, for a log."""
    return (
        f"{stock.n_runnable} tasks of {stock.seconds:.3g} s for {len(stock.workers)} workers, "
        f"{len(stock.idle)} of them idle"
    )
