"""A client for each test, of the cluster that its folder has; nothing of it may be left there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from waiting import wait_until

from hpcdask import Client, LocalCluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client
    # Whatever a test does: when its client has gone, nothing of it is left on the scheduler.
    wait_until(lambda: not cluster.scheduler.state.tasks, 20, "the scheduler forgets all tasks")
