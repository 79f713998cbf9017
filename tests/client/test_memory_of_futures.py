"""What the client process pays for each future that it holds."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import pytest

from hpcdask import Client, LocalCluster, wait

#: Bytes that a finished future may cost in the client's own files: handle, state, key, tables.
LIMIT = 450


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start(1)
    yield
    tracemalloc.stop()


def _bytes_of_client() -> int:
    gc.collect()
    ours = tracemalloc.Filter(True, "*/hpcdask/client/*")
    traces = tracemalloc.take_snapshot().filter_traces([ours])
    return sum(line.size for line in traces.statistics("filename"))


@pytest.mark.usefixtures("traced")
def test_a_finished_future_is_small() -> None:
    count = 5000
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        wait(client.map(abs, range(-100, 0)), timeout=30)
        before = _bytes_of_client()
        futures = client.map(abs, range(count))
        wait(futures, timeout=60)
        assert (_bytes_of_client() - before) / len(futures) < LIMIT
