"""A user's script as the client of a cluster whose services live in this process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

from hpcdask.launchers.process import Deadline, close_all, first_of, live, settle, stop_signals
from hpcdask.nanny import MPI_VARIABLES
from hpcdask.service import Service

log = logging.getLogger("hpcdask.mpi")

#: Seconds that a script has to end after it was asked to.
_GRACE = 3.0

#: Ends the script with us, even if we are killed (prctl(2), PR_SET_PDEATHSIG is 1), and then
#: becomes it. Not in `preexec_fn`, which is unsafe where there are threads.
_BECOME_SCRIPT = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.environ["HPCDASK_SCRIPT"] = str(os.getpid())
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


async def serve_script(
    services: Sequence[Service],
    script: Sequence[str],
    scheduler_file: str,
    remove_files: Callable[[], None],
    deadline: Deadline,
) -> int:
    """Run the script beside the services; all ends with it, and with its exit code.

    Parameters
    ----------
    script : sequence of str
        Its path and its arguments.
    scheduler_file : str
        By which it finds its cluster.
    remove_files : callable
        Removes what is temporary, early where there is little time.
    deadline : Deadline
        Of the end.
    """
    process = _start(script, scheduler_file)
    ending = asyncio.ensure_future(asyncio.to_thread(process.wait))
    with stop_signals(with_parent=True, for_good=True) as stopped:
        living = asyncio.ensure_future(live(services))
        try:
            await first_of(ending, stopped, living)
            if living.done() and living.exception() is None:
                # Somebody has shut the cluster down, perhaps the script itself, which may have
                # work left to do without it.
                await first_of(ending, stopped, patience=_GRACE)
                if not ending.done() and not stopped.done():
                    log.warning("the cluster was shut down; waiting for the script to end")
                    await first_of(ending, stopped)
            deadline.begin()
            if not ending.done():
                number = stopped.result() if stopped.done() else signal.SIGTERM
                # Files first and the rest at the same time: mpirun kills us very soon, Open MPI 5
                # a quarter of a second after it has passed a SIGTERM on.
                remove_files()
                await asyncio.gather(
                    _end(process, ending, number), close_all(services, "asked to end")
                )
            code = await ending
            deadline.code = code if code >= 0 else 128 - code
        finally:
            await settle(living, services, "the script has ended")
    return deadline.code


def _start(script: Sequence[str], scheduler_file: str) -> subprocess.Popen[bytes]:
    """Start it in a process of its own, so that it cannot slow the scheduler down."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(MPI_VARIABLES)}
    # The file has the token of this cluster, and the environment perhaps that of another.
    environ.pop("HPCDASK_TOKEN", None)
    environ.pop("HPCDASK_TOKEN_FILE", None)
    environ.pop("HPCDASK_SCHEDULER_ADDRESS", None)
    environ["HPCDASK_SCHEDULER_FILE"] = scheduler_file
    become = [sys.executable, "-I", "-S", "-c", _BECOME_SCRIPT, str(os.getpid())]
    return subprocess.Popen([*become, *script], env=environ)


async def _end(
    process: subprocess.Popen[bytes], ending: asyncio.Future[int], number: signal.Signals
) -> None:
    """Ask the script to end, then force it."""
    process.send_signal(number)
    done, _ = await asyncio.wait({ending}, timeout=_GRACE)
    if not done:
        process.kill()


def import_path(script: Sequence[str] | None) -> dict[str, str]:
    """Let workers import the modules that lie beside the script, as the script itself can."""
    if script is None:
        return {}
    folder = os.path.dirname(os.path.realpath(script[0]))
    return {"PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))}
