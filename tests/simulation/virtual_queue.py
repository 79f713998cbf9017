"""A batch system in virtual time: its queue, its nodes, and what becomes of jobs there.

It is the truth of a simulation. What its commands tell of that is another matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from random import Random
from typing import Any

from virtual_clock import Timer, VirtualClock

from hpcdask.jobqueue.status import End, JobStatus, Phase

#: How the ids of array members are written, by system; a plain job's id is the number.
_MEMBERS: list[Callable[[int, int], str]] = [
    lambda job, k: f"{job}_{k}",
    lambda job, k: f"{job}.{k + 1}",
    lambda job, k: f"{job}[{k}]",
]


class VirtualJob:
    """One job, from its submission on."""

    def __init__(self, id: str, submission: int, pool: str, n_workers: int, now: float) -> None:
        self.id, self.submission, self.pool, self.n_workers = id, submission, pool, n_workers
        self.submitted = now
        self.phase = Phase.PENDING
        self.started: float | None = None
        self.ended: float | None = None
        self.end: End | None = None
        self.restarts = 0
        self.appears = now  # in listings, not before
        self.known = math.inf  # when its end is
        self.fate = "works"  # or "fails", "completes", "is put back", "is silent", "is one short"
        self.processes: set[str] = set()  # of its present life
        self.timers: list[Timer] = []  # of its present life

    @property
    def is_there(self) -> bool:
        return self.phase is not Phase.ENDED


class VirtualQueue:
    """Jobs wait, start, bring workers and end, at times drawn from the seed.

    Parameters
    ----------
    join, leave : callable
        Get the name of a worker that registers with the scheduler, or is gone.
    """

    def __init__(
        self,
        clock: VirtualClock,
        random: Random,
        walltime: float,
        join: Callable[[str], None],
        leave: Callable[[str], None],
        note: Callable[..., None],
    ) -> None:
        self.clock, self.random, self.walltime = clock, random, walltime
        self.join, self.leave, self.note = join, leave, note
        self.margin = random.choice([0.0, walltime / 10])  # in which workers leave by themselves
        self.jobs: dict[str, VirtualJob] = {}
        self.alive: set[str] = set()  # workers' processes
        self.job_of_worker: dict[str, VirtualJob] = {}
        self.n_submissions = random.randint(0, 20)
        self._member = random.choice(_MEMBERS)
        # What this system is like.
        self.wait = random.choice([1.0, 30.0, 300.0])  # seconds in the queue, as a rule
        self.n_slots = random.choice([3, 6, 100])
        self.most_restarts = random.choice([0, 1, 1000, 1000])  # to which it counts
        self.lists_ends = random.random() < 0.5
        self.says_unknown = random.random() < 0.3
        self.accounting = random.choice([1.0, 15.0, math.inf])  # seconds until it knows
        self.fates = ["works"]
        self.slow_listing = 0.0  # until a job appears in one

    def draw(self, usual: float) -> float:
        """A length of time: half of the usual one, up to three times as long."""
        return usual * (0.5 + 2.5 * self.random.random() ** 3)

    def _later(self, job: VirtualJob, delay: float, act: Callable[..., None], *args: Any) -> None:
        job.timers.append(self.clock.after(delay, act, job, *args))

    def there(self) -> list[VirtualJob]:
        return [job for job in self.jobs.values() if job.is_there]

    # -- What becomes of a job --------------------------------------------------------------------

    def submit(self, submission: int, pool: str, count: int, n_workers: int) -> list[str]:
        self.n_submissions += self.random.choice([1, 1, 2])
        number = self.n_submissions
        members = [str(number)]
        if count > 1:
            members = [self._member(number, k) for k in range(count)]
        for id in members:
            job = VirtualJob(id, submission, pool, n_workers, self.clock.now)
            job.appears += self.slow_listing
            job.fate = self.random.choice(self.fates)
            self.jobs[id] = job
            self._later(job, self.draw(self.wait), self._start)
        self.note("queue has", members)
        return members

    def _start(self, job: VirtualJob) -> None:
        n_running = sum(job.phase is Phase.RUNNING for job in self.jobs.values())
        if n_running >= self.n_slots:
            self._later(job, self.draw(20.0), self._start)
            return
        self.note("starts", job.id, job.fate)
        job.phase, job.started = Phase.RUNNING, self.clock.now
        # Batch systems look at limits now and then.
        self._later(job, self.walltime + self.random.uniform(0, 15), self.end, End.TIMEOUT)
        if job.fate == "fails":
            self._later(job, self.draw(1.0), self.end, End.FAILED)
        elif job.fate == "completes":
            self._later(job, self.draw(1.0), self.end, End.COMPLETED)
        elif job.fate == "is put back":
            self._later(job, self.draw(1.0), self.requeue)
        elif job.fate != "is silent":
            life = f"r{job.restarts}" if job.restarts else ""
            n_workers = job.n_workers - (job.fate == "is one short")
            for k in range(max(n_workers, 1)):
                name = f"{job.id}{life}-{k}" if job.n_workers > 1 else f"{job.id}{life}"
                job.processes.add(name)
                self.job_of_worker[name] = job
                self._later(job, self.draw(5.0), self._comes, name)
                if self.margin:
                    early = self.margin * self.random.uniform(0.5, 1)
                    self._later(job, self.walltime - early, self._departs, name)

    def _stop(self, job: VirtualJob, leaves_zombies: bool = False) -> None:
        """End a life of a job."""
        for timer in job.timers:
            timer.cancel()
        job.timers = []
        for name in sorted(job.processes):
            if leaves_zombies:  # until the node is within reach again, or rebooted
                self.clock.after(self.random.uniform(10, 900), self._dies, name)
                if self.random.random() < 0.5:
                    self.clock.after(self.random.uniform(0, 60), self.flap, name)
            else:
                self._dies(name)
        job.processes = set()

    def _dies(self, name: str) -> None:
        """A process is gone, which its scheduler notices after a while."""
        self.alive.discard(name)
        self.clock.after(self.draw(5.0), self.leave, name)

    def flap(self, name: str) -> None:
        """Let a worker lose its connection, and come back."""
        self.leave(name)
        self.clock.after(self.draw(3.0), self._comes_back, name)

    def _comes_back(self, name: str) -> None:
        if name in self.alive:
            self.join(name)

    def _comes(self, job: VirtualJob, name: str) -> None:
        self.alive.add(name)
        self.join(name)

    def end(self, job: VirtualJob, end: End, leaves_zombies: bool = False) -> None:
        if job.phase not in (Phase.PENDING, Phase.RUNNING):
            return
        self.note("ends", job.id, end.value, "with zombies" if leaves_zombies else "")
        was_running = job.phase is Phase.RUNNING
        self._stop(job, leaves_zombies)
        job.end = end
        if was_running and self.random.random() < 0.7:
            job.phase = Phase.ENDING
            self._later(job, self.draw(5.0), self._ended)
        else:
            self._ended(job)

    def _ended(self, job: VirtualJob) -> None:
        job.phase, job.ended = Phase.ENDED, self.clock.now
        job.known = job.ended + self.accounting * self.random.random()

    def vanish(self, job: VirtualJob) -> None:
        """Lose a job, and all knowledge of it."""
        self.note("loses", job.id)
        self._stop(job)
        job.phase, job.ended, job.end = Phase.ENDED, -math.inf, None

    def requeue(self, job: VirtualJob, leaves_zombies: bool = False) -> None:
        if job.phase is not Phase.RUNNING:
            return
        self.note("is put back", job.id, "with zombies" if leaves_zombies else "")
        self._stop(job, leaves_zombies)
        job.phase, job.started, job.restarts = Phase.ENDING, None, job.restarts + 1
        self._later(job, self.draw(3.0), self._wait_again)

    def _wait_again(self, job: VirtualJob) -> None:
        job.phase = Phase.PENDING
        self._later(job, self.draw(self.wait), self._start)

    def _departs(self, job: VirtualJob, name: str) -> None:
        if name in job.processes:
            self.process_ends(name)

    def process_ends(self, name: str) -> None:
        """A worker ends by itself, as it was asked to; its job ends with the last."""
        self.alive.discard(name)
        self.leave(name)
        job = self.job_of_worker[name]
        if name in job.processes:
            job.processes.remove(name)
            if not job.processes:
                self.end(job, End.COMPLETED)

    # -- Commands ---------------------------------------------------------------------------------

    def cancel(self, ids: Collection[str]) -> None:
        for id in ids:
            self.end(self.jobs[id], End.CANCELLED)

    def statuses(self, ids: Collection[str]) -> dict[str, JobStatus]:
        """What a listing says of jobs."""
        now = self.clock.now
        listed = [self.jobs[id] for id in ids if now >= self.jobs[id].appears]
        return {
            job.id: self._status(job)
            for job in listed
            if job.is_there or (self.lists_ends and job.ended > now - 120)
        }

    def ends(self, ids: Collection[str]) -> dict[str, JobStatus]:
        """What accounting says of jobs."""
        now, answer = self.clock.now, {}
        for job in [self.jobs[id] for id in ids]:
            if job.end is not None and now >= job.known:
                answer[job.id] = self._status(job)
            elif self.says_unknown and (not job.is_there or now < job.appears):
                answer[job.id] = JobStatus(id=job.id, phase=Phase.ENDED, end=End.UNKNOWN)
        return answer

    def find(self, submission: int) -> list[str]:
        """Jobs in the queue of one submission."""
        now = self.clock.now
        jobs = [job for job in self.there() if job.submission == submission and now >= job.appears]
        return [job.id for job in jobs]

    def _status(self, job: VirtualJob) -> JobStatus:
        elapsed = left = None
        if job.started is not None and job.is_there:
            elapsed = float(int(self.clock.now - job.started))
            left = self.walltime - elapsed
        return JobStatus(
            id=job.id,
            phase=job.phase,
            elapsed=elapsed,
            left=left,
            end=job.end if job.phase is Phase.ENDED else None,
            restarts=min(job.restarts, self.most_restarts),
        )
