"""One cluster per module, and a client of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import client

from hpcdask import LocalCluster

__all__ = ["client"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=2, memory_limit=0) as cluster:
        yield cluster


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that `wait_for_file` tasks wait for; they end with the test."""
    path = tmp_path / "gate"
    yield path
    path.touch()
