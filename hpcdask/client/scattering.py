"""Putting data on the workers: planned by the scheduler, sent by the client."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcdask.client.collecting import limited
from hpcdask.client.future import Future, until_done
from hpcdask.client.graphs import key_name, refuse_namesakes
from hpcdask.client.loop import CarriedError
from hpcdask.client.submission import data_key, fresh_key
from hpcdask.errors import CommClosedError, SerializationError, WaitTimeoutError
from hpcdask.messages import Blob, PlacedValue, StoredValue
from hpcdask.messages.client import AwaitWorkers, DataScattered, PlanScatter, StoreForClient
from hpcdask.peers import RequestFailedError, UnreachableError
from hpcdask.sizes import sizeof
from hpcdask.tracebacks import to_exception
from hpcdask.wire.serialize import dumps

if TYPE_CHECKING:
    from hpcdask.client.client import Client


#: Seconds of one question to the scheduler whether there is a worker.
_PATIENCE = 5.0


class Packed(NamedTuple):
    """Data to scatter, pickled."""

    data: Any
    keys: list[str]  # of its items, in order
    blobs: dict[str, tuple[Blob, int]]  # by key; with the sizes in memory


def pack(data: Any, hash: bool) -> Packed:
    """Pickle the items of `data`, and give them keys."""
    if isinstance(data, range):  # a way to write a list, as dask.distributed takes it
        data = list(data)
    names, items = _items(data)
    if names is not None:
        refuse_namesakes(names)
    blobs = {}
    keys = []
    for number, item in enumerate(items):
        try:
            blob = dumps(item)
        except SerializationError as exc:
            raise _of_item(exc, number, data) from exc.__cause__
        if names is not None:
            key = key_name(names[number])
        else:
            kind = type(item).__name__
            key = data_key(kind, blob) if hash else fresh_key(kind)
        blobs[key] = (blob, sizeof(item))
        keys.append(key)
    return Packed(data, keys, blobs)


def _of_item(exc: SerializationError, number: int, data: Any) -> SerializationError:
    from hpcdask.wire import unpicklable  # not before something goes wrong

    names, _ = _items(data)
    if names is None and not isinstance(data, (list, tuple)):
        return exc
    name = repr(names[number]) if names is not None else str(number)
    return unpicklable.about(exc, f"item {name} of the data to scatter")


async def scatter(
    client: Client,
    packed: Packed,
    workers: tuple[str, ...],
    broadcast: bool,
    direct: bool | None,
    timeout: float | None,
    patience: float,
) -> Any:
    """See `Client.scatter`; `patience` is how long to wait for a first worker at most."""
    data, keys, blobs = packed
    deadline = None if timeout is None else time.monotonic() + timeout
    placements = await _placed(client, blobs, workers, broadcast, deadline, patience)
    by_worker: dict[str, list[StoredValue]] = {}
    for placed in placements:
        stored = StoredValue(placed.key, placed.attempt, blobs[placed.key][0])
        for address in placed.addresses:
            by_worker.setdefault(address, []).append(stored)
    sending = asyncio.gather(*(_send(client, a, v, direct) for a, v in by_worker.items()))
    try:
        await limited(sending, deadline)
    except BaseException:
        # Else what has arrived would stay on the workers until this client leaves.
        client._send(DataScattered(tuple(p._replace(addresses=()) for p in placements)))
        raise
    client._send(DataScattered(placements))
    futures = [Future(key, client) for key in keys]
    # What is said to be there is there: `done()` and `status` ask nobody.
    await limited(until_done([future._state for future in futures]), deadline)
    if isinstance(data, dict):
        return dict(zip(data, futures, strict=True))
    if isinstance(data, (list, tuple, set, frozenset)):
        return type(data)(futures)
    return futures[0]


def _items(data: Any) -> tuple[list[Any] | None, list[Any]]:
    if isinstance(data, dict):
        return list(data), list(data.values())
    if isinstance(data, (list, tuple, set, frozenset)):
        return None, list(data)
    return None, [data]


async def _placed(
    client: Client,
    blobs: dict[str, tuple[Blob, int]],
    workers: tuple[str, ...],
    broadcast: bool,
    deadline: float | None,
    patience: float,
) -> tuple[PlacedValue, ...]:
    """Ask the scheduler where to put values, until there is a worker."""
    until = time.monotonic() + patience
    sizes = tuple((key, nbytes) for key, (_, nbytes) in blobs.items())
    while True:
        plan = await limited(client._ask(PlanScatter, sizes, workers, broadcast), deadline)
        if plan.placements or not blobs:
            return plan.placements  # type: ignore[no-any-return]
        # Those named may be others than the one that is there.
        pause = asyncio.sleep(0.1) if workers else client._ask(AwaitWorkers, 1, _PATIENCE)
        try:
            await limited(pause, until)
        except WaitTimeoutError:
            names = f"none of {', '.join(workers)}" if workers else "no worker"
            raise WaitTimeoutError(f"there is {names} to scatter data to") from None


async def _send(
    client: Client, address: str, values: list[StoredValue], direct: bool | None
) -> None:
    direct = client.direct_to_workers if direct is None else direct
    if direct is not False and address not in client._unreachable:
        try:
            await client._peers.store(address, values)
            return
        except RequestFailedError as exc:
            raise CarriedError(to_exception(exc.error)) from None
        except UnreachableError:
            client._unreachable.add(address)
        except CommClosedError:  # another time it may be there again
            pass
    await client._ask(StoreForClient, address, tuple(values))
