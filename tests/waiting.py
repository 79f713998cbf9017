"""Waiting in tests: for a condition, with a deadline; never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], object], timeout: float = 10.0, what: str = "") -> None:
    """Return when `condition` holds; fail if it does not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.01)


def wait_for_file(path: str | Path, value: object = None) -> object:
    """As a task: run until a file is there, then return `value`."""
    wait_until(Path(path).exists, 60, f"{path} is there")
    return value
