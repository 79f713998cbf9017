"""Which tasks an idle worker should have that were sent to another one and have not started.

They are asked back from the worker that has them, which may have started them meanwhile; so nothing
runs twice. No choice looks at all workers or all tasks of one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from itertools import islice

from hpcdask.core.placement import transfer_time
from hpcdask.core.records import Task, WorkerRecord

#: Workers, and tasks of one worker, that are looked at to relieve one.
_MAX_WORKERS, _MAX_TASKS = 8, 200
#: Seconds of known work per thread below which a worker is left alone: it will be through before
#: its tasks are elsewhere.
_WORTH_IT = 0.01
#: Seconds that a slower one is expected to take beyond what is known.
_SLOW = 1.0


class Loaded:
    """Workers that were sent more tasks than they have threads, in a ring."""

    def __init__(self) -> None:
        self._ring: deque[WorkerRecord] = deque()

    def __bool__(self) -> bool:
        return bool(self._ring)

    def add(self, worker: WorkerRecord) -> None:
        """Note a worker that has tasks waiting."""
        worker.is_loaded = True
        self._ring.append(worker)

    def forget(self, worker: WorkerRecord) -> None:
        """Note that a worker is gone."""
        if worker.is_loaded:
            worker.is_loaded = False
            self._ring.remove(worker)

    def tasks_for(
        self, thief: WorkerRecord, patience: bool, hopeless: Collection[Task] = ()
    ) -> list[Task]:
        """Choose tasks of one loaded worker that an idle one should have.

        Parameters
        ----------
        patience : bool
            Whether to leave alone who is expected to be through soon. On a timer this is not asked:
            who still has tasks waiting then is slower than expected.
        hopeless : collection of Task
            Of which it cannot get the inputs.
        """
        best, most = None, _WORTH_IT if patience else -1.0
        for _ in range(min(len(self._ring), _MAX_WORKERS)):
            worker = self._ring[0]
            self._ring.rotate(-1)
            if worker.n_runnable <= worker.nthreads:
                self._ring.pop()
                worker.is_loaded = False
            elif worker is not thief and (delay := _delay(worker)) > most:
                best, most = worker, delay
        if best is None:
            return []
        return _surplus(best, thief, most + (0.0 if patience else _SLOW), hopeless)


def _delay(worker: WorkerRecord) -> float:
    """Seconds until what is sent there could start."""
    return worker.occupancy / worker.nthreads if worker.nthreads else math.inf


def _surplus(
    worker: WorkerRecord, thief: WorkerRecord, delay: float, hopeless: Collection[Task]
) -> list[Task]:
    """Tasks that would start earlier at the thief: those that were sent last, about half."""
    waiting = worker.n_runnable - worker.nthreads
    n_wanted = (waiting - len(worker.recalled) + 1) // 2
    chosen: list[Task] = []
    for task in islice(reversed(worker.processing), _MAX_TASKS):
        if len(chosen) >= n_wanted or waiting <= 0:
            break
        if task.missing or task in worker.recalled:
            continue
        waiting -= 1
        lane = task.lane
        may_run = thief in lane.workers and lane.placement.has_room(thief)
        if may_run and task not in hopeless and _transfer(task, thief) < delay:
            chosen.append(task)
    return chosen


def _transfer(task: Task, thief: WorkerRecord) -> float:
    """Seconds to fetch the inputs which are not there; at most, of the first few."""
    inputs = islice(task.dependencies, 100)
    return transfer_time(sum(d.nbytes for d in inputs if thief not in d.who_has))
