"""How many units the work is worth, and which of them cost the least to end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hpcdask.launchers.stock import Stock, Waiting
from hpcdask.launchers.units import Fleet, Unit, UnitShape
from hpcdask.messages import Restriction

#: The part of all workers' memory that the values which they hold may fill.
_FULL = 0.6
#: Bytes per second at which values move from a unit that ends.
_BANDWIDTH = 500e6


class Worth(NamedTuple):
    """Numbers of units that the known work is worth."""

    now: int  # if they were there
    later: int  # if they come after the usual wait, and those that are there go on meanwhile


def worth(
    stock: Stock,
    fleet: Fleet,
    shape: UnitShape,
    target_duration: float,
    hopeless: Collection[Restriction] = (),
) -> Worth:
    """How many units would do the known work in `target_duration` seconds.

    Parameters
    ----------
    hopeless : collection of Restriction
        Of tasks that more units of this kind cannot run.
    """
    lines = [line for line in stock.waiting if _counts(line, shape, hopeless)]
    work = _Work(
        seconds=sum(worker.seconds for worker in stock.workers) + sum(x.seconds for x in lines),
        n=sum(worker.n_runnable for worker in stock.workers) + sum(line.n for line in lines),
        lines=lines,
    )
    there = _Team.of(stock, fleet, shape)
    left = work.left_after(there.nthreads * shape.wait)
    held = there.units_to_hold(sum(worker.nbytes for worker in stock.workers))
    return Worth(
        now=max(there.units_for(work, target_duration), held),
        later=max(there.units_for(work, target_duration, left), held),
    )


def _counts(line: Waiting, shape: UnitShape, hopeless: Collection[Restriction]) -> bool:
    """Whether units could run these tasks, as far as anybody knows."""
    if line.n_able or line.restriction is None:
        return True
    if shape.resources and not _at_once(line.restriction.resources, dict(shape.resources)):
        return False
    return line.restriction not in hopeless


def learn_hopeless(
    stock: Stock, fleet: Fleet, known: Collection[Restriction]
) -> frozenset[Restriction]:
    """Restrictions that units are seen, or were seen, not to meet.

    Else, while there is none, one would be started for such tasks, end for want of work, be
    started again ...
    """
    unmet = {line.restriction for line in stock.waiting if line.restriction and not line.n_able}
    return frozenset(unmet if fleet.units else unmet.intersection(known))


class _Work(NamedTuple):
    seconds: float
    n: int  # tasks
    lines: Sequence[Waiting]

    def left_after(self, seconds: float) -> float:
        """The part that is left when so much has been done."""
        return max(1 - seconds / self.seconds, 0.0) if self.seconds else 0.0


class _Team(NamedTuple):
    """The workers that are there, and what a unit of them brings."""

    nthreads: int  # of all
    n_workers: int  # of a unit, and so on
    threads_per_unit: float
    memory_per_unit: float  # 0: no limit
    resources: Mapping[str, float]  # of one worker
    taken: Mapping[str, float]  # of all, by tasks that run
    other_threads: int  # of workers that are in none of the units
    other_memory: float

    @classmethod
    def of(cls, stock: Stock, fleet: Fleet, shape: UnitShape) -> _Team:
        workers = {worker.name: worker for worker in stock.workers if not worker.is_leaving}
        units = [[workers[n] for n in u.workers if n in workers] for u in fleet.units]
        ours = [worker for unit in units for worker in unit]
        whole = [unit for unit in units if len(unit) >= shape.n_workers]  # others still come
        others = [workers[name] for name in fleet.strangers if name in workers]
        threads, memory = float(shape.nthreads), float(shape.memory)
        if whole:
            threads = sum(worker.nthreads for unit in whole for worker in unit) / len(whole)
            limits = [worker.memory_limit for unit in whole for worker in unit]
            memory = sum(limits) / len(whole) if all(limits) else 0.0
        resources, taken = dict(shape.resources), Counter[str]()
        for worker in ours:
            for name, amount in worker.resources:
                resources[name] = max(resources.get(name, 0.0), amount)
            taken.update(dict(worker.taken))
        return cls(
            nthreads=sum(worker.nthreads for worker in (*ours, *others)),
            n_workers=shape.n_workers,
            threads_per_unit=max(threads, 1.0),
            memory_per_unit=memory,
            resources=resources,
            taken=taken,
            other_threads=sum(worker.nthreads for worker in others),
            other_memory=sum(worker.memory_limit or math.inf for worker in others),
        )

    def units_for(self, work: _Work, target_duration: float, part: float = 1.0) -> int:
        """How many do the work, or a part of it, in time."""
        threads = _threads(part * work.n, part * work.seconds, target_duration)
        workers = self._workers_for(work.lines, target_duration, part)
        return max(
            math.ceil((threads - self.other_threads) / self.threads_per_unit),
            _ceil(max(workers.values(), default=0.0) / self.n_workers),
            0,
        )

    def _workers_for(
        self, lines: Iterable[Waiting], target_duration: float, part: float
    ) -> dict[str, float]:
        """By resource, how many workers bring what is taken of it and what is waited for."""
        need = {
            name: amount / self.resources[name] for name, amount in self.taken.items() if amount
        }
        for line in lines:
            threads = _threads(part * line.n, part * line.seconds, target_duration)
            for name, amount in line.restriction.resources if line.restriction else ():
                n_at_once = _at_once([(name, amount)], self.resources)
                if amount and n_at_once:
                    need[name] = need.get(name, 0.0) + threads / n_at_once
        return need

    def units_to_hold(self, nbytes: int) -> int:
        """How many have the memory for values; one at least, or they would be lost."""
        left = nbytes - min(_FULL * self.other_memory, nbytes)
        if left and self.memory_per_unit:
            return math.ceil(left / (_FULL * self.memory_per_unit))
        return 1 if left else 0


def _threads(n: float, seconds: float, target_duration: float) -> int:
    """How many threads do so many tasks in time; no more than there are tasks."""
    return min(max(math.ceil(seconds / target_duration), 1), _ceil(n))


def _at_once(need: Iterable[tuple[str, float]], have: Mapping[str, float]) -> float:
    """How many tasks can run at once that take so much of some resources."""
    return min(
        (_floor(have.get(name, 0.0) / amount) for name, amount in need if amount), default=math.inf
    )


def _ceil(number: float) -> int:
    return math.ceil(number - 1e-9)  # of sums of floats


def _floor(number: float) -> int:
    return math.floor(number + 1e-9)


# -- Which cost least -----------------------------------------------------------------------------


def idle_units(stock: Stock, units: Iterable[Unit]) -> list[Any]:
    """Names of units with nothing to do, first those whose end costs least.

    That is, those that hold the fewest seconds' worth of values to move, and among these those that
    end soonest by themselves. Of a group all are idle, or none counts as idle.
    """
    workers = {worker.name: worker for worker in stock.workers}
    staying = {w.name for w in stock.workers if w.is_busy or w.is_leaving or w.is_kept}
    busy_groups = {
        w.group for w in stock.workers if (w.is_busy or w.is_kept) and w.group is not None
    }
    found: list[tuple[int, float, float, int, Any]] = []
    for unit in units:
        members = [workers[name] for name in unit.workers if name in workers]
        if members and not any(w.name in staying or w.group in busy_groups for w in members):
            moving = sum(worker.nbytes for worker in members) / _BANDWIDTH
            found.append((round(moving), unit.left, moving, len(found), unit.name))
    return [name for *_, name in sorted(found)]
