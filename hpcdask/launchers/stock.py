"""What a scheduler has to do, and who does it.

`take_stock` runs where the scheduler is; what it returns is all that `adapt` needs to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcdask.core.records import UNKNOWN_DURATION
from hpcdask.messages import Restriction

if TYPE_CHECKING:
    from hpcdask.core.lanes import Lane
    from hpcdask.core.records import Prefix, WorkerRecord
    from hpcdask.core.scheduler_state import SchedulerState

#: Waiting tasks of a kind that are looked at to learn what all of them cost.
_SAMPLE = 100


class WorkerStock(NamedTuple):
    """What one worker does and holds."""

    name: str
    nthreads: int
    memory_limit: int = 0  # bytes; 0 if it has none
    nbytes: int = 0  # of the values that it holds
    seconds: float = 0.0  # of known work that it has been given
    n_runnable: int = 0  # tasks that run there or could
    is_busy: bool = False  # it has a task, or an actor
    is_bound: bool = False  # not all of its tasks could run on any worker
    is_leaving: bool = False
    resources: tuple[tuple[str, float], ...] = ()
    taken: tuple[tuple[str, float], ...] = ()  # of these, by tasks that run
    group: Hashable = None  # those of one group end together
    is_kept: bool = False  # a plugin of the scheduler has it stay, busy or not


class Waiting(NamedTuple):
    """Tasks with one restriction that wait for room, or for a worker that may run them."""

    restriction: Restriction | None
    n: int
    seconds: float  # of known work
    n_able: int  # workers that may run them


class Running(NamedTuple):
    """A task that runs, of a kind of which none has ended yet."""

    kind: str
    key: str
    attempt: int


class Stock(NamedTuple):
    """What a scheduler has to do, and who does it."""

    workers: tuple[WorkerStock, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    unknown: tuple[Running, ...] = ()  # some of those, oldest first

    @property
    def seconds(self) -> float:
        """Known work."""
        given = sum(worker.seconds for worker in self.workers)
        return given + sum(waiting.seconds for waiting in self.waiting)

    @property
    def n_runnable(self) -> int:
        """Tasks that run or could."""
        given = sum(worker.n_runnable for worker in self.workers)
        return given + sum(waiting.n for waiting in self.waiting)

    def __str__(self) -> str:
        idle = sum(not worker.is_busy for worker in self.workers)
        return (
            f"{self.n_runnable} tasks of {self.seconds:.3g} s for {len(self.workers)} workers, "
            f"{idle} of them idle"
        )


class Assumed(NamedTuple):
    """Seconds that tasks take of kinds of which none has ended yet."""

    least: float = UNKNOWN_DURATION
    by_kind: Mapping[str, float] = {}  # of kinds that are seen to take longer

    def cost(self, prefix: Prefix) -> float:
        """Seconds that a task of this kind is expected to take."""
        if prefix.duration is not None:
            return prefix.cost
        return max(self.by_kind.get(prefix.name, 0.0), self.least)


def take_stock(
    dask_scheduler: Any,
    assumed: Assumed | None = None,
    worker_key: Callable[[Any], Hashable] | None = None,
) -> Stock:
    """Look at a scheduler; called where it is.

    Parameters
    ----------
    assumed : Assumed, optional
        By default half a second each.
    worker_key : callable, optional
        The group of a worker, from its `name`, `address`, `host`, `nthreads` and so on.
    """
    state: SchedulerState = dask_scheduler.state
    records = list(state.workers.values())
    assumed = assumed or Assumed()
    to_spare = set(dask_scheduler.hooks.workers_to_spare(records))
    return Stock(
        workers=tuple(
            _look_at(record, assumed, worker_key)._replace(is_kept=record not in to_spare)
            for record in records
        ),
        waiting=tuple(w for lane in state.lanes if (w := _line_of(lane, assumed)) is not None),
        unknown=tuple(islice(filter(None, map(_unknown, records)), _SAMPLE)),
    )


def _look_at(
    record: WorkerRecord,
    assumed: Assumed,
    worker_key: Callable[[Any], Hashable] | None,
) -> WorkerStock:
    info = record.info
    seconds = record.occupancy
    first = _unknown(record)
    if first is not None:  # those that run are all of its kind, most likely
        n = min(record.n_runnable, info.nthreads)
        seconds = max(seconds, n * assumed.by_kind.get(first.kind, 0.0))
    return WorkerStock(
        name=info.name,
        nthreads=info.nthreads,
        memory_limit=info.memory_limit,
        nbytes=record.nbytes,
        seconds=seconds,
        n_runnable=record.n_runnable,
        is_busy=bool(record.processing or record.actors),  # which would end with it
        is_bound=_is_bound(record),
        is_leaving=record.is_leaving,
        resources=info.resources,
        taken=tuple((name, have - record.resources[name]) for name, have in info.resources),
        group=None if worker_key is None else worker_key(info),
    )


def _is_bound(record: WorkerRecord) -> bool:
    if not record.lanes:
        return False
    sample = [*islice(record.processing, _SAMPLE + 1)]
    # Of so many, most likely one is.
    return len(sample) > _SAMPLE or any(task.lane.restriction for task in sample)


def _unknown(record: WorkerRecord) -> Running | None:
    """The task that a worker has had for the longest, if nobody knows yet how long it takes."""
    task = next(iter(record.processing), None)
    if task is None or task.function is None or task.function.prefix.duration is not None:
        return None
    return Running(task.function.prefix.name, task.key, task.attempt)


def _line_of(lane: Lane, assumed: Assumed) -> Waiting | None:
    n = lane.n_queued + len(lane.stranded)
    if not n:
        return None
    sample = [*islice(lane.queued, _SAMPLE), *islice(lane.stranded, _SAMPLE)]
    costs = [assumed.cost(task.function.prefix) for task in sample if task.function is not None]
    seconds = n * sum(costs) / len(costs) if costs else 0.0
    return Waiting(lane.restriction, n, seconds, len(lane.workers))
