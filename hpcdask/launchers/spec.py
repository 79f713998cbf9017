"""Clusters of processes of any kind, for who extends hpcdask: `SpecCluster`, `ProcessInterface`."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import tempfile
from collections.abc import Collection, Generator, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hpcdask import descriptors
from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError, LaunchError
from hpcdask.launchers.cluster import PATIENCE, RETIREMENT, Cluster, settled_token
from hpcdask.launchers.scheduler_access import SchedulerHere, SchedulerThere
from hpcdask.launchers.units import UnitShape, given_memory
from hpcdask.nanny import Nanny
from hpcdask.rendezvous import replace_private
from hpcdask.resources import checked_resources
from hpcdask.scheduler import Scheduler
from hpcdask.service import Service
from hpcdask.worker_class import find_class

log = logging.getLogger("hpcdask.spec")

Spec = Mapping[str, Any]
Self = TypeVar("Self", bound="ProcessInterface")

_ENDED = ("closed", "failed")
#: Of this process, per worker: connections of the scheduler with it and with its nanny, the other
#: end of that, pipes, and what watches its end.
_DESCRIPTORS = 8
#: What `options` may call the threads and the memory of a worker.
_THREADS, _MEMORY = ("nthreads", "ncores", "threads", "cores"), ("memory_limit", "memory")


class ProcessInterface:
    """A scheduler, or one or several workers, that a class of your own starts and ends.

    Override `start` and `close`, and call them here, too. A scheduler's `start` returns when its
    `address` is set. A worker's may return as soon as whoever runs it has been asked to.

    Parameters
    ----------
    scheduler : str, optional
        Address of the scheduler, for a worker.
    name : str, optional
        What a worker must call itself; with a suffix where one process brings a ``"group"``.

    Attributes
    ----------
    status : str
        "created", "running", "closed" or "failed". Set "failed" or "closed" when you find that it
        has ended; a cluster starts another where one is wanted.
    address : str or None
        Of a scheduler.
    external_address : str or None
        At which clients reach a scheduler, if that is another.
    token_file : str or None
        File that only this user can read, with the token which lets in. A `SpecCluster` sets it
        before `start`: ``hpc-dask worker`` and ``hpc-dask scheduler`` take it as ``--token-file``.
    """

    def __init__(self, scheduler: str | None = None, name: Hashable = None) -> None:
        self.scheduler, self.name = scheduler, name
        self.address: str | None = getattr(self, "address", None)
        self.external_address: str | None = None
        self.token_file: str | None = None
        self.status = "created"
        self._lock = asyncio.Lock()
        self._finished = asyncio.Event()

    async def start(self) -> None:
        """Have the process run."""
        self.status = "running"

    async def close(self) -> None:
        """End it; a worker has been asked to end before, and may have ended."""
        self.status = "closed"
        self._finished.set()

    async def finished(self) -> None:
        """Wait until it has been closed."""
        await self._finished.wait()

    def __await__(self: Self) -> Generator[Any, Any, Self]:
        async def started() -> Self:
            async with self._lock:
                if self.status == "created":
                    await self.start()
            return self

        return started().__await__()

    async def __aenter__(self: Self) -> Self:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.status}>"


class SpecCluster(Cluster):
    """A cluster of a scheduler and workers that are specified one by one.

    A specification is a dict with ``"cls"``, a class or its path, and its ``"options"``. For a
    worker the class is called with the scheduler's address, `name` and these options; then it is
    awaited, and closed in the end. `Worker`, `Nanny` and `Scheduler` are such classes, and so is
    what is derived from `ProcessInterface`. One that starts several workers says with which
    suffixes they extend its name: ``"group": ["-0", "-1"]``; they are started and ended together.

    Parameters
    ----------
    workers : dict, optional
        Specifications by name. Those that end by themselves are started again when the cluster is
        scaled or awaited.
    scheduler : dict, optional
        By default a `Scheduler` in this process.
    worker : dict, optional
        Of the workers that `scale` and `adapt` add.
    asynchronous : bool
        Work on the running event loop, with ``async with``.
    silence_logs : int or bool
        Lowest level of log lines that are shown; True for WARNING, False for INFO.
    name : str, optional
    shutdown_on_close : bool
        Whether it ends with this program at the latest.
    shutdown_scheduler : bool
        Whether the scheduler ends with the cluster.
    token, token_file, auth
        As for `Scheduler`; by default a fresh token.

    Attributes
    ----------
    scheduler : object
        What has been made of its specification.
    workers : dict
        Likewise, by name.
    worker_spec : dict
        Specifications by name, of those that there are to be.

    Examples
    --------
    >>> worker = {"cls": Nanny, "options": {"nthreads": 2}}
    >>> with SpecCluster(scheduler={"cls": Scheduler}, worker=worker) as cluster:
    ...     cluster.scale(2)
    ...     sorted(cluster.worker_spec)
    [0, 1]
    """

    def __init__(
        self,
        workers: Mapping[Any, Spec] | None = None,
        scheduler: Spec | None = None,
        worker: Spec | None = None,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        silence_logs: int | bool | str = False,
        name: str | None = None,
        shutdown_on_close: bool = True,
        shutdown_scheduler: bool = True,
        *,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
    ) -> None:
        super().__init__(name, asynchronous, loop, silence_logs)
        self.scheduler_spec: Spec = dict(scheduler or {"cls": Scheduler})
        self.worker_spec: dict[Any, Spec] = dict(workers or {})
        self.new_spec: Spec | None = None if worker is None else dict(worker)
        for spec in (self.scheduler_spec, *self.worker_spec.values(), self.new_spec):
            if spec is not None:
                _check(spec)
        self._ends_with_program, self.shutdown_scheduler = shutdown_on_close, shutdown_scheduler
        self.scheduler: Any = None
        self._token = settled_token(token, token_file, auth)
        self._token_file, self._folder = token_file, ""
        self._numbers = itertools.count()
        self._named = frozenset(self.worker_spec)
        self._members: dict[Any, tuple[str, ...]] = {}  # names of workers, by that of their process
        self._ending: set[Any] = set()  # of `workers`, those that are told to end
        self._begin()

    # -- What a derived class may change ----------------------------------------------------------

    def new_worker_spec(self) -> dict[Any, Spec]:
        """Name and specification of the next worker that `scale` or `adapt` adds."""
        if self.new_spec is None:
            raise ConfigError(
                f"{self.name} does not know what to add: give SpecCluster(worker={{'cls': ...}})"
            )
        names = map(self._new_worker_name, self._numbers)
        return {next(name for name in names if name not in self.worker_spec): self.new_spec}

    def _new_worker_name(self, worker_number: int) -> Any:
        """Name of a worker from its number; no number comes twice."""
        return worker_number

    # -- Life -------------------------------------------------------------------------------------

    async def _launch(self) -> None:
        cls, options = self._made_of(self.scheduler_spec)
        self.scheduler = scheduler = cls(**options)
        self._give_token_file(scheduler)
        await scheduler
        if isinstance(scheduler, Scheduler):
            self._access = SchedulerHere(scheduler)
        else:
            address = getattr(scheduler, "external_address", None) or scheduler.address
            place = SchedulerPlace(address, token=self._token, auth=self._token is not None)
            self._access = SchedulerThere(place, scheduler.address, self.name)
        await self._start_these(list(self.worker_spec))

    async def _end(self) -> None:
        workers, self.workers = list(self.workers.values()), {}
        await _close(workers, "the cluster ends")
        if isinstance(self._access, SchedulerThere):
            await self._access.close("the cluster ends")
        if self.scheduler is not None and self.shutdown_scheduler:
            await _close([self.scheduler], "the cluster ends")
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _started(self) -> None:
        is_first = self._starting is None
        await super()._started()
        if not is_first and self.status == "running":
            await self._correct_state()

    async def _correct_state(self) -> None:
        """Start and end processes until they are those of `worker_spec`."""
        assert self._scaling is not None
        async with self._scaling:
            self._forget_ended()
            await self._correct()

    async def _correct(self) -> None:
        unwanted = self.workers.keys() - self.worker_spec.keys() - self._ending
        await self._end_these(unwanted)
        there = self.workers.keys() | self._coming.keys()
        await self._start_these([name for name in self.worker_spec if name not in there])

    # -- More and fewer workers -------------------------------------------------------------------

    def _forget_ended(self) -> None:
        for name, process in list(self.workers.items()):
            if getattr(process, "status", "") in _ENDED:  # it gave up, or was told to end
                del self.workers[name]
                self._unspecify([name])

    async def _scale_to(self, n: int) -> None:
        assert self._scaling is not None
        if self._closing is not None:
            raise LaunchError(f"{self.name} is closed, and cannot have {n} workers; make a new one")
        async with self._scaling:
            self._forget_ended()
            while len(self.worker_spec) < n:
                self.worker_spec.update(self.new_worker_spec())
            for name in list(self.worker_spec)[n:]:
                del self.worker_spec[name]
            await self._correct()

    async def _start_workers(self, n: int) -> None:
        there = self.workers.keys() | self._coming.keys()
        names = [name for name in self.worker_spec if name not in there][:n]
        while len(names) < n:
            new = self.new_worker_spec()
            self.worker_spec.update(new)
            names.extend(new)
        await self._start_these(names)

    async def _start_these(self, names: Collection[Any]) -> None:
        """Start those of `worker_spec` with these names; raise after all have been tried."""
        new: dict[Any, Any] = {}
        try:
            for name in names:
                new[name] = self._new_process(name, self.worker_spec[name])
        except BaseException:
            self._unspecify(names)
            raise
        n_then = len(self.workers) + len(self._coming) + len(new)
        descriptors.raise_limit(descriptors.SPARE + _DESCRIPTORS * n_then)
        self._coming.update(dict.fromkeys(new, 0))
        try:
            outcomes = await asyncio.gather(*map(_start, new.values()), return_exceptions=True)
        except asyncio.CancelledError:  # some may have started by now, and nobody would know
            self._unspecify(new)
            await _close(new.values(), "nobody waits for it")
            raise
        finally:
            for name in new:
                del self._coming[name]
        failed = {n: o for n, o in zip(new, outcomes, strict=True) if isinstance(o, BaseException)}
        self.workers.update({name: new[name] for name in new if name not in failed})
        self._unspecify(failed)
        for outcome in failed.values():
            raise outcome

    def _unspecify(self, names: Iterable[Any]) -> None:
        """Let these not be wanted any more; but those that the user has named always are."""
        for name in names:
            if name not in self._named:
                self.worker_spec.pop(name, None)

    def _new_process(self, name: Any, spec: Spec) -> Any:
        cls, options = self._made_of(spec)
        options.setdefault("name", str(name) if issubclass(cls, Service) else name)
        process = cls(self._scheduler_for(cls), **options)
        self._give_token_file(process)
        self._members[name] = tuple(f"{options['name']}{end}" for end in spec.get("group", ("",)))
        return process

    def _scheduler_for(self, cls: type) -> str:
        """Address of the scheduler for a worker of this class."""
        scheduler = self.scheduler
        return str(getattr(scheduler, "contact_address", None) or scheduler.address)

    def _made_of(self, spec: Spec) -> tuple[type[Any], dict[str, Any]]:
        cls, options = find_class(spec["cls"]), dict(spec.get("options") or {})
        if issubclass(cls, Service) and not options.keys() & {"token", "token_file", "auth"}:
            options.update({"auth": False} if self._token is None else {"token": self._token})
        if issubclass(cls, Nanny):
            options.setdefault("log_level", self._log_level)
        return cls, options

    def _give_token_file(self, process: Any) -> None:
        """Tell a process of another's class where the token is; it is never in its arguments."""
        if not isinstance(process, ProcessInterface) or self._token is None:
            return
        if self._token_file is None:
            self._folder = tempfile.mkdtemp(prefix="hpcdask-spec-")  # 0700
            self._token_file = str(Path(self._folder, "token"))
            replace_private(self._token_file, self._token.hex() + "\n")
        process.token_file = self._token_file

    async def _retire_workers(
        self, names: Collection[Any], timeout: float = RETIREMENT, patience: float | None = PATIENCE
    ) -> None:
        for name in names:
            self.worker_spec.pop(name, None)
        await self._end_these(names, timeout, patience)

    async def _end_these(
        self, names: Collection[Any], timeout: float = RETIREMENT, patience: float | None = PATIENCE
    ) -> None:
        if not names:
            return
        members = [member for name in names for member in self._members_of(name)]
        self._ending.update(names)
        try:
            await self._scheduler.retire(members, timeout, patience)
        finally:
            self._ending.difference_update(names)
        gone = {name: self.workers.pop(name, None) for name in names}
        await _close((process for process in gone.values() if process is not None), "scaled down")

    def _members_of(self, name: Any) -> tuple[str, ...]:
        return self._members[name]

    def _worker_shape(self) -> UnitShape:
        spec = self.new_spec or {}
        options, n = spec.get("options") or {}, len(spec.get("group", ("",)))
        threads = next((options[name] for name in _THREADS if options.get(name)), 0)
        memory = next((options[name] for name in _MEMORY if options.get(name)), None)
        return UnitShape(
            n_workers=n,
            nthreads=n * int(threads),
            memory=n * given_memory(memory),
            resources=checked_resources(options.get("resources")),
        )


def _check(spec: Spec) -> None:
    if not isinstance(spec, Mapping) or "cls" not in spec:
        raise ConfigError(
            f"{spec!r:.200} specifies nothing that could be started; give "
            "{'cls': Nanny, 'options': {...}}"
        )
    if unknown := sorted(map(str, spec.keys() - {"cls", "options", "group"})):
        raise ConfigError(f"a specification has 'cls', 'options' and 'group', not {unknown}")
    if isinstance(spec.get("group", ()), str) or not spec.get("group", ("",)):
        raise ConfigError("the 'group' of a specification is a list of suffixes: ['-0', '-1']")
    find_class(spec["cls"])


async def _start(process: Any) -> None:
    await process


async def _close(processes: Iterable[Any], reason: str) -> None:
    """Close all, also if one of them cannot be."""
    closing = [p.close(reason) if isinstance(p, Service) else p.close() for p in processes]
    for outcome in await asyncio.gather(*closing, return_exceptions=True):
        if isinstance(outcome, BaseException):
            log.error("a process of a SpecCluster could not be closed", exc_info=outcome)
