"""The functions that workers run. Nothing heavy is imported here: a worker's start is measured."""

import os
import time
from typing import Any


def noop(_index: int) -> None:
    """Cost nothing, so that all the time measured is the engine's."""


def increment(number: int) -> int:
    return number + 1


def add(left: int, right: int) -> int:
    return left + right


def make_rows(source: int, count: int, nbytes: int) -> list[bytes]:
    return [bytes([source % 256]) * nbytes for _ in range(count)]


def pick(rows: list[bytes], index: int) -> bytes:
    return rows[index]


def total_nbytes(rows: list[bytes]) -> int:
    return sum(map(len, rows))


def started() -> float:
    """Seconds since the epoch; client and workers are on one machine."""
    return time.time()


def earliest(left: float, right: float) -> float:
    return min(left, right)


def after(_index: int, _gate: object) -> None:
    """Cost nothing, after something else."""


def until_there(path: str, timeout: float = 120.0) -> None:
    """Run until a file appears."""
    deadline = time.monotonic() + timeout
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {path} within {timeout:g} s")
        time.sleep(0.05)


def make_array(nbytes: int, value: int) -> Any:
    """An array of so many bytes, each `value`."""
    import numpy

    return numpy.full(nbytes, value, dtype="uint8")


def ends_of(*arrays: Any) -> list[int]:
    """The last byte of each, which has arrived last."""
    return [int(array[-1]) for array in arrays]


def make_table(part: int, rows: int, n_ids: int) -> Any:
    """One part of a table, as distinct from the others as random numbers are."""
    import numpy
    import pandas

    rng = numpy.random.default_rng(part)
    names = numpy.array([f"name-{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"])
    return pandas.DataFrame(
        {
            "id": rng.integers(0, n_ids, rows),
            "name": names[rng.integers(0, len(names), rows)],
            "x": rng.random(rows),
            "y": rng.random(rows),
        }
    )
