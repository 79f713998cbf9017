"""The nanny: starts a worker process, replaces it when it dies, and takes it along at the end."""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from hpcdask import host as hosts
from hpcdask import network
from hpcdask._version import __version__
from hpcdask.calls import call
from hpcdask.comm.options import CommOptions
from hpcdask.dialling import Link, SchedulerPlace, reach_scheduler
from hpcdask.errors import CommClosedError, LaunchError, WorkerStartError
from hpcdask.execution import in_thread
from hpcdask.messages import (
    PROTOCOL_VERSION,
    CallFunction,
    CallReturned,
    CloseNanny,
    Failure,
    Message,
    RegisterNanny,
    RestartWorker,
    TaskError,
    WorkerDied,
)
from hpcdask.service import ENDED_AS_ASKED, Service

log = logging.getLogger("hpcdask.nanny")

#: Seconds that a worker has to end when asked, before it is killed.
_GRACE = 2.0
#: Starts in a row that may fail before the nanny gives up, and the longest pause between them.
_MAX_FAILED_STARTS, _MAX_PAUSE = 5, 10.0
#: A worker that lived this long was started well, in seconds.
_HEALTHY = 30.0
#: Lines of a dead worker's stderr that are kept, and seconds to wait for them: what the worker
#: has started may hold the pipe open.
_LAST_LINES, _LAST_WORDS = 20, 1.0
#: Seconds that a worker gets beyond `death_timeout` to say that it has started.
_SILENCE = 10.0
#: Ctrl-C in a terminal is for the programs there; a worker is ended by its nanny.
_OWN_GROUP: dict[str, Any] = (
    {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
)
#: How MPI finds out that it was launched. A worker is no rank: with these it could call
#: MPI_Init, and would stand for its nanny's rank.
MPI_VARIABLES = (
    "OMPI_",
    "PMIX_",
    "PMI_",
    "PRTE_",
    "PRTE",
    "MPI_LOCAL",
    "HYDRA_",
    "I_MPI_",
    "MV2_",
)

_nannies: weakref.WeakSet[Nanny] = weakref.WeakSet()


class _KilledAtStartError(WorkerStartError):
    """A signal ended the worker before it had registered."""


class Nanny(Service):
    """Keeps one worker process alive.

    Takes the parameters of `Worker`, and these.

    Parameters
    ----------
    env : mapping, optional
        Environment variables for the worker, besides ours.
    preload_nanny : iterable of str
        Modules or files with ``dask_setup(nanny)`` and ``dask_teardown(nanny)``.
    """

    def __init__(
        self,
        scheduler: str | None = None,
        *,
        scheduler_file: str | os.PathLike[str] | None = None,
        nthreads: int | None = None,
        name: str | int | None = None,
        memory_limit: str | float | None = "auto",
        death_timeout: float | str = 60.0,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
        env: Mapping[str, str] | None = None,
        preload_nanny: Iterable[str] = (),
        preload: Iterable[str] = (),
        preload_argv: Iterable[str] = (),
        **worker_options: Any,
    ) -> None:
        super().__init__(preload_nanny, preload_argv)
        self.place = SchedulerPlace(
            scheduler,
            None if scheduler_file is None else os.fspath(scheduler_file),
            token,
            token_file,
            auth,
        )
        self.nthreads = nthreads or hosts.cpu_count()
        self.name = str(name) if name is not None else f"nanny-{uuid.uuid4().hex[:8]}"
        # Two people may give two workers the same name.
        self.id = f"{self.name}-{uuid.uuid4().hex[:8]}"
        self.address = ""
        self.worker_address = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = dict(env or {})
        self._worker_options = {
            **worker_options,
            "name": self.name,
            "nthreads": self.nthreads,
            "memory_limit": hosts.resolve_memory_limit(memory_limit, self.nthreads, 1),
            "preload": list(preload),
            "preload_argv": list(preload_argv),
            "nanny": self.id,
            "auth": auth,
        }
        self._death_timeout = hosts.parse_timedelta(death_timeout)
        self._link: Link | None = None
        self._wanted = True  # whether a dead worker is to be replaced
        self._restart_is_asked = False
        self._worker_scratch = ""
        self._stderr: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._forwarding: asyncio.Task[None] | None = None
        _nannies.add(self)

    @property
    def pid(self) -> int | None:
        """Process id of the worker."""
        return None if self.process is None else self.process.pid

    # -- Life -------------------------------------------------------------------------------------

    async def _start(self) -> None:
        if self.place.scheduler_file:
            # Of a scheduler file there is one reader per nanny; the worker is told what it says.
            link = await self._register()
            await self._start_first_worker(link.address, link.options)
        else:
            # Both can connect at the same time: spawning Python takes the longest.
            options = self.place.options()
            work = [
                asyncio.ensure_future(self._register()),
                asyncio.ensure_future(self._start_first_worker(self.place.address or "", options)),
            ]
            try:
                await asyncio.wait(work, return_when=asyncio.FIRST_EXCEPTION)
                for task in work:
                    if task.done():
                        task.result()
            finally:
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
        log.info("Start Nanny at: %r", self.address)
        self._spawn(self._watch())

    async def _register(self) -> Link:
        """Join the scheduler, and listen to it from then on: it may end while a worker starts."""
        self._link = await reach_scheduler(self.place, self._introduce, self._death_timeout)
        self.address = self._link.comm.local
        self._link.comm.start(self._from_scheduler, self._scheduler_lost)
        return self._link

    async def _introduce(self, scheduler: str, options: CommOptions) -> RegisterNanny:
        me = (network.hostname(), os.getpid())
        return RegisterNanny(self.id, *me, PROTOCOL_VERSION, __version__)

    async def _close(self, reason: str) -> None:
        self._wanted = False
        await self._stop_worker()
        if self._link is not None:
            self._link.comm.close()
        if self.has_run:
            log.info("Closed nanny %s: %s", self.name, reason)

    def _scheduler_lost(self, reason: CommClosedError) -> None:
        asyncio.get_running_loop().create_task(self._fail(f"lost the scheduler: {reason}"))

    def _from_scheduler(self, batch: list[Message]) -> None:
        for message in batch:
            if type(message) is CloseNanny:
                asyncio.get_running_loop().create_task(self.close(message.reason))
            elif type(message) is RestartWorker:
                self._restart_is_asked = True
                self._spawn(self._stop_worker(grace=0.5))
            elif type(message) is CallFunction:
                self._spawn(self._call(message))

    async def _call(self, message: CallFunction) -> None:
        assert self._link is not None
        result = await call(message.function, self.name, {"dask_nanny": self}, threaded=True)
        if type(result) is TaskError:
            self._link.comm.send(Failure(message.request, result))
        else:
            self._link.comm.send(CallReturned(message.request, result))  # type: ignore[arg-type]

    # -- The worker process -----------------------------------------------------------------------

    async def _start_first_worker(self, scheduler: str, options: CommOptions) -> None:
        """Start a worker, and another if it is killed meanwhile: that is not its fault.

        A worker that fails by itself would fail again, and whoever starts us should know at once.
        """
        for is_last in (*[False] * (_MAX_FAILED_STARTS - 1), True):
            try:
                return await self._start_worker(scheduler, options)
            except _KilledAtStartError as exc:
                if is_last or self._is_closing():
                    raise
                log.warning("starting another worker: %s", exc)

    async def _start_worker(self, scheduler: str, options: CommOptions) -> None:
        """Start a process with a fresh interpreter and wait until its worker has registered.

        Raises
        ------
        WorkerStartError
            If it ends first, or says nothing.
        """
        config = {**self._worker_options, "scheduler": scheduler}
        config["death_timeout"] = self._death_timeout
        config["token"] = None if options.token is None else options.token.hex()
        config["sys_path"] = sys.path  # a script's own folder, whose modules its tasks may need
        config_line = json.dumps(config, default=os.fspath).encode() + b"\n"
        self._restart_is_asked = False
        self._stderr.clear()
        read_end, write_end = os.pipe()
        try:
            self.process = subprocess.Popen(
                # Through stdin, since argv and environment of a process can be read by others.
                [sys.executable, "-m", "hpcdask.worker_process", str(write_end)],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(write_end,),
                env=self._worker_environment(),
                **_OWN_GROUP,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        process = self.process
        self._forwarding = self._spawn(self._forward_stderr(process))
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; its exit code tells more
            process.stdin.write(config_line)
            process.stdin.flush()  # and left open: its end tells the worker that we are gone
        limit = self._death_timeout + _SILENCE
        try:
            answer = await asyncio.wait_for(_read_line(read_end), limit)
        except asyncio.TimeoutError:
            process.kill()
            await self._has_ended(process)
            raise WorkerStartError(
                f"worker {self.name} (pid {process.pid}) said nothing within {limit:g} s and was "
                "killed" + self._tail()
            ) from None
        if not answer:
            code = await self._has_ended(process)
            text = f"worker {self.name} {_ending(code)} before it had started" + self._tail()
            raise _KilledAtStartError(text) if code < 0 else WorkerStartError(text)
        status = json.loads(answer)
        if "error" in status:
            await self._has_ended(process)
            raise WorkerStartError(f"worker {self.name} could not start: {status['error']}")
        self.worker_address, self._worker_scratch = status["address"], status["local_directory"]

    async def _has_ended(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the end of a worker, and clean up behind it; return its exit code."""
        code = await _exit_code(process)
        if self._forwarding is not None and process is self.process:
            await asyncio.wait({self._forwarding}, timeout=_LAST_WORDS)
            self._forwarding.cancel()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        scratch, self._worker_scratch = self._worker_scratch, ""
        if scratch and code != ENDED_AS_ASKED:  # else it has removed it itself
            await in_thread(shutil.rmtree, scratch, True)
        return code

    def _worker_environment(self) -> dict[str, str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(MPI_VARIABLES)}
        environ.update(hosts.thread_environment(self.nthreads, environ))
        environ.update(self.environment)
        return environ

    async def _stop_worker(self, grace: float = _GRACE) -> None:
        """End the process: ask, then force."""
        process = self.process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(_exit_code(process), grace)
            except asyncio.TimeoutError:
                log.warning("worker %s did not end within %g s and is killed", self.name, grace)
                process.kill()
        await self._has_ended(process)

    def _is_closing(self) -> bool:
        return not self._wanted

    async def _watch(self) -> None:
        """Replace the worker when it dies."""
        failed_starts = 0
        started = time.monotonic()
        while self._wanted:
            assert self.process is not None
            code = await self._has_ended(self.process)
            if self._is_closing():
                return
            if self._restart_is_asked:
                log.info("restarting worker %s", self.name)
            elif code == ENDED_AS_ASKED:
                asyncio.get_running_loop().create_task(self.close("its worker has ended"))
                return
            else:
                self._report_death(code)
            if time.monotonic() - started > _HEALTHY:
                failed_starts = 0
            while self._wanted:
                if failed_starts:
                    await asyncio.sleep(min(0.2 * 2**failed_starts, _MAX_PAUSE))
                started = time.monotonic()
                failed_starts += 1
                try:
                    assert self._link is not None
                    await self._start_worker(self._link.address, self._link.options)
                    break
                except LaunchError as exc:
                    log.error("%s", exc)
                    if failed_starts >= _MAX_FAILED_STARTS:
                        text = f"worker {self.name} failed to start {failed_starts} times in a row"
                        asyncio.get_running_loop().create_task(self._fail(text))
                        return

    def _report_death(self, code: int) -> None:
        assert self._link is not None
        log.warning("worker %s (pid %s) %s; starting another", self.name, self.pid, _ending(code))
        died = WorkerDied(self.name, self.pid or 0, code, "\n".join(self._stderr))
        self._link.comm.send(died)

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
        return ":\n" + "\n".join(self._stderr) if self._stderr else ""

    def __repr__(self) -> str:
        return f"<Nanny {self.name!r}, worker {self.worker_address!r}, {self.status}>"


def _ending(code: int) -> str:
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


@atexit.register
def _end_workers() -> None:
    """Let workers end cleanly, although the program ends without closing its nannies."""
    alive = [n.process for n in _nannies if n.process is not None and n.process.poll() is None]
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + _GRACE
    for process in alive:
        try:
            process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
