"""Threads of a worker that import numpy for the first time, at the same time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcdask import Client, LocalCluster

#: The import takes some 0.1 s; with one worker the value would mostly arrive before or after it.
WORKERS = 6

USER = """
import numpy

def number(value):
    return value

def total(array):
    return int(array.sum())
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    (tmp_path / "user_of_numpy.py").write_text(USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("user_of_numpy")
    del sys.modules["user_of_numpy"]


def test_an_array_may_arrive_while_a_task_imports_numpy(user) -> None:
    # Pickled arrays name numpy._core.numeric, which numpy imports in a circle. Python lets one of
    # two threads that would wait for each other go on: "partially initialized module".
    with LocalCluster(WORKERS, 2, memory_limit=0) as cluster, Client(cluster) as client:
        numbers = client.map(user.number, range(4 * WORKERS))
        array = client.scatter(user.numpy.ones(1000), broadcast=True)
        totals = [client.submit(user.total, array, pure=False) for _ in range(2 * WORKERS)]
        assert client.gather(numbers, timeout=60) == list(range(4 * WORKERS))
        assert client.gather(totals, timeout=60) == [1000] * 2 * WORKERS
