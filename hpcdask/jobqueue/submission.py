"""Handing a job script to the batch system."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable

from hpcdask.errors import StatusError, SubmitError
from hpcdask.jobqueue.commands import Commands, NoCommandError, in_words
from hpcdask.jobqueue.status import Answer
from hpcdask.jobqueue.system import BatchSystem
from hpcdask.nanny import MPI_VARIABLES


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
    words = in_words(answer)
    if answer.code != 0:
        raise SubmitError(f"{system.title} refused the job:\n{words}")
    if answer.err.strip():
        say(answer.err.strip())
    try:
        return system.job_id(answer.out)
    except ValueError:
        raise SubmitError(
            f"{system.submit_command[0]} has taken the job and named no id that {system.title} has:"
            f"\n{words}\nLook for it in the queue; it may run."
        ) from None


def _run(command: list[str]) -> Answer:
    # The place of a token is no secret, and MPI may be set up for an mpirun in the job.
    commands = Commands(keeps=("HPCDASK_TOKEN_FILE", *MPI_VARIABLES))
    try:
        return asyncio.run(commands.run(command, submits=True))
    except NoCommandError as exc:
        raise SubmitError(str(exc)) from None
    except StatusError as exc:
        raise SubmitError(
            f"{exc}; the job may be in the queue nevertheless. Look there before you submit it "
            "again."
        ) from None
