"""Clusters of jobs that can be left alone and found again: who keeps them, and until when."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hpcdask import config
from hpcdask.errors import ConfigError
from hpcdask.jobqueue.folder import ClusterFolder, ClusterState, Owner
from hpcdask.jobqueue.guard import Guard
from hpcdask.jobqueue.job import Job
from hpcdask.jobqueue.keeper import Keeper
from hpcdask.jobqueue.ownership import approval, refuse_dependent
from hpcdask.jobqueue.scheduler_job import SCHEDULER, SchedulerJob, scheduler_job_again
from hpcdask.launchers.cluster import Cluster
from hpcdask.rendezvous import new_token

log = logging.getLogger("hpcdask.jobqueue")

#: Of the jobs that the cluster itself describes.
POOL = "workers"

C = TypeVar("C", bound="AttachableCluster")


class AttachableCluster(Cluster):
    """What a cluster of jobs has to do with its owner, the process that keeps its jobs."""

    job_cls: ClassVar[type[Job] | None] = None
    #: Keywords of the jobs that the cluster itself describes.
    _job_kwargs: dict[str, Any]

    def _place(self, job: Job) -> None:
        """Tell a job where the scheduler's file is, and where to leave its log."""
        job.scheduler_file = os.fspath(self._folder.scheduler_file)
        if not job.log_directory:
            job.log_directory = os.fspath(self._folder.logs)
            job.system.check(job.spec())  # which has a path now that may not do

    def _settle(
        self,
        job: Job,
        of_scheduler: SchedulerJob | None,
        folder: ClusterFolder,
        base: Path | None,
        shutdown_on_close: bool,
        former: ClusterState | None = None,
    ) -> None:
        """Take what new clusters and those that are found again have."""
        self._base = base
        self._job, self._scheduler_job, self._folder = job, of_scheduler, folder
        self._pools = {POOL: job}
        for each in (job, of_scheduler):
            if each is not None:
                self._place(each)
        self._interval: float = config.get(f"jobqueue.{job.config_name}.poll-interval")
        self._max_array: int | None = config.get(f"jobqueue.{job.config_name}.max-array")
        self._shutdown_on_close, self._former = shutdown_on_close, former
        self._takes_over = False
        self._n_first_jobs = 0
        self._keeper: Keeper | None = None
        self._guard: Guard | None = None
        self._has_folder = False  # or it is another cluster's
        self._leaves_jobs = False  # to somebody else, when it ends

    @classmethod
    def attach(
        cls: type[C],
        name: str,
        *,
        job_cls: type[Job] | None = None,
        shared_temp_directory: str | os.PathLike[str] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        asynchronous: bool = False,
        silence_logs: int | bool | str = logging.WARNING,
        shutdown_on_close: bool = True,
        take_over: bool = False,
    ) -> C:
        """Find a cluster again that was left alone, and keep its jobs from now on.

        Parameters
        ----------
        name : str
            Of the cluster; ``hpc-dask ps`` lists them.
        job_cls : type, optional
            As it was made with, if that is a class of your own.
        shared_temp_directory
            As it was made with; as a rule it is found without.
        take_over : bool
            Whether to take it from its former owner, of which nobody knows whether it has ended:
            it is on another host, and the scheduler does not answer.

        Returns
        -------
        JobQueueCluster
            Of the class for its batch system.

        Raises
        ------
        ConfigError
            If there is no such cluster, or it cannot live without the process that made it.
        LaunchError
            If another process keeps it, which is named.

        Examples
        --------
        >>> cluster = SLURMCluster.attach("simulations")
        >>> cluster.scale(jobs=20)
        """
        base = Path(shared_temp_directory) if shared_temp_directory else None
        folder = ClusterFolder.find(name, base)
        state = folder.read_state()
        if cls.job_cls is None and job_cls is None:
            cls = _cluster_class(cls, state.system)
        kind = job_cls or cls.job_cls
        if kind is None or kind.system.name != state.system:
            raise ConfigError(f"{name} is a cluster of {state.system}, not one of {cls.__name__}")
        refuse_dependent(state)
        self = cls.__new__(cls)
        Cluster.__init__(self, name, asynchronous, loop, silence_logs)
        job = kind(**state.pools[POOL].keywords)
        of_scheduler = scheduler_job_again(kind, state.pools[SCHEDULER].keywords)
        of_scheduler.token_file = os.fspath(folder.token_file)
        self._settle(job, of_scheduler, folder, base, shutdown_on_close, state)
        self._job_kwargs = dict(state.pools[POOL].keywords)
        for pool, known in state.pools.items():  # in their order, by which work is given out
            if pool not in (POOL, SCHEDULER):
                self._pools[pool] = kind(**known.keywords)
                self._place(self._pools[pool])
        self._takes_over = take_over
        self._begin()
        return self

    # -- The folder and its owner ---------------------------------------------------------------

    async def _own_folder(self) -> ClusterState:
        """Be the one who keeps the cluster of this folder, a new one or one that was left."""
        owner = Owner.here()
        if self._former is not None:
            approve = await approval(self._folder, self._takes_over)
            self._former = self._folder.own(owner, approve)
            return replace(self._former, owner=owner)
        state = ClusterState(
            name=self.name,
            system=self._job.system.name,
            owner=owner,
            started=time.time(),
            scheduler_file=self.scheduler_file,
            scheduler="client" if self._scheduler_job is None else "job",
        )
        folder = ClusterFolder.create(self.name, self._base)
        folder.write_first_state(state)
        if self._scheduler_job is not None:
            folder.write_token(new_token())
            self._scheduler_job.token_file = os.fspath(folder.token_file)
        return state

    def _disown(self) -> None:
        """Undo that, if nothing has been done yet."""
        if self._former is not None:
            self._folder.write_state(replace(self._former, owner=None))

    @property
    def scheduler_file(self) -> str:
        """File that tells other clients of this user the scheduler's address and the token."""
        return os.fspath(self._folder.scheduler_file)

    # -- Its end, and what is left ----------------------------------------------------------------

    def _ends_by_itself(self, reason: str, is_anothers: bool) -> None:
        if self._closing is not None or self.status != "running":
            return
        level = logging.WARNING if is_anothers else logging.INFO
        log.log(level, "%s ends here: %s", self.name, reason)
        self._leaves_jobs = is_anothers
        asyncio.get_running_loop().create_task(self._close_for_good())

    async def _close_for_good(self) -> None:
        """End, and all jobs too unless they are left to somebody."""
        await super()._close()

    async def _close(self) -> None:
        if self._closing is None and not self._shutdown_on_close:
            self._leaves_jobs |= self.status == "running"
        await super()._close()

    async def _close_once(self) -> None:
        await super()._close_once()
        if self._leaves_jobs:
            self.status = "detached"  # its clients go on

    def detach(self) -> Any:
        """Let go of the cluster, and leave it running: `attach` finds it again.

        Until then no job is replaced and none submitted: workers end with their walltime. Clients
        go on, and this object is of no more use.

        Raises
        ------
        ConfigError
            If its scheduler is in this process.
        """
        if self._scheduler_job is None:
            raise ConfigError(
                f"the scheduler of {self.name} is in this process, without which it cannot go on; "
                "a cluster with scheduler='job' can"
            )

        async def work() -> None:
            await self._started()
            if self._closing is None:
                self._leaves_jobs = True
            await self._close_for_good()

        return self._maybe_sync(work())


def _cluster_class(cls: type[C], system: str) -> type[C]:
    """The class of clusters of a batch system."""
    importlib.import_module("hpcdask.jobqueue.clusters_of_systems")
    for each in cls.__subclasses__():
        if each.job_cls is not None and each.job_cls.system.name == system:
            return each
    raise ConfigError(
        f"it is a cluster of a batch system {system!r} that is not hpcdask's: attach to it with "
        "your own class of clusters, or name its job_cls"
    )
