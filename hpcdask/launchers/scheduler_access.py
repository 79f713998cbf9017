"""A cluster's scheduler, wherever it lives: what a cluster asks of it, and how that gets there."""

from __future__ import annotations

import abc
import asyncio
import inspect
import math
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from hpcdask import logs
from hpcdask.client.client import Client, InternalClient
from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import CommClosedError, WaitTimeoutError
from hpcdask.messages import TaskError
from hpcdask.scheduler import Scheduler
from hpcdask.wire.serialize import dumps, loads

#: Seconds that one question may wait for workers to come and go. Who asks is told in between that
#: the scheduler is still there.
_PIECE = 5.0


class Member(NamedTuple):
    """A worker that has registered."""

    name: str
    address: str
    nthreads: int
    memory_limit: int  # bytes; 0 for none


class SchedulerAccess(abc.ABC):
    """What a cluster asks of its scheduler.

    Kinds differ in `run` and `place`; all else is made of these.
    """

    @property
    @abc.abstractmethod
    def address(self) -> str:
        """The scheduler's address; empty until it has one."""

    @property
    @abc.abstractmethod
    def place(self) -> SchedulerPlace:
        """How a client of this process reaches it."""

    @abc.abstractmethod
    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function where the scheduler is, with that as ``dask_scheduler=``.

        The function may be async, and belongs to a module that is there, too.
        """

    @abc.abstractmethod
    async def close(self, reason: str) -> None:
        """End what `run` needs, and the scheduler if it is ours."""

    async def retire(self, who: Collection[str], timeout: float, patience: float | None) -> None:
        """As `Scheduler.retire`; workers are called by name, address or the id of their nanny."""
        await self.run(_retire, set(who), timeout, patience)

    async def until_registered(self, n_workers: int, limit: float | None) -> None:
        """Wait for workers.

        Raises
        ------
        WaitTimeoutError
            If they do not come within `limit` seconds.
        """
        deadline = time.monotonic() + (math.inf if limit is None else limit)
        while True:
            left = deadline - time.monotonic()
            there = await self.run(_count_workers, n_workers, max(min(left, _PIECE), 0.0))
            if there >= n_workers:
                return
            if left <= 0:
                raise WaitTimeoutError(
                    f"{there} of {n_workers} workers have registered within {limit:g} s"
                )

    async def members(self, known: Collection[str], timeout: float = _PIECE) -> list[Member]:
        """Who is registered, as soon as that differs from `known`.

        Parameters
        ----------
        known : collection of str
            Addresses.
        timeout : float
            Seconds after which it is told anyway.
        """
        found: list[Member] = await self.run(_members, set(known), timeout)
        return found

    async def log(self) -> str:
        """Last log lines of the scheduler's process."""
        return as_text(await self.run(_recent))

    async def worker_logs(self, names: Collection[str] = ()) -> dict[str, str]:
        """Last log lines of workers, by address; of all if none is named."""
        found = await self.run(_worker_logs, tuple(names))
        return {address: as_text(lines) for address, lines in found.items()}


class SchedulerHere(SchedulerAccess):
    """A scheduler in this process.

    Parameters
    ----------
    scheduler : Scheduler
        Not started yet.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    async def start(self) -> None:
        """Start it."""
        await self.scheduler

    @property
    def address(self) -> str:
        return self.scheduler.address

    @property
    def place(self) -> SchedulerPlace:
        """Without the detour through a socket."""
        token = self.scheduler.token
        return SchedulerPlace(self.scheduler.inproc_address, token=token or None, auth=bool(token))

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs, dask_scheduler=self.scheduler)
        return await value if inspect.isawaitable(value) else value

    async def close(self, reason: str) -> None:
        await self.scheduler.close(reason)


class SchedulerThere(SchedulerAccess):
    """A scheduler of another process, reached by a client of our own.

    Parameters
    ----------
    place : SchedulerPlace
        Where it is, for this process.
    address : str
        Where it says that it is.
    name : str
        Of the client, in the scheduler's log.
    """

    def __init__(self, place: SchedulerPlace, address: str, name: str) -> None:
        self._place, self._address, self._name = place, address, name
        self._client: asyncio.Task[Client] | None = None
        self._is_closed = False

    @property
    def address(self) -> str:
        return self._address

    @property
    def place(self) -> SchedulerPlace:
        return self._place

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_closed:
            raise CommClosedError(f"nobody asks the scheduler at {self._address} any more")
        if self._client is None or _is_over(self._client):
            self._client = asyncio.get_running_loop().create_task(self._connect())
        client = await asyncio.shield(self._client)
        return await client.run_on_scheduler(function, *args, **kwargs)

    async def _connect(self) -> Client:
        client = InternalClient(
            self._place.address,
            scheduler_file=self._place.scheduler_file,
            token=self._place.token,
            auth=self._place.auth,
            name=self._name,
            asynchronous=True,
            set_as_default=False,
        )
        try:
            return await client
        except BaseException:  # it would go on trying
            await client._close()
            raise

    async def close(self, reason: str) -> None:
        self._is_closed = True
        if self._client is None:
            return
        self._client.cancel()
        await asyncio.wait({self._client})
        if not self._client.cancelled() and self._client.exception() is None:
            await self._client.result()._close()


def _is_over(making: asyncio.Task[Client]) -> bool:
    """Whether another client is needed."""
    if not making.done():
        return False
    failed = making.cancelled() or making.exception() is not None
    return failed or making.result().status == "closed"


def as_text(lines: Collection[tuple[str, str]]) -> str:
    """What `hpcdask.logs.recent` gives, as one text."""
    return "\n".join(line for _, line in lines)


# ---------------------------------------------------------------- called where the scheduler is


async def _retire(
    who: set[str], timeout: float, patience: float | None, dask_scheduler: Scheduler
) -> None:
    records = dask_scheduler.state.workers.values()
    leaving = [w.address for w in records if {w.address, w.info.name, w.info.nanny} & who]
    await dask_scheduler.retire(leaving, timeout, patience)


async def _count_workers(n_workers: int, timeout: float, dask_scheduler: Scheduler) -> int:
    """How many there are, as soon as there are `n_workers`."""
    members = dask_scheduler.members
    await members.until(lambda: members.n_ready >= n_workers, timeout)
    return members.n_ready


async def _members(known: set[str], timeout: float, dask_scheduler: Scheduler) -> list[Member]:
    workers = dask_scheduler.workers
    await dask_scheduler.members.until(lambda: workers.keys() != known, timeout)
    infos = (worker.info for worker in dask_scheduler.state.workers.values())
    return [Member(i.name, i.address, i.nthreads, i.memory_limit) for i in infos]


def _recent(dask_scheduler: Scheduler) -> list[tuple[str, str]]:
    return logs.recent()


async def _worker_logs(
    names: tuple[str, ...], dask_scheduler: Scheduler
) -> dict[str, list[tuple[str, str]]]:
    function = dumps((logs.recent, (), {}))
    addresses = [worker.address for worker in dask_scheduler.state.find_workers(names)]
    comms = [(address, dask_scheduler.workers[address]) for address in addresses]
    answers = await dask_scheduler.requests.calls.call_all(comms, function)
    return {
        address: loads(answer)
        for address, answer in answers
        if not isinstance(answer, TaskError)  # one that ends in this moment has no log to show
    }
