"""One worker process as its nanny sees it: started, told to end, mourned."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

from hpcdask.errors import WorkerStartError
from hpcdask.service import ENDED_AS_ASKED
from hpcdask.threads import in_thread

log = logging.getLogger("hpcdask.nanny")

#: Seconds that a worker has to end when asked, before it is killed.
GRACE = 2.0
#: Lines of a dead worker's stderr that are kept, and seconds to wait for them: what the worker
#: has started may hold the pipe open.
_LAST_LINES, _LAST_WORDS = 20, 1.0
#: Ctrl-C in a terminal is for the programs there; a worker is ended by its nanny.
_OWN_GROUP: dict[str, Any] = (
    {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
)


class KilledAtStartError(WorkerStartError):
    """A signal ended the worker before it had registered."""


class CutOffAtStartError(WorkerStartError):
    """The worker did not reach the scheduler, or had no address where others could reach it."""


class WorkerChild:
    """A process that runs `hpcdask.worker_process`.

    Parameters
    ----------
    name : str
        The worker's, for messages.
    environ : mapping
        Its environment variables.

    Raises
    ------
    WorkerStartError
        If the system cannot start another process.

    Attributes
    ----------
    process : Popen
    address, local_directory : str
        Of the worker, once it has registered.
    restart_reason : str
        Why another is to follow although this one ends as it was asked to; empty if none is.
    was_stopped : bool
        Its end is our doing.
    is_configured : bool
        It was told what to run.
    has_started : bool
        Its worker has registered.
    """

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        self.name = name
        self.address = self.local_directory = ""
        self.restart_reason = ""
        self.was_stopped = False
        self.is_configured = self.has_started = False
        self._stderr: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self.process, self._voice = _spawn(name, environ)
        self._life = asyncio.get_running_loop().create_task(self._live(self.process))

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def last_lines(self) -> str:
        """What it wrote to stderr last."""
        return "\n".join(self._stderr)

    async def start(self, config: Mapping[str, Any], timeout: float) -> None:
        """Configure it, and wait until its worker has registered.

        Parameters
        ----------
        config : mapping
            Parameters of `Worker`, and what else `hpcdask.worker_process` reads.
        timeout : float
            Seconds that it has for that.

        Raises
        ------
        KilledAtStartError
            If a signal ends it first.
        CutOffAtStartError
            If the network is to blame.
        WorkerStartError
            If it ends first, or says nothing.
        """
        process = self.process
        assert process.stdin is not None
        self.is_configured = True
        with contextlib.suppress(BrokenPipeError):  # it has died; its exit code tells more
            process.stdin.write(json.dumps(config, default=os.fspath).encode() + b"\n")
            process.stdin.flush()  # and left open: its end tells the worker that we are gone
        voice, self._voice = self._voice, -1
        try:
            # It may have ended before we came to this.
            answer = b"" if voice < 0 else await asyncio.wait_for(_read_line(voice), timeout)
        except asyncio.TimeoutError:
            process.kill()
            await self.ended()
            raise WorkerStartError(
                f"worker {self.name} (pid {process.pid}) said nothing within {timeout:g} s and was "
                "killed" + self._tail()
            ) from None
        if not answer:
            code = await self.ended()
            text = f"worker {self.name} {ending(code)} before it had started" + self._tail()
            raise KilledAtStartError(text) if code < 0 else WorkerStartError(text)
        status = json.loads(answer)
        if "error" in status:
            await self.ended()
            self._stderr.append(status["error"])
            kind = CutOffAtStartError if status["is_cut_off"] else WorkerStartError
            raise kind(f"worker {self.name} could not start: {status['error']}")
        self.address, self.local_directory = status["address"], status["local_directory"]
        self.has_started = True

    async def ended(self) -> int:
        """Wait for its end, and until all is cleaned up behind it; return its exit code."""
        return await asyncio.shield(self._life)

    async def _live(self, process: subprocess.Popen[bytes]) -> int:
        forwarding = asyncio.ensure_future(self._forward_stderr(process))
        try:
            code = await _exit_code(process)
            await asyncio.wait({forwarding}, timeout=_LAST_WORDS)
        finally:
            forwarding.cancel()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        if self._voice >= 0:  # it was given up before anybody listened
            os.close(self._voice)
            self._voice = -1
        if self.local_directory and code != ENDED_AS_ASKED:  # else it has removed it itself
            await in_thread(shutil.rmtree, self.local_directory, True)
        return code

    async def leave(self, reason: str, limit: float, waits: bool) -> None:
        """Let it end without losing what only it holds, in `limit` seconds at most."""
        if self.has_started:
            self._ask_to_leave({"reason": reason, "limit": limit, "waits": waits})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.ended(), limit + GRACE)
        await self.stop()

    def _ask_to_leave(self, how: Mapping[str, Any]) -> None:
        # Not by SIGTERM: a batch system that ends a job sends that to workers, too, and the second
        # one would end the worker at once.
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
            self.process.stdin.write(json.dumps(how).encode() + b"\n")
            self.process.stdin.flush()

    def ask_to_end(self) -> None:
        """Let it end at once."""
        if self.process.poll() is None:
            self.was_stopped = True
            # SIGINT means just that, but a young interpreter would print a traceback.
            self.process.send_signal(signal.SIGINT if self.has_started else signal.SIGTERM)

    async def stop(self, grace: float = GRACE) -> None:
        """End it: ask, then force."""
        self.ask_to_end()
        try:
            await asyncio.wait_for(_exit_code(self.process), grace)
        except asyncio.TimeoutError:
            log.warning("worker %s did not end within %g s and is killed", self.name, grace)
            self.process.kill()
        await self.ended()

    async def _forward_stderr(self, process: subprocess.Popen[bytes]) -> None:
        """Pass the worker's stderr on, and keep its last lines for the day it dies."""
        assert process.stderr is not None
        with process.stderr:
            async for line in _lines(process.stderr.fileno()):
                text = line.decode(errors="replace")
                self._stderr.append(text.rstrip("\n"))
                # Ours may be closed, or None under pythonw and some daemons.
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    sys.stderr.write(text)
                    sys.stderr.flush()

    def _tail(self) -> str:
        return ":\n" + self.last_lines if self._stderr else ""


def _spawn(name: str, environ: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process with a fresh interpreter; also return the pipe by which it will answer."""
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            # Configured through stdin, since others can read a process's argv and environment.
            [sys.executable, "-m", "hpcdask.worker_process", str(write_end)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(write_end,),
            env=dict(environ),
            **_OWN_GROUP,
        )
    except OSError as exc:  # no memory, or no more processes for this user
        os.close(read_end)
        text = f"cannot start a process for worker {name}: {exc.strerror}"
        raise WorkerStartError(text) from exc
    finally:
        os.close(write_end)
    return process, read_end


def ending(code: int) -> str:
    """How a process has ended, from its exit code; as the end of a sentence."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process, without polling where the kernel can tell."""
    if process.poll() is None:
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError:  # before Linux 5.3, which some clusters run
            while process.poll() is None:
                await asyncio.sleep(0.05)
            return process.wait()
        ended = loop.create_future()
        loop.add_reader(pidfd, _set, ended)
        try:
            await ended
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
    return process.wait()


async def _lines(fd: int) -> AsyncIterator[bytes]:
    """Lines of a pipe, as they come; does not close it."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    pending = b""
    while True:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            ready = loop.create_future()
            loop.add_reader(fd, _set, ready)
            try:
                await ready
            finally:
                loop.remove_reader(fd)
            continue
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            yield line + b"\n"
        if not data:
            if pending:
                yield pending
            return


async def _read_line(fd: int) -> bytes:
    """First line of a pipe, which is closed then."""
    try:
        async for line in _lines(fd):
            return line
        return b""
    finally:
        os.close(fd)
