"""Running services in the main thread of a process: signals, and the end of it all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from hpcdask.errors import LaunchError
from hpcdask.service import Service


@contextlib.contextmanager
def stop_signals() -> Iterator[asyncio.Future[signal.Signals]]:
    """Give a future that SIGTERM or SIGINT resolves, in place of ending the process."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[signal.Signals] = loop.create_future()

    def stop(number: signal.Signals) -> None:
        if not stopped.done():
            stopped.set_result(number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    try:
        yield stopped
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def start_all(services: Sequence[Service]) -> None:
    """Start services at the same time; if one fails, close all and raise its error."""
    outcomes = await asyncio.gather(*(s.start() for s in services), return_exceptions=True)
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if failed:
        await close_all(services)
        raise failed[0]


async def close_all(services: Sequence[Service], reason: str = "asked to end") -> None:
    """Close services at the same time."""
    await asyncio.gather(*(service.close(reason) for service in services))


async def serve(services: Sequence[Service]) -> None:
    """Run services until a signal comes or all have ended by themselves.

    Raises
    ------
    LaunchError
        If one cannot start, or has given up.
    """
    with stop_signals() as stopped:
        starting = asyncio.ensure_future(start_all(services))
        waiting: set[asyncio.Future[Any]] = {starting, stopped}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
        else:
            starting.result()
            ending = asyncio.gather(*(service.finished() for service in services))
            waiting = {ending, stopped}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ending
        await close_all(services)
    failed = [service for service in services if service.status == "failed"]
    if failed:
        raise LaunchError(f"{failed[0]} has failed; its log says why")


@contextlib.contextmanager
def pid_file(path: str | None) -> Iterator[None]:
    """Keep this process's id in a file while it runs."""
    if not path:
        yield
        return
    try:
        with open(path, "w") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as exc:
        raise LaunchError(f"cannot write --pid-file {path}: {exc.strerror}") from exc
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
