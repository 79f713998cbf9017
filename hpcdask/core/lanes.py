"""Lanes: tasks that may run on the same workers, and the line in which they wait for these.

Tasks without restrictions share one lane; each distinct restriction has another, as long as there
are tasks with it. So a worker that has room never looks at tasks that it cannot run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush

from hpcdask.core.placement import Placement
from hpcdask.core.records import Task, WorkerRecord
from hpcdask.messages import Restriction

#: Stale entries that a queue may hold, besides as many as there are good ones.
_MAX_STALE = 1000
#: Restrictions that are remembered although no task has them, so that a loop of submits finds its
#: workers once.
_KEPT_LANES = 4


class Lane:
    """Tasks with one restriction, and the workers that may run them.

    Parameters
    ----------
    restriction : Restriction, optional
        None: they may run anywhere.

    Attributes
    ----------
    resources : tuple of (name, amount)
        What each task takes of its worker's resources while it runs.
    workers : dict of WorkerRecord to None
        Those that may run its tasks.
    is_actor : bool
        Whether its tasks make actors, each of which lives on the worker that has made it.
    prefers : bool
        Whether workers that it does not name may run them while none of those is there.
    """

    __slots__ = (
        "_queue",
        "is_actor",
        "n_named",
        "n_queued",
        "placement",
        "prefers",
        "resources",
        "restriction",
        "stranded",
        "uses",
        "workers",
    )

    def __init__(self, restriction: Restriction | None) -> None:
        self.restriction = restriction
        self.resources = () if restriction is None else restriction.resources
        self.is_actor = restriction is not None and restriction.actor
        self.placement = Placement(self.resources)
        self.workers = self.placement.workers
        self.prefers = restriction is not None and restriction.allow_others
        self.n_named = 0  # of `workers`, those that it names; counted if it `prefers` them
        self.uses = 0  # tasks that refer to it
        self.n_queued = 0
        self.stranded: dict[Task, None] = {}  # tasks in state no-worker
        self._queue: list[tuple[tuple[float, int, int], Task]] = []  # heap, stale entries too

    @property
    def queued(self) -> Iterator[Task]:
        """Tasks that wait for room, in no order."""
        return (task for _, task in self._queue if task.state == "queued")

    def push(self, task: Task) -> None:
        """Line up a task, which is in state queued."""
        self.n_queued += 1
        heappush(self._queue, (task.priority, task))

    def first(self) -> Task | None:
        """Return the task whose turn it is."""
        queue = self._queue
        while queue and queue[0][1].state != "queued":
            heappop(queue)
        return queue[0][1] if queue else None

    def pop(self) -> Task | None:
        """Take the task whose turn it is out of the line."""
        task = self.first()
        if task is not None:
            self.n_queued -= 1
            heappop(self._queue)
        if not self.n_queued:
            self._queue.clear()
        return task

    def leave(self, task: Task) -> None:
        """Note that a queued task is about to leave the line."""
        self.n_queued -= 1
        if len(self._queue) > 2 * self.n_queued + _MAX_STALE:
            entries = {entry[1]: entry for entry in self._queue}
            del entries[task]
            self._queue = [entry for t, entry in entries.items() if t.state == "queued"]
            heapify(self._queue)

    def is_named(self, worker: WorkerRecord) -> bool:
        """Whether the restriction is to this worker, among others."""
        assert self.restriction is not None
        info, names = worker.info, self.restriction.workers
        if not names or info.address in names or info.name in names or info.host in names:
            return True
        return _host_of(info.address) in names

    def has_enough(self, worker: WorkerRecord) -> bool:
        """Whether the worker has the resources, be they free or not."""
        have = dict(worker.info.resources)
        return all(have.get(name, 0.0) >= amount for name, amount in self.resources)


def _host_of(address: str) -> str:
    """The host in an address such as tcp://10.0.0.1:8786 or tcp://[fe80::1]:8786."""
    return address.partition("://")[2].rpartition(":")[0].strip("[]")


class Lanes:
    """All lanes: who serves which."""

    def __init__(self) -> None:
        self.open = Lane(None)
        self.restricted: dict[Restriction, Lane] = {}
        self._workers: dict[WorkerRecord, None] = {}
        self._new: list[WorkerRecord] = []  # that serve a lane more

    def __iter__(self) -> Iterator[Lane]:
        yield self.open
        yield from self.restricted.values()

    def lane(self, restriction: Restriction | None) -> Lane:
        """Return the lane of a restriction."""
        if restriction is None:
            return self.open
        lane = self.restricted.get(restriction)
        if lane is None:
            lane = self.restricted[restriction] = Lane(restriction)
            for worker in self._fitting(lane):
                self._serve(lane, worker)
        return lane

    def drop_if_unused(self, lane: Lane) -> None:
        """Forget a restriction that no task has any more."""
        if lane.uses or lane.restriction is None or len(self.restricted) <= _KEPT_LANES:
            return
        if self.restricted.pop(lane.restriction, None) is lane:
            for worker in lane.workers:
                worker.lanes.remove(lane)

    def add(self, worker: WorkerRecord) -> None:
        """Let a worker be given tasks."""
        self._workers[worker] = None
        self.open.placement.add(worker)
        for lane in self.restricted.values():
            if not lane.has_enough(worker):
                continue
            if lane.is_named(worker):
                if lane.prefers and not lane.n_named:
                    self._stop_serving(lane)  # those that stood in
                self._serve(lane, worker)
            elif lane.prefers and not lane.n_named:
                self._serve(lane, worker)

    def remove(self, worker: WorkerRecord) -> None:
        """Give a worker no more tasks."""
        self._workers.pop(worker, None)
        self.open.placement.forget(worker)
        lanes, worker.lanes = worker.lanes, []
        for lane in lanes:
            lane.placement.forget(worker)
            if lane.prefers and lane.is_named(worker):
                lane.n_named -= 1
                if not lane.n_named:
                    for other in self._fitting(lane):
                        self._serve(lane, other)

    def _stop_serving(self, lane: Lane) -> None:
        for worker in list(lane.workers):
            lane.placement.forget(worker)
            worker.lanes.remove(lane)

    def _fitting(self, lane: Lane) -> Iterable[WorkerRecord]:
        assert lane.restriction is not None
        able = [worker for worker in self._workers if lane.has_enough(worker)]
        named = [worker for worker in able if lane.is_named(worker)]
        return named or able if lane.prefers else named

    def why_stranded(self, lane: Lane) -> str:
        """Say what kind of worker is missing."""
        if lane.restriction is None or not self._workers:
            return "there is no worker"
        texts = []
        if lane.restriction.workers and not lane.restriction.allow_others:
            names = ", ".join(map(repr, lane.restriction.workers[:5]))
            here = sum(map(lane.is_named, self._workers))
            texts.append(f"it may only run on {names}: {here} of these are here")
        if lane.resources:
            needs = ", ".join(f"{name}={amount:g}" for name, amount in lane.resources)
            able = sum(map(lane.has_enough, self._workers))
            texts.append(f"it needs {needs}: {able} of {len(self._workers)} workers have that")
        return "; ".join(texts)

    def _serve(self, lane: Lane, worker: WorkerRecord) -> None:
        lane.placement.add(worker)
        worker.lanes.append(lane)
        if lane.prefers and lane.is_named(worker):
            lane.n_named += 1
        self._new.append(worker)

    def take_new(self) -> list[WorkerRecord]:
        """Workers that have come to serve a lane, in which tasks may wait for them."""
        new, self._new = self._new, []
        return new
