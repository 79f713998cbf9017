"""Large and slow data between real workers: nothing is lost, late or held up by it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from hpcdask import Client, LocalCluster, wait

MIB = 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


def many_strings(count: int) -> dict[str, str]:
    return {f"key-{n}": f"value-{n}" for n in range(count)}


def n_items(*values: Any) -> int:
    return sum(map(len, values))


def longest_gap(dask_worker: Any, start: bool) -> float:
    """Begin to measure how long the worker's loop stands still, in CPU seconds, or tell."""
    import asyncio

    async def tick() -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0.005)
            now = time.process_time()
            dask_worker.gap = max(dask_worker.gap, now - last)
            last = now

    if start:
        dask_worker.gap = 0.0
        future = asyncio.run_coroutine_threadsafe(tick(), dask_worker._threads._loop)
        dask_worker.ticks = future
        return 0.0
    dask_worker.ticks.cancel()
    return float(dask_worker.gap)


def test_loops_go_on_while_large_values_move(client: Client) -> None:
    one, two = client.nthreads(timeout=5)
    arrays = [client.submit(np.ones, 25 * MIB, pure=False) for _ in range(2)]
    wait(arrays, timeout=60)
    strings = client.submit(many_strings, 300_000)
    wait([strings], timeout=60)
    client.run(longest_gap, start=True)
    back = client.gather([*arrays, strings], timeout=60)
    assert [len(value) for value in back] == [25 * MIB, 25 * MIB, 300_000]
    there = client.scatter(back[::2], workers=two, timeout=60)
    (here,) = client.scatter([many_strings(100_000)], workers=one, timeout=60)
    assert client.submit(n_items, *there, here).result(timeout=60) == 25 * MIB + 400_000
    gaps = client.run(longest_gap, start=False)
    assert max(gaps.values()) < 0.5, gaps


@pytest.mark.parametrize("direct", [None, False])
def test_much_is_gathered_and_scattered_in_portions(client: Client, direct: bool | None) -> None:
    values = [np.full(3 * MIB, n) for n in range(8)]  # 24 MiB each
    futures = client.scatter(values, direct=direct, timeout=60)
    back = client.gather(futures, direct=direct, timeout=60)
    assert [(len(array), array[0], array[-1]) for array in back] == [
        (3 * MIB, n, n) for n in range(8)
    ]


def test_a_dead_holder_strands_neither_gather_nor_task() -> None:
    with LocalCluster(n_workers=3, threads_per_worker=1) as cluster, Client(cluster) as client:
        everywhere = client.scatter(np.arange(MIB), broadcast=True, timeout=60)
        nannies = list(cluster.workers.values())
        expected = int(np.arange(MIB).sum())
        psutil.Process(nannies[0].pid).send_signal(signal.SIGKILL)
        assert int(client.gather(everywhere, timeout=30).sum()) == expected
        assert client.submit(np.sum, everywhere).result(timeout=30) == expected


def test_bytes_come_back_as_they_were_however_large(client: Client) -> None:
    for size in (10, 40_000, MIB - 1, MIB, 5 * MIB, 70 * MIB):
        value = os.urandom(size // 8) * 8
        assert client.gather(client.scatter(value, timeout=60), timeout=60) == value
        future = client.submit(bytes.upper, value)
        assert future.result(timeout=60) == value.upper()


def test_arrays_can_be_written_to_where_they_arrive(client: Client) -> None:
    def is_writeable(array: np.ndarray) -> bool:
        return bool(array.flags.writeable)

    scattered = client.scatter(np.zeros(MIB), timeout=30)
    assert client.submit(is_writeable, scattered).result(timeout=30)
    assert client.gather(scattered, timeout=30).flags.writeable
