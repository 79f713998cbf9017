"""Stopwatches and checks that rows share."""

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from .figures import Series

T = TypeVar("T")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def expect(found: object, expected: object) -> None:
    """Refuse a fast wrong answer."""
    if found != expected:
        raise AssertionError(f"computed {found!r:.80}, expected {expected!r:.80}")


def wait_until(is_so: Callable[[], object], timeout: float = 60.0) -> None:
    """Ask again every 20 ms.

    Raises
    ------
    TimeoutError
        If it is not so within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {is_so}")
        time.sleep(0.02)


def pause() -> None:
    """Let the last run's results be released.

    Without it distributed, tuned, falls from 2,050 to 1,250 tasks/s after the first run, and would
    be too easy to beat.
    """
    time.sleep(1.0)


def repeated(run: Callable[[], T], repeats: int = 3) -> list[T]:
    """What `run` returns, each time after a pause."""
    found = []
    for _ in range(repeats):
        pause()
        found.append(run())
    return found


def warmed(run: Callable[[], T], repeats: int = 8) -> list[T]:
    """What `run` returns in quick succession, but for the first times.

    For work on memory. A virtual machine gives memory that has lain free for two seconds back to
    its host: to touch it anew ran at 0.3 GB/s where it had run at 10, and that is not the engine's.
    """
    return [run() for _ in range(3 + repeats)][3:]


def rates(ntasks: int, work: Callable[[], object], repeats: int = 3) -> Series:
    """Tasks per second of `work`, which runs `ntasks`, several times."""
    return {"tasks_per_s": [ntasks / s for s in repeated(partial(seconds, work), repeats)]}


def round_trips(run_one: Callable[[int], object], count: int = 500) -> Series:
    """Microseconds of each of `count` calls, after a warm-up."""
    for i in range(20):
        run_one(i)
    return {"us": [1e6 * seconds(partial(run_one, i)) for i in range(count)]}
