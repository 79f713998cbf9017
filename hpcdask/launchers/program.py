"""`initialize` and `execute`: a program, started on all ranks, becomes a cluster and its client."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from hpcdask import logs
from hpcdask.client import place as client_place
from hpcdask.client.client import InternalClient
from hpcdask.client.loop import run_sync, shared_loop
from hpcdask.client.registry import close_all as close_clients
from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError
from hpcdask.launchers.meeting import find_ranks
from hpcdask.launchers.mpi import part_with_others, serve_part
from hpcdask.launchers.part import PROGRAM, MPIOptions, Part
from hpcdask.launchers.process import close_all
from hpcdask.launchers.ranks import Ranks
from hpcdask.rendezvous import Contact
from hpcdask.service import Service

log = logging.getLogger("hpcdask.mpi")
T = TypeVar("T")


def initialize(
    interface: str | None = None,
    nthreads: int | None = None,
    local_directory: str | None = None,
    memory_limit: str | float | None = "auto",
    nanny: bool = True,
    dashboard: bool | None = None,
    dashboard_address: str | None = None,
    protocol: str | None = None,
    worker_class: str | type | None = None,
    worker_options: Mapping[str, Any] | None = None,
    comm: Any = None,
    exit: bool = True,
    **more: Any,
) -> bool:
    """Make a cluster of all ranks that run this program; go on in one of them, its client.

    Rank 0 becomes the scheduler, rank 1 goes on with the program, and the others become workers. Of
    two ranks the second is client and worker; one alone is all three. The cluster ends with the
    client's program, however that ends.

    Parameters
    ----------
    interface : str, optional
        Network interface of all ranks; a name, list, glob or subnet.
    nthreads : int, optional
        Threads per worker; by default an equal share of the job's CPUs on each host.
    local_directory : str, optional
        Where workers make their scratch folders.
    memory_limit : str, int or float
        Per worker: "auto" (an equal share), bytes, "4 GiB", a fraction, or 0 for none.
    nanny : bool
        Whether workers run in processes that are watched and replaced, or in those of the ranks.
    dashboard, dashboard_address
        This version has no dashboard; for programs that switch it off.
    protocol : str, optional
        "tcp".
    worker_class : str or type, optional
        A subclass of `Worker` or `Nanny` to run.
    worker_options : dict, optional
        More of its parameters.
    comm : mpi4py communicator, optional
        The ranks, if not those of the world. The program may go on using MPI.
    exit : bool
        Whether ranks that are no client end here, by `sys.exit`, when the cluster ends.
    **more
        As of `execute`: `exclusive_workers`, `scheduler_rank`, `client_rank`, `scheduler_file`, ...

    Returns
    -------
    bool
        Whether this rank is the client. On others that do not exit, False when the cluster ends.

    Raises
    ------
    ConfigError
        If an option has a value that it cannot have.
    LaunchError
        If the scheduler cannot start.

    Examples
    --------
    With ``mpirun -np 4 python program.py``:

    >>> initialize()                                                        # doctest: +SKIP
    True
    >>> Client().submit(sum, [1, 2]).result()                               # doctest: +SKIP
    3
    """
    given = {**locals()}
    more = given.pop("more")
    leaves = given.pop("exit")
    if has_a_cluster():
        return True
    part = _part(**given, **more)
    if part.is_client:
        program = Program(part)
        atexit.register(program.end)
        return True
    with part.ranks:
        serve_part(part, for_good=leaves)
    if leaves:
        sys.exit(0)
    return False


def execute(
    client_function: Callable[..., T] | None = None,
    client_args: Sequence[Any] = (),
    client_kwargs: Mapping[str, Any] | None = None,
    client_rank: int | None = None,
    scheduler: bool = True,
    scheduler_rank: int = 0,
    scheduler_address: str | None = None,
    scheduler_port: int | str | None = None,
    scheduler_file: str | None = None,
    interface: str | None = None,
    nthreads: int | None = None,
    local_directory: str | None = None,
    memory_limit: str | float | None = "auto",
    nanny: bool = True,
    exclusive_workers: bool | None = None,
    worker_class: str | type | None = None,
    worker_options: Mapping[str, Any] | None = None,
    worker_name: str = "rank",
    comm: Any = None,
    protocol: str | None = None,
    dashboard: bool | None = None,
    dashboard_address: str | None = None,
    **more: Any,
) -> T | None:
    """Run a function on one rank, as the client of a cluster of all ranks.

    Parameters
    ----------
    client_function : callable, optional
        Without one the cluster runs until somebody shuts it down.
    client_args, client_kwargs
        Its arguments.
    client_rank : int, optional
        1, if there is such a rank.
    scheduler : bool
        Whether there is a scheduler among the ranks; else they join the one at `scheduler_address`
        or in `scheduler_file`, and leave it at the end.
    scheduler_rank : int
    scheduler_port : int or str, optional
        Any free one by default.
    scheduler_file : str, optional
        File to tell other clients where the scheduler is.
    exclusive_workers : bool, optional
        Whether the ranks of scheduler and client have no workers. By default so, if others are
        left.
    worker_name : str
        Beginning of the workers' names; the rank is appended.
    interface, nthreads, local_directory, memory_limit, nanny, worker_class, worker_options, comm, \
    protocol, dashboard, dashboard_address
        As of `initialize`.
    **more
        `log_level` ("warning"), and further fields of `hpcdask.launchers.part.MPIOptions`:
        `nworkers`, `use_mpi`, `shutdown_timeout`, ...

    Returns
    -------
    object
        What the function returns, on the client's rank; None on the others.

    Raises
    ------
    Exception
        What the function raises, on the client's rank, when the cluster has ended.
    ConfigError, LaunchError
        As of `initialize`.

    Examples
    --------
    With ``mpirun -np 4 python program.py``:

    >>> def main(n):
    ...     return sum(Client().gather(Client().map(abs, range(n))))
    >>> total = execute(main, [10])                                         # doctest: +SKIP
    """
    given = {**locals()}
    more = given.pop("more")
    function = client_function
    del given["client_function"]
    arguments, keywords = given.pop("client_args"), given.pop("client_kwargs") or {}
    if has_a_cluster() and function is not None:
        return function(*arguments, **keywords)
    part = _part(**given, has_client=function is not None, **more)
    if not part.is_client:
        with part.ranks:
            serve_part(part, for_good=False)
        return None
    assert function is not None
    program = Program(part)
    try:
        return function(*arguments, **keywords)
    finally:
        program.end()


def has_a_cluster() -> bool:
    """Whether this is the script of ``hpc-dask run``, or has made a cluster that is there still."""
    is_script = os.environ.get("HPCDASK_SCRIPT") == str(os.getpid())
    return is_script or client_place.of_program is not None


def _part(
    *,
    comm: Any,
    client_rank: int | None = None,
    has_client: bool = True,
    scheduler: bool = True,
    scheduler_address: str | None = None,
    scheduler_port: int | str | None = None,
    scheduler_file: str | None = None,
    interface: str | None,
    dashboard: bool | None,
    dashboard_address: str | None,
    protocol: str | None,
    nthreads: int | None,
    local_directory: str | None,
    memory_limit: str | float | None,
    worker_options: Mapping[str, Any] | None,
    worker_name: str = "rank",
    log_level: str = "warning",
    **fields: Any,
) -> Part:
    """This rank's part, from the keywords that dask-mpi has."""
    without_dashboard({"dashboard": dashboard, "dashboard_address": dashboard_address})
    if not logging.getLogger("hpcdask").handlers:
        logs.configure(log_level)
    common = {"interface": interface, "protocol": protocol or "tcp"}
    scheduler_options = {
        **common,
        "port": scheduler_port,
        "scheduler_file": scheduler_file,
    }
    workers = {
        **common,
        "nthreads": nthreads,
        "local_directory": local_directory,
        "memory_limit": memory_limit,
        "log_level": log_level,
        **(worker_options or {}),
    }
    options = MPIOptions(
        scheduler_options,
        workers,
        worker_name,
        with_scheduler=scheduler,
        address=scheduler_address,
        **fields,
    )
    ranks = meet(options, comm)
    if has_client:
        rank = min(1, ranks.world.size - 1) if client_rank is None else client_rank
        options = replace(options, client_rank=rank)
    return take_part(options, ranks)


def without_dashboard(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those by which programs switch the dashboard off, which is not there."""
    found = dict(options)
    wanted, address = found.pop("dashboard", None), found.pop("dashboard_address", None)
    if wanted or (address and wanted is not False):
        raise ConfigError("this version has no dashboard; leave dashboard and its address out")
    return found


def meet(options: MPIOptions, comm: Any = None) -> Ranks:
    """Find the ranks of this launch; without MPI they meet beside the scheduler file."""
    file = options.scheduler.get("scheduler_file")
    folder = os.path.dirname(os.path.abspath(file)) if file else None
    return find_ranks(options.use_mpi, folder, options.meeting_timeout, comm)


def take_part(options: MPIOptions, ranks: Ranks) -> Part:
    """This rank's part, if all ranks can do theirs; as `part_with_others`, and leaves no trace."""
    try:
        return part_with_others(lambda: options, ranks)
    except BaseException:
        ranks.part()
        ranks.clean_up()
        raise


class Program:
    """The rank that goes on with the program: what it runs besides, and the end of the cluster.

    Parameters
    ----------
    part : Part
    loop : asyncio event loop, optional
        Of another thread, that runs what this rank serves.

    Attributes
    ----------
    place : SchedulerPlace
        How clients of this process reach the scheduler.
    """

    def __init__(self, part: Part, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._part, self._loop = part, loop or shared_loop()
        self._services: list[Service] = []
        self._has_ended = False
        try:
            place = part.agree(self._start_scheduler)
            part.ranks.part()
            workers = part.workers(place)
            self._services += workers
            for worker in workers:
                run_sync(self._loop, worker.start())
            self.place = scheduler = SchedulerPlace(
                place["scheduler"],
                place.get("scheduler_file"),
                place.get("token"),
                place.get("token_file"),
                place["auth"],
            )
            client_place.of_program = scheduler
            self._client = InternalClient(
                scheduler.address,
                scheduler_file=scheduler.scheduler_file,
                token=scheduler.token,
                token_file=scheduler.token_file,
                auth=scheduler.auth,
                name=PROGRAM,  # the scheduler ends when it has gone
                set_as_default=False,
                timeout=part.options.meeting_timeout,
            )
        except BaseException:
            part.ranks.part()
            part.ranks.clean_up()
            self._close_services()
            raise

    @property
    def scheduler_address(self) -> str:
        """Address of the scheduler."""
        return self._client.scheduler_address

    def _start_scheduler(self) -> Contact:
        file = self._part.options.scheduler["scheduler_file"]
        scheduler = run_sync(self._loop, self._part.start_scheduler(file))
        self._services.append(scheduler)
        return scheduler.contact()

    def end(self) -> None:
        """End all ranks; if they are those of a cluster that goes on, they leave it."""
        if self._has_ended:
            return
        self._has_ended = True
        client_place.of_program = None
        close_clients()  # or each would warn that its scheduler is gone
        limit = self._part.options.shutdown_timeout
        try:
            if self._part.options.with_scheduler:
                self._client.shutdown(timeout=limit)
            else:
                names = self._part.names_of_workers()
                self._client.retire_workers(names=names, timeout=limit)
        except Exception as exc:
            log.debug("the cluster has ended before its client: %s", exc)
        finally:
            self._client.close()
            self._close_services()
            self._part.ranks.clean_up()

    def _close_services(self) -> None:
        with contextlib.suppress(Exception):
            run_sync(
                self._loop,
                close_all(self._services, "the program has ended"),
                self._part.options.shutdown_timeout,
            )
