"""Runners: a program that is started on all ranks of a job becomes a cluster and its client.

As `hpcdask.initialize` does it, but as an object: the cluster lives as long as a ``with`` block.
The subclasses differ in how a job is known, and in what they say where there is none.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from hpcdask import host as hosts
from hpcdask import logs
from hpcdask.client.client import Client
from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError, HpcdaskError, LaunchError
from hpcdask.launchers.file_ranks import as_file_name
from hpcdask.launchers.mpi import run_part, serve_part
from hpcdask.launchers.part import MPIOptions, Part
from hpcdask.launchers.process import Deadline
from hpcdask.launchers.program import Program, has_a_cluster, meet, take_part, without_dashboard
from hpcdask.world import World, launched_world

Self = TypeVar("Self", bound="Runner")

#: Whether the other ranks of this launch have served one runner: they do not come back.
_have_served = False


class Runner:
    """A cluster of all ranks that run this program, for as long as it is open.

    One rank runs the scheduler, one goes on with the program, the others are workers. Only the
    client's rank gets past the constructor (if `asynchronous`, past ``async with``): the others
    stay there until the cluster ends, and then leave the process with exit code 0. Of two ranks the
    client's has a worker, too; one alone is all three.

    Parameters
    ----------
    scheduler : bool
        Whether one of the ranks runs the scheduler. Without, all but the client's are workers of
        the cluster that `scheduler_file` tells of, and leave it at the end.
    scheduler_options : dict, optional
        Parameters of `Scheduler`, as ``{"interface": "ib0"}``.
    worker_class : str or type, optional
        A subclass of `Worker` or `Nanny` to run.
    worker_options : dict, optional
        Parameters of that class, as ``{"interface": "ib0", "nthreads": 4}``. By default the workers
        of a host share its CPUs and memory, as far as the job has them.
    client : bool
        Whether one of the ranks goes on with the program. Without, all serve clients elsewhere,
        until one of these shuts the cluster down.
    asynchronous : bool
        For programs that run on an event loop: to be used by ``async with``.
    loop : asyncio event loop, optional
        A running one of another thread, for what the client's rank serves besides.
    scheduler_file : str or path, optional
        Where clients elsewhere find the scheduler, mode 0600; ``{job_id}`` stands for the job's id.
        All ranks must see its folder.
    scheduler_rank, client_rank : int, optional
        Which ranks these are. By default 0 and 1; of `PBSRunner` and `SGERunner` 1 and 0, since
        there the job script itself can become rank 0, and so its exit code is the client's.
    comm : mpi4py communicator, optional
        The ranks, for a program that goes on using MPI.
    log_level : str
        Of the log on stderr, if logging is not configured yet.
    **more
        Further fields of `hpcdask.launchers.part.MPIOptions`: `nworkers` and `nanny` of each rank,
        `exclusive_workers`, `meeting_timeout`, `shutdown_timeout`, ...

    Attributes
    ----------
    role : str
        "scheduler", "client" or "worker": what this rank is first of all.
    n_workers : int
        Workers of all ranks together.
    job_id : str
        Of the batch job; outside of one, of the launch.
    scheduler_file : str or None
        Its path.
    status : str
        "created", "running" or "closed".

    Raises
    ------
    LaunchError
        If this process is no rank of such a job, if ranks do not come, or if the scheduler cannot
        start. It is a RuntimeError.
    ConfigError
        If an option has a value that it cannot have. It is a ValueError.

    Notes
    -----
    What is wrong on all ranks is raised on the first only, and why the scheduler cannot start on
    its rank and the client's. The others leave.

    Examples
    --------
    With ``srun -n 8 python program.py``:

    >>> with SLURMRunner() as runner, Client(runner) as client:             # doctest: +SKIP
    ...     client.wait_for_workers(runner.n_workers)
    ...     print(client.submit(sum, [1, 2]).result())
    3
    """

    # What kinds differ in: the batch system that the job is of, as `hpcdask.host.batch_job` calls
    # it; and in messages, what the ranks belong to, and how the program is started there.
    _system: ClassVar[str] = ""
    _what: ClassVar[str]
    _how: ClassVar[str]
    #: Which rank is what, as far as there are so many.
    _scheduler_rank: ClassVar[int] = 0
    _client_rank: ClassVar[int] = 1
    _default_file: ClassVar[str | None] = "scheduler-{job_id}.json"

    def __init__(
        self,
        scheduler: bool = True,
        scheduler_options: Mapping[str, Any] | None = None,
        worker_class: str | type | None = None,
        worker_options: Mapping[str, Any] | None = None,
        client: bool = True,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        scheduler_file: str | os.PathLike[str] | None = None,
        scheduler_rank: int | None = None,
        client_rank: int | None = None,
        comm: Any = None,
        log_level: str = "warning",
        **more: Any,
    ) -> None:
        self._launched = launched_world()
        self.status, self.role, self.n_workers = "created", "", 0
        self.job_id = _job_id(self._system, self._launched)
        self.scheduler_file: str | None = None
        self._ranks_given = scheduler_rank, client_rank
        self._with_client, self._asynchronous = client, asynchronous
        self._loop, self._comm = loop, comm
        self._program: Program | None = None
        if not logging.getLogger("hpcdask").handlers:
            logs.configure(log_level)
        with self._once_per_host():
            self._refuse_ranks_of_nobody(scheduler)
            for_scheduler = without_dashboard(scheduler_options or {})
            given = scheduler_file or for_scheduler.get("scheduler_file") or self._default_file
            if given:
                path = os.fspath(given).replace("{job_id}", self.job_id)
                self.scheduler_file = os.path.abspath(path)  # the program may change its folder
            elif not scheduler:
                raise ConfigError(
                    f"{type(self).__name__}(scheduler=False) joins a cluster that runs: give the "
                    "scheduler_file by which it is found"
                )
        self._options = MPIOptions(
            {**for_scheduler, "scheduler_file": self.scheduler_file},
            {"log_level": log_level, **(worker_options or {})},
            with_scheduler=scheduler,
            worker_class=worker_class,
            **more,
        )
        if not asynchronous:
            self._start()

    # -- Life -------------------------------------------------------------------------------------

    def _start(self) -> None:
        part = self._take_part()
        if part.is_client:
            self._go_on(part)
            return
        with part.ranks:
            code = serve_part(part)
        sys.exit(code)

    async def _start_on_this_loop(self) -> None:
        # The ranks meet while the loop stands still: MPI belongs to the main thread.
        part = self._take_part()
        if part.is_client:
            self._go_on(part)
            return
        with part.ranks:
            code = await run_part(part)
        # At its end the user's loop waits for all threads, of which one may be in a task that
        # never returns.
        Deadline(part.options.shutdown_timeout).begin()
        sys.exit(code)

    def _take_part(self) -> Part:
        """This rank's part. A rank with nothing to add to what another says leaves."""
        with self._once_per_host():
            self._refuse_elsewhere()
            ranks = meet(self._options, self._comm)
        try:
            part = take_part(self._with_roles(ranks.world.size), ranks)
        except HpcdaskError:
            if ranks.have_met and ranks.world.rank != 0:
                sys.exit(0)
            raise
        self.role = "client" if part.is_client else "scheduler" if part.is_scheduler else "worker"
        self.n_workers = part.roles.n_workers
        return part

    def _with_roles(self, size: int) -> MPIOptions:
        scheduler, client = self._ranks_given
        if scheduler is None:
            scheduler = min(self._scheduler_rank, size - 1)
        if client is None:
            client = min(self._client_rank, size - 1)
        client_rank = client if self._with_client else None
        return replace(self._options, scheduler_rank=scheduler, client_rank=client_rank)

    @contextlib.contextmanager
    def _once_per_host(self) -> Iterator[None]:
        """Raise what is wrong before the ranks have met on one rank of each host; others leave."""
        try:
            yield
        except HpcdaskError:
            if self._launched.local_rank != 0:
                sys.exit(0)
            raise

    def _refuse_ranks_of_nobody(self, with_scheduler: bool) -> None:
        kinds = ("scheduler", with_scheduler), ("client", self._with_client)
        for (what, is_there), rank in zip(kinds, self._ranks_given, strict=True):
            if rank is not None and not is_there:
                raise ConfigError(
                    f"{type(self).__name__} got {what}_rank={rank} and {what}=False: leave one out"
                )

    def _refuse_elsewhere(self) -> None:
        name = type(self).__name__
        if has_a_cluster():
            raise LaunchError(
                "hpc-dask run has made a cluster for this program already: use Client() in place "
                f"of {name}, or start the program itself with {self._how}"
            )
        if _have_served:
            raise LaunchError(
                "the other ranks have ended with this program's first runner: let one be open for "
                "as long as workers are needed"
            )
        if not self.job_id:
            raise LaunchError(
                f"{name} is for {self._what}, and this process belongs to none. Start the program "
                f"with {self._how}; outside of a job use LocalCluster"
            )
        if not (self._launched.launcher or self._comm is not None or self._options.use_mpi):
            raise LaunchError(
                f"{name} finds no other ranks: this process was not started as one of several, but "
                f"alone. Start the program with {self._how}"
            )

    def _go_on(self, part: Part) -> None:
        """Be the client's rank."""
        global _have_served
        _have_served = True
        self._program = Program(part, self._loop)
        atexit.register(self._program.end)
        self.status = "running"

    async def _started(self) -> None:
        if self.status == "created":
            await self._start_on_this_loop()

    async def _close(self) -> None:
        if self._program is not None:
            await asyncio.to_thread(self._program.end)
        self.status = "closed"

    def close(self) -> Any:
        """End the cluster: all ranks leave. Those that joined one leave it."""
        if self._asynchronous:
            return self._close()
        if self._program is not None:
            self._program.end()
        self.status = "closed"
        return None

    def __enter__(self: Self) -> Self:
        if self._asynchronous:
            raise TypeError("an asynchronous runner needs 'async with'")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __await__(self: Self) -> Generator[Any, Any, Self]:
        async def started() -> Self:
            await self._started()
            return self

        return started().__await__()

    async def __aenter__(self: Self) -> Self:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    # -- For users --------------------------------------------------------------------------------

    @property
    def asynchronous(self) -> bool:
        """Whether it was made so, and methods return awaitables."""
        return self._asynchronous

    @property
    def place(self) -> SchedulerPlace:
        """How a client of this process reaches the scheduler."""
        if self._program is None:
            raise LaunchError(f"{self!r} has not started: use it by 'async with', or await it")
        return self._program.place

    @property
    def scheduler_address(self) -> str:
        """Address of the scheduler; empty while there is none."""
        return self._program.scheduler_address if self._program is not None else ""

    def get_client(self) -> Client:
        """Return a new client of this cluster."""
        return Client(self, asynchronous=self._asynchronous)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(job={self.job_id!r}, {self.scheduler_address!r}, "
            f"workers={self.n_workers}, {self.status})"
        )


class SLURMRunner(Runner):
    """The ranks of a step of a Slurm job: ``srun -n 8 python program.py``.

    All else is as of `Runner`.
    """

    _system, _what, _how = "slurm", "a Slurm job", "'srun -n 8 python program.py' in a job"


class PBSRunner(Runner):
    """The ranks that mpirun or pbsdsh has started in a PBS job.

    All else is as of `Runner`.
    """

    _system, _what = "pbs", "a PBS job"
    _how = "mpirun or pbsdsh in a job, as the page on runners shows"
    _scheduler_rank, _client_rank = 1, 0


class SGERunner(Runner):
    """The ranks that mpirun or ``qrsh -inherit`` has started in a Grid Engine job with slots.

    All else is as of `Runner`.
    """

    _system, _what = "sge", "a Grid Engine job with a parallel environment"
    _how = "mpirun or qrsh -inherit in a job, as the page on runners shows"
    _scheduler_rank, _client_rank = 1, 0


class MPIRunner(Runner):
    """The ranks of an mpirun, in a job or not: ``mpirun -np 8 python program.py``.

    All else is as of `Runner`. Without `scheduler_file` no file is written: the ranks tell each
    other where the scheduler is.
    """

    _what, _how = "an mpirun", "'mpirun -np 8 python program.py'"
    _default_file = None


def _job_id(system: str, launched: World) -> str:
    """Id of the job of this system, or of any, that this process belongs to; empty without one."""
    found, _, job = hosts.batch_job().partition(":")
    if system:
        job = job if found == system else ""
    elif not job:
        job = as_file_name(launched.launch_id) or str(os.getpid())
    return job.partition(".")[0] if found == "pbs" else job  # without the server's name
