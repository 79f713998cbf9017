"""Keeps the jobs of a cluster: tells a `Controller` what happens, and does what it says.

All here happens on the cluster's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from typing import Any

from hpcdask.errors import HpcdaskError, JobError, StatusError, SubmitError, WaitTimeoutError
from hpcdask.jobqueue.clearing import in_short
from hpcdask.jobqueue.complaints import Complaints
from hpcdask.jobqueue.controller import (
    Action,
    AskEnds,
    Cancel,
    Controller,
    Find,
    Limits,
    Retire,
    Row,
    Submit,
    job_of,
)
from hpcdask.jobqueue.folder import ClusterFolder, ClusterState, PoolState
from hpcdask.jobqueue.job import Job
from hpcdask.jobqueue.job_logs import JobLogs
from hpcdask.jobqueue.pacing import STEADY, next_look
from hpcdask.jobqueue.queue import Queue, UnclearError
from hpcdask.jobqueue.scheduler_job import SCHEDULER, SchedulerInJob
from hpcdask.jobqueue.scheduler_watch import SchedulerWatch
from hpcdask.jobqueue.state_writer import AnothersError, StateWriter
from hpcdask.jobqueue.status import Phase
from hpcdask.jobqueue.table import JobRow, JobTable, summary
from hpcdask.launchers.cluster import PATIENCE, RETIREMENT
from hpcdask.launchers.scheduler_access import Member, SchedulerAccess

log = logging.getLogger("hpcdask.jobqueue")

#: Seconds in which a batch system that refuses jobs says so, as a rule.
_ANSWER = 5.0
#: Seconds from a submission, or from the end of a worker, to the next look.
_SOON = 0.5
#: Shortest and longest pause between two looks while the cluster ends.
_ENDING = (0.1, 1.0)
#: Seconds for a worker that was idle, and has got a task at the last moment, to end it.
_UNHURRIED = 24 * 3600.0
#: Seconds for the scheduler's job to start, before it is said what it waits for.
_PATIENT = 10.0


class Keeper:
    """Has as many jobs in the queue as are wanted.

    Parameters
    ----------
    state : ClusterState
        What others are told of the cluster; its pools are filled in. If it has some, their jobs
        are those to `adopt`.
    queue : Queue
        Of the batch system.
    folder : ClusterFolder
    scheduler : SchedulerAccess
        That the jobs' workers join.
    interval : float
        Shortest time in seconds between two looks at the queue.
    workers : dict of str to Member
        By name, the workers of its jobs; it is filled here.
    limits : Limits, optional
        Of the controller.
    on_end : callable, optional
        Called with a reason when there is nothing to keep any more: the scheduler has ended in
        order, or somebody else keeps the cluster now, of which the second argument tells.

    Attributes
    ----------
    controller : Controller
    pools : dict of str to Job
        The kinds of jobs that may be asked for.
    members : dict of str to Member
        By name, the workers that have registered, those of other origin too.
    """

    def __init__(
        self,
        state: ClusterState,
        queue: Queue,
        folder: ClusterFolder,
        scheduler: SchedulerAccess,
        interval: float,
        workers: dict[str, Member],
        limits: Limits | None = None,
        on_end: Callable[[str, bool], None] = lambda reason, is_anothers: None,
    ) -> None:
        limits = limits or Limits()
        used = max((each.request for each in folder.submissions()), default=0)
        self.controller = Controller(limits, first_request=used + 1)
        self.pools: dict[str, Job] = {}
        self._kinds: dict[str, Job] = {}  # those that were, too
        self.members: dict[str, Member] = {}
        self._complaints = Complaints(state.name, queue.system.title, self.controller)
        self._state, self._queue, self._folder = state, queue, folder
        self._scheduler, self._interval, self._workers = scheduler, interval, workers
        self._on_end = on_end
        self._has_adopted = not state.pools  # or there is nothing to adopt
        self._logs = JobLogs(self._kinds)
        self._file = StateWriter(folder, state.owner, self._current_state)
        self._watch: SchedulerWatch | None = None  # of a scheduler in a job
        if isinstance(scheduler, SchedulerInJob):
            self._watch = SchedulerWatch(scheduler, self.controller, self._tell)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._submissions: set[asyncio.Task[SubmitError | None]] = set()
        self._listeners: set[asyncio.Task[SubmitError | None]] = set()  # are waited for
        self._one_submission, self._one_look = asyncio.Lock(), asyncio.Lock()
        self._unhurried: set[str] = set()  # jobs whose workers may end what they run
        self._news = asyncio.Event()
        self._look_due = math.inf
        self._look_moved = asyncio.Event()
        self._last_event = self.now()

    def start(self) -> None:
        """Begin to look at the queue and at the workers."""
        for work in (self._watch_members(), self._watch_queue(), self._keep_time(), self._save()):
            self._spawn(work)

    # -- What is wanted ---------------------------------------------------------------------------

    def add_pool(self, name: str, job: Job) -> None:
        """Have one more kind of job."""
        self.pools[name] = self._kinds[name] = job
        self.controller.add_pool(name, job.shape)
        if self._watch is not None:
            self._watch.hold(name)
        self._file.changed()

    def remove_pool(self, name: str) -> None:
        """Have a kind of job no more; those that there are end."""
        self._tell(self.controller.scale, name, 0)
        del self.pools[name]
        self._file.changed()

    async def adopt(self) -> None:
        """Take over the jobs that a former keeper has left, before the start."""
        pools = self._state.pools
        unheard: dict[str, list[str]] = {name: [] for name in pools}
        for submission in self._folder.unheard():
            ids = await self._queue.ids_of(submission)
            if ids is None:
                log.warning("nobody knows what came of %s", self._folder.path / submission.script)
            elif submission.pool in unheard:
                unheard[submission.pool] += ids
                self._file.heard(submission.script, ids)
        for name, former in pools.items():
            ids = list(dict.fromkeys([*former.jobs, *unheard[name]]))
            self._tell(self.controller.adopt, name, ids, leaving=former.leaving)
        for name, former in pools.items():
            self._tell(self.controller.scale, name, former.wanted)
        self._has_adopted = True
        self._look_within(0)

    def forgive(self, pool: str) -> None:
        """Try again what has failed."""
        self._tell(self.controller.scale, pool, self.controller.wanted(pool))

    async def scale(self, pool: str, n_jobs: int, **how: Any) -> None:
        """Want so many jobs, and hear for a moment what the batch system says.

        Parameters are those of `Controller.scale`.

        Raises
        ------
        SubmitError
            If the system refuses them at once.
        """
        before = set(self._submissions)
        self._tell(self.controller.scale, pool, n_jobs, **how)
        new = self._submissions - before
        if not new:
            return
        self._listeners |= new
        try:
            done, _ = await asyncio.wait(new, timeout=_ANSWER)
        finally:
            self._listeners -= new
        for submission in done:
            if not submission.cancelled() and (refusal := submission.result()):
                raise refusal

    def release(self, ids: Collection[str]) -> None:
        """Want these idle jobs no more. What their workers get to run meanwhile, they may end."""
        self._unhurried.update(ids)
        self._tell(self.controller.release, ids)

    @property
    def _title(self) -> str:
        return self._queue.system.title

    # -- What is asked ----------------------------------------------------------------------------

    def jobs(self) -> JobTable:
        """Those that may be in the queue, then the last that have ended."""
        return JobTable(
            JobRow.of(
                each,
                n_workers=self._kinds[each.pool].n_workers,
                logs=self._logs.paths(each.pool, each.id),
                is_live=each.id in self.controller.jobs,
            )
            for each in self.controller.rows(self.now())
        )

    def live(self) -> list[Row]:
        """Those that may be in the queue, without a look for their logs in slow file systems."""
        return self.controller.rows(self.now(), n_ended=0)

    def n_workers(self, pool: str | None = None) -> int:
        """Workers that have registered: all that there are, or those in jobs of a pool."""
        if pool is None:
            return len(self.members)
        jobs = self.controller.jobs.values()
        return sum(len(job.workers) for job in jobs if job.pool == pool)

    async def until_registered(
        self, n_workers: int, limit: float | None, pool: str | None = None
    ) -> None:
        """Wait for workers, of any origin or of one pool.

        Raises
        ------
        JobError
            If they will not come: how jobs have ended, and the last lines of a log.
        WaitTimeoutError
            If they do not come within `limit` seconds.
        """
        deadline = self.now() + (math.inf if limit is None else limit)
        while (n_there := self.n_workers(pool)) < n_workers:
            news = self._news
            if why := self.controller.why_not(self.now(), n_workers, pool):
                raise JobError(await self._logs.after(why, self.controller))
            left = deadline - self.now()
            if left <= 0:
                raise WaitTimeoutError(
                    f"{n_there} of {n_workers} workers have registered within "
                    f"{limit:g} s; jobs: {self._jobs_in_words(pool)}"
                )
            with contextlib.suppress(asyncio.TimeoutError):
                # A pause of the controller may end meanwhile, without any news.
                await asyncio.wait_for(news.wait(), min(left, self._interval))

    async def until_scheduler(self) -> None:
        """Wait until the scheduler's job runs, and it answers.

        Raises
        ------
        JobError
            If it will not come.
        """
        told, since = "", self.now()
        while self._watch is not None and not self._watch.is_there:
            news = self._news
            if why := self.controller.why_not(self.now(), 1):
                raise JobError(
                    await self._logs.after(f"there is no scheduler: {why}", self.controller)
                )
            state = summary([job for job in self.jobs() if job.pool == SCHEDULER and job.is_live])
            if state != told and self.now() - since > _PATIENT:
                told = state
                log.warning("waiting for the job of the scheduler: %s", state or "none")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(news.wait(), self._interval)

    def _jobs_in_words(self, of_pool: str | None) -> str:
        """How many there are in which state, and what makes this uncertain."""
        live = [row for row in self.live() if of_pool in (None, row.pool)]
        pools = self.controller.pools.items()
        words = [summary(live) or "none"]
        if n := sum(pool.n_under_way for name, pool in pools if of_pool in (None, name)):
            words.append(f"{n} being submitted, to which {self._title} has not said yes yet")
        if trouble := self.controller.queue_trouble:
            words.append(f"which may have changed, since {trouble}")
        return ", and ".join(words)

    async def job_logs(self) -> dict[str, str]:
        """Last lines of the logs of all jobs that are known, by "job" and their id."""
        rows = self.controller.rows(self.now())
        return await self._logs.of((each.pool, each.id) for each in rows)

    # -- What happens -----------------------------------------------------------------------------

    def now(self) -> float:
        """The time, as the controller is told."""
        return time.monotonic()

    async def news(self) -> None:
        """Wait until the controller has been told of something."""
        await self._news.wait()

    def _tell(self, event: Callable[..., None], *what: Any, **more: Any) -> None:
        """Tell the controller, and do what it says."""
        event(self.now(), *what, **more)
        actions = list(self.controller.outbox)
        self.controller.outbox.clear()
        for action in actions:
            self._act(action)
        self._complaints.of_starts()
        self._file.changed()
        news, self._news = self._news, asyncio.Event()
        news.set()
        if self._watch is not None and self._watch.is_over:
            self._on_end("its scheduler has ended", False)

    async def _watch_members(self) -> None:
        """Tell at once who comes and goes."""
        known: set[str] = set()
        while True:
            try:
                found = await self._scheduler.members(known)
                if self._watch is not None:
                    await self._watch.answers()
            except (HpcdaskError, OSError) as exc:  # one of another process, away for a moment
                log.debug("the scheduler does not say who is there: %s", exc)
                if self._watch is not None:
                    self._watch.is_silent()
                    self._look_within(_SOON)
                await asyncio.sleep(min(self._interval, _SOON))
                continue
            known = {member.address for member in found}
            self._members_are({member.name: member for member in found})

    def _members_are(self, found: dict[str, Member]) -> None:
        before, self.members = self.members, found
        for name in found.keys() - before.keys():
            self._tell(self.controller.worker_joined, name)
        for name in before.keys() - found.keys():
            self._tell(self.controller.worker_left, name)
            self._look_within(_SOON)  # how its job has ended
        ours = [name for job in self.controller.jobs.values() for name in job.workers]
        here = {name: found[name] for name in ours if name in found}
        for name in self._workers.keys() - here.keys():  # users see it at any time: never empty it
            del self._workers[name]
        self._workers.update(here)

    async def _keep_time(self) -> None:
        """Tell when it is time for what the controller has put off."""
        while True:
            news, due = self._news, self.controller.wake_at()
            left = math.inf if due is None else due - self.now()
            if left <= 0:
                self._tell(self.controller.tick)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(news.wait(), max(min(left, STEADY), 0.01))

    async def _watch_queue(self) -> None:
        """Look at the queue again and again, never twice at the same time."""
        while True:
            left = self._look_due - self.now()
            if left > 0:
                self._look_moved.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._look_moved.wait(), min(left, STEADY))
                continue
            await self._look()
            self._look_due = math.inf
            if self.controller.to_list:
                quiet = self.now() - self._last_event
                pause = next_look(quiet, self._is_steady(), self._interval)
                self._look_within(pause * random.uniform(0.8, 1.2))

    def _look_within(self, seconds: float) -> None:
        self._look_due = min(self._look_due, self.now() + seconds)
        self._look_moved.set()

    def _is_steady(self) -> bool:
        return all(
            job.phase is Phase.RUNNING
            and job.is_wanted
            and not job.absence.all.n
            and len(job.workers) >= self._kinds[job.pool].n_workers
            for job in self.controller.jobs.values()
        )

    async def _look(self) -> None:
        """Ask the batch system for all jobs, and tell.

        A fault of ours, or of a user's own batch system, must not be the end of looking.
        """
        async with self._one_look:
            try:
                await self._list(self.controller.to_list)
            except Exception as exc:
                log.error("a look at the jobs has failed; the next one follows", exc_info=exc)

    async def _list(self, asked: list[str]) -> None:
        if not asked:
            return
        try:
            found = await self._queue.listing(asked)
        except StatusError as exc:
            log.warning("%s does not tell of the jobs: %s", self._title, exc)
            self._tell(self.controller.listing_failed, str(exc))
            return
        never, before = self._queue.never(found), self._seen()
        found = await self._queue.with_reasons(found, asked)
        self._tell(self.controller.listed, found, asked=asked, never=never)
        if before != self._seen():
            self._last_event = self.now()
        self._complaints.of_hopeless(never)

    def _seen(self) -> dict[str, tuple[Phase, str]]:
        return {id: (job.phase, job.status.reason) for id, job in self.controller.jobs.items()}

    # -- What is done -----------------------------------------------------------------------------

    def _act(self, action: Action) -> None:
        if isinstance(action, Submit):
            task = asyncio.get_running_loop().create_task(self._submit(action))
            self._submissions.add(task)
            task.add_done_callback(self._submissions.discard)
            task.add_done_callback(_complain)
        elif isinstance(action, Cancel):
            self._spawn(self._cancel(action))
        elif isinstance(action, Retire):
            self._spawn(self._retire(action))
        elif isinstance(action, Find):
            self._spawn(self._find(action))
        else:
            self._spawn(self._ask_ends(action))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_complain)

    async def _submit(self, action: Submit) -> SubmitError | None:
        """Submit jobs; what goes wrong is told and returned."""
        try:
            async with self._one_submission:
                ids = await self._queue.submit(
                    self._kinds[action.pool], action.count, _script_name(action)
                )
        except SubmitError as exc:
            is_unclear = isinstance(exc, UnclearError)
            # What is refused is a failed start, of which it is told. What is unclear is none; where
            # somebody has just asked for jobs, it is raised.
            is_told = not is_unclear or asyncio.current_task() in self._listeners
            log.log(logging.DEBUG if is_told else logging.ERROR, "%s", exc)
            event = self.controller.submit_unclear if is_unclear else self.controller.submit_failed
            self._tell(event, action.request, str(exc))
            return exc
        except Exception as exc:  # else it would count as under way for ever
            self._tell(self.controller.submit_unclear, action.request, repr(exc))
            raise
        self._last_event = self.now()
        self._file.heard(self._queue.script_name(_script_name(action)), ids)
        self._tell(self.controller.submitted, action.request, ids)
        self._look_within(_SOON)
        return None

    async def _find(self, action: Find) -> None:
        """Look for the jobs of a submission of which nobody knows what came of it."""
        known = {*self.controller.jobs, *(job.id for job in self.controller.history)}
        strangers = {job_of(name) for name in self.members} - known
        try:
            ids = await self._queue.find(_script_name(action), action.count, strangers)
        except StatusError as exc:  # it is asked for again
            log.warning("%s does not tell of the jobs: %s", self._title, exc)
        else:
            self._tell(self.controller.found, action.request, ids - known)

    async def _cancel(self, action: Cancel) -> None:
        records = {job.id: job for job in self.controller.history} | self.controller.jobs
        for name, job in self._kinds.items():
            if ids := [id for id in action.ids if id in records and records[id].pool == name]:
                await self._queue.cancel(job, ids)
        self._look_within(_SOON)

    async def _retire(self, action: Retire) -> None:
        hurried = action.id not in self._unhurried
        timeout, patience = (RETIREMENT, PATIENCE) if hurried else (_UNHURRIED, None)
        try:
            await self._scheduler.retire(action.workers, timeout, patience)
        except HpcdaskError as exc:
            log.warning("workers of job %s end without handing over: %s", action.id, exc)
        finally:
            self._unhurried.discard(action.id)
            self._tell(self.controller.retired, action.id)

    async def _ask_ends(self, action: AskEnds) -> None:
        found = await self._queue.ends(action.ids)
        self._last_event = self.now()
        self._tell(self.controller.ends_known, found)

    # -- What others are told ---------------------------------------------------------------------

    def _current_state(self) -> ClusterState:
        if not self._has_adopted:
            return self._state
        pools = {}
        # Of one that was removed, jobs may be there that hand over.
        for name in dict.fromkeys([*self.pools, *(j.pool for j in self.controller.jobs.values())]):
            job = self._kinds[name]
            jobs, leaving = self.controller.to_adopt(name)
            pools[name] = PoolState(
                self.controller.wanted(name),
                tuple(jobs),
                tuple(leaving),
                job.cancel_command,
                job.keywords,
            )
        return replace(self._state, pools=pools)

    async def _save(self) -> None:
        """Keep the state file as it should be."""
        try:
            await self._file.run()
        except AnothersError as exc:
            self._on_end(str(exc), True)

    # -- The end ----------------------------------------------------------------------------------

    async def close(self, limit: float) -> bool:
        """Cancel all jobs, and wait for at most `limit` seconds until they are out of the queue.

        Returns
        -------
        bool
            Whether they are, or will be soon.
        """
        deadline = self.now() + limit
        self._queue.make_haste()
        self._tell(self.controller.close)
        # Of a submission that is under way the ids must be known, or nobody would cancel them.
        while self._submissions and self.now() < deadline:
            await asyncio.wait(self._submissions, timeout=deadline - self.now())
        pause, longest = _ENDING
        while not self.controller.is_over and self.now() < deadline:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._look(), max(deadline - self.now(), pause))
        left = [job.id for job in self.controller.jobs.values() if job.phase is not Phase.ENDING]
        is_clear = not left and self.controller.is_certain
        if not is_clear:
            log.warning(
                "%s may still be in the queue: cancel them with hpc-dask clean %s",
                f"jobs {in_short(left)}" if left else "jobs that were submitted without an answer",
                self._state.name,
            )
        await self._stop()
        return is_clear

    async def detach(self, limit: float) -> None:
        """Leave all jobs as they are, for somebody who keeps them later.

        Parameters
        ----------
        limit : float
            Seconds for submissions that are under way.
        """
        if self._submissions:
            await asyncio.wait(self._submissions, timeout=limit)
        await self._stop()
        state = replace(self._current_state(), owner=None)
        with contextlib.suppress(AnothersError):
            await self._file.write_last(state)

    async def _stop(self) -> None:
        tasks = {*self._tasks, *self._submissions}
        while tasks:
            for task in tasks:
                task.cancel()
            # Again: before Python 3.12, asyncio.wait_for may lose a cancellation.
            _, tasks = await asyncio.wait(tasks, timeout=0.1)
        await self._file.settle()


def _script_name(action: Submit | Find) -> str:
    return f"{action.pool}-{action.request}x{action.count}"


def _complain(task: asyncio.Task[Any]) -> None:
    """Say what nobody else would: work that has ended by a fault of ours."""
    if not task.cancelled() and (exc := task.exception()) is not None:
        log.error("the jobs of a cluster may not be looked after as they should", exc_info=exc)
