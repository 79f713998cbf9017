"""Workers that leave on purpose: what has not started is taken back, what only they have moves."""

from __future__ import annotations

from itertools import islice

from hpcdask.core.records import Task, WorkerRecord
from hpcdask.core.transitions import Transitions, dependency_of
from hpcdask.messages import AcquireKeys, CloseWorker, NotAcquired, TakeBack, Version

#: Values that one message asks a worker to fetch, and workers that share those of one.
_AT_A_TIME, _MAX_TARGETS = 1000, 1000
#: Workers that may fail to get a value before it is given up.
_MAX_FAILURES = 3


class Retirement(Transitions):
    """The part of the scheduler that lets workers go."""

    def __init__(self, first_attempt: int) -> None:
        super().__init__(first_attempt)
        #: Workers that leave, each with the values that may be on no worker that stays.
        self.leaving: dict[WorkerRecord, dict[Task, _Move]] = {}
        self._n_moved = 0

    def worker_leaving(self, now: float, address: str, reason: str, waits: bool = False) -> None:
        """A worker is to end: give it nothing more, and save what only it has.

        Parameters
        ----------
        waits : bool
            Whether it has time, and waits for another that can take what it has, if none is there.
        """
        worker = self.workers.get(address)
        if worker is None or worker.is_leaving:
            return
        worker.is_leaving, worker.is_patient = True, waits
        self._serve_no_more(worker)
        self._target_lost(address)
        self.leaving[worker] = {task: _Move() for task in worker.has_what}
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
        for worker, moves in self.leaving.items():
            again = []
            for task in values:
                move = moves.get(task)
                if move is not None and move.target == address:
                    move.failures += 1
                    if move.failures < _MAX_FAILURES:
                        again.append(task)
                    else:  # it cannot be pickled, say; whoever needs it will have it computed
                        del moves[task]
            self._move_away(worker, again)
        self._settle()

    def _is_value(self, version: Version) -> bool:
        task = self.tasks.get(version.key)
        return task is not None and task.state == "memory" and task.attempt == version.attempt

    def _has_new_value(self, task: Task, worker: WorkerRecord) -> None:
        """A run that a leaving worker had started has ended well."""
        self.leaving[worker][task] = _Move()
        self._move_away(worker, [task])

    def _target_lost(self, address: str) -> None:
        """A worker is gone, or to go itself, that was to save values of others."""
        for worker, moves in self.leaving.items():
            self._move_away(worker, [t for t, move in moves.items() if move.target == address])

    def _copies_are_gone(self, address: str, tasks: list[Task]) -> None:
        """A worker has these values no more, by which they may have been safe."""
        again: dict[WorkerRecord, list[Task]] = {}
        for task in tasks:
            for worker in task.who_has:
                moves = self.leaving.get(worker)
                if moves is not None:
                    move = moves.setdefault(task, _Move())
                    if move.target in ("", address):
                        again.setdefault(worker, []).append(task)
        for worker, some in again.items():
            self._move_away(worker, some)

    def _somebody_stays(self) -> None:
        """A worker has come where there was none: values can move that nobody could take."""
        for worker, moves in self.leaving.items():
            self._move_away(worker, [task for task, move in moves.items() if not move.target])

    def _move_away(self, worker: WorkerRecord, tasks: list[Task]) -> None:
        """Ask workers that stay to fetch those of a leaving worker's values that only such have.

        Its time may be short: what cannot be computed again comes first, then what is small.
        """
        moves = self.leaving[worker]
        for task in tasks:
            moves[task].target = ""
        unsafe = sorted((t for t in tasks if not _is_safe(t)), key=_in_order_of_need)
        targets = list(islice(self.lanes.open.workers, _MAX_TARGETS)) if unsafe else []
        if not targets:
            return
        shares: dict[str, list[Task]] = {}
        for task in unsafe:
            self._n_moved += 1  # so that values which come one by one do not all go to the first
            target = targets[self._n_moved % len(targets)].address
            moves[task].target = target
            shares.setdefault(target, []).append(task)
        for address, share in shares.items():
            for first in range(0, len(share), _AT_A_TIME):
                part = share[first : first + _AT_A_TIME]
                self.send(address, AcquireKeys(tuple(map(dependency_of, part))))

    def _let_go(self) -> None:
        """End workers of which nothing more is needed, or that nobody can take anything from."""
        for worker, moves in list(self.leaving.items()):
            may_be_saved = worker.is_patient or self.lanes.open.workers
            while moves:
                task = next(reversed(moves))
                if worker in task.who_has and not _is_safe(task) and may_be_saved:
                    break
                del moves[task]
            if not moves and not worker.processing:
                del self.leaving[worker]
                self.send(worker.address, CloseWorker("it has retired"))

    def would_lose(self, address: str) -> int:
        """How many values only this worker and others that leave hold, if nobody stays."""
        worker = self.workers.get(address)
        others = any(w is not worker for w in self.lanes.open.workers)
        if worker is None or worker.is_patient or others:
            return 0
        return sum(
            not task.lane.is_actor and not any(h is not worker for h in task.who_has)
            for task in worker.has_what
        )


class _Move:
    """Where a value is to be saved."""

    __slots__ = ("failures", "target")

    def __init__(self) -> None:
        self.target = ""
        self.failures = 0


def _in_order_of_need(task: Task) -> tuple[bool, int]:
    return (task.function is not None, task.nbytes)


def _is_safe(task: Task) -> bool:
    """Whether a worker that stays holds the value; or it cannot move, being an actor."""
    return task.lane.is_actor or any(not holder.is_leaving for holder in task.who_has)
