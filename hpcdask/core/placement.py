"""Which worker gets a task: where its inputs are, or where a thread is soonest free.

No choice looks at all workers or all tasks. A worker is kept filled with `PREFETCH` seconds of
known work: of short tasks that is hundreds, so that they stream without a round trip each; of long
or unmeasured ones it is one more than it has threads, so that the rest stays free for others.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from hpcdask.core.records import Task, WorkerRecord

#: Seconds of known work to send ahead, per thread.
PREFETCH = 0.02
#: Tasks to send ahead at most, per thread.
MAX_PREFETCH = 500
#: Bytes per second and seconds per request assumed for fetching an input.
BANDWIDTH, LATENCY = 500e6, 1e-3
#: An input of more tasks than this, and of no more bytes, is no reason to run where it is.
COMMON, SMALL = 64, 100_000
#: Holders of inputs that are compared for one task.
MAX_CANDIDATES = 8


def has_room(worker: WorkerRecord) -> bool:
    """Whether one more task may be sent ahead to this worker."""
    count, nthreads = len(worker.processing) - worker.n_ahead, worker.nthreads
    if not nthreads:  # all are busy with runs that were given up
        return False
    return count <= nthreads or (
        worker.occupancy < PREFETCH * nthreads and count < MAX_PREFETCH * nthreads
    )


def has_free_thread(worker: WorkerRecord) -> bool:
    """Whether a thread there has nothing to run."""
    return len(worker.processing) - worker.n_ahead < worker.nthreads


class Placement:
    """Finds a worker for a task, among those of one lane.

    Workers with a free thread and workers with room stand in two rings; a worker that has filled
    up meanwhile is dropped when its turn comes, so each step is O(1) amortised.

    Parameters
    ----------
    resources : tuple of (name, amount)
        What each task takes of its worker's.
    """

    def __init__(self, resources: tuple[tuple[str, float], ...] = ()) -> None:
        self.workers: dict[WorkerRecord, None] = {}
        self._resources = resources
        self._free = _Ring()
        self._room = _Ring()

    def add(self, worker: WorkerRecord) -> None:
        """Let it be chosen."""
        self.workers[worker] = None
        self.note(worker)

    def note(self, worker: WorkerRecord) -> None:
        """Look at a worker that may have got room."""
        if self.has_room(worker):
            if worker not in self._room.members:
                self._room.add(worker)
            if has_free_thread(worker) and worker not in self._free.members:
                self._free.add(worker)

    def forget(self, worker: WorkerRecord) -> None:
        """Never choose this worker again."""
        self.workers.pop(worker, None)
        self._free.discard(worker)
        self._room.discard(worker)

    def has_room(self, worker: WorkerRecord) -> bool:
        """Whether one more task may be sent there now."""
        return has_room(worker) and (not self._resources or self._are_free(worker))

    def _are_free(self, worker: WorkerRecord) -> bool:
        free = worker.resources
        return all([free.get(name, 0.0) >= amount for name, amount in self._resources])

    def knows(self, worker: WorkerRecord) -> bool:
        """Whether a worker would be found when it is its turn; for tests."""
        in_free = not has_free_thread(worker) or worker in self._free.members
        return in_free and worker in self._room.members

    def idle_workers(self, limit: int) -> list[WorkerRecord]:
        """Some workers with a free thread."""
        self._free.line.rotate(-limit)  # others the next time
        return [w for w in islice(self._free.line, limit) if has_free_thread(w)]

    def choose(self, task: Task) -> WorkerRecord | None:
        """Return a worker for a task whose inputs are all in memory, or None if all are full.

        One that takes no resources goes to a holder of its inputs even if that is full: waiting
        would not bring the inputs nearer. Unless they are small and needed everywhere.
        """
        roomy = self._roomy()
        if not task.dependencies or (roomy is None and _are_common(task.dependencies)):
            return roomy
        total = 0
        local: dict[WorkerRecord, int] = {}  # bytes of inputs by worker, popular ones apart
        popular: list[Task] = []  # inputs with too many holders to look at
        for dependency in task.dependencies:
            total += dependency.nbytes
            if len(dependency.who_has) > MAX_CANDIDATES:
                popular.append(dependency)
                continue
            for holder in dependency.who_has:
                if holder in self.workers:
                    local[holder] = local.get(holder, 0) + dependency.nbytes
        candidates = sorted(local, key=local.__getitem__, reverse=True)[:MAX_CANDIDATES]
        if roomy is not None and roomy not in local:
            candidates.append(roomy)
        if popular:
            holders = max(popular, key=lambda d: d.nbytes).who_has
            some = [w for w in islice(holders, MAX_CANDIDATES) if w in self.workers]
            candidates.extend(w for w in some if w not in candidates)
        candidates = [worker for worker in candidates if worker.nthreads]
        if self._resources:
            candidates = [worker for worker in candidates if self.has_room(worker)]
        if len(candidates) < 2:
            return candidates[0] if candidates else None

        def start(worker: WorkerRecord) -> float:
            here = local.get(worker, 0) + sum(d.nbytes for d in popular if worker in d.who_has)
            return start_delay(worker, total - here)

        return min(candidates, key=start)

    def another(self, worker: WorkerRecord) -> WorkerRecord | None:
        """Return one that has room and is not this one, if there is such among the next ones."""
        for _ in range(2):  # the first may be this one
            found = self._roomy()
            if found is not worker:
                return found
        some = islice(self._room.line, MAX_CANDIDATES)
        return next((w for w in some if w is not worker and self.has_room(w)), None)

    def _roomy(self) -> WorkerRecord | None:
        line = self._free.line
        while line:
            worker = line[0]
            if has_free_thread(worker) and self.has_room(worker):
                line.rotate(-1)
                return worker
            self._free.drop_first()
        line = self._room.line
        while line:
            worker = line[0]
            if self.has_room(worker):
                line.rotate(-1)
                return worker
            self._room.drop_first()
        return None


def _are_common(inputs: tuple[Task, ...]) -> bool:
    """Whether these are inputs that every worker will have sooner or later, and soon."""
    return all([len(d.dependents) > COMMON and d.nbytes <= SMALL for d in inputs])


class _Ring:
    """Workers in a line, each once."""

    __slots__ = ("line", "members")

    def __init__(self) -> None:
        self.line: deque[WorkerRecord] = deque()
        self.members: set[WorkerRecord] = set()

    def add(self, worker: WorkerRecord) -> None:
        self.members.add(worker)
        self.line.append(worker)

    def drop_first(self) -> None:
        self.members.discard(self.line.popleft())

    def discard(self, worker: WorkerRecord) -> None:
        if worker in self.members:
            self.members.discard(worker)
            self.line.remove(worker)


def start_delay(worker: WorkerRecord, missing_bytes: int) -> float:
    """Seconds until a task could start there: what is queued there, then the transfer."""
    queue = worker.occupancy / worker.nthreads if not has_free_thread(worker) else 0.0
    return queue + transfer_time(missing_bytes)


def transfer_time(nbytes: int) -> float:
    """Seconds that fetching so much is expected to take."""
    return LATENCY + nbytes / BANDWIDTH if nbytes else 0.0
