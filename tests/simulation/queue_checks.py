"""What a controller must not do, judged by the truth of a fake batch system, and what it must."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from virtual_queue import VirtualJob

from hpcdask.jobqueue.controller import Action, Cancel, Retire, Submit
from hpcdask.jobqueue.status import JobStatus, Phase
from hpcdask.jobqueue.worker_names import life_of

if TYPE_CHECKING:
    from queue_simulator import QueueSimulation

#: Events by which a job may be known to have ended.
_TELLING = ("listed", "ends_known")


class QueueChecks:
    """Watches a controller."""

    def __init__(self, simulation: QueueSimulation) -> None:
        self.simulation = simulation
        self.told: dict[str, float] = {}  # when the controller last heard that a job is there
        self.seen: dict[str, JobStatus] = {}  # the last of each job
        self.unclear: dict[int, float] = {}  # submissions, since when
        self.given_back: set[str] = set()
        self.asked_to_retire: set[str] = set()
        self.not_before: Counter[str] = Counter()  # by pool
        self.pool_of: dict[int, str] = {}  # by submission
        self.answered: set[int] = set()
        self.n_acts: Counter[type] = Counter()

    @contextmanager
    def watching(self, event: str, *args: Any, **options: Any) -> Iterator[None]:
        """Judge what an event makes a controller believe."""
        controller = self.simulation.controller
        before = dict(controller.jobs)
        n_wanted = {name: controller.wanted(name) for name in self.simulation.shapes}
        if event == "release":
            known = [before[id] for id in args[0] if id in before]
            for job in [job for job in known if job.is_wanted]:
                n_wanted[job.pool] = max(n_wanted[job.pool] - 1, 0)
        elif event == "scale":
            n_wanted[args[0]] = args[1]
        yield
        if event not in ("close", "adopt"):
            are_wanted = {name: controller.wanted(name) for name in n_wanted}
            assert are_wanted == n_wanted, (event, are_wanted, n_wanted)
        self._note(event, *args, **options)
        for id in before.keys() - controller.jobs.keys():
            assert event in _TELLING, (id, "is given up by", event)
            if event == "listed" and before[id].is_presumed:
                self._check_presumption(id, not args[0])

    def _note(self, event: str, *args: Any, **options: Any) -> None:
        now = self.simulation.clock.now
        if event in _TELLING:
            self._hear([id for id, status in args[0].items() if status.phase is not Phase.ENDED])
            self.seen.update(args[0])
        elif event in ("submitted", "found"):
            if args[1] and args[0] not in self.answered:
                self._hear(args[1])
                self.answered.add(args[0])
        elif event == "submit_failed":
            pool = self.pool_of[args[0]]
            self.answered.add(args[0])
            self.not_before[pool] = now + self.simulation.limits.first_pause
        elif event == "submit_unclear":
            self.unclear.setdefault(args[0], now)
        elif event == "scale":
            if options.get("forgives", True):
                self.not_before[args[0]] = -math.inf
        elif event == "worker_joined":
            job = self.simulation.queue.job_of_worker.get(args[0])
            # A former life's says nothing of the present one, nor one of an unknown job of any.
            if job is not None and life_of(args[0], job.id) == job.restarts:
                self._hear([job.id] if job.id in self.simulation.controller.jobs else [])

    def _hear(self, ids: list[str]) -> None:
        for id in ids:
            self.told[id] = self.simulation.clock.now

    def _check_presumption(self, id: str, is_all_missing: bool) -> None:
        """The controller has taken a job for gone without having been told so."""
        simulation, limits = self.simulation, self.simulation.limits
        if simulation.controller.is_closed or id in self.given_back:
            return
        job = simulation.queue.jobs[id]
        present = [name for name in job.processes if name in simulation.registered]
        assert not present, (id, "is taken for gone while its workers are here", present)
        patience = limits.missing_with_all if is_all_missing else limits.missing
        waited = simulation.clock.now - self.told[id]
        assert waited >= patience, (id, "is taken for gone after", waited)

    # -- What is asked for ------------------------------------------------------------------------

    def asked(self, action: Action) -> None:
        """Judge an action."""
        self.n_acts[type(action)] += 1
        if isinstance(action, Submit):
            self._check_submit(action)
            self.pool_of[action.request] = action.pool
        elif isinstance(action, Cancel):
            for id in action.ids:
                self._check_cancel(id)
            self.given_back.update(action.ids)
        elif isinstance(action, Retire):
            for name in action.workers:
                assert self.simulation.queue.job_of_worker[name].id == action.id, (name, action)
                assert name in self.simulation.registered, (name, "is not here to retire")
            self.given_back.add(action.id)
            self.asked_to_retire.update(action.workers)

    def _check_submit(self, action: Submit) -> None:
        simulation, pool = self.simulation, action.pool
        assert not simulation.controller.is_closed, "jobs for a closed cluster"
        assert action.count <= simulation.limits.max_array, action
        assert simulation.clock.now >= self.not_before[pool], (pool, "submits in a pause")
        running = [n for n, name in self.pool_of.items() if name == pool]
        unanswered = set(running) - self.answered - self.unclear.keys()
        assert not unanswered, (pool, "has submissions under way", unanswered)
        staying = [job.id for job in simulation.queue.there() if self._should_count(job, pool)]
        n_wanted = simulation.controller.wanted(pool)
        assert len(staying) + action.count <= n_wanted, (n_wanted, staying, action)

    def _should_count(self, job: VirtualJob, pool: str) -> bool:
        """Whether a job will still be there, as far as its controller can know."""
        simulation, now = self.simulation, self.simulation.clock.now
        if job.pool != pool or job.phase is Phase.ENDING:
            return False
        known = simulation.controller.jobs.get(job.id)
        if job.id in self.given_back and (known is None or not known.is_wanted):
            return False
        if job.id in self.seen and self.seen[job.id].phase is Phase.ENDING:
            return False  # and may have looked like that for long, if it is put back all the time
        walltime = simulation.queue.walltime
        ends = [known.ends] if known is not None and known.ends is not None else []
        ends += [job.started + walltime] if job.started is not None else []
        longest = self.simulation.queue.margin + (walltime - self.simulation.queue.margin) / 2
        if ends and min(ends) - longest - 20 <= now:
            return False  # it may have a successor
        if job.id not in self.told:
            return now - self.unclear.get(job.submission, now) < simulation.limits.unclear
        return now - self.told[job.id] < simulation.limits.missing

    def _check_cancel(self, id: str) -> None:
        simulation = self.simulation
        job = simulation.queue.jobs[id]
        if not simulation.controller.is_closed and id not in self.given_back:
            present = [name for name in job.processes if name in simulation.registered]
            assert not present, (id, "is cancelled before its workers have retired", present)

    # -- In the end -------------------------------------------------------------------------------

    def has_what_is_wanted(self) -> bool:
        """Whether each pool has the jobs that are wanted, at work, and no others."""
        simulation = self.simulation
        there = [job for job in simulation.queue.there() if not self._is_unknowable(job)]
        numbers = Counter(job.pool for job in there)
        wanted = {name: simulation.controller.wanted(name) for name in simulation.shapes}
        if any(numbers[name] != wanted[name] for name in wanted):
            return False
        return all(
            job.phase is Phase.RUNNING
            and job.processes
            and job.processes <= simulation.registered
            and job.id in simulation.controller.jobs
            for job in there
        )

    def _is_unknowable(self, job: VirtualJob) -> bool:
        """Whether a job was not found in time, and has brought no worker since."""
        waited = self.simulation.clock.now - self.unclear.get(job.submission, math.inf)
        is_late = waited >= self.simulation.limits.unclear
        return is_late and job.id not in self.told and not job.processes

    def check_calm(self) -> None:
        """Nothing is wrong, so the controller says so."""
        controller, now = self.simulation.controller, self.simulation.clock.now
        n_workers = sum(
            controller.wanted(name) * shape.n_workers
            for name, shape in self.simulation.shapes.items()
        )
        assert controller.why_not(now, n_workers) == ""
        there = {row.id for row in controller.rows(now, n_ended=0)}
        assert there == controller.jobs.keys()

    def check_zombies(self) -> None:
        """Whoever is of no job in the queue has been asked to end."""
        queue = self.simulation.queue
        controller = self.simulation.controller
        known = controller.jobs.keys() | {job.id for job in controller.history}
        for name in self.simulation.registered & queue.job_of_worker.keys():
            job = queue.job_of_worker[name]
            if name not in job.processes and job.id in known:
                assert name in self.asked_to_retire, (name, "is there for nothing")

    def check_nothing_is_queued(self) -> None:
        """The controller believes that all is over, and is right."""
        left = [job for job in self.simulation.queue.there() if job.phase is not Phase.ENDING]
        assert not left, [(job.id, job.phase) for job in left]

    def check_nothing_is_left(self) -> None:
        """No counter and no list has kept anything of the jobs."""
        controller = self.simulation.controller
        assert controller.is_over
        assert not controller.leftovers.by_job, controller.leftovers.by_job
        assert not controller.leftovers.strangers, controller.leftovers.strangers
        assert controller.wake_at() is None, controller.wake_at()
        for pool in controller.pools.values():
            assert not pool.jobs, pool.name
            assert not pool.n_wanted + pool.n_under_way, pool.name
