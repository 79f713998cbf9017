"""Ways to wait for futures: all, any, or one by one as they complete."""

from __future__ import annotations

import asyncio
import queue
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from typing import Any, NamedTuple

from hpcdask.client.client import Client
from hpcdask.client.collecting import Failed, futures_of_collection, refuse_others
from hpcdask.client.future import Future, Latch, until_done
from hpcdask.client.loop import uncarried
from hpcdask.client.reasons import why_pending
from hpcdask.errors import FutureCancelledError, WaitTimeoutError
from hpcdask.places import lent_thread
from hpcdask.wire.arguments import loads_value

ALL_COMPLETED = "ALL_COMPLETED"
FIRST_COMPLETED = "FIRST_COMPLETED"


class DoneAndNotDoneFutures(NamedTuple):
    """What `wait` returns."""

    done: set[Future]
    not_done: set[Future]


def futures_of(o: Any, client: Client | None = None) -> list[Future]:
    """All futures in nested lists, tuples, sets and dicts, and in dask collections among these.

    Parameters
    ----------
    o : object
    client : Client, optional
        If given, cancelled futures are an error.

    Raises
    ------
    FutureCancelledError
        Names those that were cancelled, if there is a `client`.

    Examples
    --------
    >>> import dask.bag
    >>> bag = client.persist(dask.bag.from_sequence([1, 2], npartitions=2))
    >>> len(futures_of(bag))
    2
    """
    futures = _futures_in(o)
    if client is not None:
        _refuse_cancelled(futures)
    return futures


def _refuse_cancelled(futures: Iterable[Future]) -> None:
    cancelled = [future for future in futures if future.cancelled()]
    if cancelled:
        some = ", ".join([f"{future.key} ({future._state.reason})" for future in cancelled[:3]])
        raise FutureCancelledError(f"{len(cancelled)} futures were cancelled: {some}")


def _futures_in(value: Any) -> list[Future]:
    if isinstance(value, Future):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple, set, frozenset)):
        return futures_of_collection(value)
    return [future for item in value for future in _futures_in(item)]


def wait(fs: Any, timeout: float | str | None = None, return_when: str = ALL_COMPLETED) -> Any:
    """Wait until futures are done, with a value or an error.

    Parameters
    ----------
    fs : future, or nested lists, tuples, sets and dicts of them
    timeout : float or str, optional
        Seconds.
    return_when : {"ALL_COMPLETED", "FIRST_COMPLETED"}

    Returns
    -------
    DoneAndNotDoneFutures
        Two sets; of an asynchronous client, an awaitable of it.

    Raises
    ------
    WaitTimeoutError
        If it takes longer.
    FutureCancelledError
        If one was cancelled; names those that were.
    TypeError
        If there is something else than futures.

    Examples
    --------
    >>> done, not_done = wait(client.map(abs, [-1, -2]), timeout=10)
    >>> len(done), len(not_done)
    (2, 0)
    """
    refuse_others(fs)
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise ValueError(f"return_when must be ALL_COMPLETED or FIRST_COMPLETED, not {return_when}")
    futures = futures_of(fs)
    first = return_when == FIRST_COMPLETED
    client = futures[0].client if futures else None
    seconds = client._seconds(timeout) if client is not None else None
    states = [future._state for future in futures]
    if client is None or not client.asynchronous:
        one_is_done = first and any(state.status != "pending" for state in states)
        if not one_is_done and not Latch(states, first=first).wait(seconds):
            why = client._sync(why_pending(client, states, seconds or 0)) if client else ""
            raise _late(futures, seconds, why)
        return _sorted(futures)

    async def work() -> DoneAndNotDoneFutures:
        try:
            one_is_done = first and any(state.status != "pending" for state in states)
            if not one_is_done:
                await asyncio.wait_for(until_done(states, first), seconds)
        except asyncio.TimeoutError:
            why = await why_pending(client, states, seconds or 0)
            raise _late(futures, seconds, why) from None
        return _sorted(futures)

    return work()


def _sorted(futures: list[Future]) -> DoneAndNotDoneFutures:
    done = {future for future in futures if future.done()}
    _refuse_cancelled(done)
    return DoneAndNotDoneFutures(done, set(futures) - done)


def _late(futures: list[Future], seconds: float | None, why: str) -> WaitTimeoutError:
    pending = [future.key for future in futures if not future.done()]
    return WaitTimeoutError(
        f"{len(pending)} of {len(futures)} futures are not done within {seconds:g} s, "
        f"{pending[0] if pending else 'none'} among them{why}"
    )


def fire_and_forget(obj: Any) -> None:
    """Let tasks run to their end although nobody holds their futures.

    If one fails the client that asked logs a warning or, when it has gone, the scheduler.

    Parameters
    ----------
    obj : future, or nested lists and dicts of them

    Examples
    --------
    >>> fire_and_forget(client.submit(print, "for the worker's log"))
    """
    refuse_others(obj)
    for client, futures in _by_client(futures_of(obj)).items():
        client._keep_until_done([future.key for future in futures])


class as_completed:
    """Iterate over futures as they complete.

    Further ones may be added while it runs. With an asynchronous client use ``async for``.

    Parameters
    ----------
    futures : iterable of Future or ActorFuture
    with_results : bool
        Give ``(future, value)`` pairs; values that did not come along are fetched, those of a batch
        together.
    raise_errors : bool
        With `with_results`: raise what a task has raised; else its value is what `sys.exc_info`
        would give, the type, the exception and its traceback. Of a future that was cancelled the
        value is the `FutureCancelledError` either way: who cancels the rest goes on with the loop.
    timeout : float or str, optional
        Seconds for all of it.

    Examples
    --------
    >>> for future, value in as_completed(client.map(abs, [-2, 2]), with_results=True):
    ...     print(value)
    2
    2
    """

    def __init__(
        self,
        futures: Iterable[Future] | None = None,
        loop: Any = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: float | str | None = None,
    ) -> None:
        self.with_results = with_results
        self.raise_errors = raise_errors
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._n_left = 0
        self._arrived: asyncio.Event | None = None
        self._client: Client | None = None
        self._timeout = timeout
        self._deadline: float | None = None
        self.update(futures or [])

    def add(self, future: Any) -> None:
        """Wait for one more."""
        is_of_actor = _is_of_actor(future)
        if not is_of_actor:
            refuse_others(future)
        client = future._actor._future.client if is_of_actor else future.client
        if self._client is None:
            self._client = client
            seconds = self._client._seconds(self._timeout)
            self._deadline = None if seconds is None else time.monotonic() + seconds
            if self._client.asynchronous:
                self._arrived = asyncio.Event()
        self._n_left += 1

        queue_of_now = self._done  # which `clear` replaces

        def done(_: object) -> None:
            queue_of_now.put(future)
            if self._arrived is not None:
                self._arrived.set()

        if is_of_actor:  # it may end in any thread
            outcome = future._outcome
            outcome.add_done_callback(lambda o: client.loop.call_soon_threadsafe(done, o))
        else:
            future._state.when_done(done)

    def update(self, futures: Iterable[Any]) -> None:
        """Wait for more."""
        for item in futures:
            if _is_of_actor(item):
                self.add(item)
                continue
            refuse_others(item)
            for future in futures_of(item):
                self.add(future)

    def count(self) -> int:
        """How many have not been given out."""
        return self._n_left

    def is_empty(self) -> bool:
        """Whether all have been given out."""
        return not self._n_left

    def has_ready(self) -> bool:
        """Whether the next comes without waiting."""
        return not self._done.empty()

    def clear(self) -> None:
        """Forget those that are left."""
        self._n_left = 0
        self._done = queue.SimpleQueue()

    def _left(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._n_left:
            raise StopIteration
        future = self._next_future(self._left())
        if not self.with_results:
            return future
        if self.raise_errors and not _is_cancelled(future):  # which is quicker, if it is here
            return future, future.result(self._left())
        return self._given([future])[0]

    next = __next__

    def _next_future(self, timeout: float | None) -> Future:
        try:
            with lent_thread():
                future = self._done.get(timeout=timeout)
        except queue.Empty:
            raise self._late() from None
        self._n_left -= 1
        return future

    def _late(self) -> WaitTimeoutError:
        seconds = 0.0 if self._client is None else self._client._seconds(self._timeout)
        return WaitTimeoutError(f"{self._n_left} futures are not done within {seconds:g} s")

    def _given(self, futures: list[Future]) -> list[Any]:
        """What is given out for these: their values are fetched together."""
        if not self.with_results:
            return list(futures)
        blobs: dict[Future, Any] = {}
        for client, own in _by_client(_not_cancelled(futures)).items():
            blobs.update(zip(own, client._sync(self._fetched(client, own)), strict=True))
        return [self._pair(future, blobs) for future in futures]

    async def _given_later(self, futures: list[Future]) -> list[Any]:
        if not self.with_results:
            return list(futures)
        blobs: dict[Future, Any] = {}
        for client, own in _by_client(_not_cancelled(futures)).items():
            blobs.update(zip(own, await uncarried(self._fetched(client, own)), strict=True))
        return [self._pair(future, blobs) for future in futures]

    def _fetched(self, client: Client, futures: list[Future]) -> Coroutine[Any, Any, list[Any]]:
        errors = "raise" if self.raise_errors else "return"
        return client._blobs([f._state for f in futures], errors, self._left(), None)

    def _pair(self, future: Any, blobs: dict[Future, Any]) -> tuple[Any, Any]:
        if future in blobs:
            got = blobs[future]
            if type(got) is not Failed:
                return future, loads_value(got)
            exc = got.exception
            return future, (type(exc), exc, exc.__traceback__)
        if _is_cancelled(future):
            return future, future._state.exception()
        try:
            return future, future.result()
        except Exception as exc:
            if self.raise_errors:
                raise
            return future, exc

    def next_batch(self, block: bool = True) -> list[Any]:
        """All that are done; waits for one first if `block`."""
        batch = []
        if block and self._n_left:
            batch.append(self._next_future(self._left()))
        return self._given(batch + self._all_ready())

    def _all_ready(self) -> list[Future]:
        ready = []
        while self._n_left and not self._done.empty():
            ready.append(self._next_future(0))
        return ready

    def batches(self) -> Batches:
        """Lists of what has been done since the last, by ``for`` or ``async for``."""
        return Batches(self)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if not self._n_left:
            raise StopAsyncIteration
        await self._until_ready()
        [given] = await self._given_later([self._next_future(0)])
        return given

    async def _until_ready(self) -> None:
        assert self._arrived is not None
        while self._done.empty():
            self._arrived.clear()
            try:
                with lent_thread():
                    await asyncio.wait_for(self._arrived.wait(), self._left())
            except asyncio.TimeoutError:
                raise self._late() from None


def _by_client(futures: list[Future]) -> dict[Client, list[Future]]:
    found: dict[Client, list[Future]] = {}
    for future in dict.fromkeys(futures):
        if not _is_of_actor(future):
            found.setdefault(future.client, []).append(future)
    return found


def _is_of_actor(future: object) -> bool:
    """Whether it is of an actor's method; few programs have any."""
    kind = getattr(sys.modules.get("hpcdask.client.actor"), "ActorFuture", None)
    return kind is not None and isinstance(future, kind)


def _is_cancelled(future: Any) -> bool:
    return not _is_of_actor(future) and future.cancelled()


def _not_cancelled(futures: list[Future]) -> list[Future]:
    return [future for future in futures if not _is_cancelled(future)]


class Batches:
    """Lists of futures, or of pairs, as they complete; made by `as_completed.batches`."""

    def __init__(self, completed: as_completed) -> None:
        self._completed = completed

    def __iter__(self) -> Iterator[list[Any]]:
        return self

    def __next__(self) -> list[Any]:
        if self._completed.is_empty():
            raise StopIteration
        return self._completed.next_batch()

    def __aiter__(self) -> AsyncIterator[list[Any]]:
        return self

    async def __anext__(self) -> list[Any]:
        completed = self._completed
        if completed.is_empty():
            raise StopAsyncIteration
        await completed._until_ready()
        return await completed._given_later(completed._all_ready())


__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "DoneAndNotDoneFutures",
    "as_completed",
    "fire_and_forget",
    "futures_of",
    "wait",
]
