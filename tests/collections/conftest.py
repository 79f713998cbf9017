"""One cluster per module, on which dask's collections are computed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from clients import client

from hpcdask import LocalCluster

__all__ = ["client"]

pytest.importorskip("dask.base")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    """A scheduler for dask: its threaded one, but that the threads end."""
    with ThreadPoolExecutor(2) as pool:
        yield pool
