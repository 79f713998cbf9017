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
#: Holders of inputs that are compared for one task.
MAX_CANDIDATES = 8


def has_room(worker: WorkerRecord) -> bool:
    """Whether one more task may be sent ahead to this worker."""
    count, nthreads = len(worker.processing), worker.nthreads
    return count <= nthreads or (
        worker.occupancy < PREFETCH * nthreads and count < MAX_PREFETCH * nthreads
    )


class Placement:
    """Finds a worker for a task.

    Workers with a free thread and workers with room stand in two rings; a worker that has filled
    up meanwhile is dropped when its turn comes, so each step is O(1) amortised.
    """

    def __init__(self) -> None:
        self._free: deque[WorkerRecord] = deque()
        self._room: deque[WorkerRecord] = deque()

    def note(self, worker: WorkerRecord) -> None:
        """Look at a worker that may have got room."""
        if not worker.is_free and len(worker.processing) < worker.nthreads:
            worker.is_free = True
            self._free.append(worker)
        if not worker.in_room and has_room(worker):
            worker.in_room = True
            self._room.append(worker)

    def forget(self, worker: WorkerRecord) -> None:
        """Never choose this worker again."""
        if worker.is_free:
            self._free.remove(worker)
        if worker.in_room:
            self._room.remove(worker)
        worker.is_free = worker.in_room = False

    def choose(self, task: Task) -> WorkerRecord | None:
        """Return a worker for a task whose inputs are all in memory, or None if all are full.

        A task with inputs always gets a worker while there is one: waiting would not bring the
        inputs nearer.
        """
        roomy = self._roomy()
        if not task.dependencies:
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
                local[holder] = local.get(holder, 0) + dependency.nbytes
        candidates = sorted(local, key=local.__getitem__, reverse=True)[:MAX_CANDIDATES]
        if roomy is not None and roomy not in local:
            candidates.append(roomy)
        if popular:
            holders = max(popular, key=lambda d: d.nbytes).who_has
            candidates.extend(w for w in islice(holders, MAX_CANDIDATES) if w not in candidates)
        if len(candidates) == 1:
            return candidates[0]

        def start(worker: WorkerRecord) -> float:
            here = local.get(worker, 0) + sum(d.nbytes for d in popular if worker in d.who_has)
            return _start(worker, total - here)

        return min(candidates, key=start)

    def _roomy(self) -> WorkerRecord | None:
        free = self._free
        while free:
            worker = free[0]
            if len(worker.processing) < worker.nthreads:
                free.rotate(-1)
                return worker
            free.popleft()
            worker.is_free = False
        room = self._room
        while room:
            worker = room[0]
            if has_room(worker):
                room.rotate(-1)
                return worker
            room.popleft()
            worker.in_room = False
        return None


def _start(worker: WorkerRecord, missing_bytes: int) -> float:
    """Seconds until a task could start there: what is queued there, then the transfer."""
    queue = worker.occupancy / worker.nthreads if len(worker.processing) >= worker.nthreads else 0.0
    transfer = LATENCY + missing_bytes / BANDWIDTH if missing_bytes else 0.0
    return queue + transfer
