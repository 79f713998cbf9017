"""`Client.benchmark_hardware`: workers measure their memory, disks and network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hpcdask import hardware
from hpcdask.messages import Version
from hpcdask.messages.client import LocateKeys

if TYPE_CHECKING:
    pass

#: Bytes of values that are fetched between workers, and pairs of these at most.
_SIZES = (1_000, 100_000, 1_000_000, 10_000_000, 50_000_000)
_MAX_PAIRS = 8


async def measure(client: Any, duration: float) -> dict[str, dict[str, float]]:
    """Have all measured; sizes are told in words."""
    memory = await client._on_workers(hardware.memory, (duration,))
    disk = await client._on_workers(hardware.disk, (duration,))
    found = {"memory": _mean(memory.values()), "disk": _mean(disk.values())}
    addresses = list(memory)
    pairs = list(zip(addresses[::2], addresses[1::2], strict=False))[:_MAX_PAIRS]
    found["network"] = _mean([await _fetched(client, *pair, duration) for pair in pairs])
    return found


async def _fetched(client: Any, source: str, target: str, duration: float) -> dict[int, float]:
    """Have one worker fetch values from another."""
    data = {f"benchmark-{size}": bytes(size) for size in _SIZES}
    futures = await client.scatter(data, workers=[source], hash=False, asynchronous=True)
    try:
        found = (await client._ask(LocateKeys, tuple(data))).found
        versions = {
            size: Version(each.key, each.attempt) for size, each in zip(_SIZES, found, strict=True)
        }
        answer = await client._on_workers(hardware.network, (source, versions, duration), (target,))
        return answer[target]  # type: ignore[no-any-return]
    finally:
        for future in futures.values():
            future.release()


def _mean(found: Iterable[Mapping[int, float]]) -> dict[str, float]:
    rates: defaultdict[int, list[float]] = defaultdict(list)
    for each in found:
        for size, rate in each.items():
            rates[size].append(rate)
    return {_in_words(size): sum(all_) / len(all_) for size, all_ in rates.items()}


def _in_words(size: int) -> str:
    for unit, factor in (("MB", 1_000_000), ("kB", 1_000)):
        if size >= factor:
            return f"{size / factor:g} {unit}"
    return f"{size} B"
