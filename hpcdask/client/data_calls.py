"""What a client asks about values and failed tasks: copies, an even spread, another try."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcdask.client import collecting
from hpcdask.client.cluster_calls import ClusterCalls, worker_names
from hpcdask.client.future import Future
from hpcdask.client.loop import CarriedError
from hpcdask.errors import LostDataError, ReplicationError, WaitTimeoutError
from hpcdask.messages.client import BalanceKeys, CopyKeys, RetryKeys

#: Seconds that the scheduler may take to say that something has not happened in time.
_ANSWER = 1.0
#: Seconds that copies may take, if nothing else is said: large values over slow links take minutes.
_COPIES = 3600.0


class DataCalls(ClusterCalls):
    """The part of `hpcdask.Client` that moves values, and gives tasks another try."""

    def retry(
        self,
        futures: Any,
        asynchronous: bool | None = None,
        timeout: float | str | None = None,
    ) -> Any:
        """Run failed tasks again.

        With them run what they failed for, if that was an input, and what failed with them.

        Parameters
        ----------
        futures : future, or nested lists and dicts of them
            Those that have not failed stay as they are.
        asynchronous : bool, optional
            Whether to return an awaitable; so does an asynchronous client.
        timeout : float or str, optional
            Seconds to wait for the scheduler's answer, not for the tasks; by default the client's.

        Raises
        ------
        LostDataError
            If the scheduler knows none of them: it was replaced after they had failed.

        Examples
        --------
        >>> import os
        >>> future = client.submit(os.listdir, "/tmp/not-there-yet")
        >>> type(future.exception(timeout=10))
        <class 'FileNotFoundError'>
        >>> client.retry([future])
        >>> type(future.exception(timeout=10))
        <class 'FileNotFoundError'>
        """
        found = _found(futures)

        async def work() -> None:
            count = (await self._ask(RetryKeys, tuple(found))).value
            # Those that run again are pending by now.
            if not count and any(future.status == "error" for future in found.values()):
                raise LostDataError(
                    f"{next(iter(found))} cannot be retried: the scheduler that knew it is gone; "
                    "submit it again"
                )

        limit = self._timeout if timeout is None else self._seconds(timeout)
        return self._maybe_sync(work(), limit, asynchronous)

    def replicate(
        self,
        futures: Any,
        n: int | None = None,
        workers: Any = None,
        branching_factor: int = 2,
        timeout: float | str | None = None,
    ) -> Any:
        """Let values be held by so many workers, and wait until they are.

        For values that many tasks take, or that would be costly to lose. Workers that come later
        get no copies; those that a task needs elsewhere are made anyway. An actor stays where it
        is, once.

        Parameters
        ----------
        futures : future, or nested lists and dicts of them
        n : int, optional
            Workers that hold each value then. Copies beyond that are dropped. By default all.
        workers : str, int or list of these, optional
            Addresses or names of workers to choose from. By default all.
        branching_factor : int
            How many workers fetch a value from each that has it, at a time.
        timeout : float or str, optional
            Seconds; an hour by default.

        Raises
        ------
        WaitTimeoutError
            If it takes longer.
        ReplicationError
            If workers cannot get a value.
        ValueError
            If a worker is not known.

        Examples
        --------
        >>> [future] = client.scatter([[1, 2, 3]])
        >>> client.replicate(future)
        >>> len(client.who_has([future])[future.key])
        2
        """
        if n is not None and (not isinstance(n, int) or n < 1):
            raise ValueError(f"n must be a number of workers from 1 up, not {n!r}")
        if branching_factor < 1:
            raise ValueError(f"branching_factor must be at least 1, not {branching_factor!r}")
        found = _found(futures)
        seconds = self._seconds(timeout)

        async def work() -> None:
            await self._have_values(found.values(), seconds)
            where = (n or 0, worker_names(workers), branching_factor)
            limit = _COPIES if seconds is None else seconds
            missing = (await self._ask(CopyKeys, tuple(found), *where, limit)).value
            if missing:
                await self._complain(missing, limit)

        return self._maybe_sync(work(), None if seconds is None else 2 * seconds + _ANSWER)

    async def _have_values(self, futures: Iterable[Future], timeout: float | None) -> None:
        """Wait until all futures have values; raise the error of one that will not."""
        states = [future._state for future in futures]
        await self._all_done(states, timeout)
        for state in states:
            exc = state.exception()
            if exc is not None:
                raise CarriedError(exc)

    async def _complain(self, missing: dict[str, int], limit: float) -> None:
        key, count = next(iter(missing.items()))
        raise CarriedError(
            ReplicationError(
                f"of {key} {count} copies could not be made within {limit:g} s, "
                f"nor all of {len(missing) - 1} other values: their workers' logs say more"
            )
        )

    def rebalance(
        self, futures: Any = None, workers: Any = None, timeout: float | str | None = None
    ) -> Any:
        """Move values from workers that hold more bytes than others to those that hold less.

        What counts is the size of values, as `nbytes` tells it. What a task takes that has been
        sent to the worker already stays there, and so does what has several copies.

        Parameters
        ----------
        futures : future, or nested lists and dicts of them, optional
            What may move. By default all values, of other clients, too.
        workers : str, int or list of these, optional
            Addresses or names of workers among which to move. By default all.
        timeout : float or str, optional
            Seconds; an hour by default. What has moved by then stays where it is.

        Raises
        ------
        WaitTimeoutError
            If it takes longer.
        ValueError
            If a worker is not known.

        Examples
        --------
        >>> [worker, _] = client.nthreads()
        >>> futures = client.scatter([bytes(1000), bytes(1001)], workers=[worker])
        >>> client.rebalance(futures)
        >>> sorted(map(len, client.has_what().values()))
        [1, 1]
        """
        found = None if futures is None else _found(futures)
        seconds = self._seconds(timeout)

        async def work() -> None:
            if found is not None:
                if not found:
                    return
                await self._have_values(found.values(), seconds)
            keys = tuple(found or ())
            limit = _COPIES if seconds is None else seconds
            answer = await self._ask(BalanceKeys, keys, worker_names(workers), limit)
            n_moved, n_left = answer.value
            if n_left:
                raise WaitTimeoutError(
                    f"{n_moved} values have moved, {n_left} have not within {limit:g} s; "
                    "call rebalance again to go on"
                )

        return self._maybe_sync(work(), None if seconds is None else 2 * seconds + _ANSWER)

    def nbytes(
        self, keys: Any = None, summary: bool = True, timeout: float | str | None = None
    ) -> Any:
        """Sizes of values on the workers, in bytes.

        Parameters
        ----------
        keys : future, str, or list of these, optional
            By default all that are held.
        summary : bool
            Whether to add them up by function, or by type of scattered data.

        Returns
        -------
        dict
            Of each key, or of each function.

        Examples
        --------
        >>> future = client.submit(bytes, 1000)
        >>> client.wait_for_workers(2); _ = future.result(timeout=10)
        >>> client.nbytes([future])
        {'bytes': 1033}
        """
        names = () if keys is None else key_names(keys)

        async def work() -> dict[str, int]:
            if keys is not None and not names:
                return {}
            what = "nbytes-by-kind" if summary else "nbytes"
            return dict((await self._inspected(what, names)).items())

        return self._maybe_sync(work(), self._seconds(timeout))


def key_names(keys: Any) -> tuple[str, ...]:
    """Keys of futures, or keys as they are."""
    if isinstance(keys, (str, Future)):
        keys = [keys]
    return tuple([key.key if isinstance(key, Future) else str(key) for key in keys])


def _found(futures: Any) -> dict[str, Future]:
    """All futures in nested containers, by key: who awaits may hold no other handle of them."""
    collecting.refuse_others(futures)
    return {future.key: future for future in collecting.futures_in(futures)}
