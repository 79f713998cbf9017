"""One cluster per module, and a client of its own for each test."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from waiting import wait_until

from hpcdask import Client, LocalCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=2, threads_per_worker=2, memory_limit=0, scheduler_kwargs={"client_grace": 60}
    ) as cluster:
        yield cluster
    gc.collect()  # connections that were to linger for a moment, on a loop that has ended by then


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client that is connected by TCP, so that its connection can be cut."""
    with Client(cluster.scheduler_address, token=cluster._token, timeout=10) as client:
        yield client
    desk = cluster.scheduler.requests.coordination.desk
    wait_until(lambda: not cluster.scheduler.state.tasks, 20, "the scheduler forgets all tasks")
    tables = desk.leases._of_client, desk._open, desk.queues._handles
    wait_until(lambda: all(client.id not in table for table in tables), 20, "it holds nothing")


@pytest.fixture
def other(cluster: LocalCluster) -> Iterator[Client]:
    """Another client, of the same process, that is not the default one."""
    with Client(cluster, set_as_default=False) as other:
        yield other
