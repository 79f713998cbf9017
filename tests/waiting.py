"""Waiting in tests: for a condition, with a deadline; never for a length of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any


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


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test, and fail it for whatever its loop complains of."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        complaints: list[dict[str, Any]] = []

        async def work() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
            await asyncio.wait_for(test(*args, **kwargs), 60)

        asyncio.run(work())
        assert complaints == []

    return run
