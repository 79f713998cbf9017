"""What a client asks of the cluster as a whole: who is there, calls on all, restart, shutdown."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from hpcdask import host as hosts
from hpcdask.client import collecting
from hpcdask.client.connection import Connection
from hpcdask.client.future import FutureState
from hpcdask.client.loop import CarriedError
from hpcdask.client.submission import pack_call
from hpcdask.errors import WaitTimeoutError
from hpcdask.messages.client import (
    AwaitWorkers,
    CallOutcomes,
    Inspect,
    RestartChosen,
    RestartWorkers,
    RetireWorkers,
    RunOnScheduler,
    RunOnWorkers,
    Shutdown,
)
from hpcdask.rendezvous import Contact, write_scheduler_file
from hpcdask.tracebacks import to_exception
from hpcdask.wire.serialize import dumps, loads

#: Seconds of one question to the scheduler about the number of workers.
_AWAIT = 5.0
#: Seconds that the scheduler may take to say that something has not happened in time.
_ANSWER = 1.0


class SchedulerContact(NamedTuple):
    """What programs ask `Client.scheduler` for; it does what `Client.run_on_scheduler` asks for."""

    address: str


class ClusterCalls(Connection):
    """The part of `hpcdask.Client` that is not about tasks."""

    @property
    def scheduler(self) -> SchedulerContact:
        """Has the `address` of the scheduler, which programs of dask.distributed ask for here.

        Examples
        --------
        >>> client.scheduler.address == client.scheduler_address
        True
        """
        return SchedulerContact(self.scheduler_address)

    @property
    def dashboard_link(self) -> None:
        """None: there is no dashboard yet."""

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: Any = None,
        wait: bool = True,
        nanny: bool = False,
        on_error: str = "raise",
        timeout: float | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a function on all workers now, outside the task queue.

        Parameters
        ----------
        function : callable
            If it has a parameter ``dask_worker`` it gets the `Worker`. May be async.
        workers : str or list of str, optional
            Addresses or names; one that leaves may be named as well. By default all that stay.
        wait : bool
            For what they return.
        nanny : bool
            Call it on the workers' nannies instead (``dask_nanny``).
        on_error : {"raise", "return", "ignore"}
            What to do with exceptions: raise one, return them, or leave those workers out.

        Returns
        -------
        dict
            Address -> what it returned. None without `wait`.

        Raises
        ------
        ValueError
            If one of `workers` is not known or, with `nanny`, has none.

        Examples
        --------
        >>> client.run(abs, -1, workers=[0, 1])
        {'tcp://127.0.0.1:...': 1, 'tcp://127.0.0.1:...': 1}
        """
        if on_error not in ("raise", "return", "ignore"):
            raise ValueError(f"on_error must be 'raise', 'return' or 'ignore', not {on_error!r}")
        blob = pack_call(function, args, kwargs)

        async def work() -> dict[str, Any] | None:
            outcomes = await self._ask(RunOnWorkers, blob, worker_names(workers), wait, nanny)
            return called(outcomes, on_error) if wait else None

        return self._maybe_sync(work(), self._seconds(timeout))

    def run_on_scheduler(
        self,
        function: Callable[..., Any],
        *args: Any,
        wait: bool = True,
        timeout: float | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a function in the scheduler's process.

        If it has a parameter ``dask_scheduler`` it gets the `Scheduler`. It runs on the event
        loop, so it must be quick; it may be async.
        """
        blob = pack_call(function, args, kwargs)

        async def work() -> Any:
            outcomes = await self._ask(RunOnScheduler, blob, wait)
            return next(iter(called(outcomes, "raise").values()), None)

        return self._maybe_sync(work(), self._seconds(timeout))

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> Any:
        """Wait until so many workers have registered.

        Raises
        ------
        ValueError
            If `n_workers` is no number of workers.
        WaitTimeoutError
            If they have not within `timeout` seconds; says how many have.
        JobError
            If they will not come, as a cluster of batch jobs knows.
        """
        if not isinstance(n_workers, int) or n_workers < 0:
            raise ValueError(f"n_workers must be a whole number from 0 up, not {n_workers!r:.80}")
        seconds = self._seconds(timeout)
        cluster = self.cluster
        if getattr(cluster, "knows_jobs", False) and cluster.loop is self.loop:
            return self._maybe_sync(cluster._until_registered(n_workers, seconds))

        async def work() -> None:
            deadline = None if seconds is None else time.monotonic() + seconds
            while True:
                left = _AWAIT if deadline is None else min(deadline - time.monotonic(), _AWAIT)
                there = (await self._ask(AwaitWorkers, n_workers, max(left, 0.0))).value
                if there >= n_workers:
                    return
                if deadline is not None and time.monotonic() >= deadline:
                    raise WaitTimeoutError(
                        f"{there} of {n_workers} workers have registered within {seconds:g} s"
                    )

        # The scheduler keeps the time, and says how many there are; unless it says nothing at all.
        return self._maybe_sync(work(), None if seconds is None else seconds + _ANSWER)

    def who_has(self, futures: Any = None, timeout: float | str | None = None) -> Any:
        """Addresses of the workers that hold each key; of all keys by default."""
        found: dict[str, FutureState] = {}
        if futures is not None:
            collecting.find_states(futures, found)
            if not found:
                return self._maybe_sync(_nothing_asked(), None)
        return self._inspect("who_has", tuple(found), timeout)

    def has_what(self, workers: Any = None, timeout: float | str | None = None) -> Any:
        """Keys that each worker holds."""
        return self._inspect("has_what", worker_names(workers), timeout)

    def nthreads(self, workers: Any = None, timeout: float | str | None = None) -> Any:
        """Threads of each worker."""
        return self._inspect("nthreads", worker_names(workers), timeout)

    ncores = nthreads

    def processing(self, workers: Any = None, timeout: float | str | None = None) -> Any:
        """Keys of tasks that each worker was given and has not finished."""
        return self._inspect("processing", worker_names(workers), timeout)

    def unrunnable(self, futures: Any = None, timeout: float | str | None = None) -> Any:
        """Tasks that no worker may run, by key, each with the reason.

        They wait until a worker joins that has what they need. Without `futures` all such tasks of
        the cluster are told.
        """
        found: dict[str, FutureState] = {}
        if futures is not None:
            collecting.find_states(futures, found)
            if not found:
                return self._maybe_sync(_nothing_asked(), None)
        return self._inspect("no-worker", tuple(found), timeout)

    def scheduler_info(
        self, n_workers: int | None = None, timeout: float | str | None = None
    ) -> Any:
        """What the scheduler tells of itself and its workers.

        Parameters
        ----------
        n_workers : int, optional
            Tell of so many workers at most. By default, and with -1, of all.

        Examples
        --------
        >>> about = client.scheduler_info()
        >>> about["n_workers"] == len(about["workers"])
        True
        """

        async def work() -> Any:
            about = (await self._ask(Inspect, "identity", ())).value
            if n_workers is not None and n_workers >= 0:
                about["workers"] = dict(list(about["workers"].items())[:n_workers])
            return about

        return self._maybe_sync(work(), self._seconds(timeout))

    def _inspect(self, what: str, names: tuple[str, ...], timeout: float | str | None) -> Any:
        return self._maybe_sync(self._inspected(what, names), self._seconds(timeout))

    async def _inspected(self, what: str, names: tuple[str, ...] = ()) -> Any:
        return (await self._ask(Inspect, what, names)).value

    def retire_workers(
        self,
        workers: Any = None,
        close_workers: bool = True,
        *,
        names: Any = None,
        timeout: float | str = 60,
    ) -> Any:
        """Let workers end without losing what only they hold.

        They are given no more tasks, what they have not started is taken back, and values that no
        other worker has are moved to others first.

        Parameters
        ----------
        workers : str or list of str
            Their addresses; or
        names : str or list of str
            their names.
        close_workers : bool
            They always end.
        timeout : float or str
            Seconds. What has not moved by then is lost.

        Returns
        -------
        dict
            Of the addresses of those that have ended: what `scheduler_info` told of them.

        Raises
        ------
        ValueError
            If neither `workers` nor `names` is given, if one of them is no worker of the cluster
            (then none is retired), or with ``close_workers=False``.
        """
        if not close_workers:
            raise ValueError("a worker that is retired ends; close_workers=False cannot be served")
        if workers is None and names is None:
            raise ValueError("say which workers to retire, by workers= or names=")
        chosen = worker_names(workers) + worker_names(names)
        seconds = hosts.parse_timedelta(timeout)

        async def work() -> dict[str, Any]:
            if not chosen:  # which would stand for all
                return {}
            known = await self._check_known(chosen)
            ended = (await self._ask(RetireWorkers, chosen, seconds)).value
            return {address: known.get(address, {}) for address in ended}

        # The scheduler keeps the time, and says who has ended; unless it says nothing at all.
        return self._maybe_sync(work(), seconds + _ANSWER)

    async def _check_known(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return what is known of all workers; ValueError if one of `names` is none of theirs."""
        workers: dict[str, Any] = (await self._ask(Inspect, "identity", ())).value["workers"]
        known = workers.keys() | {about["name"] for about in workers.values()}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"no worker has the address or name {', '.join(map(repr, unknown))}; "
                "scheduler_info() tells which there are"
            )
        return workers

    def restart(self, timeout: float | str | None = None, wait_for_workers: bool = True) -> Any:
        """Forget all tasks and give every worker a new process.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds to wait for the new workers; two minutes by default.
        wait_for_workers : bool
            Whether to wait at all.
        """
        seconds = 120.0 if timeout is None else hosts.parse_timedelta(timeout)

        async def work() -> Any:
            asking = asyncio.ensure_future(self._ask(RestartWorkers, seconds))
            if wait_for_workers:
                await asking
            else:
                self._flush()
                asking.cancel()
            return self

        return self._maybe_sync(work(), seconds + _ANSWER)

    def restart_workers(
        self,
        workers: Any,
        timeout: float | str | None = None,
        raise_for_error: bool = True,
    ) -> Any:
        """Give some workers new processes; tasks and futures go on.

        What these workers held and ran is computed again, here or elsewhere; scattered data that
        only they held is lost.

        Parameters
        ----------
        workers : str, int or list of these
            Their addresses or names.
        timeout : float or str, optional
            Seconds to wait for the new processes; two minutes by default.
        raise_for_error : bool
            Whether to raise if some are not back in time, or to say so in what is returned.

        Returns
        -------
        dict
            Address of each -> "OK" or "timed out".

        Raises
        ------
        WaitTimeoutError
            If some are not back in time.
        ValueError
            If one is not known, or was started without a nanny, which alone can replace it.

        Examples
        --------
        >>> client.restart_workers([0])
        {'tcp://127.0.0.1:...': 'OK'}
        """
        seconds = 120.0 if timeout is None else hosts.parse_timedelta(timeout)
        chosen = worker_names(workers)

        async def work() -> dict[str, str]:
            came = (await self._ask(RestartChosen, chosen, seconds)).value
            late = [address for address, is_back in came.items() if not is_back]
            if late and raise_for_error:
                raise WaitTimeoutError(
                    f"{len(late)} of {len(came)} workers were not back within {seconds:g} s after "
                    f"a restart: {', '.join(late)}"
                )
            return {a: "OK" if is_back else "timed out" for a, is_back in came.items()}

        return self._maybe_sync(work(), seconds + _ANSWER)

    def write_scheduler_file(
        self, scheduler_file: str | os.PathLike[str], timeout: float | str | None = None
    ) -> Any:
        """Write a file by which other programs find the scheduler, and are let in.

        It holds the cluster's token, and so is readable for you alone. Nothing removes it when the
        scheduler ends.

        Parameters
        ----------
        scheduler_file : path
            Such a file may be given to ``Client(scheduler_file=)`` and ``hpc-dask worker``.
        timeout : float or str, optional
            Seconds to wait for the scheduler's answer; by default the client's timeout.

        Raises
        ------
        RendezvousError
            If it cannot be written.

        Examples
        --------
        >>> client.write_scheduler_file("scheduler.json")
        >>> Client(scheduler_file="scheduler.json").close()
        """
        blob = dumps((_contact, (), {}))

        async def work() -> None:
            outcomes = await self._ask(RunOnScheduler, blob, True)
            contact = next(iter(called(outcomes, "raise").values()))
            assert self._link is not None
            token = self._link.options.token or b""
            write_scheduler_file(scheduler_file, replace(contact, token=token))

        limit = self._timeout if timeout is None else self._seconds(timeout)
        return self._maybe_sync(work(), limit)

    def shutdown(self, timeout: float | str | None = None) -> Any:
        """End the scheduler, all workers and nannies, and this client."""
        limit = self._timeout if timeout is None else self._seconds(timeout)

        async def work() -> None:
            is_ours = hasattr(self.cluster, "_close") and self.cluster.status != "detached"
            if is_ours:
                await self._close()
                await getattr(self.cluster, "_close_for_good", self.cluster._close)()
                return
            if self._returning is not None:
                await asyncio.wait({self._returning})
            if self.status == "running" and self._link is not None:
                self._send(Shutdown(f"client {self.name} asked for it"))
                self._flush()
                self.status, self._ending = "closed", "it has shut the cluster down"
                await self._link.comm.wait_closed()
            await self._close()

        return self._maybe_sync(work(), limit)


def _contact(dask_scheduler: Any) -> Contact:
    """What the scheduler says of itself, but for the token, which is not to be sent in clear."""
    contact: Contact = dask_scheduler.contact()
    return replace(contact, token=b"")


def worker_names(workers: Any) -> tuple[str, ...]:
    if workers is None:
        return ()
    return (str(workers),) if isinstance(workers, (str, int)) else tuple(map(str, workers))


async def _nothing_asked() -> dict[str, Any]:
    return {}


def called(outcomes: CallOutcomes, on_error: str) -> dict[str, Any]:
    """What each called process has returned; `on_error` as of `Client.run`."""
    results = {address: loads(blob) for address, blob in outcomes.returned}
    for address, error in outcomes.raised:
        if on_error == "raise":
            raise CarriedError(to_exception(error))
        if on_error == "return":
            results[address] = to_exception(error)
    return results
