"""How fast a worker's memory, disk and network are: measured on it when somebody asks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from time import perf_counter
from typing import Any

from hpcdask.messages import Version

#: Bytes that are copied in memory, and written to disk and read, at a time.
MEMORY_SIZES = (2_000, 10_000, 100_000, 1_000_000, 10_000_000)
DISK_SIZES = (1_000, 100_000, 1_000_000, 10_000_000, 100_000_000)


def memory(duration: float) -> dict[int, float]:
    """Bytes per second that are copied, by the size of the copies."""
    return {size: _rate(_copier(size), size, duration) for size in MEMORY_SIZES}


def _copier(size: int) -> Callable[[], object]:
    data = bytes(size)
    return lambda: bytearray(data)


def disk(duration: float, dask_worker: Any) -> dict[int, float]:
    """Bytes per second that are written to the scratch folder, by the size of the files."""
    with tempfile.TemporaryDirectory(dir=dask_worker.local_directory) as folder:
        return {size: _rate(_writer(folder, size), size, duration) for size in DISK_SIZES}


def _writer(folder: str, size: int) -> Callable[[], object]:
    data = os.urandom(min(size, 2**20)) * (size // 2**20 + 1)
    view = memoryview(data)[:size]

    def write() -> None:
        with open(os.path.join(folder, "file"), "wb") as file:
            file.write(view)
            file.flush()
            os.fsync(file.fileno())

    return write


def _rate(work: Callable[[], object], size: int, duration: float) -> float:
    """Repeat something for so many seconds, but once at least."""
    count = 0
    start = perf_counter()
    while not count or perf_counter() - start < duration:
        work()
        count += 1
    return size * count / (perf_counter() - start)


async def network(
    address: str, versions: dict[int, Version], duration: float, dask_worker: Any
) -> dict[int, float]:
    """Bytes per second that are fetched from another worker, by the size of the values there."""
    peers = dask_worker._exchange._peers
    rates = {}
    for size, version in versions.items():
        await peers.fetch(address, [version])  # the first time connects
        count = 0
        start = perf_counter()
        while not count or perf_counter() - start < duration:
            answer = await peers.fetch(address, [version])
            if not answer.values:
                raise ValueError(f"{address} has dropped the value that was to be measured with")
            count += 1
        rates[size] = size * count / (perf_counter() - start)
    return rates
