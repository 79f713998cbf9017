"""Running services in the main thread of a process: its loop, its signals and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, NoReturn, TypeAlias

from hpcdask import descriptors
from hpcdask import host as hosts
from hpcdask.errors import LaunchError
from hpcdask.service import Service

log = logging.getLogger("hpcdask.process")

Beside: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

#: Seconds that a process which ends gives to what still runs in it.
_CANCELLING = 3.0
#: Seconds that what libraries do at the end of a process may take.
_LAST_CALL = 1.0
_ENDING = ("closing", "closed", "failed")
#: By these batch systems warn of an end to come, if asked to: by Slurm's --signal, Grid Engine's
#: -notify and s_rt. All processes of a job get them, some twice.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)


def leave_now(code: int) -> NoReturn:
    """End this process, whatever its threads do; from any of them."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "mpi4py.MPI" in sys.modules:
        # MPICH takes leave of its mpirun not before exit(3), and mpirun kills all ranks when one
        # ends without. Should that hang, the process ends nevertheless.
        import ctypes

        last = threading.Timer(_LAST_CALL, os._exit, (code,))
        last.daemon = True
        last.start()
        ctypes.CDLL(None).exit(code)
    os._exit(code)


class Deadline:
    """Ends the process by force when its end takes longer than it may.

    Parameters
    ----------
    seconds : float
        From `begin` on.

    Attributes
    ----------
    code : int
        With which exit code.
    """

    def __init__(self, seconds: float) -> None:
        self.code = 0
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._seconds = seconds

    def watch(self, services: Sequence[Service]) -> None:
        """Begin when the last of these begins to end."""

        def begin_with_the_last() -> None:
            if all(service.status in _ENDING for service in services):
                self.begin()

        for service in services:
            service.on_closing = begin_with_the_last

    def begin(self) -> None:
        """The end has begun; may be called again."""
        if self._timer.ident is None:
            self._timer.start()

    def _end(self) -> None:
        log.error("the end has taken %g s (--shutdown-timeout): leaving by force", self._seconds)
        leave_now(self.code)

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()


@contextlib.contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give an event loop that, unlike that of `asyncio.run`, does not wait for threads at its end.

    One of them may be in a function that never returns, called by a client. Before, let the process
    have as many connections as it may.
    """
    descriptors.raise_limit()
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        loop.run_until_complete(_cancel_all())
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:  # with a limit: a preload's may not let itself be cancelled
        done, _ = await asyncio.wait(tasks, timeout=_CANCELLING)
        await asyncio.gather(*done, return_exceptions=True)


class Wishes:
    """What signals want of this process.

    Attributes
    ----------
    leave : future of signal
        The first that wants it to end, or warns of an end if the process `leaves`.
    end : future of signal
        The first that wants it to end at once.
    """

    def __init__(self, leaves: bool) -> None:
        loop = asyncio.get_running_loop()
        self.leave: asyncio.Future[signal.Signals] = loop.create_future()
        self.end: asyncio.Future[signal.Signals] = loop.create_future()
        self._leaves = leaves
        # Slurm sends SIGTERM twice to what srun has started: itself, and by srun. No batch system
        # loses patience that way; it kills.
        self._heeds_repetition = not hosts.batch_job()
        self._has_sigterm = False

    def signalled(self, number: signal.Signals) -> None:
        """A signal has come."""
        if number in WARNINGS:
            insists = False
            if not self._leaves:
                return log.info("%s warns of an end to come", number.name)
        else:
            is_repeated = self._has_sigterm and self._heeds_repetition
            insists = number == signal.SIGINT or is_repeated or not self._leaves
            self._has_sigterm |= number == signal.SIGTERM
        if insists:
            self.to_end(number)
        elif not self.leave.done():
            self.leave.set_result(number)

    def to_end(self, number: signal.Signals) -> None:
        """It is to end at once."""
        for wish in (self.leave, self.end):
            if not wish.done():
                wish.set_result(number)


@contextlib.contextmanager
def stop_signals(
    with_parent: bool = False, for_good: bool = False
) -> Iterator[asyncio.Future[signal.Signals]]:
    """Give a future that SIGTERM or SIGINT resolves, in place of ending the process.

    Parameters
    ----------
    with_parent : bool
        The end of the parent process counts as a SIGTERM.
    for_good : bool
        The process ends afterwards: one signal more must not decide with which code.
    """
    with _wishes(with_parent, for_good) as wishes:
        yield wishes.end


@contextlib.contextmanager
def _wishes(with_parent: bool, for_good: bool, leaves: bool = False) -> Iterator[Wishes]:
    loop = asyncio.get_running_loop()
    wishes = Wishes(leaves)
    numbers = (signal.SIGTERM, signal.SIGINT, *WARNINGS)
    for number in numbers:
        loop.add_signal_handler(number, wishes.signalled, number)
    parent = _open_parent() if with_parent else None
    if parent is not None:
        loop.add_reader(parent, wishes.to_end, signal.SIGTERM)
    try:
        yield wishes
    finally:
        # Blocked, or one could come while there is no handler.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number in numbers:
            loop.remove_signal_handler(number)
            if for_good:
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if parent is not None:
            loop.remove_reader(parent)
            os.close(parent)


def _open_parent() -> int | None:
    """A file descriptor that becomes readable when the parent process ends."""
    try:
        return os.pidfd_open(os.getppid())
    except (AttributeError, OSError):  # no Linux, or it is outside of our PID namespace
        return None


async def live(services: Sequence[Service], beside: Beside | None = None) -> None:
    """Start services at the same time and wait until all have ended.

    Parameters
    ----------
    beside : coroutine function, optional
        Runs while they do, once all have started.

    Raises
    ------
    Exception
        If one cannot start: its error, after all were closed.
    LaunchError
        If one ended because it could not go on.
    """
    outcomes = await asyncio.gather(*(s.start() for s in services), return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    if errors:
        await close_all(services, "another could not start")
        raise errors[0]
    async with _running(beside):
        await asyncio.gather(*(service.finished() for service in services))
    failures = [service.failure for service in services if service.failure]
    if failures:
        raise LaunchError(failures[0])


@contextlib.asynccontextmanager
async def _running(work: Beside | None) -> AsyncIterator[None]:
    """Let a coroutine run until it has ended, or the block has."""

    async def run() -> None:
        try:
            if work is not None:
                await work()
        except Exception:
            log.exception("an internal task failed")

    task = asyncio.ensure_future(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def close_all(services: Sequence[Service], reason: str = "asked to end") -> None:
    """Close services at the same time."""
    await asyncio.gather(*(service.close(reason) for service in services))


async def settle(living: asyncio.Future[None], services: Sequence[Service], reason: str) -> None:
    """End what `live` began, unless it has ended, and raise its error, if it had one."""
    if not living.done():
        living.cancel()
        await asyncio.wait({living})
        await close_all(services, reason)
    if not living.cancelled():
        living.result()


async def serve(
    services: Sequence[Service],
    with_parent: bool = False,
    leaves: bool = False,
    for_good: bool = False,
    deadline: Deadline | None = None,
    beside: Beside | None = None,
    has_successor: bool = False,
) -> None:
    """Run services until a signal comes or all have ended by themselves.

    Parameters
    ----------
    with_parent : bool
        End with the parent process, too.
    leaves : bool
        At SIGTERM, or one of `WARNINGS`, hand over first what others need; SIGINT, or a second
        SIGTERM outside of batch jobs, ends all at once.
    for_good : bool
        As of `stop_signals`.
    deadline : Deadline, optional
        Of the end.
    beside : coroutine function, optional
        As of `live`.
    has_successor : bool
        At SIGTERM end without a word, as if killed: who is connected then waits for whatever takes
        the place of this process.

    Raises
    ------
    LaunchError
        If one cannot start, or ended because it could not go on.
    """
    if deadline is not None:
        deadline.watch(services)
    with _wishes(with_parent, for_good, leaves) as wishes:
        living = asyncio.ensure_future(live(services, beside))
        await first_of(living, wishes.leave)
        if has_successor and wishes.end.done() and wishes.end.result() == signal.SIGTERM:
            log.info("SIGTERM: ending without a word, for another to take over")
            leave_now(128 + signal.SIGTERM)
        if wishes.leave.done() and not wishes.end.done():
            await _leave(services, wishes)
        if deadline is not None:
            deadline.begin()
        await settle(living, services, "asked to end")


async def _leave(services: Sequence[Service], wishes: Wishes) -> None:
    """Let services leave at the same time, unless somebody loses patience."""
    number = wishes.leave.result()
    log.info("%s: leaving; SIGINT ends at once", number.name)
    # After a warning there is time, and others may come; after SIGTERM the end is near.
    warned = number in WARNINGS
    reason = f"its job is to end soon, as {number.name} says" if warned else "asked to end"
    leaving = asyncio.gather(*(service.leave(reason, waits=warned) for service in services))
    await first_of(leaving, wishes.end)
    if leaving.done():
        leaving.result()
    else:
        leaving.cancel()
        await asyncio.wait({leaving})


async def first_of(*futures: asyncio.Future[Any], patience: float | None = None) -> None:
    """Wait until one of these is done, or for so many seconds."""
    await asyncio.wait(futures, timeout=patience, return_when=asyncio.FIRST_COMPLETED)


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
