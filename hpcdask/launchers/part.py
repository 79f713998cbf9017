"""One rank's part in a cluster: what it starts, and how it learns where the scheduler is."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcdask import config
from hpcdask.comm.addresses import parse_ports
from hpcdask.errors import ConfigError, HpcdaskError, LaunchError
from hpcdask.launchers.ranks import Ranks
from hpcdask.launchers.roles import Roles
from hpcdask.launchers.script import import_path
from hpcdask.nanny import Nanny
from hpcdask.rendezvous import Contact
from hpcdask.resources import checked_resources
from hpcdask.scheduler import Scheduler
from hpcdask.service import Service
from hpcdask.sizing import Sharing, size_worker
from hpcdask.worker import Worker
from hpcdask.worker_class import find_class, path_of

#: Name of the client that stands for a program which is the client of its own ranks.
PROGRAM = "program"
#: Seconds that it may be away; a process that has died does not come back.
_ABSENCE = 3.0


@dataclass(frozen=True)
class MPIOptions:
    """What ``hpc-dask``, `hpcdask.initialize` or `hpcdask.execute` was asked for.

    Parameters
    ----------
    scheduler : dict
        Parameters of `Scheduler`.
    worker : dict
        Parameters of `Nanny` or `Worker` for each worker; of them `nthreads` may be 0 and
        `memory_limit` "auto", for an equal share of the host.
    name : str
        Beginning of the workers' names; the rank is appended.
    script : sequence of str, optional
        A Python script and its arguments, to be run as the cluster's client.
    with_scheduler : bool
        Without it all ranks are workers of a cluster that runs, at `address` or where the
        scheduler's `scheduler_file` says.
    scheduler_rank, client_rank, exclusive_workers, nworkers
        As of `Roles`.
    nanny : bool
        Whether a worker runs in a process of its own, which is watched and replaced when it dies,
        or in that of its rank.
    worker_class : str or type, optional
        A subclass of `Nanny` or of `Worker`, see `hpcdask.worker_class`.
    use_mpi : bool, optional
        As of `find_ranks`.
    meeting_timeout : float
        Seconds that ranks wait for each other at the start, where they meet without MPI.
    shutdown_timeout : float
        Seconds after which no rank is left when the cluster ends.
    """

    scheduler: Mapping[str, Any] = field(default_factory=dict)
    worker: Mapping[str, Any] = field(default_factory=dict)
    name: str = "rank"
    script: Sequence[str] | None = None
    with_scheduler: bool = True
    address: str | None = None
    scheduler_rank: int = 0
    client_rank: int | None = None
    exclusive_workers: bool | None = None
    nworkers: int = 1
    nanny: bool = True
    worker_class: str | type | None = None
    use_mpi: bool | None = None
    meeting_timeout: float = 60.0
    shutdown_timeout: float = 10.0


def end_with_program(scheduler: Scheduler, timeout: float) -> None:
    """End a scheduler when the program whose ranks it belongs to has gone, or does not come.

    Parameters
    ----------
    scheduler : Scheduler
        That runs, on this loop.
    timeout : float
        Seconds in which the program has to come.
    """
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    def is_program(client: str) -> bool:
        return client.startswith(f"Client-{PROGRAM}-")

    def close_without_it() -> None:
        if not any(map(is_program, scheduler.clients)):
            ending.append(loop.create_task(scheduler.close("its program has ended")))

    def gone(client: str) -> None:
        if is_program(client):
            loop.call_later(_ABSENCE, close_without_it)

    scheduler.members.on_client_gone = gone
    loop.call_later(timeout, close_without_it)


class Part:
    """What one rank does.

    Parameters
    ----------
    options : MPIOptions
    ranks : Ranks
        Who all do the same.

    Attributes
    ----------
    roles : Roles
    size : WorkerSize
        What each worker of this host gets.

    Raises
    ------
    ConfigError
        If an option has a value that it cannot have; before anything has been started.
    """

    def __init__(self, options: MPIOptions, ranks: Ranks) -> None:
        self.options, self.ranks, self.world = options, ranks, ranks.world
        self.roles = Roles(
            self.world.size,
            options.scheduler_rank if options.with_scheduler else None,
            options.client_rank,
            options.exclusive_workers,
            options.nworkers,
        )
        self._class, self._class_options = _service_class(options)
        self._try_out(max(self.world.local_size, 1))

    def settle(self) -> None:
        """Share the host with the ranks that turn out to be there; all call it."""
        self._size(self.ranks.count_here(lambda rank: self.roles.workers_of(rank) > 0))

    def _size(self, n_here: int) -> None:
        options, settings = self.options, config.current()
        self._sharing = Sharing.here(options.nworkers, max(n_here, 1))
        memory_limit = options.worker.get("memory_limit", "auto")
        self.size = size_worker(
            settings.value("worker.nthreads", options.worker.get("nthreads")),
            settings["worker.memory-limit"] if memory_limit == "auto" else memory_limit,
            self._sharing,
            has_nanny=issubclass(self._class, Nanny),
        )

    def _try_out(self, n_here: int) -> None:
        self._size(n_here)
        self._refuse_too_few_ports()
        Scheduler(**self.options.scheduler)
        options = self._worker_options(0, {"scheduler": self.options.address})
        known = _parameters(find_class(self.options.worker_class or Worker), Worker, self._class)
        if unknown := sorted(options.keys() - known):
            raise ConfigError(f"a {self._class.__name__} has no option {', '.join(unknown)}")
        self._class(**options)

    def _refuse_too_few_ports(self) -> None:
        ports = parse_ports(self.options.worker.get("port"))
        first = self.world.rank - self.world.local_rank
        neighbours = range(first, first + self.world.local_size)
        shares_range = self.options.scheduler.get("port") == self.options.worker.get("port")
        n = sum(map(self.roles.workers_of, neighbours))
        n += shares_range and self.roles.scheduler in neighbours
        if ports != [0] and len(ports) < n:
            raise ConfigError(
                f"{n} processes on this host listen, and --port-range "
                f"{self.options.worker['port']} has {len(ports)} ports: give a wider one"
            )

    @property
    def is_scheduler(self) -> bool:
        """Whether the scheduler is on this rank."""
        return self.world.rank == self.roles.scheduler

    @property
    def is_client(self) -> bool:
        """Whether the client is on this rank."""
        return self.world.rank == self.roles.client

    # -- Where the scheduler is -------------------------------------------------------------------

    def agree(self, start: Callable[[], Contact]) -> dict[str, Any]:
        """Start the scheduler on its rank, and return on all by which parameters it is found.

        Raises
        ------
        LaunchError
            On all ranks, if `start` raises.
        """
        options = self.options
        if self.roles.scheduler is None:
            return {
                "scheduler": options.address,
                "scheduler_file": options.scheduler.get("scheduler_file"),
                "token_file": options.scheduler.get("token_file"),
                "auth": options.scheduler.get("auth", True),
            }
        contact = share_contact(self.ranks, start, self.roles.scheduler)
        return place_of(contact)

    async def start_scheduler(self, scheduler_file: str | None) -> Scheduler:
        """Start the scheduler."""
        options = {**self.options.scheduler, "scheduler_file": scheduler_file}
        scheduler = Scheduler(own_process=not self.is_client, **options)
        if issubclass(self._class, Nanny):  # those of this rank come and go with it
            here = self.roles.workers_of(self.world.rank)
            scheduler.expected_nannies = self.roles.n_workers - here
        await scheduler
        if self.roles.client is not None and not self.is_client:
            end_with_program(scheduler, self.options.meeting_timeout)
        return scheduler

    def name_scheduler_file(self, stack: contextlib.ExitStack) -> str | None:
        """The user's scheduler file, or a temporary one for a script that is to find us."""
        path = self.options.scheduler.get("scheduler_file")
        if not path and self.options.script is not None and self.is_scheduler:
            folder = tempfile.mkdtemp(prefix="hpc-dask-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            path = os.path.join(folder, "scheduler.json")
        return os.path.abspath(path) if path else None  # the script may change its folder

    # -- Workers ----------------------------------------------------------------------------------

    def workers(self, place: Mapping[str, Any]) -> list[Service]:
        """This rank's nannies or workers, not started yet."""
        numbers = range(self.roles.workers_of(self.world.rank))
        return [self._class(**self._worker_options(number, place)) for number in numbers]

    def names_of_workers(self) -> list[str]:
        """Of all ranks."""
        roles = self.roles
        return [
            self._name(rank, number)
            for rank in range(roles.size)
            for number in range(roles.workers_of(rank))
        ]

    def _name(self, rank: int, number: int) -> str:
        name = f"{self.options.name}-{rank}"
        return f"{name}-{number}" if self.options.nworkers > 1 else name

    def _worker_options(self, number: int, place: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(self.options.worker)
        if self.options.with_scheduler:
            given["reconnect_timeout"] = 0  # the job ends with its scheduler, which won't come back
        if issubclass(self._class, Worker):
            given.pop("log_level", None)  # it is that of this process
        else:
            given["env"] = {**import_path(self.options.script), **given.get("env", {})}
        return {
            **given,
            **place,
            **self._class_options,
            "name": self._name(self.world.rank, number),
            "sharing": self._sharing,
            "resources": dict(checked_resources(given.get("resources"))),
        }


def _service_class(options: MPIOptions) -> tuple[type[Service], dict[str, Any]]:
    """The class of a rank's services, and what it needs to know besides."""
    if options.worker_class is None:
        return Nanny if options.nanny else Worker, {}
    found = find_class(options.worker_class)
    if issubclass(found, Nanny):
        if not options.nanny:
            raise ConfigError(f"{options.worker_class!r} is a nanny, and --no-nanny wants none")
        return found, {}
    if not issubclass(found, Worker):
        raise ConfigError(
            f"{options.worker_class!r} is no subclass of hpcdask.Worker or hpcdask.Nanny"
        )
    if options.nanny and found is not Worker:
        return Nanny, {"worker_class": path_of(found)}
    return Nanny if options.nanny else found, {}


def _parameters(*classes: type) -> set[str]:
    """Names of all parameters that these and their bases take; a nanny hands some on."""
    return {
        name
        for cls in classes
        for base in cls.__mro__[:-1]
        for name in inspect.signature(base).parameters
    } | {"log_level"}


def place_of(contact: Contact) -> dict[str, Any]:
    """Parameters by which a worker or nanny finds the scheduler of a contact."""
    token = contact.token or None
    return {"scheduler": contact.address, "token": token, "auth": token is not None}


def share_contact(ranks: Ranks, start: Callable[[], Contact], root: int = 0) -> Contact:
    """Start the scheduler on rank `root`; on every rank return its contact or raise its error.

    The outcome is shared and not only the success, or the other ranks would wait for ever.

    Raises
    ------
    LaunchError
        If `start` raises anything.
    """
    outcome: dict[str, str] = {}
    cause: Exception | None = None
    if ranks.world.rank == root:
        try:
            outcome = {"contact": start().to_json()}
        except (HpcdaskError, OSError) as exc:
            outcome, cause = {"error": str(exc)}, exc
        except Exception as exc:
            outcome, cause = {"error": f"rank {root} could not start the scheduler: {exc!r}"}, exc
    outcome = ranks.share(outcome, root)
    if "error" in outcome:
        raise LaunchError(outcome["error"]) from cause
    return Contact.from_json(outcome["contact"])
