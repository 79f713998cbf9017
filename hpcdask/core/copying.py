"""Copies of values that users ask for: on more workers, or on others than those that are full.

A plan decides, round by round, who is to fetch what; `Copying` tells the workers. A plan looks at
the state itself for what has come: nothing is noted for it where copies arrive. Only what cannot be
had it is told of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heapreplace, nlargest
from itertools import islice
from typing import NamedTuple

from hpcdask.core.records import Task, WorkerRecord
from hpcdask.core.retirement import Retirement
from hpcdask.core.transitions import TO_RUN, dependency_of
from hpcdask.messages import AcquireKeys, FreeKeys, NotAcquired, Version

#: Workers that may fail to get a value before it is given up.
_MAX_FAILURES = 3
#: Values of one worker that are looked at to be moved elsewhere.
_MAX_LOOKED_AT = 20_000


class Copy(NamedTuple):
    """One value on one worker, where it is to be or not to be."""

    task: Task
    worker: WorkerRecord


class Copying(Retirement):
    """The part of the scheduler that has copies made, and drops them."""

    def __init__(self, first_attempt: int) -> None:
        super().__init__(first_attempt)
        self.copy_plans: list[CopyPlan] = []  # under way

    def copies_wanted(self, now: float, copies: Iterable[Copy]) -> None:
        """Workers are to fetch these, and to keep them."""
        by_worker: dict[WorkerRecord, list[Task]] = {}
        for task, worker in copies:
            by_worker.setdefault(worker, []).append(task)
        for worker, tasks in by_worker.items():
            self.send(worker.address, AcquireKeys(tuple(map(dependency_of, tasks))))

    def copies_unwanted(self, now: float, copies: Iterable[Copy]) -> None:
        """Workers are to drop these; the last copy of a value stays."""
        freed: dict[WorkerRecord, list[Version]] = {}
        for task, worker in copies:
            is_home = task.lane.is_actor  # all other copies only tell where that is
            if worker in task.who_has and _others_hold(task, worker) and not is_home:
                task.drop_holder(worker)
                freed.setdefault(worker, []).append(Version(task.key, task.attempt))
        for worker, versions in freed.items():
            self.send(worker.address, FreeKeys(tuple(versions)))

    def not_acquired(self, now: float, address: str, msg: NotAcquired) -> None:
        """A worker could not get copies."""
        for plan in self.copy_plans:
            plan.refused(address, msg.versions)
        super().not_acquired(now, address, msg)


def _others_hold(task: Task, worker: WorkerRecord) -> bool:
    """Whether a worker that stays has the value besides this one."""
    return any(holder is not worker and not holder.is_leaving for holder in task.who_has)


class CopyPlan:
    """Copies that are being made for one request.

    Parameters
    ----------
    present : mapping of str to WorkerRecord
        The scheduler's workers, as they come and go.
    """

    def __init__(self, present: Mapping[str, WorkerRecord]) -> None:
        self._present = present
        self._pending: dict[Copy, int] = {}  # with the attempt whose value it is
        self._failures: Counter[tuple[str, int]] = Counter()  # by key and attempt

    def refused(self, address: str, versions: Iterable[Version]) -> None:
        """A worker could not get these."""
        failed = set(versions)
        for copy in [c for c in self._pending if c.worker.address == address]:
            version = Version(copy.task.key, self._pending[copy])
            if version in failed:
                del self._pending[copy]
                self._failures[version] += 1

    @property
    def goes_on(self) -> bool:
        """Whether something has been asked for that may yet come."""
        return bool(self._pending)

    def _stays(self, worker: WorkerRecord) -> bool:
        return self._present.get(worker.address) is worker and not worker.is_leaving

    def _is_hopeless(self, task: Task) -> bool:
        return self._failures[task.key, task.attempt] >= _MAX_FAILURES

    def _settle(self) -> list[Copy]:
        """Forget copies that have come, which are returned, and those that will not."""
        come = []
        for (task, worker), attempt in list(self._pending.items()):
            is_there = task.state == "memory" and task.attempt == attempt
            if is_there and worker in task.who_has:
                come.append(Copy(task, worker))
            if not is_there or worker in task.who_has or not self._stays(worker):
                del self._pending[Copy(task, worker)]
        return come

    def _ask(self, copies: Iterable[Copy]) -> None:
        for copy in copies:
            self._pending[copy] = copy.task.attempt


class Round(NamedTuple):
    """What follows from a look at a plan."""

    wanted: list[Copy]
    unwanted: list[Copy]
    missing: dict[str, int]  # by key how many are still to come


class Replication(CopyPlan):
    """So many workers shall hold each value.

    Parameters
    ----------
    present
        As of `CopyPlan`.
    tasks : list of Task
    workers : list of WorkerRecord
        From which those are chosen.
    n : int
        0 for all of them.
    branching_factor : int
        Copies that are made of each copy at a time: what ten hosts need is not to be fetched ten
        times from one.
    """

    def __init__(
        self,
        present: Mapping[str, WorkerRecord],
        tasks: Sequence[Task],
        workers: Sequence[WorkerRecord],
        n: int,
        branching_factor: int,
    ) -> None:
        super().__init__(present)
        # Copies of an actor would only tell where it is.
        self._tasks = [task for task in tasks if not task.lane.is_actor]
        self._workers = workers
        self._n = min(n, len(workers)) if n else len(workers)
        self._branching_factor = branching_factor
        self._load: Counter[WorkerRecord] = Counter({w: w.nbytes for w in workers})

    def next_round(self) -> Round:
        """Look at what there is, and decide what follows."""
        self._settle()
        there = list(filter(self._stays, self._workers))
        being_made: dict[Task, list[WorkerRecord]] = {}
        for task, worker in self._pending:
            being_made.setdefault(task, []).append(worker)
        result = Round([], [], {})
        for task in self._tasks:
            holders = [w for w in there if w in task.who_has]
            coming = being_made.get(task, [])
            missing = min(self._n, len(there)) - len(holders)
            if missing < 0:
                result.unwanted.extend(Copy(task, w) for w in holders[missing:])
            elif missing > 0:
                result.missing[task.key] = missing
                if task.state == "memory" and not self._is_hopeless(task):
                    room = self._branching_factor * len(task.who_has)
                    count = min(missing, room) - len(coming)
                    result.wanted.extend(self._copies(task, there, coming, count))
        self._ask(result.wanted)
        return result

    @property
    def goes_on(self) -> bool:
        """Whether copies may yet come, or a value that was lost and is computed again."""
        return super().goes_on or any(task.state in TO_RUN for task in self._tasks)

    def _copies(
        self, task: Task, there: list[WorkerRecord], coming: list[WorkerRecord], count: int
    ) -> list[Copy]:
        """Choose workers for copies: those that have the least."""
        if count <= 0:
            return []
        able = [w for w in there if w not in task.who_has and w not in coming]
        chosen = sorted(able, key=self._load.__getitem__)[:count]
        for worker in chosen:
            self._load[worker] += task.nbytes
        return [Copy(task, worker) for worker in chosen]


class Rebalancing(CopyPlan):
    """Values move from workers that hold more than others to those that hold less.

    Parameters
    ----------
    present
        As of `CopyPlan`.
    workers : list of WorkerRecord
        Among which they move.
    keys : set of str
        What may move; empty: all.
    """

    def __init__(
        self,
        present: Mapping[str, WorkerRecord],
        workers: Sequence[WorkerRecord],
        keys: set[str],
    ) -> None:
        super().__init__(present)
        self._sources: dict[Copy, WorkerRecord] = {}  # of each copy, by what it replaces
        for task, source, target in moves(workers, keys):
            self._sources[Copy(task, target)] = source
        self.n_planned = len(self._sources)
        self._has_begun = False

    def next_round(self) -> Round:
        """Look at what has moved, and decide what follows."""
        if not self._has_begun:
            self._has_begun = True
            self._ask(self._sources)
            return Round(list(self._sources), [], {})
        come = self._settle()
        unwanted = [Copy(copy.task, self._sources.pop(copy)) for copy in come]
        return Round([], unwanted, {copy.task.key: 1 for copy in self._pending})

    @property
    def n_left(self) -> int:
        """Values that may yet move."""
        return len(self._pending)

    @property
    def n_moved(self) -> int:
        """Values that are where they should be."""
        return self.n_planned - len(self._sources)


def moves(
    workers: Sequence[WorkerRecord], keys: set[str]
) -> list[tuple[Task, WorkerRecord, WorkerRecord]]:
    """Decide which values go from where to where.

    The worker with the most gives its largest value to the one with the least, if that leaves the
    two less apart; else the next smaller one; until none is left that would.
    """
    load: list[tuple[int, int]] = [(worker.nbytes, i) for i, worker in enumerate(workers)]
    if len(load) < 2:
        return []
    mean = sum(nbytes for nbytes, _ in load) / len(load)
    receivers = [(nbytes, i) for nbytes, i in load if nbytes < mean]
    heapify(receivers)
    planned = []
    for nbytes, i in sorted(load, reverse=True):
        if nbytes <= mean:
            break
        giver = workers[i]
        for task in _movable(giver, keys):
            least, j = receivers[0]
            if nbytes > mean and task.nbytes < nbytes - least:
                planned.append((task, giver, workers[j]))
                nbytes -= task.nbytes
                heapreplace(receivers, (least + task.nbytes, j))
    return planned


def _movable(worker: WorkerRecord, keys: set[str]) -> list[Task]:
    """Values that only this worker holds and no run on it takes, the largest first."""
    held = (task for task in worker.has_what if not keys or task.key in keys)
    alone = (
        task
        for task in held
        if len(task.who_has) == 1
        and task.nbytes
        and not task.lane.is_actor
        and not any(d.worker is worker for d in islice(task.dependents, _MAX_LOOKED_AT))
    )
    return nlargest(_MAX_LOOKED_AT, islice(alone, _MAX_LOOKED_AT), key=lambda task: task.nbytes)
