"""A simulated batch system and cluster: virtual time, the real SchedulerState, the real Adaptive.

Tasks run for as long as a workload says, jobs wait in the queue and start as `World` is told. All
is drawn from one seed, and an hour takes about a second.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from random import Random
from statistics import median
from typing import Any

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.launchers.stock import Stock, take_stock
from hpcdask.launchers.units import Fleet, QueuedUnits, Unit, UnitShape
from hpcdask.messages import (
    AcquireKeys,
    CloseWorker,
    ComputeTask,
    Function,
    GivenBack,
    KeysAdded,
    RegisterWorker,
    TakeBack,
    TaskFinished,
    TaskSpec,
    Version,
)
from hpcdask.messages.client import ReleaseKeys, SubmitTasks, TaskDone, TaskFailed
from hpcdask.scheduler_plugins import SchedulerPlugins

#: Seconds from the start of a job until its first worker registers, and until its last one does.
STARTUP, STAGGER = 5.0, 2.0
#: Workers of a job, and threads of each.
N_WORKERS, NTHREADS = 4, 2
#: Seconds before the end of its walltime at which a job drains. Twice as long before, another is
#: asked for.
LEAD = 60.0
CLIENT = "client"


class VirtualSelector(selectors.SelectSelector):
    """Lets the time pass for which it is to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "all wait for each other"
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on which time passes at once when nobody has anything to do."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run_virtually(work: Coroutine[Any, Any, Any]) -> Any:
    """As `asyncio.run`, in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@dataclass
class Job:
    """A job of the simulated batch system: one unit."""

    name: str
    asked: float
    started: float = math.inf
    ended: float = math.inf
    workers: list[Worker] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    is_leaving: bool = False
    is_withdrawn: bool = False
    is_replaced: bool = False  # its walltime is near, and a successor has been asked for
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def seconds(self, until: float) -> float:
        """For which it has held its node."""
        return max(min(self.ended, until) - self.started, 0.0)

    @property
    def registered(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_there]


class Worker:
    """A simulated worker: runs as many tasks at a time as it has threads."""

    def __init__(self, world: World, job: Job, number: int) -> None:
        self.world, self.job = world, job
        self.name = f"{job.name}-{number}"
        self.address = f"tcp://{self.name}:1"
        self.is_there = False
        self._ready: list[tuple[tuple[float, int, int], Version]] = []
        self._running: dict[Version, asyncio.TimerHandle] = {}

    def join(self) -> None:
        if self.job.is_leaving or self.job.ended < math.inf:
            return
        self.is_there = True
        info = RegisterWorker(
            self.address, self.name, NTHREADS, 0, self.job.name, 1, "/tmp", "", 1, "0"
        )
        self.world.event("worker_joined", info)

    def told(self, message: Any) -> None:
        if type(message) is ComputeTask:
            heappush(self._ready, (message.priority, Version(message.key, message.attempt)))
            self._start_more()
        elif type(message) is TakeBack:
            back = {version for _, version in self._ready} & set(message.versions)
            self._ready = [entry for entry in self._ready if entry[1] not in back]
            heapify(self._ready)
            if back:
                self.world.event("given_back", self.address, GivenBack(tuple(sorted(back))))
        elif type(message) is AcquireKeys:
            got = tuple(Version(d.key, d.attempt) for d in message.dependencies)
            self.world.event("keys_added", self.address, KeysAdded(got))
        elif type(message) is CloseWorker:
            self.lose(planned=True)

    def _start_more(self) -> None:
        while self._ready and len(self._running) < NTHREADS:
            _, version = heappop(self._ready)
            seconds = self.world.workload.durations[version.key]
            self.world.n_runs[version.key] += 1
            self._running[version] = self.world.loop.call_later(seconds, self._finish, version)

    def _finish(self, version: Version) -> None:
        del self._running[version]
        seconds = self.world.workload.durations[version.key]
        message = TaskFinished(version.key, version.attempt, 1000, seconds, None)
        self.world.event("task_finished", self.address, message)
        self._start_more()

    def lose(self, planned: bool) -> None:
        """It is gone."""
        if self.is_there:
            self.is_there = False
            for timer in self._running.values():
                timer.cancel()
            self.world.event("worker_lost", self.address, planned)
            self.world.check_end(self.job)


@dataclass
class Wave:
    """Tasks that a user submits at once, whose values are kept until all are there."""

    kind: str
    seconds: list[float]
    after: float  # seconds after the one before was submitted, or was done
    waits: bool = False  # for the one before to be done


@dataclass
class Workload:
    """What a user does."""

    waves: list[Wave]
    durations: dict[str, float] = field(default_factory=dict)  # by key, as submitted

    @property
    def work(self) -> float:
        """Seconds of all tasks."""
        return sum(sum(wave.seconds) for wave in self.waves)


class World(QueuedUnits):
    """The cluster, its batch system and its user.

    Parameters
    ----------
    wait : float
        Seconds that a job waits in the queue, a fifth more or less.
    walltime : float
        Seconds after which a job ends, whatever it does.
    """

    def __init__(
        self, workload: Workload, wait: float, seed: int = 1, walltime: float = math.inf
    ) -> None:
        self.workload, self.wait, self.walltime = workload, wait, walltime
        self.random = Random(seed)
        self.loop = asyncio.get_running_loop()
        self.state = SchedulerState()
        self.hooks = SchedulerPlugins(self, asyncio.ensure_future)
        self.state.client_joined(0.0, CLIENT)
        self.name, self.status = "simulated", "running"
        self.jobs: list[Job] = []
        self.n_submissions = self.n_withdrawn = 0
        self.n_runs: Counter[str] = Counter()
        self.n_failed = 0  # tasks, of which too many workers died
        self.waits: list[float] = []
        self.done_at = math.inf
        self.given_up: list[float] = []  # when a job was ended or withdrawn
        self._undone: dict[str, int] = {}  # by key, its wave
        self._left: Counter[int] = Counter()
        self._wave_done: dict[int, asyncio.Event] = {}
        self._is_telling = False
        self.on_change: Callable[[], None] = lambda: None

    # -- What Adaptive wants of a cluster ---------------------------------------------------------

    async def _started(self) -> None:
        pass

    async def _take_stock(self, assumed: Any = None, worker_key: Any = None) -> Stock:
        return take_stock(self, assumed, worker_key)

    @property
    def live(self) -> list[Job]:
        """Jobs that are in the queue or run, and are not told to end."""
        return [job for job in self.jobs if job.ended == math.inf and not job.is_leaving]

    # -- Units ------------------------------------------------------------------------------------

    def shape(self) -> UnitShape:
        wait = median(self.waits[-10:]) if self.waits else 0.0
        return UnitShape(N_WORKERS, N_WORKERS * NTHREADS, 0, (), wait)

    def fleet(self, stock: Stock) -> Fleet:
        live = [job for job in self.live if not job.is_replaced]
        there = [job for job in live if job.registered]
        return Fleet(
            tuple(Unit(job.name, tuple(w.name for w in job.registered)) for job in there),
            n_pending=sum(job.started == math.inf for job in live),
            n_starting=sum(job.started < math.inf and not job.registered for job in live),
        )

    async def grow(self, n: int) -> None:
        if n > 0:
            self.n_submissions += 1
            for _ in range(n):
                self._ask()

    def _ask(self) -> None:
        job = Job(f"job{len(self.jobs)}", self.loop.time())
        job.workers = [Worker(self, job, i) for i in range(N_WORKERS)]
        self.jobs.append(job)
        wait = self.wait * self.random.uniform(0.8, 1.2)
        job.timer = self.loop.call_later(wait, self._start, job)

    def _start(self, job: Job) -> None:
        job.started = self.loop.time()
        self.waits.append(job.started + STARTUP - job.asked)
        for worker in job.workers:
            self.loop.call_later(STARTUP + self.random.uniform(0, STAGGER), worker.join)
        if self.walltime < math.inf:
            self.loop.call_later(self.walltime - 2 * LEAD, self._replace, job)
            self.loop.call_later(self.walltime - LEAD, self._drain, job)
            self.loop.call_later(self.walltime, self.kill, job)

    def _replace(self, job: Job) -> None:
        """Its walltime is near: as a cluster does, ask for another in its place in time."""
        if job.ended == math.inf and not job.is_leaving:
            job.is_replaced = True
            self._ask()

    def _drain(self, job: Job) -> None:
        if job.ended == math.inf and not job.is_leaving:
            self._let_leave(job)

    async def shrink(self, names: Collection[str]) -> None:
        leaving = [job for job in self.jobs if job.name in names]
        for job in leaving:
            self.given_up.append(self.loop.time())
            self._let_leave(job)
        await asyncio.gather(*(job.gone.wait() for job in leaving))

    def _let_leave(self, job: Job) -> None:
        job.is_leaving = True
        for worker in job.registered:
            self.event("worker_leaving", worker.address, "it is to end")
        self.check_end(job)

    async def withdraw(self, n: int) -> None:
        for job in [job for job in self.live if job.started == math.inf][-n:]:
            self.take_back(job)

    def take_back(self, job: Job) -> None:
        """Withdraw one that has not started."""
        assert job.timer is not None
        job.timer.cancel()
        job.is_withdrawn, job.ended = True, self.loop.time()
        self.n_withdrawn += 1
        self.given_up.append(self.loop.time())

    def kill(self, job: Job) -> None:
        """End a job, whatever it does."""
        if job.ended == math.inf:
            job.is_leaving = True
            for worker in job.registered:
                worker.lose(planned=False)
            self.check_end(job)

    def check_end(self, job: Job) -> None:
        if job.is_leaving and not job.registered and job.ended == math.inf:
            job.ended = self.loop.time()
            job.gone.set()

    # -- The scheduler and its client -------------------------------------------------------------

    def event(self, name: str, *args: Any) -> None:
        """Tell the state, and everyone what it says then."""
        getattr(self.state, name)(self.loop.time(), *args)
        self._tell()

    def _tell(self) -> None:
        if self._is_telling:
            return
        self._is_telling = True
        while self.state.outbox:
            outbox, self.state.outbox = self.state.outbox, {}
            workers = {w.address: w for job in self.jobs for w in job.registered}
            for address, messages in outbox.items():
                for message in messages:
                    if address == CLIENT:
                        self._told(message)
                    elif address in workers:
                        workers[address].told(message)
        self._is_telling = False
        self.on_change()

    def _told(self, message: Any) -> None:
        if type(message) not in (TaskDone, TaskFailed) or message.key not in self._undone:
            return
        self.n_failed += type(message) is TaskFailed
        wave = self._undone.pop(message.key)
        self._left[wave] -= 1
        if not self._left[wave]:
            self._wave_done[wave].set()

    async def use(self) -> None:
        """Submit all waves, each when it is time; return when all are done."""
        releasing = []
        for number, wave in enumerate(self.workload.waves):
            if wave.waits and number:
                await self._wave_done[number - 1].wait()
            await asyncio.sleep(wave.after)
            releasing.append(asyncio.ensure_future(self._submit(number, wave)))
            await asyncio.sleep(0)
        await asyncio.gather(*releasing)
        self.done_at = self.loop.time()

    async def _submit(self, number: int, wave: Wave) -> None:
        keys = [f"{wave.kind}-{number}-{i}" for i in range(len(wave.seconds))]
        self.workload.durations.update(zip(keys, wave.seconds, strict=True))
        self._undone.update(dict.fromkeys(keys, number))
        self._left[number], self._wave_done[number] = len(keys), asyncio.Event()
        function = Function(wave.kind.encode().ljust(16), wave.kind, b"")
        specs = tuple(TaskSpec(key, 0, b"", ()) for key in keys)
        message = SubmitTasks(number + 1, (function,), specs, None, 0, 0.0, 0, True)
        self.event("tasks_submitted", CLIENT, message)
        await self._wave_done[number].wait()
        self.event("keys_released", CLIENT, ReleaseKeys(tuple(keys)))

    @property
    def n_active(self) -> int:
        """Tasks that are submitted and not done."""
        return len(self._undone)

    async def until(self, condition: Callable[[], bool], limit: float) -> None:
        """Wait in virtual time."""
        deadline = self.loop.time() + limit
        while not condition():
            assert self.loop.time() < deadline, "it does not happen"
            await asyncio.sleep(1.0)

    async def rest(self) -> None:
        """Wait until no job is left."""
        await self.until(lambda: all(job.ended < math.inf for job in self.jobs), 6 * 3600.0)

    @property
    def node_seconds(self) -> float:
        return sum(job.seconds(self.loop.time()) for job in self.jobs)
