"""Workers that leave on purpose: what has not started is taken back, what only they have moves."""

from __future__ import annotations

from itertools import cycle, islice

from hpcdask.core.records import Task, WorkerRecord
from hpcdask.core.transitions import Transitions, dependency_of
from hpcdask.messages import AcquireKeys, CloseWorker, NotAcquired, TakeBack, Version

#: Values that one message asks a worker to fetch.
_AT_A_TIME = 1000


class Retirement(Transitions):
    """The part of the scheduler that lets workers go."""

    def __init__(self, first_attempt: int) -> None:
        super().__init__(first_attempt)
        #: Workers that leave, each with the values that may be on no worker that stays.
        self.leaving: dict[WorkerRecord, dict[Task, None]] = {}

    def worker_leaving(self, now: float, address: str, reason: str) -> None:
        """A worker is to end: give it nothing more, and save what only it has."""
        worker = self.workers.get(address)
        if worker is None or worker.is_leaving:
            return
        worker.is_leaving = True
        self._serve_no_more(worker)
        self.leaving[worker] = dict.fromkeys(worker.has_what)
        self._move_away(worker, list(worker.has_what))
        if worker.processing:
            runs = tuple(Version(task.key, task.attempt) for task in worker.processing)
            self.send(address, TakeBack(runs))
        self._settle()

    def wait_no_longer(self, address: str) -> None:
        """What a leaving worker runs is to run elsewhere."""
        worker = self.workers.get(address)
        if worker is None:
            return
        for task in sorted(worker.processing, key=lambda task: task.priority):
            if task.worker is worker:  # and has not been taken back with what it depends on
                self._take_back_and_tell(task)
                self._move(task, "waiting")
                self._take_back_dependents(task)
                if not task.missing:
                    self._place(task)
        self._settle()

    def not_acquired(self, now: float, address: str, msg: NotAcquired) -> None:
        """A worker could not get copies that were to be saved on it."""
        values = [self.tasks[v.key] for v in msg.versions if self._is_value(v)]
        for worker in self.leaving:
            self._move_away(worker, [task for task in values if worker in task.who_has], address)
        self._settle()

    def _is_value(self, version: Version) -> bool:
        task = self.tasks.get(version.key)
        return task is not None and task.state == "memory" and task.attempt == version.attempt

    def _has_new_value(self, task: Task, worker: WorkerRecord) -> None:
        """A run that a leaving worker had started has ended well."""
        self.leaving[worker][task] = None
        self._move_away(worker, [task])

    def _move_away(self, worker: WorkerRecord, tasks: list[Task], but_not_to: str = "") -> None:
        """Ask workers that stay to fetch those of a leaving worker's values that only such have."""
        staying = list(islice(self.lanes.open.workers, _AT_A_TIME))
        targets = [w for w in staying if w.address != but_not_to] or staying
        unsafe = [task for task in tasks if not _is_safe(task)]
        if not targets or not unsafe:
            return
        shares: dict[str, list[Task]] = {}
        for task, target in zip(unsafe, cycle(targets), strict=False):
            shares.setdefault(target.address, []).append(task)
        for address, share in shares.items():
            for first in range(0, len(share), _AT_A_TIME):
                part = share[first : first + _AT_A_TIME]
                self.send(address, AcquireKeys(tuple(map(dependency_of, part))))

    def _let_go(self) -> None:
        """End workers of which nothing more is needed, or that nobody can take anything from."""
        for worker, values in list(self.leaving.items()):
            while values:
                task = next(iter(values))
                if worker in task.who_has and not _is_safe(task) and self.lanes.open.workers:
                    break
                del values[task]
            if not values and not worker.processing:
                del self.leaving[worker]
                self.send(worker.address, CloseWorker("it has retired"))


def _is_safe(task: Task) -> bool:
    """Whether a worker that stays holds the value."""
    return any(not holder.is_leaving for holder in task.who_has)
