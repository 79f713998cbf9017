"""Clusters whose workers, and perhaps scheduler, live in jobs of a batch system."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import shlex
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from hpcdask import config
from hpcdask import host as hosts
from hpcdask.errors import ConfigError, HpcdaskError, InterfaceNotFoundError, LaunchError
from hpcdask.jobqueue.attachable import POOL
from hpcdask.jobqueue.commands import Commands
from hpcdask.jobqueue.controller import job_of
from hpcdask.jobqueue.folder import ClusterFolder
from hpcdask.jobqueue.guard import Guard
from hpcdask.jobqueue.job import Job
from hpcdask.jobqueue.job_units import JobUnits
from hpcdask.jobqueue.keeper import Keeper
from hpcdask.jobqueue.pooled import PooledCluster
from hpcdask.jobqueue.queue import Queue
from hpcdask.jobqueue.records import Limits
from hpcdask.jobqueue.scheduler_job import SCHEDULER, SchedulerInJob, scheduler_job_of
from hpcdask.jobqueue.systems import refuse_foreign_commands
from hpcdask.jobqueue.table import JobTable, summary
from hpcdask.launchers.cluster import PATIENCE, RETIREMENT, refuse_dashboard
from hpcdask.launchers.scheduler_access import SchedulerHere
from hpcdask.launchers.units import UnitShape
from hpcdask.launchers.worth import idle_units
from hpcdask.rendezvous import new_token
from hpcdask.resources import checked_resources
from hpcdask.scheduler import Scheduler
from hpcdask.threads import in_thread

log = logging.getLogger("hpcdask.jobqueue")

#: Seconds in which a scheduler in a job can be told to end, before its job is cancelled anyway.
_LAST_WORD = 2.0
#: Seconds for cancelled jobs to leave the queue.
_LEAVING = 8.0


class JobQueueCluster(PooledCluster):
    """A scheduler in this process or in a job, and workers in jobs of a batch system.

    Jobs are asked for by `scale` and `adapt`, come when the batch system starts them, and are
    replaced when they are lost. Each brings `processes` workers. All of them end with the cluster,
    also if this process is killed.

    Parameters
    ----------
    n_workers : int
        Workers to ask for at the start.
    job_cls : type, optional
        The kind of job, a subclass of `Job`; each batch system's own cluster has one.
    loop : asyncio event loop, optional
        One that runs in another thread; by default hpcdask's own.
    security : None
        Connections are authenticated, by a token that only this user can read. They are not
        encrypted: what asks for that is refused.
    shared_temp_directory : str, optional
        Folder, seen by all nodes, in which the cluster makes its own; by default
        ``~/.local/state/hpcdask/clusters``.
    silence_logs : int or False
        Lowest level of log lines that are shown; WARNING by default.
    name : str, optional
        Of the cluster and its folder.
    asynchronous : bool
        Work on the running event loop, with ``async with``.
    dashboard_address : None
        There is no dashboard yet; given for programs that switch it off.
    host : str, optional
        Address for the scheduler to listen on.
    scheduler_options : dict, optional
        Further parameters of `Scheduler`, as in ``{"port": 9000, "interface": "eth0"}``.
    scheduler_cls : type, optional
        `Scheduler`, or a subclass.
    interface : str, optional
        Network interface of scheduler and workers: a name, list, glob or subnet. Where the
        scheduler's host has another, name that among `scheduler_options`.
    protocol : str, optional
        "tcp".
    config_name : str, optional
        Section ``jobqueue.CONFIG_NAME`` of the configuration; by default that of the batch system.
    scheduler : str
        Where the scheduler lives: "client", in this process, or "job", in a small job of its own,
        which is waited for. Then the cluster can be left alone, by `detach`, and found again, by
        `attach`.
    scheduler_job : dict, optional
        What that job asks for, with the names of `job_kwargs`; by default one core, 4 GiB, and the
        walltime, queue and account of the workers' jobs.
    shutdown_on_close : bool
        Whether all jobs end with this object or this process. Without, which needs
        ``scheduler="job"``, they are left alone then, as by `detach`.
    **job_kwargs
        What each job asks for: parameters of the `Job` class.

    Examples
    --------
    >>> with SLURMCluster(cores=8, memory="16GB", walltime="1:00:00") as cluster:
    ...     cluster.scale(jobs=10)
    ...     with Client(cluster) as client:
    ...         client.submit(sum, [1, 2]).result()
    3
    """

    job_cls: ClassVar[type[Job] | None] = None
    #: Whether it can tell that workers will never come.
    knows_jobs: ClassVar[bool] = True

    def __init__(
        self,
        n_workers: int = 0,
        job_cls: type[Job] | None = None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        security: Any = None,
        shared_temp_directory: str | os.PathLike[str] | None = None,
        silence_logs: int | bool | str = logging.WARNING,
        name: str | None = None,
        asynchronous: bool = False,
        dashboard_address: str | None = None,
        host: str | None = None,
        scheduler_options: Mapping[str, Any] | None = None,
        scheduler_cls: type[Scheduler] = Scheduler,
        interface: str | None = None,
        protocol: str | None = None,
        config_name: str | None = None,
        scheduler: str = "client",
        scheduler_job: Mapping[str, Any] | None = None,
        shutdown_on_close: bool = True,
        **job_kwargs: Any,
    ) -> None:
        refuse_dashboard({"dashboard_address": dashboard_address})
        if security:
            raise ConfigError(
                "this version does not encrypt connections; leave security out. Whoever connects "
                "must know the cluster's token in any case, which is in a file only you can read"
            )
        super().__init__(name, asynchronous, loop, silence_logs)
        kind = job_cls or self.job_cls
        if kind is None:
            raise ConfigError("a JobQueueCluster needs a job_cls; or take SLURMCluster, say")
        common = {"config_name": config_name, "interface": interface, "protocol": protocol}
        job = kind(**common, **job_kwargs)
        self._job_kwargs = {**job_kwargs, "interface": interface, "protocol": protocol}
        section = f"jobqueue.{job.config_name}"
        base = shared_temp_directory or config.get(f"{section}.shared-temp-directory")
        # Where the scheduler is: as given for it alone, else as for all.
        where = {"host": host} if host else {"interface": job.interface}
        own = {**config.get(f"{section}.scheduler-options"), **(scheduler_options or {})}
        if own.keys() & {"host", "interface"}:
            where = {}
        options = {**where, **_checked_options(own, protocol)}
        scheduler_cls(**options)  # or it raises
        of_scheduler = None
        if scheduler == "job":
            if scheduler_cls is not Scheduler:
                raise ConfigError(
                    "a scheduler in a job is a plain one, of hpc-dask scheduler: leave "
                    "scheduler_cls out, or scheduler='job'"
                )
            of_scheduler = scheduler_job_of(
                kind, job, job_kwargs, scheduler_job or {}, options, **common
            )
        elif scheduler != "client":
            raise ConfigError(f"a scheduler lives in the client or in a job, not in {scheduler!r}")
        elif scheduler_job is not None or not shutdown_on_close:
            raise ConfigError(
                "scheduler_job and shutdown_on_close=False are for scheduler='job': one in this "
                "process ends with it, and workers without a scheduler do, too"
            )
        folder = ClusterFolder.planned(self.name, Path(base) if base else None)
        self._settle(job, of_scheduler, folder, Path(base) if base else None, shutdown_on_close)
        self._scheduler_cls, self._scheduler_options = scheduler_cls, options
        self._n_first_jobs = self._jobs_for(n=n_workers)
        self._begin()

    # -- Life -------------------------------------------------------------------------------------

    async def _launch(self) -> None:
        submits = shlex.split(self._job.submit_command)[0]
        refuse_foreign_commands(self._job.system, lambda _: shutil.which(submits))
        state = await self._own_folder()
        self._has_folder = True
        self._leaves_jobs = self._former is not None  # whatever goes wrong with them here
        if self._shutdown_on_close:
            self._guard = Guard(self._folder)
        queue = Queue(self._job.system, Commands(), self._folder)
        limits = asyncio.ensure_future(self._limits(queue))
        try:
            if self._scheduler_job is None:
                self._access = await self._start_scheduler()
            else:
                self._access = SchedulerInJob(self.scheduler_file, self.name)
            await limits
        finally:
            limits.cancel()
        self._keeper = keeper = Keeper(
            state,
            queue,
            self._folder,
            self._access,
            self._interval,
            self.workers,
            limits.result(),
            on_end=self._ends_by_itself,
        )
        if self._scheduler_job is not None:
            self._keep(SCHEDULER, self._scheduler_job)
        for pool, job in self._pools.items():
            self._keep(pool, job)
        if self._former is not None:
            await keeper.adopt()
        keeper.start()
        if self._scheduler_job is not None:
            await keeper.scale(SCHEDULER, 1)
            await keeper.until_scheduler()
        if self._n_first_jobs:
            await self._have_jobs(POOL, self._n_first_jobs)
        self._leaves_jobs = False

    async def _limits(self, queue: Queue) -> Limits:
        limits, told = Limits(), self._max_array or await queue.max_array()
        return limits if told is None else replace(limits, max_array=told)

    async def _start_scheduler(self) -> SchedulerHere:
        scheduler = self._scheduler_cls(
            **self._scheduler_options, token=new_token(), scheduler_file=self.scheduler_file
        )
        scheduler.on_closing = self._scheduler_ends
        access = SchedulerHere(scheduler)
        try:
            await access.start()
        except InterfaceNotFoundError as exc:
            raise InterfaceNotFoundError(
                f"{exc} Where only compute nodes have it, name another one for the scheduler, with "
                "scheduler_options={'interface': ...}."
            ) from None
        return access

    async def _end(self) -> None:
        reason = "the cluster ends"
        is_clear = True
        if self._keeper is not None and self._leaves_jobs:
            await self._keeper.detach(_LEAVING)
            await self._scheduler.close(reason)
        elif self._keeper is not None:
            # What runs is told to end by both; what waits only the batch system can withdraw.
            is_clear, _ = await asyncio.gather(
                self._keeper.close(_LEAVING), self._end_scheduler(reason)
            )
        elif self._access is not None:
            await self._access.close(reason)
        if self._has_folder and self._keeper is None:
            self._disown()
        if self._has_folder and not self._leaves_jobs:
            self._folder.clear(keep_state=not is_clear)
        if self._guard is not None:
            await in_thread(self._guard.dismiss)

    async def _end_scheduler(self, reason: str) -> None:
        if isinstance(self._access, SchedulerInJob):
            with contextlib.suppress(HpcdaskError, OSError, asyncio.TimeoutError):
                await asyncio.wait_for(self._access.shut_down(reason), _LAST_WORD)
        await self._scheduler.close(reason)

    def _scheduler_ends(self) -> None:
        """A client has shut it down, or it was idle for long: the jobs have nothing to do."""
        self._ends_by_itself("its scheduler ends", False)

    # -- More and fewer jobs ----------------------------------------------------------------------

    def _jobs_for(
        self,
        pool: str = POOL,
        *,
        n: int | None = None,
        jobs: int | None = None,
        memory: int | str | None = None,
        cores: int | None = None,
    ) -> int:
        """Jobs of a pool that have all of this."""
        job, needs = self._pools[pool], []
        if n is not None:
            needs.append(n / job.n_workers)
        if jobs is not None:
            needs.append(jobs)
        if cores is not None:
            needs.append(cores / (job.cores * job.nodes_per_job))
        if memory is not None:
            needs.append(hosts.parse_bytes(memory) / (job.memory * job.nodes_per_job))
        if not needs:
            raise TypeError("scale() needs a number: of workers, or jobs=, cores= or memory=")
        if min(needs) < 0:
            raise ValueError(f"a cluster cannot have {math.floor(min(needs))} jobs")
        return math.ceil(max(needs))

    async def _have_jobs(self, pool: str, n: int) -> None:
        """Want so many jobs, without the idle ones first; raise what is refused at once."""
        idle: list[str] = []
        if n < self._jobs.controller.wanted(pool):
            stock = await self._take_stock()
            idle = idle_units(stock, self._units(pool).fleet(stock).units)
        await self._jobs.scale(pool, n, idle=idle)

    def scale(  # type: ignore[override]
        self,
        n: int | None = None,
        jobs: int | None = None,
        memory: int | str | None = None,
        cores: int | None = None,
        timeout: float | str | None = None,
        *,
        pool: str | None = None,
    ) -> Any:
        """Have so many workers, jobs, or jobs with so much memory or so many cores.

        Returns as soon as the batch system has taken the jobs; `wait_for_workers` waits until they
        run. Of jobs that are too many, those that wait go first. Workers hand over what only they
        hold before they end. What `adapt` has begun for these jobs ends.

        Parameters
        ----------
        n : int, optional
            Workers, rounded up to whole jobs.
        jobs : int, optional
        memory : int or str, optional
            Bytes, as in ``"500 GB"``, that the batch system grants to all jobs together.
        cores : int, optional
            CPUs, likewise.
        timeout : float or str, optional
            For the batch system's answer; it is not waited for longer than a few seconds.
        pool : str, optional
            Which kind of job, as named by `add_pool`; without, the cluster's first. All numbers are
            those of this pool.

        Raises
        ------
        SubmitError
            If the batch system refuses the jobs, in its own words.
        """
        name = self._pool_called(pool)
        n_jobs = self._jobs_for(name, n=n, jobs=jobs, memory=memory, cores=cores)

        async def work() -> None:
            await self._started()
            if self._closing is not None:
                raise LaunchError(f"{self.name} is closed; make a new one")
            await self._adapt_no_more(name)
            if self._scheduler_job is not None:
                await self._jobs.scale(SCHEDULER, 1)  # once more, if it has failed too often
            # Again: a removal that was not awaited may have come first.
            await self._have_jobs(self._pool_called(name), n_jobs)

        return self._done(work(), timeout)

    def _units(self, pool: str) -> JobUnits:
        return JobUnits(self._jobs, pool, self._open_pools)

    def _open_pools(self) -> list[str]:
        """Those that have or get workers; one that is not adapted has its part of the work, too."""
        adapted = {pool for pool, each in list(self._adaptives.items()) if each.state != "stopped"}
        wanted = self._jobs.controller.wanted
        return [pool for pool in self._pools if pool in adapted or wanted(pool)]

    def _worker_shape(self) -> UnitShape:
        job = self._job
        return UnitShape(
            nthreads=job.nthreads,
            memory=job.memory_limit,
            resources=checked_resources(job.resources),
        )

    async def _start_workers(self, n: int) -> None:
        await self._units(POOL).grow(self._jobs_for(n=n))

    async def _retire_workers(
        self, names: Collection[str], timeout: float = RETIREMENT, patience: float | None = PATIENCE
    ) -> None:
        await self._units(POOL).shrink({job_of(name) for name in names})

    async def _until_registered(self, n_workers: int, limit: float | None) -> None:
        await self._jobs.until_registered(n_workers, limit)

    # -- For users --------------------------------------------------------------------------------

    def jobs(self) -> JobTable:
        """The jobs that are, and the last that have ended: rows that show as a table.

        Each has `id`, `pool`, `state`, `reason`, `node`, `elapsed`, `left`, `workers` and `log`, as
        the batch system has told last, which is a few seconds ago.
        """
        return JobTable() if self._keeper is None else self._keeper.jobs()

    def wait_for_workers(
        self, n_workers: int, timeout: float | str | None = None, *, pool: str | None = None
    ) -> Any:
        """Wait until so many workers have registered.

        Parameters
        ----------
        n_workers : int
        timeout : float or str, optional
        pool : str, optional
            Count those in jobs of this kind only.

        Raises
        ------
        JobError
            If they will not come: why, and the last lines of a log.
        WaitTimeoutError
            If they do not come in time.
        """
        if pool is None:
            return super().wait_for_workers(n_workers, timeout)
        limit = None if timeout is None else hosts.parse_timedelta(timeout)
        name = self._pool_called(pool)
        return self._maybe_sync(self._jobs.until_registered(n_workers, limit, name))

    def job_script(self, pool: str | None = None) -> str:
        """The script that each job runs, of the first kind or of another."""
        return self._pools[self._pool_called(pool)].script()

    @property
    def job_header(self) -> str:
        """The part of it that asks the batch system for resources."""
        return self._job.job_header

    @property
    def job_name(self) -> str:
        """What the batch system calls the jobs."""
        return self._job.job_name

    def get_logs(
        self,
        cluster: bool = True,
        scheduler: bool = True,
        workers: bool | Iterable[str] = True,
        timeout: float | str | None = None,
        *,
        jobs: bool = True,
    ) -> Any:
        """Last log lines.

        Returns
        -------
        dict of str to str
            "Cluster" (of this process), "Scheduler", an entry for each worker's address, and one
            for each job that has written a log, as "job 5_1", also when it has ended.
        """

        async def work() -> dict[str, str]:
            result: dict[str, str] = await super(JobQueueCluster, self).get_logs(
                cluster, scheduler, workers
            )
            return {**result, **(await self._jobs.job_logs() if jobs else {})}

        return self._maybe_sync(work(), timeout)

    def logs(self, *args: Any, **kwargs: Any) -> Any:
        """As `get_logs`."""
        return self.get_logs(*args, **kwargs)

    def __repr__(self) -> str:
        nthreads = sum(worker.nthreads for worker in list(self.workers.values()))
        return (
            f"{type(self).__name__}({self.name}, {self.scheduler_address!r}, "
            f"workers={len(self.workers)}, threads={nthreads}, jobs={self._in_words()}, "
            f"{self.status})"
        )

    def _in_words(self) -> str:
        live = [] if self._keeper is None else self._keeper.live()
        return f"{len(live)} ({summary(live)})" if live else "0"

    def _repr_html_(self) -> str:
        workers = list(self.workers.values())  # they come and go meanwhile
        nthreads = sum(worker.nthreads for worker in workers)
        memory = sum(worker.memory_limit for worker in workers)
        facts = {
            "status": self.status,
            "scheduler": self.scheduler_address,
            "workers": str(len(workers)),
            "threads": str(nthreads),
            "memory": hosts.format_bytes(memory),
            "jobs": self._in_words(),
        }
        lines = "".join(
            f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in facts.items()
        )
        title = f"{type(self).__name__} {escape(self.name)}"
        return f"<h4>{title}</h4><table>{lines}</table>{self.jobs()._repr_html_()}"


def _checked_options(options: Mapping[str, Any], protocol: str | None) -> dict[str, Any]:
    """Parameters of the scheduler, without what it has from its cluster."""
    refuse_dashboard(options)
    if taken := sorted({"token", "token_file", "auth", "scheduler_file"} & options.keys()):
        raise ConfigError(f"{', '.join(taken)} cannot be among scheduler_options of these clusters")
    protocol = options.get("protocol") or protocol or "tcp"
    if protocol.removesuffix("://") != "tcp":
        raise ConfigError(f"{protocol!r} is no protocol between hosts; there is tcp")
    others = {k: v for k, v in options.items() if k not in ("dashboard_address", "protocol")}
    return {**others, "protocol": "tcp"}
