"""A cluster on this machine: a scheduler in this process, workers in others or in threads."""

from __future__ import annotations

import asyncio
import inspect
import logging
import warnings
from collections.abc import Iterable
from typing import Any

from hpcdask import sizing
from hpcdask.client.place import OF_CLUSTERS, with_meaning
from hpcdask.launchers.shape import default_shape
from hpcdask.launchers.spec import SpecCluster
from hpcdask.launchers.units import UnitShape
from hpcdask.nanny import Nanny
from hpcdask.scheduler import Scheduler
from hpcdask.worker import Worker


class LocalCluster(SpecCluster):
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
    dashboard_address : str or int, optional
        There is no dashboard yet, of which programs that ask for one are warned.
    token : bytes, optional
        A fresh one by default: only this process's clients can connect.
    scheduler_kwargs : dict, optional
        Further parameters of `Scheduler`.
    nanny : bool, optional
        Another name of `processes`.
    **worker_kwargs
        Further parameters of `Worker` or `Nanny`. Those that mean something to distributed alone,
        such as ``security=None``, are accepted.

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
        dashboard_address: str | int | None = None,
        token: bytes | str | None = None,
        scheduler_kwargs: dict[str, Any] | None = None,
        nanny: bool | None = None,
        **worker_kwargs: Any,
    ) -> None:
        if dashboard_address not in (None, "", ":0"):
            ignored = f"dashboard_address={dashboard_address!r} means nothing"
            warnings.warn(f"this version has no dashboard: {ignored}", stacklevel=2)
        worker_kwargs = with_meaning(worker_kwargs, OF_CLUSTERS)
        check_worker_options(worker_kwargs, type(self).__name__)
        self.processes = processes if nanny is None else nanny
        self._n_workers, self.threads_per_worker = default_shape(n_workers, threads_per_worker)
        sharing = sizing.Sharing.here(max(self._n_workers, 1))
        self._size = sizing.size_worker(self.threads_per_worker, memory_limit, sharing)
        # Ports are configured for what others can reach.
        port = None if interface or host else 0
        scheduler = {
            "host": None if interface else host or "127.0.0.1",
            "port": port if scheduler_port is None else scheduler_port,
            "interface": interface,
            "protocol": "tcp" if self.processes or interface or host else "inproc",
        }
        options: dict[str, Any] = {
            "nthreads": self.threads_per_worker,
            "memory_limit": memory_limit,
            "sharing": sharing,
            "local_directory": local_directory,
            "port": port,
            "reconnect_timeout": 0,  # a lost scheduler is lost for good: it is in this process
        }
        if not self.processes:
            options["protocol"] = "inproc"
        elif interface:
            options["interface"] = interface
        else:
            options["host"] = host or "127.0.0.1"
        super().__init__(
            scheduler={"cls": Scheduler, "options": {**scheduler, **(scheduler_kwargs or {})}},
            worker={
                "cls": Nanny if self.processes else Worker,
                "options": {**options, **worker_kwargs},
            },
            asynchronous=asynchronous,
            loop=loop,
            silence_logs=silence_logs,
            name=name,
            token=token,
        )

    def __repr__(self) -> str:
        state = getattr(self.scheduler, "state", None)  # none before it is started
        workers = () if state is None else tuple(state.workers.values())
        return (
            f"{type(self).__name__}({self.name}, {self.scheduler_address!r}, "
            f"workers={len(workers)}, threads={sum(w.info.nthreads for w in workers)}, "
            f"{self.status})"
        )

    @property
    def scheduler_info(self) -> dict[str, Any]:
        """What `Client.scheduler_info` tells, by now; empty before there is a scheduler."""
        return {} if self.scheduler is None else self.scheduler.identity()

    async def _launch(self) -> None:
        await super()._launch()
        await self._scale_to(self._n_workers)

    def _new_worker_name(self, worker_number: int) -> str:
        return str(worker_number)

    def _scheduler_for(self, cls: type) -> str:
        return str(self.scheduler.address if self.processes else self.scheduler.inproc_address)

    def _worker_shape(self) -> UnitShape:
        return UnitShape(
            nthreads=self._size.nthreads,
            memory=self._size.memory_limit,
            resources=super()._worker_shape().resources,
        )


def check_worker_options(options: Iterable[str], kind: str) -> None:
    """Refuse what neither `Worker` nor `Nanny` takes, before a worker process dies of it."""
    known = inspect.signature(Worker).parameters.keys() | inspect.signature(Nanny).parameters.keys()
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"neither {kind} nor its workers have an option {', '.join(unknown)}")
