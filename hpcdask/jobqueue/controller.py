"""How many jobs there should be, and what to do about it: a pure state machine over a batch system.

Events come in with the time, actions go out in `outbox`. It never asks the system, the clock or the
network; `hpcdask.jobqueue.cluster` does, and tests do in its place.

The rule: per pool, the jobs that are wanted less the jobs that will still be there are submitted,
as one array; so whatever is lost, to a walltime, preemption or a fault, is replaced. What may be in
the queue for all that is known counts as there: a job submitted twice costs somebody's budget.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from hpcdask.errors import ConfigError, LaunchError
from hpcdask.jobqueue import consistency, outlook
from hpcdask.jobqueue.actions import Action, AskEnds, Cancel, Find, Retire, Submit
from hpcdask.jobqueue.failures import Troubles
from hpcdask.jobqueue.history import History
from hpcdask.jobqueue.job_record import Absence, JobRecord
from hpcdask.jobqueue.leftovers import Leftovers
from hpcdask.jobqueue.pools import Pool
from hpcdask.jobqueue.records import Limits, Row, Shape
from hpcdask.jobqueue.status import End, JobStatus, Phase
from hpcdask.jobqueue.submissions import Submissions
from hpcdask.jobqueue.worker_names import candidates, job_of, life_of


class Controller:
    """Keeps as many jobs as are wanted.

    Parameters
    ----------
    limits : Limits, optional
    first_request : int
        Number of the first submission. One session after the other of a cluster must go on where
        the former has ended, if submissions are found by their numbers.

    Attributes
    ----------
    jobs : dict
        By id, those that may be in the queue.
    pools : dict
        By name.
    outbox : list of Action
        What is to be done; whoever calls an event empties it.
    is_closed : bool
    queue_trouble : str
        Why the last listing has failed; empty if it has not.
    """

    def __init__(self, limits: Limits | None = None, first_request: int = 1) -> None:
        self.limits = limits or Limits()
        self.jobs: dict[str, JobRecord] = {}
        self.pools: dict[str, Pool] = {}
        self.outbox: list[Action] = []
        self.is_closed = False
        self.queue_trouble = ""
        self.leftovers = Leftovers(self.limits)
        self._submissions = Submissions(self.pools, self.limits, first_request)
        self._history = History(self.limits)
        self._now = -math.inf  # of the last event

    def add_pool(self, name: str, shape: Shape) -> None:
        """Have another kind of jobs, of which none is wanted yet.

        It takes the place of one of that name of which there is no job any more.

        Raises
        ------
        ConfigError
            If there is.
        """
        former = self.pools.get(name)
        if former is not None and (former.n_wanted or former.jobs or former.requests):
            raise ConfigError(
                f"there are jobs of a pool {name!r} still; wait for their end, or choose another "
                "name"
            )
        self.pools[name] = Pool(name, shape, self.limits, Troubles(self.limits))

    # -- What is wanted ---------------------------------------------------------------------------

    def scale(
        self,
        now: float,
        pool: str,
        n_jobs: int,
        *,
        idle: Collection[str] = (),
        forgives: bool = True,
    ) -> None:
        """From now on want so many jobs.

        Parameters
        ----------
        idle : collection of str
            Ids of jobs that go first if there are too many, after those that wait in the queue.
        forgives : bool
            Whether to try again what has failed before: if a person asks, not for every thought
            of an adaptive cluster.

        Raises
        ------
        LaunchError
            After `close`.
        """
        if n_jobs < 0:
            raise ValueError(f"there cannot be {n_jobs} jobs")
        if self.is_closed:
            raise LaunchError(f"the cluster is closed, and cannot have {n_jobs} jobs")
        self._now = now
        record = self.pools[pool]
        record.n_wanted = n_jobs
        if forgives:
            record.troubles.forgive()
        self._balance(now, record, idle)

    def hold(self, now: float, pool: str, is_held: bool) -> None:
        """Submit nothing of a pool for a while, since it could not work: or do so again.

        What ends meanwhile has not failed.
        """
        self._now = now
        record = self.pools[pool]
        if record.is_held and not is_held:
            for job in record.jobs.values():
                if job.silent_since is not None:
                    job.silent_since = now  # its workers have not had a chance until now
        record.is_held = is_held
        self._balance(now, record)

    def release(self, now: float, ids: Collection[str]) -> None:
        """Want these no more, and so many fewer of their pools."""
        self._now = now
        jobs = [self.jobs[id] for id in dict.fromkeys(ids) if id in self.jobs]
        jobs = [job for job in jobs if job.is_wanted]
        for job in jobs:
            pool = self.pools[job.pool]
            pool.n_wanted = max(pool.n_wanted - 1, 0)
        self._give_back(now, jobs)
        self._balance_all(now)

    def close(self, now: float) -> None:
        """Cancel everything; want nothing any more."""
        self._now, self.is_closed = now, True
        presumed = self._history.presumed(now)
        for pool in self.pools.values():
            pool.n_wanted = 0
        for job in (*self.jobs.values(), *presumed):
            job.is_wanted = False
        self._cancel(now, [*self.jobs.values(), *presumed])
        self._submissions.close(now)
        self._balance_all(now)

    def adopt(
        self, now: float, pool: str, ids: Collection[str], *, leaving: Collection[str] = ()
    ) -> None:
        """Take over jobs that somebody else has submitted: an earlier session of the user.

        Parameters
        ----------
        ids : collection of str
            Those that are wanted; `scale` afterwards says whether they are enough, or too many.
        leaving : collection of str
            Others, which were being given back; both as `to_adopt` said.
        """
        self._now = now
        record = self.pools[pool]
        self._add(now, record, (*ids, *leaving), -math.inf)
        self._give_back(now, [self.jobs[id] for id in leaving])
        if not self.is_closed:
            record.n_wanted = max(record.n_wanted, len(record.staying(now)))
        self._balance(now, record)

    # -- What comes of a submission ---------------------------------------------------------------

    def submitted(self, now: float, request: int, ids: Collection[str]) -> None:
        """It has worked; each of `ids` is one job of the array."""
        if not ids:  # whatever that means: at least it must not be repeated at once
            self.submit_unclear(now, request, "the submission has named no job")
            return
        self._now = now
        known = self._submissions.resolve(request)
        if known is not None:  # else this is the second answer
            pool = self.pools[known.pool]
            self._add(now, pool, ids, known.begun)
            self._balance(now, pool)

    def submit_failed(self, now: float, request: int, why: str) -> None:
        """It has failed, and for certain there is no job of it."""
        self._now = now
        known = self._submissions.resolve(request)
        if known is not None:
            pool = self.pools[known.pool]
            pool.troubles.submission_failed(now, known.begun, why)
            self._balance(now, pool)

    def submit_unclear(self, now: float, request: int, why: str) -> None:
        """Nobody knows: the command took too long, say, or was interrupted.

        Until its jobs are `found`, or have not been for a while, they count as submitted.
        """
        self._now = now
        known = self._submissions.make_unclear(now, request, why)
        if known is not None:
            pool = self.pools[known.pool]
            pool.troubles.submission_unclear(now, known.begun, why)
            self._balance(now, pool)

    def found(self, now: float, request: int, ids: Collection[str]) -> None:
        """A complete look for the jobs of this very submission has found these, or none."""
        if ids:
            self.submitted(now, request, ids)
            return
        self._now = now
        failed = self._submissions.not_found(now, request)
        if failed is not None:
            pool = self.pools[failed.pool]
            pool.troubles.submission_failed(now, failed.begun, failed.why_unclear)
            self._balance(now, pool)

    def _add(self, now: float, pool: Pool, ids: Collection[str], requested: float) -> None:
        """Know of jobs, perhaps of some that seemed to be gone."""
        for id in ids:
            self._revive(now, id)
            if id not in self.jobs:
                status = JobStatus(id=id, phase=Phase.PENDING)
                job = JobRecord(id, pool.name, now, status, requested)
                self.jobs[id] = pool.jobs[id] = job
                self._reclaim(now, job)

    # -- What the queue says ----------------------------------------------------------------------

    @property
    def to_list(self) -> list[str]:
        """Ids of the jobs to ask the queue for: also some that seem to be gone."""
        return [*self.jobs, *(job.id for job in self._history.presumed(self._now))]

    def listed(
        self,
        now: float,
        statuses: Mapping[str, JobStatus],
        *,
        asked: Collection[str] | None = None,
        never: Collection[str] = (),
    ) -> None:
        """A complete listing: of jobs that are missing from it, the end is asked for.

        Parameters
        ----------
        asked : collection of str, optional
            Ids of the jobs that were asked for, before the command was started; others are not
            missing. By default all that are known now.
        never : collection of str
            Ids of the jobs that wait for what will not come, as `BatchSystem.can_never_run` has it.
        """
        self._now, self.queue_trouble = now, ""
        for id, status in statuses.items():
            self._see(now, id, status)
        for job in self.jobs.values():
            job.can_never_run = job.id in never
        missing = [
            job
            for job in self.jobs.values()
            if job.id not in statuses and (asked is None or job.id in asked)
        ]
        ids = [job.id for job in missing if self._miss(now, job, bool(statuses))]
        if ids:
            self.outbox.append(AskEnds(tuple(ids)))
        limits = self.limits
        pause = limits.cancel_again_at_end if self.is_closed else limits.cancel_again
        self._cancel(now, [j for j in self.jobs.values() if j.outlives_cancel(now, pause)])
        self._balance_all(now)

    def listing_failed(self, now: float, why: str) -> None:
        """Nothing is known; nothing is concluded."""
        self.queue_trouble = why
        self.tick(now)

    def ends_known(self, now: float, statuses: Mapping[str, JobStatus]) -> None:
        """What is known of jobs that were asked for: how they have ended, or that they have not."""
        self._now = now
        for id, status in statuses.items():
            says_no_such_job = status.phase is Phase.ENDED and status.end in (None, End.UNKNOWN)
            job = self.jobs.get(id)
            if says_no_such_job and job is not None:
                # True of one that was seen; another may only be too new.
                is_new = job.listed is None and not job.absence.is_clear(now, self.limits)
                if job.workers or is_new:
                    continue
            self._see(now, id, status)
        self._balance_all(now)

    def _see(self, now: float, id: str, status: JobStatus) -> None:
        """Take over what the system says of a job."""
        has_ended = status.phase is Phase.ENDED
        if id not in self.jobs:
            if has_ended:
                self._history.learn(id, status)
                return
            self._revive(now, id)
        job = self.jobs.get(id)
        if job is None:
            return  # somebody else's
        if has_ended:
            self._end(now, job, status)
            return
        job.absence = Absence()
        was_up = job.listed in (Phase.RUNNING, Phase.ENDING)
        if status.restarts > job.life:
            self._begin_life(now, job, status.restarts)
        elif was_up and status.phase is Phase.PENDING and not job.is_ahead:
            self._begin_life(now, job, job.life)  # not all systems count them
        job.listed, job.is_ahead = status.phase, False
        if status.phase is Phase.PENDING and job.workers:
            # The listing is older than their arrival.
            status = replace(status, phase=Phase.RUNNING)
        self._take(now, job, status)

    def _take(self, now: float, job: JobRecord, status: JobStatus) -> None:
        pool = self.pools[job.pool]
        waited = job.take(now, status, pool.shape.walltime)
        if waited is not None:
            pool.note_wait(waited)

    def _begin_life(self, now: float, job: JobRecord, life: int) -> None:
        """The job was put back into the queue; workers of its life before are gone, or will be."""
        self.leftovers.add(now, job, job.begin_life(now, life))

    def _miss(self, now: float, job: JobRecord, have_others: bool) -> bool:
        """Note that a job is not in a listing; return whether to ask for its end."""
        job.absence.note(now, have_others)
        n = job.absence.all.n
        if job.cancelled is None:
            is_gone = job.absence.is_proof(now, have_others, self.limits)
        else:
            is_gone = n > 1
        if is_gone and not (job.workers and job.cancelled is None):
            end = End.UNKNOWN if job.cancelled is None else End.CANCELLED
            status = JobStatus(id=job.id, phase=Phase.ENDED, end=end)
            self._end(now, job, status, is_presumed=True)
            return False
        # Not each time for ever, of a job whose workers are here.
        return n <= self.limits.max_missed or n & (n - 1) == 0

    def _end(
        self, now: float, job: JobRecord, status: JobStatus, is_presumed: bool = False
    ) -> None:
        """The job has ended."""
        pool = self.pools[job.pool]
        was_due = pool.due_at(job) <= now
        del self.jobs[job.id], pool.jobs[job.id]
        self.leftovers.add(now, job, job.end(now, status, is_presumed))
        self._history.add(now, job)
        has_finished = status.end is End.COMPLETED and job.has_reported
        if pool.shape.is_service and job.is_wanted and has_finished:
            pool.n_wanted = max(pool.n_wanted - 1, 0)
        elif job.is_wanted and not pool.is_held and not (was_due and job.has_reported):
            pool.troubles.job_lost(now, job)
        if status.end is End.LAUNCH_FAILED:
            # Grid Engine keeps such a job in its queue until it is deleted.
            job.is_wanted = False
            self._cancel(now, [job])

    def _revive(self, now: float, id: str) -> None:
        """A job that had ended is in the queue after all."""
        job = self._history.pop(id)
        if job is None:
            return
        self.jobs[id] = self.pools[job.pool].jobs[id] = job
        job.ended, job.is_presumed, job.n_retiring, job.absence = None, False, 0, Absence()
        job.be_pending()
        self._reclaim(now, job)
        if not job.is_wanted and job.cancelled is None:
            self._give_back(now, [job])

    # -- What workers do --------------------------------------------------------------------------

    def worker_joined(self, now: float, name: str) -> None:
        """A worker has registered; also one that comes back."""
        self._now = now
        self.leftovers.discard(name)  # it takes the place of whoever had that name
        for id, life in candidates(name):
            job = self.jobs.get(id) or self._history.get(id)
            if job is None:
                continue
            is_of_now = life >= job.life
            if job.ended is None and is_of_now:
                if not self._join(now, job, name):
                    return
            elif job.is_presumed and job.is_wanted and is_of_now:
                self._revive(now, id)
                self._join(now, job, name)
            else:
                self.leftovers.add(-math.inf, job, {name})  # it will not end by itself
            self._balance(now, self.pools[job.pool])
            return
        self.leftovers.strangers.add(name)
        self._submissions.look_for_lost(now)  # it may be of one of those
        self.outbox += self._submissions.looks(now)

    def _join(self, now: float, job: JobRecord, name: str) -> bool:
        """Count a worker as one of a job's; return whether anything may follow from that."""
        pool, life = self.pools[job.pool], life_of(name, job.id)
        lead, begins_life = pool.lead, life > job.life
        if begins_life:
            self._begin_life(now, job, life)
        ends_doubt = not job.workers and pool.troubles.starts.n > 0
        if job.join(now, name):
            job.is_ahead = True
            pool.troubles.job_started()
        if job.phase is Phase.PENDING:
            self._take(now, job, replace(job.status, phase=Phase.RUNNING, reason=""))
        if job.n_retiring and job.cancelled is None and not job.is_wanted:
            self._retire(job, {name})
        may_relieve = pool.is_up(job, now) and bool(pool.n_due or self.leftovers.by_job)
        return begins_life or ends_doubt or may_relieve or pool.lead != lead

    def _reclaim(self, now: float, job: JobRecord) -> None:
        """Give a job that is known now its workers that came before."""
        for name in self.leftovers.reclaim(job):
            if life_of(name, job.id) >= job.life:
                self._join(now, job, name)
            else:
                self.leftovers.add(now, job, {name})

    def worker_left(self, now: float, name: str) -> None:
        """A worker is gone, or does not answer."""
        self._now = now
        if self.leftovers.discard(name):
            return
        for id, _ in candidates(name):
            job = self.jobs.get(id)
            if job is not None and name in job.workers:
                job.workers.remove(name)
                if not job.workers:
                    self._last_left(now, job)
                return

    def _last_left(self, now: float, job: JobRecord) -> None:
        if job.phase is Phase.RUNNING:
            job.silent_since = now
        job.absence = Absence()  # until now there was a sign of it
        if job.n_retiring and not job.is_wanted:
            job.n_retiring = 0
            if job.cancelled is None:
                self._cancel(now, [job])

    def retired(self, now: float, id: str) -> None:
        """What `Retire` asked for has been done, or cannot be."""
        self._now = now
        job = self.jobs.get(id)
        if job is not None and job.n_retiring:
            job.n_retiring -= 1
            if not (job.n_retiring or job.is_wanted) and job.cancelled is None:
                self._cancel(now, [job])

    # -- What follows -----------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time has passed: a pause is over, a walltime near."""
        self._now = now
        self._balance_all(now)

    def _balance_all(self, now: float) -> None:
        for pool in self.pools.values():
            self._balance(now, pool)

    def _balance(self, now: float, pool: Pool, idle: Collection[str] = ()) -> None:
        """Have as many jobs as are wanted."""
        pool.balanced = now
        self.outbox += self._submissions.looks(now)
        self._give_up(now, pool)
        pool.note_due(now)
        self._give_back(now, pool.superfluous(now, idle))
        self._give_back(now, pool.relieved(now))
        if not self.is_closed and pool.n_up(now) >= pool.n_wanted:
            self._dismiss_leftovers(now, pool)
        n_missing = pool.n_missing(now)
        if n_missing:
            self.outbox.append(self._submissions.begin(now, pool, n_missing))

    def _give_up(self, now: float, pool: Pool) -> None:
        """Cancel jobs that run, or are started again and again, and bring no worker."""
        for job in list(pool.jobs.values()):
            if not job.is_wanted or pool.is_held:
                continue
            if job.n_silent_lives >= self.limits.max_failures:
                why = f"it was started {job.n_silent_lives} times"
            elif pool.silent_at(job) <= now:
                why = f"it has run for {self.limits.start_timeout:g} s"
            else:
                continue
            self._give_back(now, [job])
            what = "an answer" if pool.shape.is_service else "a worker"
            pool.troubles.fell_silent(now, job, f"job {job.id}: {why} without {what}")

    def _give_back(self, now: float, jobs: Iterable[JobRecord]) -> None:
        """Want jobs no more: their workers hand over first."""
        to_cancel = []
        for job in jobs:
            job.is_wanted = False
            if job.workers and not self.is_closed:
                self._retire(job, job.workers)
            else:
                to_cancel.append(job)
        self._cancel(now, to_cancel)

    def _retire(self, job: JobRecord, workers: Collection[str]) -> None:
        job.n_retiring += 1
        job.was_retired |= not job.is_wanted
        self.outbox.append(Retire(job.id, tuple(sorted(workers))))

    def _cancel(self, now: float, jobs: Collection[JobRecord]) -> None:
        if jobs:
            for job in jobs:
                if job.cancelled is None:
                    job.absence = Absence()  # what was missed before may have been a mistake
                job.cancelled, job.n_cancels = now, job.n_cancels + 1
            self.outbox.append(Cancel(tuple(job.id for job in jobs)))

    def _dismiss_leftovers(self, now: float, pool: Pool) -> None:
        """Let workers of jobs that are gone end: others have taken their place."""
        for id, names in self.leftovers.to_retire(now, pool.name):
            if id in self.jobs:
                self._retire(self.jobs[id], names)
            else:
                self.outbox.append(Retire(id, tuple(sorted(names))))

    # -- What it says -----------------------------------------------------------------------------

    @property
    def history(self) -> list[JobRecord]:
        """The last jobs that have ended, in that order."""
        return list(self._history)

    @property
    def is_certain(self) -> bool:
        """Whether it is known of each submission what has come of it."""
        has_requests = any([pool.requests for pool in self.pools.values()])
        return not has_requests and not self._submissions.has_lost

    @property
    def is_over(self) -> bool:
        """Whether it is closed, and nothing of it is known to be in the queue or on its way."""
        has_requests = any([pool.requests for pool in self.pools.values()])
        return self.is_closed and not self.jobs and not has_requests

    def wake_at(self) -> float | None:
        """When `tick` is due next, if no other event comes before."""
        times = [at for pool in self.pools.values() for at in pool.changes_at()]
        times += (*self.leftovers.changes_at(), *self._submissions.lost_at())
        return min([at for at in times if self._now < at < math.inf], default=None)

    def to_adopt(self, pool: str) -> tuple[list[str], list[str]]:
        """Ids of the jobs that a later session has to `adopt`: wanted ones, and `leaving`."""
        wanted = [job.id for job in self.pools[pool].jobs.values() if job.is_wanted]
        leaving = [job.id for job in self.pools[pool].jobs.values() if not job.is_wanted]
        gone = [job.id for job in self._history.presumed(self._now) if job.pool == pool]
        return wanted, leaving + gone

    def wanted(self, pool: str) -> int:
        """Jobs that are wanted of a pool."""
        return self.pools[pool].n_wanted

    def why_not(self, now: float, n_workers: int, pool: str | None = None) -> str:
        """Why so many workers, of all or of one pool, will not come; empty while they may still."""
        pools = self.pools.values() if pool is None else [self.pools[pool]]
        return outlook.why_not(pools, self.is_closed, now, n_workers)

    def rows(self, now: float, n_ended: int = 20) -> list[Row]:
        """A table: jobs that are there, then the last that have ended, the newest first."""
        ended = self.history[-n_ended:][::-1] if n_ended else []
        return [outlook.row(job, now) for job in (*self.jobs.values(), *ended)]

    def validate(self) -> None:
        """Check that the state does not contradict itself; for tests, after every event."""
        consistency.check(self)


__all__ = [
    "Action",
    "AskEnds",
    "Cancel",
    "Controller",
    "End",
    "Find",
    "JobRecord",
    "Limits",
    "Retire",
    "Row",
    "Shape",
    "Submit",
    "job_of",
]
