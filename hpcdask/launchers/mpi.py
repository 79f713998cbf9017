"""One command under mpirun: rank 0 runs the scheduler, every other rank a nanny with its worker.

MPI only starts the processes and tells them the scheduler's address and token. Then every rank
calls ``MPI_Finalize`` and never uses MPI again: ranks that wait in MPI (a barrier, a bcast) burn a
core each, and a rank that is lost after ``MPI_Finalize`` breaks no communicator.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcdask import host as hosts
from hpcdask.errors import HpcdaskError, LaunchError
from hpcdask.launchers.process import close_all, serve, start_all, stop_signals
from hpcdask.nanny import MPI_VARIABLES, Nanny
from hpcdask.rendezvous import Contact
from hpcdask.scheduler import Scheduler
from hpcdask.service import Service

log = logging.getLogger("hpcdask.mpi")

#: Seconds that a script has to end after it was asked to.
_SCRIPT_GRACE = 3.0


@dataclass(frozen=True)
class MPIOptions:
    """What ``hpc-dask`` was asked for.

    Parameters
    ----------
    scheduler : dict
        Parameters of `Scheduler`.
    nanny : dict
        Parameters of `Nanny` for every worker rank.
    name : str
        Beginning of the workers' names; the rank is appended.
    script : sequence of str, optional
        A Python script and its arguments, to be run as the cluster's client.
    """

    scheduler: Mapping[str, Any] = field(default_factory=dict)
    nanny: Mapping[str, Any] = field(default_factory=dict)
    name: str = "rank"
    script: Sequence[str] | None = None


@dataclass(frozen=True)
class World:
    """This rank's place among the others."""

    rank: int
    size: int
    workers_here: int  # worker ranks on this host

    @property
    def is_scheduler(self) -> bool:
        """Rank 0 is."""
        return self.rank == 0

    @property
    def is_worker(self) -> bool:
        """All others are, and rank 0 too if it is alone."""
        return self.rank > 0 or self.size == 1


def launch(options: MPIOptions) -> int:
    """Take this rank's part in the cluster until it ends.

    Returns
    -------
    int
        Exit code: of rank 0 that of the script, of all others 0 unless they could not start. One
        rank's non-zero code ends the whole job, so a worker's death must never become one.

    Raises
    ------
    LaunchError
        If mpi4py is missing, or this rank cannot do its part.
    """
    mpi = _mpi4py()
    comm = mpi.COMM_WORLD
    if comm.Get_rank() == 0:
        return asyncio.run(_scheduler_rank(mpi, options))
    outcome = comm.bcast(None, root=0)
    world = _world(mpi)
    mpi.Finalize()
    if not isinstance(outcome, Contact):
        return 0  # rank 0 says why; ending with an error here might end it before it has
    asyncio.run(serve([_nanny(options, world, outcome.address, outcome.token)]))
    return 0


def _mpi4py() -> Any:
    try:
        import mpi4py

        mpi4py.rc.finalize = False  # we do it ourselves, early
        from mpi4py import MPI
    except (ImportError, RuntimeError) as exc:
        raise LaunchError(
            f"hpc-dask starts its ranks with mpi4py, which cannot be used here: {exc}. Install it "
            "with 'pip install hpcdask[mpi]', or use 'hpc-dask scheduler' and 'hpc-dask worker'"
        ) from exc
    return MPI


def _world(mpi: Any) -> World:
    """Ask MPI who is where; collective."""
    comm = mpi.COMM_WORLD
    rank, size = comm.Get_rank(), comm.Get_size()
    here = comm.Split_type(mpi.COMM_TYPE_SHARED)
    is_worker = int(rank > 0 or size == 1)
    workers_here = here.allreduce(is_worker)
    here.Free()
    return World(rank, size, max(workers_here, 1))


async def _scheduler_rank(mpi: Any, options: MPIOptions) -> int:
    """Start the scheduler, share the outcome, good or bad, and stay until the end."""
    comm = mpi.COMM_WORLD
    folder = None
    given = dict(options.scheduler)
    if options.script is not None and not given.get("scheduler_file"):
        # The script finds the cluster through a scheduler file, as any other client does.
        folder = tempfile.mkdtemp(prefix="hpc-dask-")
        given["scheduler_file"] = os.path.join(folder, "scheduler.json")
    try:
        try:
            scheduler = Scheduler(**given)
            await scheduler
        except (HpcdaskError, OSError) as exc:
            comm.bcast("rank 0 could not start the scheduler", root=0)
            _world(mpi)
            mpi.Finalize()
            raise LaunchError(str(exc)) from exc
        comm.bcast(scheduler.contact(), root=0)
        world = _world(mpi)
        mpi.Finalize()
        services: list[Service] = [scheduler]
        if world.is_worker:
            services.append(_nanny(options, world, scheduler.address, scheduler.token))
        if options.script is None:
            await serve(services)
            return 0
        return await _serve_script(services, options.script, given["scheduler_file"])
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _nanny(options: MPIOptions, world: World, scheduler: str, token: bytes) -> Nanny:
    given = dict(options.nanny)
    share = max(hosts.cpu_count() // world.workers_here, 1)
    nthreads = given.pop("nthreads", None) or share
    memory = hosts.resolve_memory_limit(
        given.pop("memory_limit", "auto"), nthreads, world.workers_here
    )
    return Nanny(
        scheduler,
        name=f"{options.name}-{world.rank}",
        nthreads=nthreads,
        memory_limit=memory,
        token=token or None,
        auth=bool(token),
        **given,
    )


# -- A script as the cluster's client -------------------------------------------------------------


async def _serve_script(
    services: Sequence[Service], script: Sequence[str], scheduler_file: str
) -> int:
    """Run the script beside the services; all ends with it, and with its exit code."""
    with stop_signals() as stopped:
        try:
            process = _start_script(script, scheduler_file)
            ending = asyncio.ensure_future(asyncio.to_thread(process.wait))
            await start_all(services)
            gone = asyncio.ensure_future(services[0].finished())
            waiting: set[asyncio.Future[Any]] = {ending, stopped, gone}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if not ending.done():
                number = stopped.result() if stopped.done() else signal.SIGTERM
                await _end(process, ending, number)
            code = await ending
        finally:
            await close_all(services, "the script has ended")
    return code if code >= 0 else 128 - code


def _start_script(script: Sequence[str], scheduler_file: str) -> subprocess.Popen[bytes]:
    """Start it in a process of its own, so that it cannot slow the scheduler down."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(MPI_VARIABLES)}
    environ["HPCDASK_SCHEDULER_FILE"] = scheduler_file
    if not os.path.isfile(script[0]):
        raise LaunchError(f"there is no script {script[0]!r} to run")
    return subprocess.Popen([sys.executable, *script], env=environ)


async def _end(
    process: subprocess.Popen[bytes], ending: asyncio.Future[int], number: signal.Signals
) -> None:
    """Ask the script to end, then force it."""
    process.send_signal(number)
    done, _ = await asyncio.wait({ending}, timeout=_SCRIPT_GRACE)
    if not done:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
