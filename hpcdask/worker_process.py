"""What a nanny starts: one worker in a process of its own.

``python -m hpcdask.worker_process FD`` reads its configuration, one line of JSON, from stdin, and
writes one line to the file descriptor FD once it has registered or failed. When stdin ends, the
nanny is gone, and so is the worker.

Exit codes: 0 if it was asked to end, by a signal or by the scheduler; 1 if it could not start, or
lost its scheduler, so that a nanny which has not lost it starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from typing import Any

from hpcdask import logs
from hpcdask.errors import HpcdaskError
from hpcdask.service import ENDED_AS_ASKED
from hpcdask.worker import Worker

#: Seconds that a worker without a nanny has to clean up.
_ORPHAN_GRACE = 3.0
#: From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run a worker until it is closed; return the exit code."""
    status = os.fdopen(int(sys.argv[1]), "w")
    config = json.loads(sys.stdin.buffer.readline())
    sys.path += [folder for folder in config.pop("sys_path", ()) if folder not in sys.path]
    logs.configure(config.pop("log_level", "info"))
    return asyncio.run(_run(config, status))


async def _run(config: dict[str, Any], status: Any) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    _watch_nanny(loop, stopped)
    stopping = asyncio.ensure_future(stopped.wait())
    try:
        worker = Worker(**config)
        starting = asyncio.ensure_future(worker.start())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            os._exit(ENDED_AS_ASKED)
        starting.result()
    except (HpcdaskError, OSError) as exc:
        _tell(status, {"error": str(exc)})
        return 1
    _tell(status, {"address": worker.address, "local_directory": worker.local_directory})
    _die_with_nanny()
    ending = asyncio.ensure_future(worker.finished())
    await asyncio.wait({stopping, ending}, return_when=asyncio.FIRST_COMPLETED)
    await worker.close("asked to end")
    stopping.cancel()
    await ending
    # A task that never returns must not keep the process: its thread is a daemon, but a thread
    # pool's (asyncio.to_thread) would be joined.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if worker.failure else ENDED_AS_ASKED)


def _tell(status: Any, what: dict[str, str]) -> None:
    with contextlib.suppress(BrokenPipeError), status:
        json.dump(what, status)
        status.write("\n")


def _watch_nanny(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    """End with the nanny, whatever ended it: the kernel closes its end of our stdin."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(stopped.set)
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
