"""A cluster on this machine: a scheduler in this process, workers in others or in threads."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections.abc import Collection, Iterable
from typing import Any

from hpcdask import descriptors, sizing
from hpcdask.launchers.cluster import PATIENCE, RETIREMENT, Cluster, refuse_dashboard
from hpcdask.launchers.scheduler_access import SchedulerHere
from hpcdask.launchers.shape import default_shape
from hpcdask.launchers.units import UnitShape
from hpcdask.nanny import Nanny
from hpcdask.rendezvous import new_token
from hpcdask.resources import checked_resources
from hpcdask.scheduler import Scheduler
from hpcdask.worker import Worker

#: Of this process, per worker: connections of the scheduler with it and with its nanny, the other
#: end of that, pipes, and what watches its end.
_DESCRIPTORS = 8


class LocalCluster(Cluster):
    """Scheduler and workers on this machine.

    Parameters
    ----------
    n_workers : int, optional
        By default as many as fit the CPUs of this process with `threads_per_worker` each.
    threads_per_worker : int, optional
        By default the CPUs are split into about as many workers as threads each.
    processes : bool
        Workers in processes with nannies, or as threads of this one.
    memory_limit : str, int or float
        Per worker: "auto" (an equal share), bytes, "4 GiB", a fraction, or 0 for none.
    host : str, optional
        Address to listen on; 127.0.0.1 by default.
    scheduler_port : int or str, optional
        0 for any free one, which is the default unless others can join.
    interface : str, optional
        Network interface to listen on, so that others can join.
    name : str, optional
    asynchronous : bool
        Work on the running event loop, with ``async with``.
    silence_logs : int or False
        Lowest level of log lines that are shown; WARNING by default.
    local_directory : str, optional
        Where workers make their scratch folders.
    dashboard_address : None
        There is no dashboard yet; given for programs that switch it off.
    token : bytes, optional
        A fresh one by default: only this process's clients can connect.
    scheduler_kwargs : dict, optional
        Further parameters of `Scheduler`.
    nanny : bool, optional
        Another name of `processes`.
    **worker_kwargs
        Further parameters of `Worker` or `Nanny`.

    Examples
    --------
    >>> with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
    ...     with Client(cluster) as client:
    ...         client.submit(sum, [1, 2]).result()
    3
    """

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        processes: bool = True,
        *,
        memory_limit: str | float | None = "auto",
        host: str | None = None,
        scheduler_port: int | str | None = None,
        interface: str | None = None,
        name: str | None = None,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        silence_logs: int | bool | str = logging.WARNING,
        local_directory: str | None = None,
        dashboard_address: str | None = None,
        token: bytes | str | None = None,
        scheduler_kwargs: dict[str, Any] | None = None,
        nanny: bool | None = None,
        **worker_kwargs: Any,
    ) -> None:
        refuse_dashboard({"dashboard_address": dashboard_address})
        super().__init__(name, asynchronous, loop, silence_logs)
        self.processes = processes if nanny is None else nanny
        self._n_workers, self.threads_per_worker = default_shape(n_workers, threads_per_worker)
        self._sharing = sizing.Sharing.here(max(self._n_workers, 1))
        self._memory_limit = memory_limit
        self._size = sizing.size_worker(self.threads_per_worker, memory_limit, self._sharing)
        self._token = token if token is not None else new_token()
        self._local_directory = local_directory
        self._worker_kwargs = worker_kwargs
        check_worker_options(worker_kwargs, type(self).__name__)
        # Ports are configured for what others can reach.
        self._port = None if interface or host else 0
        self._scheduler_options: dict[str, Any] = {
            "host": None if interface else host or "127.0.0.1",
            "port": self._port if scheduler_port is None else scheduler_port,
            "interface": interface,
            "token": self._token,
            "protocol": "tcp" if self.processes or interface or host else "inproc",
            **(scheduler_kwargs or {}),
        }
        self._host, self._interface = host or "127.0.0.1", interface
        self._numbers = itertools.count()  # names of workers; none is given twice
        self._begin()

    # -- Life -------------------------------------------------------------------------------------

    async def _launch(self) -> None:
        self.scheduler = Scheduler(**self._scheduler_options)
        self._access = SchedulerHere(self.scheduler)
        await self._access.start()
        await self._scale_to(self._n_workers)

    async def _end(self) -> None:
        workers, self.workers = list(self.workers.values()), {}
        await asyncio.gather(*(w.close("the cluster ends") for w in workers))
        if self._access is not None:
            await self._access.close("the cluster ends")

    def _forget_ended(self) -> None:
        for name, worker in list(self.workers.items()):
            if worker.status in ("closed", "failed"):  # it gave up, or was told to end
                del self.workers[name]

    async def _start_workers(self, n: int) -> None:
        n_then = len(self.workers) + len(self._coming) + n
        descriptors.raise_limit(descriptors.SPARE + _DESCRIPTORS * n_then)
        new = [self._new_worker() for _ in range(n)]
        names = [str(worker.name) for worker in new]
        self._coming.update(dict.fromkeys(names, 0))
        try:
            started = await asyncio.gather(*(w.start() for w in new), return_exceptions=True)
        except asyncio.CancelledError:  # some may have started by now, and nobody would know
            await asyncio.gather(*(w.close("nobody waits for it") for w in new))
            raise
        finally:
            for name in names:
                del self._coming[name]
        for name, worker, outcome in zip(names, new, started, strict=True):
            if not isinstance(outcome, BaseException):
                self.workers[name] = worker
        for outcome in started:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _retire_workers(
        self, names: Collection[str], timeout: float = RETIREMENT, patience: float | None = PATIENCE
    ) -> None:
        addresses = [_worker_address(self.workers[name]) for name in names]
        await self._scheduler.retire(addresses, timeout, patience)
        retired = [self.workers.pop(name, None) for name in names]
        await asyncio.gather(*(w.close("scaled down") for w in retired if w is not None))

    def _new_worker(self) -> Nanny | Worker:
        options: dict[str, Any] = {
            "nthreads": self.threads_per_worker,
            "name": str(next(self._numbers)),
            "memory_limit": self._memory_limit,
            "sharing": self._sharing,
            "local_directory": self._local_directory,
            "port": self._port,
            "token": self._token,
            "reconnect_timeout": 0,  # a lost scheduler is lost for good: it is in this process
            **self._worker_kwargs,
        }
        if not self.processes:
            return Worker(self.scheduler.inproc_address, protocol="inproc", **options)
        if self._interface:
            options["interface"] = self._interface
        else:
            options["host"] = self._host
        return Nanny(self.scheduler.address, log_level=self._log_level, **options)

    def _worker_shape(self) -> UnitShape:
        return UnitShape(
            nthreads=self._size.nthreads,
            memory=self._size.memory_limit,
            resources=checked_resources(self._worker_kwargs.get("resources")),
        )


def check_worker_options(options: Iterable[str], kind: str) -> None:
    """Refuse what neither `Worker` nor `Nanny` takes, before a worker process dies of it."""
    known = inspect.signature(Worker).parameters.keys() | inspect.signature(Nanny).parameters.keys()
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"neither {kind} nor its workers have an option {', '.join(unknown)}")


def _worker_address(worker: Nanny | Worker) -> str:
    return worker.worker_address if isinstance(worker, Nanny) else worker.address
