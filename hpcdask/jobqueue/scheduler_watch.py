"""Whether a scheduler in a job of its own does its work, as the controller of the jobs is told."""

from __future__ import annotations

from collections.abc import Callable

from hpcdask.jobqueue.controller import Controller
from hpcdask.jobqueue.scheduler_job import SCHEDULER, SchedulerInJob, id_of_job


class SchedulerWatch:
    """Tells a controller when the scheduler comes and goes.

    While there is none, no jobs of workers are submitted: they would look for it in vain.

    Parameters
    ----------
    scheduler : SchedulerInJob
    controller : Controller
    tell : callable
        Tells that of an event, as in ``tell(controller.tick)``, and does what it says.

    Attributes
    ----------
    is_there : bool
        Whether it answers.
    """

    def __init__(
        self, scheduler: SchedulerInJob, controller: Controller, tell: Callable[..., None]
    ) -> None:
        self._scheduler, self._controller, self._tell = scheduler, controller, tell
        self.is_there = self._has_been_there = False

    def hold(self, pool: str) -> None:
        """Let a new pool wait for it, too."""
        if pool != SCHEDULER and not self.is_there:
            self._tell(self._controller.hold, pool, True)

    async def answers(self) -> None:
        """It has answered; it may have done so before.

        Raises
        ------
        HpcdaskError
            If it does so no more.
        """
        jobs = self._controller.pools[SCHEDULER].jobs
        if not self.is_there or not any(job.workers for job in jobs.values()):
            id = id_of_job(await self._scheduler.job(), jobs)
            job = None if id is None else jobs.get(id)
            if job is not None and not job.workers:
                name = f"{job.id}r{job.life}" if job.life else job.id
                self._tell(self._controller.worker_joined, name)
        if not self.is_there:
            self.is_there = self._has_been_there = True
            self._hold_all(False)

    def is_silent(self) -> None:
        """It does not answer."""
        if not self.is_there:
            return
        self.is_there = False
        self._hold_all(True)
        for job in list(self._controller.pools[SCHEDULER].jobs.values()):
            for name in sorted(job.workers):
                self._tell(self._controller.worker_left, name)

    def _hold_all(self, is_held: bool) -> None:
        for pool in self._controller.pools:
            if pool != SCHEDULER:
                self._tell(self._controller.hold, pool, is_held)

    @property
    def is_over(self) -> bool:
        """Whether it has ended of its own accord: somebody has shut the cluster down, say."""
        is_wanted = self._controller.wanted(SCHEDULER) > 0
        return self._has_been_there and not is_wanted and not self._controller.is_closed
