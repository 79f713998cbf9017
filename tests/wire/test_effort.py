"""Which values are pickled or rebuilt at once, and which are left to a thread."""

from __future__ import annotations

import datetime
import sys
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from hpcdask.wire.effort import QUICK_NBYTES, is_quickly_pickled, loads_if_quick
from hpcdask.wire.serialize import dumps

MIB = 2**20


class Own:
    """Of a class that nobody knows."""

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("it was rebuilt although that may take long")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class OwnArray(np.ndarray):
    pass


QUICK: list[Any] = [
    None,
    True,
    1,
    2.5,
    "text",
    b"bytes",
    bytearray(3),
    [1, 2, ("a", {"b": {3}}, frozenset([4]))],
    list(range(900)),
    b"x" * (100 * MIB),  # goes by reference
    np.arange(10),
    np.zeros((5000, 1000)),
    np.zeros((5000, 1000)).T,
    [np.zeros(MIB), {"a": np.float64(3)}],
    np.arange(1000)[::2],
    nested(100),
]
SLOW: list[Any] = [
    list(range(2000)),
    {str(n): n for n in range(600)},
    [[1] * 400] * 3,
    "x" * (QUICK_NBYTES + 1),
    ["x" * (QUICK_NBYTES // 2 + 1)] * 2,
    np.zeros((1000, 1000))[:, ::2],
    np.array([None, 1]),
    np.zeros(3).view(OwnArray),
    nested(100_000),
    Own(),
    [Own()],
    Fraction(1, 3),
    object(),
]


def described(value: Any) -> str:
    return f"{type(value).__name__}-{sys.getsizeof(value)}"


@pytest.mark.parametrize("value", QUICK, ids=described)
def test_small_values_and_arrays_are_pickled_at_once(value: Any) -> None:
    assert is_quickly_pickled(value)


@pytest.mark.parametrize("value", SLOW, ids=described)
def test_many_objects_and_unknown_classes_are_not(value: Any) -> None:
    assert not is_quickly_pickled(value)


def test_what_raises_when_it_is_looked_at_is_not() -> None:
    class Liar:
        @property  # type: ignore[misc]
        def __class__(self) -> type:
            raise RuntimeError("no class")

    value = Liar()
    is_quick = is_quickly_pickled(value)
    assert not is_quick


def test_a_look_at_a_huge_container_is_short() -> None:
    huge = [str(n) for n in range(10**6)]
    start = time.perf_counter()
    assert not is_quickly_pickled([huge, huge])
    assert time.perf_counter() - start < 0.1


PLAIN = [v for v in QUICK if type(v) is not np.ndarray or v.flags.c_contiguous]


@pytest.mark.parametrize("value", [*PLAIN, datetime.date(2024, 2, 29)], ids=described)
def test_what_is_made_of_plain_objects_is_rebuilt_at_once(value: Any) -> None:
    done, back = loads_if_quick(dumps(value))
    assert done
    assert type(back) is type(value)
    assert np.array_equal(back, value) if isinstance(value, np.ndarray) else str(back) == str(value)


@pytest.mark.parametrize(
    "value",
    [Own(), [1, Own()], {"a": np.zeros(3).view(OwnArray)}, Fraction(1, 3), "x" * (2 * MIB)],
    ids=described,
)
def test_what_runs_unknown_code_or_is_large_is_not(value: Any) -> None:
    assert loads_if_quick(dumps(value)) == (False, None)


def test_no_module_is_imported_to_rebuild_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = dumps(datetime.date(2024, 2, 29))
    monkeypatch.delitem(sys.modules, "datetime")
    assert loads_if_quick(blob) == (False, None)
    assert "datetime" not in sys.modules
