"""What a nanny starts: one worker in a process of its own.

``python -m hpcdask.worker_process FD`` reads its configuration, one line of JSON, from stdin, and
writes one line to the file descriptor FD once it has registered or failed. When stdin ends, the
nanny is gone, and so is the worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from typing import Any

from hpcdask import logs
from hpcdask.errors import HpcdaskError
from hpcdask.worker import Worker

#: Seconds that a worker without a nanny has to clean up.
_ORPHAN_GRACE = 3.0


def main() -> int:
    """Run a worker until it is closed; return the exit code."""
    status = os.fdopen(int(sys.argv[1]), "w")
    config = json.loads(sys.stdin.buffer.readline())
    logs.configure(config.pop("log_level", "info"))
    return asyncio.run(_run(config, status))


async def _run(config: dict[str, Any], status: Any) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    _watch_nanny(loop, stopped)
    try:
        worker = await Worker(**config)
    except (HpcdaskError, OSError) as exc:
        _tell(status, {"error": str(exc)})
        return 1
    _tell(status, {"address": worker.address})
    stopping = asyncio.ensure_future(stopped.wait())
    ending = asyncio.ensure_future(worker.finished())
    await asyncio.wait({stopping, ending}, return_when=asyncio.FIRST_COMPLETED)
    await worker.close("asked to end")
    stopping.cancel()
    await ending
    # A task that never returns must not keep the process: its thread is a daemon, but a thread
    # pool's (asyncio.to_thread) would be joined.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _tell(status: Any, what: dict[str, str]) -> None:
    with status:
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


if __name__ == "__main__":
    sys.exit(main())
