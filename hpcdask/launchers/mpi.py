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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hpcdask import host as hosts
from hpcdask.errors import ConfigError, HpcdaskError, LaunchError
from hpcdask.launchers.process import close_all, event_loop, live, serve, settle, stop_signals
from hpcdask.nanny import MPI_VARIABLES, Nanny
from hpcdask.rendezvous import Contact
from hpcdask.resources import parse_resources
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
        Parameters of `Nanny` for every worker rank; its resources as text.
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
    ConfigError
        On rank 0, if an option has a value that it cannot have.
    LaunchError
        If mpi4py is missing, or this rank cannot do its part.
    """
    mpi = _mpi4py()
    world = find_world(mpi)
    try:
        _try_out(options, world)
    except ConfigError:  # all ranks see the same, and one of them says it
        mpi.Finalize()
        if world.is_scheduler:
            raise
        return 0
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(contextlib.ExitStack())
        options = _with_scheduler_file(options, world, files)
        loop = stack.enter_context(event_loop())
        schedulers: list[Scheduler] = []

        def start() -> Contact:
            if options.script is not None and not os.path.isfile(options.script[0]):
                raise LaunchError(f"there is no script {options.script[0]!r} to run")
            schedulers.append(loop.run_until_complete(_scheduler(options, world)))
            return schedulers[0].contact()

        try:
            contact = share_contact(mpi.COMM_WORLD, start)
        except LaunchError:
            mpi.Finalize()
            if world.is_scheduler:
                raise
            return 0  # rank 0 says why; ending with an error here might end it before it has
        mpi.Finalize()
        services: list[Service] = [*schedulers]
        if world.is_worker:
            services.append(_nanny(options, world, contact))
        if world.is_scheduler and options.script is not None:
            return loop.run_until_complete(_serve_script(services, options, files.close))
        loop.run_until_complete(serve(services, with_parent=True, for_good=True))
        return 0


def _mpi4py() -> Any:
    # Open MPI's transfer layer over libfabric takes a second to find out whether it is of use, in
    # every rank; for one broadcast it is of none. Who has chosen layers has chosen.
    os.environ.setdefault("OMPI_MCA_btl", "^ofi")
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


# -- Together with the other ranks ----------------------------------------------------------------


def find_world(mpi: Any) -> World:
    """Ask MPI who is where; collective."""
    comm = mpi.COMM_WORLD
    rank, size = comm.Get_rank(), comm.Get_size()
    here = comm.Split_type(mpi.COMM_TYPE_SHARED)
    workers_here = here.allreduce(int(rank > 0 or size == 1))
    here.Free()
    return World(rank, size, max(workers_here, 1))


def share_contact(comm: Any, start: Callable[[], Contact]) -> Contact:
    """Start the scheduler on rank 0; on every rank return its contact or raise its error.

    The outcome is shared and not only the success, or the other ranks would wait for ever.

    Parameters
    ----------
    comm : mpi4py communicator
        Of all ranks; each calls this.
    start : callable
        Called on rank 0.

    Raises
    ------
    LaunchError
        If `start` raises anything.
    """
    outcome: Contact | LaunchError | None = None
    cause: Exception | None = None
    if comm.Get_rank() == 0:
        try:
            outcome = start()
        except (HpcdaskError, OSError) as exc:
            outcome, cause = LaunchError(str(exc)), exc
        except Exception as exc:
            outcome, cause = LaunchError(f"rank 0 could not start the scheduler: {exc!r}"), exc
    outcome = comm.bcast(outcome, root=0)
    if isinstance(outcome, LaunchError):
        raise outcome from cause
    assert outcome is not None
    return outcome


# -- What the ranks run ---------------------------------------------------------------------------


def _with_scheduler_file(
    options: MPIOptions, world: World, stack: contextlib.ExitStack
) -> MPIOptions:
    """Name a scheduler file if a script is to be run, which finds the cluster through it."""
    if options.script is None or not world.is_scheduler:
        return options
    path = options.scheduler.get("scheduler_file")
    if not path:
        folder = tempfile.mkdtemp(prefix="hpc-dask-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        path = os.path.join(folder, "scheduler.json")
    # Absolute, since the script may change its folder.
    scheduler = {**options.scheduler, "scheduler_file": os.path.abspath(path)}
    return replace(options, scheduler=scheduler)


def _try_out(options: MPIOptions, world: World) -> None:
    """Raise what is wrong with options before anything has been started."""
    Scheduler(**options.scheduler)
    Nanny(**_nanny_options(options, world))


async def _scheduler(options: MPIOptions, world: World) -> Scheduler:
    scheduler = Scheduler(own_process=True, **options.scheduler)
    scheduler.expected_nannies = world.size - 1
    return await scheduler


def _nanny(options: MPIOptions, world: World, contact: Contact) -> Nanny:
    return Nanny(
        contact.address,
        token=contact.token or None,
        auth=bool(contact.token),
        **_nanny_options(options, world),
    )


def _nanny_options(options: MPIOptions, world: World) -> dict[str, Any]:
    given = dict(options.nanny)
    share = max(hosts.cpu_count() // world.workers_here, 1)
    nthreads = given.pop("nthreads", None) or share
    memory = hosts.resolve_memory_limit(
        given.pop("memory_limit", "auto"), nthreads, world.workers_here
    )
    return {
        **given,
        "name": f"{options.name}-{world.rank}",
        "nthreads": nthreads,
        "memory_limit": memory,
        "resources": parse_resources(given.pop("resources", "")),
        "reconnect_timeout": 0,  # the job ends with rank 0: its scheduler does not come back
        "env": _import_path(options.script),
    }


def _import_path(script: Sequence[str] | None) -> dict[str, str]:
    """Let workers import the modules that lie beside the script, as the script itself can."""
    if script is None:
        return {}
    folder = os.path.dirname(os.path.realpath(script[0]))
    return {"PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))}


# -- A script as the cluster's client -------------------------------------------------------------

#: Ends the script with us, even if we are killed (prctl(2), PR_SET_PDEATHSIG is 1), and then
#: becomes it. Not in `preexec_fn`, which is unsafe where there are threads.
_BECOME_SCRIPT = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


async def _serve_script(
    services: Sequence[Service], options: MPIOptions, remove_files: Callable[[], None]
) -> int:
    """Run the script beside the services; all ends with it, and with its exit code."""
    assert options.script is not None
    process = _start_script(options.script, options.scheduler["scheduler_file"])
    ending = asyncio.ensure_future(asyncio.to_thread(process.wait))
    with stop_signals(with_parent=True, for_good=True) as stopped:
        living = asyncio.ensure_future(live(services))
        try:
            await _first_of(ending, stopped, living)
            if living.done() and living.exception() is None:
                # Somebody has shut the cluster down, perhaps the script itself, which may have
                # work left to do without it.
                await _first_of(ending, stopped, patience=_SCRIPT_GRACE)
                if not ending.done() and not stopped.done():
                    log.warning("the cluster was shut down; waiting for the script to end")
                    await _first_of(ending, stopped)
            if not ending.done():
                number = stopped.result() if stopped.done() else signal.SIGTERM
                # Files first and the rest at the same time: mpirun kills us very soon, Open MPI 5
                # a quarter of a second after it has passed a SIGTERM on.
                remove_files()
                await asyncio.gather(
                    _end(process, ending, number), close_all(services, "asked to end")
                )
            code = await ending
        finally:
            await settle(living, services, "the script has ended")
    return code if code >= 0 else 128 - code


async def _first_of(*futures: asyncio.Future[Any], patience: float | None = None) -> None:
    await asyncio.wait(futures, timeout=patience, return_when=asyncio.FIRST_COMPLETED)


def _start_script(script: Sequence[str], scheduler_file: str) -> subprocess.Popen[bytes]:
    """Start it in a process of its own, so that it cannot slow the scheduler down."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(MPI_VARIABLES)}
    # The file has the token of this cluster, and the environment perhaps that of another.
    environ.pop("HPCDASK_TOKEN", None)
    environ.pop("HPCDASK_TOKEN_FILE", None)
    environ["HPCDASK_SCHEDULER_FILE"] = scheduler_file
    become = [sys.executable, "-I", "-S", "-c", _BECOME_SCRIPT, str(os.getpid())]
    return subprocess.Popen([*become, *script], env=environ)


async def _end(
    process: subprocess.Popen[bytes], ending: asyncio.Future[int], number: signal.Signals
) -> None:
    """Ask the script to end, then force it."""
    process.send_signal(number)
    done, _ = await asyncio.wait({ending}, timeout=_SCRIPT_GRACE)
    if not done:
        process.kill()
