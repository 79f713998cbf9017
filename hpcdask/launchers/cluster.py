"""What clusters of every kind have in common: a life on an event loop, and methods for users."""

from __future__ import annotations

import abc
import asyncio
import atexit
import contextlib
import logging
import math
import os
import secrets
import signal
import weakref
from collections.abc import Callable, Collection, Coroutine, Generator, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from hpcdask import host as hosts
from hpcdask import logs
from hpcdask.client.client import Client
from hpcdask.client.loop import is_in_loop, is_of_parent, run_sync, shared_loop
from hpcdask.client.registry import close_all, clusters
from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError, LaunchError
from hpcdask.launchers.scheduler_access import SchedulerAccess, as_text
from hpcdask.launchers.units import Units, UnitShape, WorkerUnits, bounds
from hpcdask.rendezvous import new_token, resolve_token

if TYPE_CHECKING:  # few clusters adapt
    from hpcdask.launchers.adaptive import Adaptive as _Adaptive
    from hpcdask.launchers.stock import Assumed, Stock

_clusters: weakref.WeakSet[Cluster] = weakref.WeakSet()
#: Seconds that the end of a cluster may take.
ENDING = 30.0
#: Seconds that workers have to hand over what only they hold when the cluster is scaled down, and
#: before that to end what they run.
RETIREMENT, PATIENCE = 30.0, 0.5

Self = TypeVar("Self", bound="Cluster")


class Cluster(abc.ABC):
    """A scheduler and workers that live as long as this object is open.

    A constructor stores what it is given, and calls `_begin` last.

    Attributes
    ----------
    name : str
    status : str
        "created", "starting", "running", "closing", "closed" or "failed"; "detached" of one that is
        left running.
    workers : dict
        By name, those that have registered.
    """

    workers: dict[Any, Any]

    def __init__(
        self,
        name: str | None,
        asynchronous: bool,
        loop: asyncio.AbstractEventLoop | None,
        silence_logs: int | bool | str,
    ) -> None:
        self.name = name or f"{type(self).__name__}-{secrets.token_hex(4)}"
        self._asynchronous = asynchronous
        self.status = "created"
        self.workers = {}
        #: Workers that are being started, by name, each with the position of its host.
        self._coming: dict[Any, int] = {}
        # As a program that gives True means it: silence.
        self._log_level: int | str = logging.WARNING if silence_logs is True else silence_logs
        if silence_logs is False:
            self._log_level = logging.INFO
        if not logging.getLogger("hpcdask").handlers:
            logs.configure(self._log_level)
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._scaling: asyncio.Lock | None = None
        #: By pool; most clusters have one, without a name.
        self._adaptives: dict[str, _Adaptive] = {}
        #: Set by `_launch`.
        self._access: SchedulerAccess | None = None
        self._ends_with_program = True
        clusters.add(self)
        if asynchronous:
            self.loop = loop or asyncio.get_running_loop()
        else:
            self.loop = loop or shared_loop()

    def _begin(self) -> None:
        """Start, unless that is to be awaited: it is asynchronous, or a client makes it."""
        if self._ends_with_program:
            _clusters.add(self)
        if not self.asynchronous:
            try:
                run_sync(self.loop, self._started())
            except BaseException:  # Ctrl-C, say: what has been started until then must end
                if self.loop.is_running():
                    run_sync(self.loop, self._close(), ENDING)
                raise

    @property
    def asynchronous(self) -> bool:
        """Whether methods return awaitables: if it was made so, or when called on its loop."""
        return self._asynchronous or is_in_loop(self.loop)

    # -- What kinds differ in ---------------------------------------------------------------------

    @abc.abstractmethod
    async def _launch(self) -> None:
        """Start the scheduler and the first workers."""

    @abc.abstractmethod
    async def _end(self) -> None:
        """End all that `_launch` and others may have started, in whatever state it is."""

    @abc.abstractmethod
    async def _start_workers(self, n: int) -> None:
        """Start `n` more workers; raise if one of them cannot, after the others have."""

    @abc.abstractmethod
    async def _retire_workers(
        self, names: Collection[str], timeout: float = RETIREMENT, patience: float | None = PATIENCE
    ) -> None:
        """Let workers hand over what only they hold, and end them; as `Scheduler.retire`."""

    @abc.abstractmethod
    def _worker_shape(self) -> UnitShape:
        """What one more worker brings, as far as that is known before it is there."""

    def _pool_called(self, name: str | None) -> str:
        """The pool that a user means; none is the first."""
        if name:
            raise ConfigError(f"a {type(self).__name__} has no pools; leave pool={name!r} out")
        return ""

    def _units(self, pool: str) -> Units:
        """What `adapt` may start and end in a pool; by default single workers."""
        return WorkerUnits(self)

    def _members_of(self, name: Any) -> tuple[str, ...]:
        """The scheduler's names of the workers of an entry of `workers`, there or coming."""
        return (name,)

    def _forget_ended(self) -> None:  # noqa: B027 - not every kind has to look
        """Drop from `workers` those that have ended by themselves."""

    def _surplus(self, n: int) -> list[str]:
        """Names of the `n` workers to end: the youngest."""
        return list(self.workers)[len(self.workers) - n :] if n > 0 else []

    # -- The scheduler ----------------------------------------------------------------------------

    @property
    def _scheduler(self) -> SchedulerAccess:
        if self._access is None:
            raise LaunchError(f"{self.name} has no scheduler: it is {self.status}")
        return self._access

    @property
    def scheduler_address(self) -> str:
        """Address of the scheduler; empty until it has one."""
        return "" if self._access is None else self._access.address

    @property
    def place(self) -> SchedulerPlace:
        """How a client of this process reaches the scheduler."""
        return self._scheduler.place

    async def _take_stock(
        self,
        assumed: Assumed | None = None,
        worker_key: Callable[[Any], Hashable] | None = None,
    ) -> Stock:
        """What there is to do, and who does it; parameters as of `take_stock`."""
        from hpcdask.launchers.stock import take_stock

        stock: Stock = await self._scheduler.run(take_stock, assumed=assumed, worker_key=worker_key)
        return stock

    async def _until_registered(self, n_workers: int, limit: float | None) -> None:
        """Wait for workers; `WaitTimeoutError` if they do not come within `limit` seconds."""
        await self._scheduler.until_registered(n_workers, limit)

    # -- Life -------------------------------------------------------------------------------------

    async def _started(self) -> None:
        """Start once; may be awaited again."""
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        self.status = "starting"
        self._scaling = asyncio.Lock()
        try:
            await self._launch()
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
            self._forget_ended()
            missing = n - len(self.workers)
            if missing > 0:
                await self._start_workers(missing)
            elif missing < 0:
                await self._retire_workers(self._surplus(-missing))

    async def _adapt_no_more(self, pool: str) -> None:
        adaptive = self._adaptives.pop(pool, None)
        if adaptive is not None:
            await adaptive.stopped()

    async def _close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close_once())
        await asyncio.shield(self._closing)

    async def _close_for_good(self) -> None:
        """As `_close`, also of a cluster that can be left running."""
        await self._close()

    async def _close_once(self) -> None:
        self.status = "closing"
        for adaptive in list(self._adaptives.values()):
            await adaptive.stopped()
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        await self._end()
        self.status = "closed"

    def close(self, timeout: float | str | None = None) -> Any:
        """End all workers and the scheduler."""
        if self.asynchronous:
            return self._close()
        if self.status in ("closed", "created", "detached") or is_of_parent(self.loop):
            return None
        limit = ENDING if timeout is None else hosts.parse_timedelta(timeout)
        return run_sync(self.loop, self._close(), limit)

    def __enter__(self: Self) -> Self:
        if self.asynchronous:
            raise TypeError("an asynchronous cluster needs 'async with'")
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
    def dashboard_link(self) -> None:
        """None: there is no dashboard yet."""
        return None

    def get_client(self) -> Client:
        """Return a new client of this cluster."""
        return Client(self, asynchronous=self.asynchronous)

    def scale(
        self,
        n: int = 0,
        memory: float | str | None = None,
        cores: int | None = None,
        timeout: float | str | None = None,
    ) -> Any:
        """Have `n` workers; returns when they have registered, or are gone.

        Those that go are the youngest; values that only they hold are computed again. What `adapt`
        has begun ends.

        Parameters
        ----------
        n : int
            Workers; in a `SpecCluster` what is specified as one.
        memory : int or str, optional
            As many at least as have so much by their limits: bytes, or as "100 GiB".
        cores : int, optional
            As many at least as have so many threads.
        timeout : float or str, optional
            Seconds.
        """
        if n < 0:
            raise ValueError(f"a cluster cannot have {n} workers")
        nbytes = None if memory is None else hosts.parse_bytes(memory)
        least = _given({"jobs": n, "memory": nbytes, "cores": cores})
        n_units = bounds(self._worker_shape(), least, {}).least

        async def work() -> None:
            await self._adapt_no_more("")
            await self._scale_to(n_units)

        return self._maybe_sync(work(), timeout)

    def adapt(
        self,
        minimum: int = 0,
        maximum: float = math.inf,
        *,
        pool: str | None = None,
        minimum_jobs: int | None = None,
        maximum_jobs: int | None = None,
        minimum_cores: int | None = None,
        maximum_cores: int | None = None,
        minimum_memory: float | str | None = None,
        maximum_memory: float | str | None = None,
        interval: float | str = "1s",
        target_duration: float | str | None = None,
        wait_count: int = 3,
        keep_idle: float | str | None = None,
        worker_key: Callable[[Any], Hashable] | None = None,
        Adaptive: type[_Adaptive] | None = None,
        **options: Any,
    ) -> _Adaptive:
        """From now on, have as many workers as the work is worth.

        Workers are added at once when there is more to do, and end when they have had nothing to
        do for a while. What only they hold moves to others first, or they stay. `scale` ends it.

        Of several bounds the stricter counts. Where workers are in jobs of several, jobs are what
        starts and ends; elsewhere each worker is a job of its own.

        Parameters
        ----------
        minimum, maximum : int
            Fewest and most workers.
        pool : str, optional
            Which kind of job, where the cluster has several: each is adapted by itself, to its part
            of the work.
        minimum_jobs, maximum_jobs : int, optional
            Fewest and most jobs.
        minimum_cores, maximum_cores : int, optional
            Fewest and most threads of all workers.
        minimum_memory, maximum_memory : int or str, optional
            Least and most memory of all workers by their limits: bytes, or as "100 GiB".
        interval : float or str
            Seconds between two looks at the work.
        target_duration : float or str, optional
            Seconds in which the work that is known should be done. By default 5 s, and more where
            a worker takes longer to start.
        wait_count : int
            So many looks in a row must find that a worker is not needed before it ends.
        keep_idle : float or str, optional
            Seconds for which workers that are not needed are kept, at least. By default 0; where
            they have to be queued for, about as long as that takes.
        worker_key : callable, optional
            Given a worker, with its `name`, `address`, `host`, `nthreads` and `resources`: those
            for which it returns the same end when all of them are idle only.
        Adaptive : type, optional
            A class derived from `hpcdask.Adaptive`, by default that itself.
        **options
            Further parameters of that class.

        Returns
        -------
        Adaptive
            Its ``stop()`` lets the cluster be as it is then.

        Raises
        ------
        ConfigError
            If bounds contradict each other or what one worker is, or a number makes no sense.

        Examples
        --------
        >>> cluster.adapt(minimum=1, maximum_memory="100 GiB", keep_idle="2 min")
        <Adaptive LocalCluster-3f2a91c0, 1 to 25 workers, starting>
        """
        if Adaptive is None:
            from hpcdask.launchers import adaptive as adaptives

            Adaptive = adaptives.Adaptive
        least = {"workers": minimum, "jobs": minimum_jobs, "cores": minimum_cores}
        most = {"workers": maximum, "jobs": maximum_jobs, "cores": maximum_cores}
        least["memory"] = None if minimum_memory is None else hosts.parse_bytes(minimum_memory)
        most["memory"] = None if maximum_memory is None else hosts.parse_bytes(maximum_memory)
        pool = self._pool_called(pool)
        units = self._units(pool)
        shape = units.shape()
        found = bounds(shape, _given(least), _given(most))
        adaptive = Adaptive(
            self,
            units,
            minimum=found.least * shape.n_workers,
            maximum=found.most * shape.n_workers,
            interval=interval,
            target_duration=target_duration,
            wait_count=wait_count,
            keep_idle=keep_idle,
            worker_key=worker_key,
            former=self._adaptives.get(pool),
            **options,
        )
        self._adaptives[pool] = adaptive
        self.loop.call_soon_threadsafe(adaptive.start)
        return adaptive

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> Any:
        """Wait until so many workers have registered."""
        limit = None if timeout is None else hosts.parse_timedelta(timeout)
        return self._maybe_sync(self._until_registered(n_workers, limit))

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
            "Cluster" (of this process) and "Scheduler", and an entry for each worker's address.
        """

        async def work() -> dict[str, str]:
            result = {}
            if cluster:
                result["Cluster"] = as_text(logs.recent())
            if scheduler:
                result["Scheduler"] = await self._scheduler.log()
            if workers:
                names = () if workers is True else tuple(workers)
                result.update(await self._scheduler.worker_logs(names))
            return result

        return self._maybe_sync(work(), timeout)

    def _maybe_sync(
        self, work: Coroutine[Any, Any, Any], timeout: float | str | None = None
    ) -> Any:
        limit = None if timeout is None else hosts.parse_timedelta(timeout)
        if self.asynchronous:
            return work if limit is None else asyncio.wait_for(work, limit)
        return run_sync(self.loop, work, limit)

    def _on_loop(self, function: Callable[[], None]) -> None:
        """Call a function where nothing else changes the cluster meanwhile."""

        async def work() -> None:
            function()

        if is_in_loop(self.loop):
            function()
        else:
            run_sync(self.loop, work())

    def __repr__(self) -> str:
        nthreads = sum(getattr(worker, "nthreads", 0) for worker in self.workers.values())
        return (
            f"{type(self).__name__}({self.name}, {self.scheduler_address!r}, "
            f"workers={len(self.workers)}, threads={nthreads}, {self.status})"
        )


def _given(amounts: Mapping[str, float | None]) -> dict[str, float]:
    return {what: amount for what, amount in amounts.items() if amount is not None}


def settled_token(token: bytes | str | None, token_file: str | None, auth: bool) -> bytes | None:
    """The token of a new cluster: the one given, or a fresh one; None if all may come in."""
    if not auth:
        return None
    if token is None and token_file is None:
        return new_token()
    return resolve_token(token, token_file)


def refuse_dashboard(options: Mapping[str, Any]) -> None:
    """Let programs switch the dashboard off, which is not there."""
    address = options.get("dashboard_address")
    if isinstance(address, str) and address not in ("", ":0"):
        raise ConfigError("this version has no dashboard; leave dashboard_address out")


@atexit.register
def _close_all() -> None:
    """Let no cluster outlive the program that made it."""
    # It does not take long, and whoever is impatient would leave jobs and processes behind.
    with contextlib.suppress(ValueError):  # in another thread, of an embedded interpreter
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    close_all()  # first, or they would complain that the scheduler is gone
    for cluster in list(_clusters):
        # Also one whose end somebody was too impatient to wait for.
        is_there = cluster.status in ("starting", "running", "closing")
        if is_there and not cluster._asynchronous:
            with contextlib.suppress(Exception):
                cluster.close(timeout=10)


os.register_at_fork(after_in_child=_clusters.clear)  # they are the parent's
