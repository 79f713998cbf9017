"""One cluster per module, and a client of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpcdask import Client, LocalCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client whose plugins go with it."""
    with Client(cluster) as client:
        yield client
        for kind in ("worker", "nanny", "scheduler"):
            for name in client._plugins.names(kind):
                getattr(client, f"unregister_{kind}_plugin")(name, timeout=20)
