"""Putting data on the workers: planned by the scheduler, sent by the client."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from hpcdask.client.future import Future
from hpcdask.client.submission import data_key, fresh_key
from hpcdask.errors import CommClosedError, WaitTimeoutError
from hpcdask.execution import sizeof
from hpcdask.messages import AwaitWorkers, DataScattered, PlanScatter, StoredValue, StoreForClient
from hpcdask.wire.serialize import dumps

if TYPE_CHECKING:
    from hpcdask.client.client import Client


async def scatter(
    client: Client,
    data: Any,
    workers: tuple[str, ...],
    broadcast: bool,
    direct: bool | None,
    hash: bool,
    timeout: float,
) -> Any:
    """See `Client.scatter`."""
    names, items = _items(data)
    blobs = {}
    keys = []
    for item in items:
        blob = dumps(item)
        kind = type(item).__name__
        key = data_key(kind, blob) if hash else fresh_key(kind)
        blobs[key] = (blob, sizeof(item))
        keys.append(key)
    if names is not None and isinstance(data, dict):
        renamed = dict(zip(keys, map(str, names), strict=True))
        keys = [renamed[key] for key in keys]
        blobs = {renamed[key]: blob for key, blob in blobs.items()}
    await _put(client, blobs, workers, broadcast, direct, time.monotonic() + timeout)
    futures = [Future(key, client) for key in keys]
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


async def _put(
    client: Client,
    blobs: dict[str, tuple[Any, int]],
    workers: tuple[str, ...],
    broadcast: bool,
    direct: bool | None,
    deadline: float,
) -> None:
    sizes = tuple((key, nbytes) for key, (_, nbytes) in blobs.items())
    while True:
        plan = await client._ask(PlanScatter, sizes, workers, broadcast)
        if plan.placements or not blobs:
            break
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError("there is no worker to scatter data to")
        await client._ask(AwaitWorkers, 1, min(left, 5.0))
        if workers:
            await asyncio.sleep(0.1)  # those named may be others than the one that is there
    by_worker: dict[str, list[StoredValue]] = {}
    for placed in plan.placements:
        stored = StoredValue(placed.key, placed.attempt, blobs[placed.key][0])
        for address in placed.addresses:
            by_worker.setdefault(address, []).append(stored)
    await asyncio.gather(*(_send(client, a, v, direct) for a, v in by_worker.items()))
    client._send(DataScattered(plan.placements))


async def _send(
    client: Client, address: str, values: list[StoredValue], direct: bool | None
) -> None:
    direct = client.direct_to_workers if direct is None else direct
    if direct is not False and address not in client._unreachable:
        try:
            await client._peers.store(address, values)
            return
        except CommClosedError:
            client._unreachable.add(address)
    await client._ask(StoreForClient, address, tuple(values))
