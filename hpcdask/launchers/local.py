"""A cluster on this machine: a scheduler in this process, workers in others or in threads."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import itertools
import logging
import math
import os
import time
import uuid
import weakref
from collections.abc import Generator, Iterable
from typing import Any

from hpcdask import host as hosts
from hpcdask import logs
from hpcdask.calls import call
from hpcdask.client.client import Client
from hpcdask.client.connection import close_all
from hpcdask.client.loop import is_in_loop, run_sync, shared_loop
from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError, LaunchError, WaitTimeoutError
from hpcdask.messages import TaskError
from hpcdask.nanny import Nanny
from hpcdask.rendezvous import new_token
from hpcdask.scheduler import Scheduler
from hpcdask.wire.serialize import dumps, loads
from hpcdask.worker import Worker

_clusters: weakref.WeakSet[LocalCluster] = weakref.WeakSet()
#: Seconds that the end of a cluster may take.
_ENDING = 30.0
#: Seconds that workers have to hand over what only they hold when the cluster is scaled down, and
#: before that to end what they run.
_RETIREMENT, _PATIENCE = 30.0, 0.5


class LocalCluster:
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
    scheduler_port : int
        0 for any free one.
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
        scheduler_port: int | str = 0,
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
        if isinstance(dashboard_address, str) and dashboard_address not in ("", ":0"):
            raise ConfigError("this version has no dashboard; leave dashboard_address out")
        self.name = name or f"LocalCluster-{uuid.uuid4().hex[:8]}"
        self._asynchronous = asynchronous
        self.processes = processes if nanny is None else nanny
        self.status = "created"
        self.workers: dict[str, Nanny | Worker] = {}
        self._n_workers, self.threads_per_worker = default_shape(n_workers, threads_per_worker)
        nworkers = max(self._n_workers, 1)
        self._memory_limit = hosts.resolve_memory_limit(
            memory_limit, self.threads_per_worker, nworkers
        )
        self._token = token if token is not None else new_token()
        self._local_directory = local_directory
        self._worker_kwargs = worker_kwargs
        # As a program that gives True means it: silence.
        self._log_level: int | str = logging.WARNING if silence_logs is True else silence_logs
        if silence_logs is False:
            self._log_level = logging.INFO
        if not logging.getLogger("hpcdask").handlers:
            logs.configure(self._log_level)
        _check_options(worker_kwargs)
        self._scheduler_options: dict[str, Any] = {
            "host": None if interface else host or "127.0.0.1",
            "port": scheduler_port,
            "interface": interface,
            "token": self._token,
            "protocol": "tcp" if self.processes or interface or host else "inproc",
            **(scheduler_kwargs or {}),
        }
        self._host, self._interface = host or "127.0.0.1", interface
        self._numbers = itertools.count()  # names of workers; none is given twice
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._scaling: asyncio.Lock | None = None
        if asynchronous:
            self.loop = loop or asyncio.get_running_loop()
        else:
            self.loop = loop or shared_loop()
            if is_in_loop(self.loop):  # a client makes it there, and awaits it
                _clusters.add(self)
                return
            try:
                run_sync(self.loop, self._started())
            except BaseException:  # Ctrl-C, say: what has been started until then must end
                if self.loop.is_running():
                    run_sync(self.loop, self._close(), _ENDING)
                raise
        _clusters.add(self)

    @property
    def asynchronous(self) -> bool:
        """Whether methods return awaitables: if it was made so, or when called on its loop."""
        return self._asynchronous or is_in_loop(self.loop)

    # -- Life -------------------------------------------------------------------------------------

    async def _started(self) -> None:
        """Start once; may be awaited again."""
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        self.status = "starting"
        self._scaling = asyncio.Lock()
        self.scheduler = Scheduler(**self._scheduler_options)
        try:
            await self.scheduler
            await self._scale_to(self._n_workers)
        except BaseException:
            await self._end()
            self.status = "failed"
            raise
        self.status = "running"

    async def _scale_to(self, n: int) -> None:
        assert self._scaling is not None
        if self._closing is not None:
            raise LaunchError(f"{self.name} is closed, and cannot have {n} workers; make a new one")
        async with self._scaling:
            for name, worker in list(self.workers.items()):
                if worker.status in ("closed", "failed"):  # it gave up, or was told to end
                    del self.workers[name]
            new = [self._new_worker() for _ in range(n - len(self.workers))]
            started = await asyncio.gather(*(w.start() for w in new), return_exceptions=True)
            for worker, outcome in zip(new, started, strict=True):
                if not isinstance(outcome, BaseException):
                    self.workers[str(worker.name)] = worker
            for outcome in started:
                if isinstance(outcome, BaseException):
                    raise outcome
            surplus = list(self.workers)[n:]
            addresses = [_worker_address(self.workers[name]) for name in surplus]
            await self.scheduler.retire(addresses, _RETIREMENT, _PATIENCE)
            closing = [self.workers.pop(name).close("scaled down") for name in surplus]
            await asyncio.gather(*closing)

    def _new_worker(self) -> Nanny | Worker:
        options: dict[str, Any] = {
            "nthreads": self.threads_per_worker,
            "name": str(next(self._numbers)),
            "memory_limit": self._memory_limit,
            "local_directory": self._local_directory,
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

    async def _close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close_once())
        await asyncio.shield(self._closing)

    async def _close_once(self) -> None:
        self.status = "closing"
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        await self._end()

    async def _end(self) -> None:
        workers, self.workers = list(self.workers.values()), {}
        await asyncio.gather(*(w.close("the cluster ends") for w in workers))
        if hasattr(self, "scheduler"):
            await self.scheduler.close("the cluster ends")
        self.status = "closed"

    def close(self, timeout: float | str | None = None) -> Any:
        """End all workers and the scheduler."""
        if self.asynchronous:
            return self._close()
        if self.status in ("closed", "created"):
            return None
        limit = _ENDING if timeout is None else hosts.parse_timedelta(timeout)
        return run_sync(self.loop, self._close(), limit)

    def __enter__(self) -> LocalCluster:
        if self.asynchronous:
            raise TypeError("an asynchronous cluster needs 'async with'")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __await__(self) -> Generator[Any, Any, LocalCluster]:
        async def started() -> LocalCluster:
            await self._started()
            return self

        return started().__await__()

    async def __aenter__(self) -> LocalCluster:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    # -- For users --------------------------------------------------------------------------------

    @property
    def scheduler_address(self) -> str:
        """Address of the scheduler."""
        scheduler = getattr(self, "scheduler", None)
        return "" if scheduler is None else scheduler.address

    @property
    def place(self) -> SchedulerPlace:
        """How a client of this process reaches it: without the detour through a socket."""
        return SchedulerPlace(self.scheduler.inproc_address, token=self._token)

    @property
    def dashboard_link(self) -> str:
        """Empty: there is no dashboard yet."""
        return ""

    def get_client(self) -> Client:
        """Return a new client of this cluster."""
        return Client(self, asynchronous=self.asynchronous)

    def scale(self, n: int, timeout: float | str | None = None) -> Any:
        """Have `n` workers; returns when they have registered, or are gone.

        Those that go are the youngest; values that only they hold are computed again.
        """
        if n < 0:
            raise ValueError(f"a cluster cannot have {n} workers")
        return self._maybe_sync(self._scale_to(n), timeout)

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> Any:
        """Wait until so many workers have registered."""
        limit = None if timeout is None else hosts.parse_timedelta(timeout)

        async def work() -> None:
            seconds = math.inf if limit is None else limit
            deadline = time.monotonic() + seconds
            left = seconds
            while left >= 0:
                if await self.scheduler.members.until(
                    lambda: len(self.scheduler.workers) >= n_workers, min(left, 5.0)
                ):
                    return
                left = deadline - time.monotonic()
            raise WaitTimeoutError(
                f"{len(self.scheduler.workers)} of {n_workers} workers have registered "
                f"within {limit:g} s"
            )

        return self._maybe_sync(work())

    def get_logs(
        self,
        cluster: bool = True,
        scheduler: bool = True,
        workers: bool | Iterable[str] = True,
        timeout: float | str | None = None,
    ) -> Any:
        """Last log lines.

        Returns
        -------
        dict of str to str
            "Cluster" and "Scheduler" (which share this process), and an entry for each worker's
            address.
        """

        async def work() -> dict[str, str]:
            own = "\n".join(line for _, line in logs.recent())
            result = {}
            if cluster:
                result["Cluster"] = own
            if scheduler:
                result["Scheduler"] = own
            if workers:
                names = () if workers is True else tuple(workers)
                result.update(await self._worker_logs(names))
            return result

        return self._maybe_sync(work(), timeout)

    async def _worker_logs(self, names: tuple[str, ...]) -> dict[str, str]:
        function = dumps((logs.recent, (), {}))
        result = {}
        for worker in self.scheduler.state.find_workers(names):
            if not self.processes:
                answer: Any = await call(function, worker.address, {}, threaded=False)
            else:
                answer = await self.scheduler.requests.call_worker(worker.address, function)
            if type(answer) is not TaskError:
                result[worker.address] = "\n".join(line for _, line in loads(answer))
        return result

    def _maybe_sync(self, work: Any, timeout: float | str | None = None) -> Any:
        limit = None if timeout is None else hosts.parse_timedelta(timeout)
        if self.asynchronous:
            return work if limit is None else asyncio.wait_for(work, limit)
        return run_sync(self.loop, work, limit)

    def __repr__(self) -> str:
        nthreads = sum(worker.nthreads for worker in self.workers.values())
        return (
            f"LocalCluster({self.name}, {self.scheduler_address!r}, workers={len(self.workers)}, "
            f"threads={nthreads}, {self.status})"
        )


def _check_options(options: dict[str, Any]) -> None:
    """Refuse what neither `Worker` nor `Nanny` takes, before a worker process dies of it."""
    known = inspect.signature(Worker).parameters.keys() | inspect.signature(Nanny).parameters.keys()
    unknown = sorted(options.keys() - known)
    if unknown:
        raise TypeError(f"neither LocalCluster nor its workers have an option {', '.join(unknown)}")


def default_shape(n_workers: int | None, nthreads: int | None) -> tuple[int, int]:
    """Numbers of workers and of threads of each, for the CPUs that this process may use."""
    if (n_workers or 0) < 0 or (nthreads or 0) < 0:
        raise ConfigError(f"a cluster cannot have {n_workers} workers of {nthreads} threads")
    cpus = hosts.cpu_count()
    if n_workers is None and nthreads is None:
        # About the square root, so that neither the GIL nor copies between processes dominate.
        n_workers = cpus if cpus <= 4 else max(n for n in range(1, cpus + 1) if n * n <= cpus)
        return n_workers, max(cpus // n_workers, 1)
    if n_workers is None:
        assert nthreads is not None
        return max(cpus // nthreads, 1), nthreads
    return n_workers, nthreads or max(cpus // max(n_workers, 1), 1)


def _worker_address(worker: Nanny | Worker) -> str:
    return worker.worker_address if isinstance(worker, Nanny) else worker.address


@atexit.register
def _close_all() -> None:
    """Let no cluster outlive the program that made it."""
    close_all()  # first, or they would complain that the scheduler is gone
    for cluster in list(_clusters):
        if cluster.status == "running" and not cluster._asynchronous:
            with contextlib.suppress(Exception):
                cluster.close(timeout=10)


os.register_at_fork(after_in_child=_clusters.clear)  # they are the parent's
