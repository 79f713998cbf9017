"""One cluster per module, and a client of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from hpcdask import Client, LocalCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=2, memory_limit=0) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client
    # Whatever a test does: when its client has gone, nothing of it is left on the scheduler.
    wait_until(lambda: not cluster.scheduler.state.tasks, 20, "the scheduler forgets all tasks")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that `wait_for_file` tasks wait for; they end with the test."""
    path = tmp_path / "gate"
    yield path
    path.touch()
