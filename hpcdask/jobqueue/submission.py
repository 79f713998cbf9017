"""Handing a job script to the batch system."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable

from hpcdask.errors import SubmitError
from hpcdask.jobqueue.system import BatchSystem

#: Seconds that the submit command may take. A controller that is down lets it wait for minutes.
_PATIENCE = 120.0


def submit(
    system: BatchSystem, script: str, say: Callable[[str], None] = lambda words: None
) -> str:
    """Submit a job script from the current folder, and return the id of the job.

    Parameters
    ----------
    system : BatchSystem
        Whose commands are in the PATH.
    script : str
        The whole text.
    say : callable
        Is told what the system says besides, as some do of the rest of a budget.

    Raises
    ------
    SubmitError
        If the system refuses it, with the system's own words, or there is none.
    """
    # In a file, since not every qsub reads its input. It is copied before the command ends.
    with tempfile.TemporaryDirectory(prefix="hpc-dask-") as folder:
        path = os.path.join(folder, f"hpcdask{system.suffix}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(script)
        answer = _run([*system.submit_command, path])
    words = "\n".join(filter(None, (answer.stderr.strip(), answer.stdout.strip())))
    if answer.returncode != 0:
        raise SubmitError(f"{system.title} refused the job:\n{words}")
    if answer.stderr.strip():
        say(answer.stderr.strip())
    try:
        return system.job_id(answer.stdout)
    except ValueError:
        raise SubmitError(
            f"{system.submit_command[0]} has taken the job and named no id that {system.title} has:"
            f"\n{words}\nLook for it in the queue; it may run."
        ) from None


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
        )
    except FileNotFoundError:
        raise SubmitError(
            f"there is no {command[0]} here; go to a host from which jobs are submitted"
        ) from None
    except subprocess.TimeoutExpired:
        raise SubmitError(
            f"{command[0]} gave no answer within {_PATIENCE:g} s; the job may be in the queue "
            "nevertheless. Look there before you submit it again."
        ) from None
