"""What a nanny starts: one worker in a process of its own.

``python -m hpcdask.worker_process FD`` reads its configuration, one line of JSON, from stdin, and
writes one line to the file descriptor FD once it has registered or failed. A second line on stdin
has the parameters of `Worker.leave`: the worker hands over what only it holds, and ends. When stdin
ends, the nanny is gone, and so is the worker. SIGTERM lets it leave, too, and may follow what the
nanny says, since batch systems send it to all processes of a job; SIGINT ends it, and so does a
second SIGTERM, but in batch jobs. SIGUSR1 and SIGUSR2, their warnings, are for the nanny.

Exit codes: `ENDED_AS_ASKED` if it was asked to end, by its nanny, a signal or the scheduler; 1 if
it could not start, or lost its scheduler, so that a nanny which has not lost it starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
import threading
from typing import Any

from hpcdask import config, descriptors, logs
from hpcdask import host as hosts
from hpcdask.errors import HpcdaskError, InterfaceNotFoundError
from hpcdask.service import ENDED_AS_ASKED
from hpcdask.stdio import print_line_by_line, take_stdin
from hpcdask.worker import Worker
from hpcdask.worker_class import find_class

#: Seconds that a worker without a nanny has to clean up.
_ORPHAN_GRACE = 3.0
#: From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run a worker until it is closed; return the exit code."""
    for warning in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(warning, signal.SIG_IGN)  # for programs that tasks start, too
    status = os.fdopen(int(sys.argv[1]), "w")
    parameters = json.loads(sys.stdin.buffer.readline())
    nanny = take_stdin()
    print_line_by_line()
    sys.path += [folder for folder in parameters.pop("sys_path", ()) if folder not in sys.path]
    config.adopt(parameters.pop("settings"))
    logs.configure(parameters.pop("log_level", "info"))
    descriptors.raise_limit()  # a connection with each worker that has what we need
    return asyncio.run(_run(parameters, status, nanny))


class _Wishes:
    """What nanny, user and batch system want of this process: to leave, or to end at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.leave: asyncio.Future[dict[str, Any]] = loop.create_future()  # how
        self.end: asyncio.Future[None] = loop.create_future()
        self._heeds_repetition = not hosts.batch_job()  # as a nanny does
        self._has_sigterm = False
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        loop.add_signal_handler(signal.SIGINT, self.to_end)

    def _on_sigterm(self) -> None:
        if self._has_sigterm and self._heeds_repetition:
            self.to_end()
        else:
            self._has_sigterm = True
            self.to_leave("SIGTERM")

    def to_leave(self, reason: str, **how: Any) -> None:
        if not self.leave.done():
            self.leave.set_result({"reason": reason, **how})

    def to_end(self) -> None:
        self.to_leave("asked to end")
        if not self.end.done():
            self.end.set_result(None)


async def _run(parameters: dict[str, Any], status: Any, nanny: int) -> int:
    loop = asyncio.get_running_loop()
    wishes = _Wishes(loop)
    _watch_nanny(nanny, loop, wishes)
    try:
        make = find_class(parameters.pop("worker_class", None) or Worker)
        worker = make(**parameters)
        starting = asyncio.ensure_future(worker.start())
        await _first_of(starting, wishes.leave)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            os._exit(ENDED_AS_ASKED)
        starting.result()
    except (HpcdaskError, OSError) as exc:
        _tell(status, {"error": str(exc), "is_cut_off": _is_cut_off(exc)})
        return 1
    _tell(status, {"address": worker.address, "local_directory": worker.local_directory})
    _die_with_nanny()
    ending = asyncio.ensure_future(worker.finished())
    await _first_of(ending, wishes.leave)
    if wishes.leave.done() and not wishes.end.done():
        leaving = asyncio.ensure_future(worker.leave(**wishes.leave.result()))
        await _first_of(ending, wishes.end, leaving)
    await worker.close("asked to end")
    await ending
    # A task that never returns must not keep the process: its thread is a daemon, but a thread
    # pool's (asyncio.to_thread) would be joined.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if worker.failure else ENDED_AS_ASKED)


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _is_cut_off(exc: Exception) -> bool:
    """Whether the network, or a scheduler that does not answer, is to blame: that may pass."""
    if isinstance(exc, PermissionError):  # of tokens, too
        return False
    return isinstance(exc, (ConnectionError, TimeoutError, InterfaceNotFoundError))


def _tell(status: Any, what: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError), status:
        json.dump(what, status)
        status.write("\n")


def _watch_nanny(nanny: int, loop: asyncio.AbstractEventLoop, wishes: _Wishes) -> None:
    """Do as the nanny says, and end with it, whatever ended it: the kernel closes its pipe."""

    def wait() -> None:
        pending = b""
        while data := os.read(nanny, 4096):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                how = json.loads(line)
                loop.call_soon_threadsafe(functools.partial(wishes.to_leave, **how))
        loop.call_soon_threadsafe(wishes.to_end)
        threading.Event().wait(_ORPHAN_GRACE)
        os._exit(1)

    threading.Thread(target=wait, name="hpcdask-nanny-watch", daemon=True).start()


def _die_with_nanny() -> None:
    """Have the kernel kill us when the nanny is killed.

    The thread of `_watch_nanny` cannot run while a task is in C code that keeps the interpreter's
    lock, as Fortran behind f2py does for hours. A nanny that ends in any other way ends its worker
    first. (The signal comes when the *thread* that started us ends; that is the one with the
    nanny's event loop, without which there is no nanny.)
    """
    try:
        import ctypes  # takes milliseconds, so not before the worker has registered

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):  # not Linux
        pass


if __name__ == "__main__":
    sys.exit(main())
