"""What a value is taken to need of a worker's memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest

from hpcdask.sizes import sizeof


class Slow(dict[str, bytes]):
    def __sizeof__(self) -> int:
        raise AssertionError("asks each of its items at length")


class Pair(NamedTuple):
    first: bytes
    second: bytes


class Misbehaved:
    @property
    def nbytes(self) -> int:
        raise RuntimeError("not now")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (bytes(5000), 5000),
        ([bytes(5000)] * 1000, 5_000_000),
        ({i: bytes(5000) for i in range(300)}, 1_500_000),
        (Slow(a=bytes(5000), b=bytes(5000)), 10_000),
        (OrderedDict(a=bytes(5000)), 5000),
        (Pair(bytes(5000), bytes(5000)), 10_000),
        ((), 0),
        (Misbehaved(), 0),
        (object(), 0),
    ],
)
def test_containers_count_with_what_is_in_them(value: Any, expected: int) -> None:
    assert expected <= sizeof(value) < 1.1 * expected + 1000


def test_arrays_and_tables_count_by_their_buffers() -> None:
    np = pytest.importorskip("numpy")
    assert 80_000 <= sizeof(np.zeros(10_000)) < 81_000
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"a": np.arange(10_000), "b": np.zeros(10_000), "c": 1})
    words = pd.Series(["some words"] * 10_000, dtype="string")
    assert 240_000 <= sizeof(table) < 250_000
    assert 240_000 <= sizeof({"part": table}) < 250_000
    assert 80_000 <= sizeof(table.a) < 81_000
    assert sizeof(table.index) < 1000
    assert sizeof(words) >= 80_000
    assert sizeof(table.assign(c=words)) > 240_000
    assert sizeof(table) == pytest.approx(table.memory_usage().sum(), abs=1000)
