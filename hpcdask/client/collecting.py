"""Fetching values: from the worker that has them, or through the scheduler."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcdask.client.future import Future, FutureState, until_done
from hpcdask.client.loop import CarriedError
from hpcdask.errors import CommClosedError, WaitTimeoutError
from hpcdask.gathering import Gathered, gather_values, request_ends
from hpcdask.messages import Blob, KeyValues, TaskError
from hpcdask.messages.client import GatherKeys, LocateKeys
from hpcdask.tracebacks import to_exception

if TYPE_CHECKING:
    from hpcdask.client.connection import Connection

log = logging.getLogger("hpcdask.client")

#: Stands for a value that did not come, with ``errors="skip"``.
SKIPPED = object()


class Failed(NamedTuple):
    """Stands for a value that did not come, with ``errors="return"``."""

    exception: BaseException


#: Seconds before a value that nobody had is asked for again.
_PAUSE = 0.05
#: Seconds after which that is said aloud.
_COMPLAINT = 5.0


def find_states(futures: Any, found: dict[str, FutureState], passes_strings: bool = False) -> None:
    """Collect the states of all futures in nested containers and dask collections, by key."""
    for future in futures_in(futures, passes_strings):
        found[future.key] = future._state


def futures_in(value: Any, passes_strings: bool = False) -> Iterator[Future]:
    """All futures in nested containers and dask collections."""
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, Future):  # as most are: without a generator for each
                yield item
            else:
                yield from futures_in(item, passes_strings)
    elif isinstance(value, Future):
        yield value
    elif isinstance(value, str):
        if not passes_strings:
            raise TypeError(f"expected futures, got the string {value!r}; Future(key) makes one")
    else:
        yield from futures_of_collection(value)


def futures_of_collection(value: Any) -> list[Future]:
    """What a persisted dask collection holds; nothing for any other object."""
    if not hasattr(value, "__dask_graph__") or isinstance(value, type):
        return []
    graph = value.__dask_graph__() or {}
    return [found for found in graph.values() if isinstance(found, Future)]


def refuse_others(futures: Any) -> None:
    """Raise TypeError if anything but futures lies in nested containers; collections may."""
    if isinstance(futures, Future) or hasattr(futures, "__dask_graph__"):
        return
    if isinstance(futures, dict):
        futures = futures.values()
    elif not isinstance(futures, (list, tuple, set, frozenset)):
        kind = type(futures).__name__
        raise TypeError(
            f"expected a future, or futures in a list, tuple, set or dict; got {futures!r:.80}, "
            f"of type {kind}. Client.submit, map and scatter give futures; Future(key) makes one."
        )
    for item in futures:
        refuse_others(item)


def replaced(futures: Any, values: dict[str, Any]) -> Any:
    """Return `futures` with values in the place of futures; those without one are left out."""
    if isinstance(futures, Future):
        return values.get(futures.key)
    if isinstance(futures, (list, tuple, set, frozenset)):
        items = [
            replaced(item, values)
            for item in futures
            if not isinstance(item, Future) or item.key in values
        ]
        if hasattr(futures, "_fields"):
            return type(futures)(*items)
        return type(futures)(items)
    if isinstance(futures, dict):
        return {
            key: replaced(item, values)
            for key, item in futures.items()
            if not isinstance(item, Future) or item.key in values
        }
    return futures


async def blobs_of(
    client: Connection,
    states: list[FutureState],
    errors: str,
    deadline: float | None,
    direct: bool | None,
) -> list[Any]:
    """Wait for futures and return their pickled values in order, `SKIPPED` or `Failed`.

    A value that is lost on the way is waited for again while it is computed anew.

    Raises
    ------
    CarriedError
        With the error of the first future that has one, if `errors` is "raise".
    WaitTimeoutError
        After `deadline`, in seconds of the monotonic clock.
    """
    results: dict[str, Any] = {}
    left = states
    since = time.monotonic()
    while left:
        await limited(until_done(left, fail_early=errors == "raise"), deadline)
        wanted = []
        for state in left:
            if state.status in ("error", "cancelled"):
                # No name for the error: it will hold this frame.
                results[state.key] = _instead(
                    state.exception() or AssertionError(state.status), errors
                )
            elif state.value is not None:
                results[state.key] = state.value
            elif state.status == "finished":
                wanted.append(state.key)
        if wanted:
            blobs, failed = await limited(_fetch(client, wanted, direct), deadline)
            results.update(blobs)
            for key, error in failed.items():
                results[key] = _instead(to_exception(error), errors)
        left = [state for state in left if state.key not in results]
        if left and client.status == "closed":
            raise CommClosedError("the client was closed while it fetched")
        if left:
            if time.monotonic() - since > _COMPLAINT:
                since = time.monotonic()
                log.warning(
                    "waiting for %d values, that of %s among them, which are said to be on workers "
                    "that do not give them",
                    len(left),
                    left[0].key,
                )
            await limited(asyncio.sleep(_PAUSE), deadline)
    return [results[state.key] for state in states]


def _instead(exc: BaseException, errors: str) -> Any:
    """What stands for a value that does not come because of this."""
    try:
        if errors == "raise":
            raise CarriedError(exc)
        return SKIPPED if errors == "skip" else Failed(exc)
    finally:
        del exc  # it will hold this frame


async def limited(work: Any, deadline: float | None) -> Any:
    """Await `work` until `deadline`, in seconds of the monotonic clock."""
    left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
    try:
        return await asyncio.wait_for(work, left)
    except asyncio.TimeoutError:
        raise WaitTimeoutError("the values did not come within the timeout") from None


async def _fetch(
    client: Connection, keys: list[str], direct: bool | None
) -> tuple[dict[str, Blob], dict[str, TaskError]]:
    """Ask holders for values once; keys that nobody gave are in neither result."""
    direct = client.direct_to_workers if direct is None else direct
    if direct is False and len(keys) == 1:
        gathered = Gathered()
        await _through_scheduler(client, keys, gathered)
    else:
        found = (await client._ask(LocateKeys, tuple(keys))).found
        if direct is False:
            gathered = Gathered()
            gathered.unreached = [d.key for d in found if d.addresses]
        else:
            gathered = await gather_values(client._peers, found, client._unreachable)
        sizes = {dependency.key: dependency.nbytes for dependency in found}
        start = 0
        for stop in request_ends(sizes[key] for key in gathered.unreached):
            await _through_scheduler(client, gathered.unreached[start:stop], gathered)
            start = stop
    return {stored.key: stored.value for stored in gathered.values}, dict(gathered.failed)


async def _through_scheduler(client: Connection, keys: list[str], gathered: Gathered) -> None:
    answer: KeyValues = await client._ask(GatherKeys, tuple(keys))
    gathered.values += answer.values
    gathered.failed += answer.failed
