"""Running the commands of a batch system: with a time limit, not too fast, never by a shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from hpcdask.errors import StatusError
from hpcdask.jobqueue.pacing import Pace
from hpcdask.jobqueue.status import Answer
from hpcdask.nanny import MPI_VARIABLES

#: Seconds that a command may take. A controller that is down lets it wait for minutes.
PATIENCE = 120.0
#: Seconds for a command to die that is killed.
_DYING = 5.0
#: Secrets, which a batch system would copy into its books and into every job; and the place of a
#: token, which is another one than that of the cluster's own file.
_SECRETS = ("HPCDASK_TOKEN", "HPCDASK_TOKEN_FILE")
#: Options of Slurm's commands that are taken from the environment. ``SQUEUE_PARTITION=short`` would
#: leave jobs out of a listing, and they would be taken for gone; ``SCANCEL_INTERACTIVE`` would ask.
_OPTIONS = ("SQUEUE_", "SCANCEL_", "SACCT_", "SCONTROL_", "SLURM_TIME_FORMAT")
#: What Slurm tells of the job that we may be in ourselves, and ``sbatch`` would hand on: the next
#: one asks for its memory in another way perhaps, and then srun refuses to start in it.
_OWN_JOB = (
    *("SLURM_JOB", "SLURM_ARRAY", "SLURM_STEP", "SLURM_TASK", "SLURM_NTASKS", "SLURM_NPROCS"),
    *("SLURM_MEM_", "SLURM_CPU", "SLURM_THREADS", "SLURM_GPU", "SLURM_TRES", "SLURM_NODE"),
    *("SLURM_NNODES", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_GTIDS", "SLURM_SRUN_", "SLURM_PTY_"),
    *("SLURM_DISTRIBUTION", "SLURM_EXPORT_ENV", "SLURM_UMASK", "SLURM_LAUNCH_NODE_IPADDR"),
)


def environment(
    environ: Mapping[str, str], submits: bool, keeps: tuple[str, ...] = ()
) -> dict[str, str]:
    """What a command gets of our environment.

    Parameters
    ----------
    environ : mapping
        Ours.
    submits : bool
        Whether jobs may inherit it, as those of Slurm do, which belong to no launch or job that we
        may be a part of. Other commands are to answer in a form that does not depend on the user.
    keeps : tuple of str
        What the names of variables begin with that are handed on nevertheless.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name.startswith(keeps)
        or (name not in _SECRETS and not name.startswith((*MPI_VARIABLES, *_OWN_JOB)))
    }
    if submits:
        return kept
    return {k: v for k, v in kept.items() if not k.startswith(_OPTIONS)} | {"LC_ALL": "C"}


class NoCommandError(StatusError):
    """There is no such command here, so nothing has been asked or done."""


class Commands:
    """Runs commands, no faster than a batch system likes.

    Parameters
    ----------
    pace : Pace, optional
        By default some at once after a rest, and one a second in the long run.
    timeout : float
        Seconds that each may take.
    environ : mapping, optional
        Environment, by default that of this process when a command is run.
    keeps : tuple of str
        As of `environment`.
    """

    def __init__(
        self,
        pace: Pace | None = None,
        timeout: float = PATIENCE,
        environ: Mapping[str, str] | None = None,
        keeps: tuple[str, ...] = (),
    ) -> None:
        self._pace, self._timeout, self._environ = pace or Pace(), timeout, environ
        self._keeps = keeps
        self._in_haste = asyncio.Event()

    def make_haste(self) -> None:
        """Let no command wait for its turn any more: it is the end, for which there is little time.

        Jobs that are not cancelled by then would be left behind.
        """
        self._in_haste.set()

    async def run(
        self, command: Sequence[str], submits: bool = False, answer: Path | None = None
    ) -> Answer:
        """Run a command and wait for its end.

        Parameters
        ----------
        submits : bool
            As of `environment`.
        answer : Path, optional
            A file, mode 0600, that keeps what it says, also when we are gone by then.

        Raises
        ------
        NoCommandError
            If there is no such command here.
        StatusError
            If it did not end in time. What it was to do may be done or not.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            pause = self._pace.take(time.monotonic())
            await asyncio.wait_for(self._in_haste.wait(), pause)
        ours = os.environ if self._environ is None else self._environ
        environ = environment(ours, submits, self._keeps)
        # To files and not to pipes: PBS's qsub leaves a process behind that would keep them open.
        with _files(command[0], answer) as (out, err):
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=environ,
                    start_new_session=True,  # Ctrl-C is for us, not for a scancel that we run
                )
            except OSError as exc:
                raise NoCommandError(
                    f"cannot run {command[0]}: {exc.strerror}{_hint(exc)}"
                ) from exc
            try:
                code = await asyncio.wait_for(process.wait(), self._timeout)
            except asyncio.TimeoutError:
                raise StatusError(
                    f"{command[0]} gave no answer within {self._timeout:g} s"
                ) from None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    # One that a file server holds up does not even die.
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(process.wait(), _DYING)
            return Answer(code, _text(out), _text(err))


def _output(path: Path | None = None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile()
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b")


@contextlib.contextmanager
def _files(command: str, answer: Path | None = None) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Files for both outputs of a command."""
    with contextlib.ExitStack() as stack:
        try:
            out, err = (stack.enter_context(_output(path)) for path in (answer, None))
        except OSError as exc:
            raise NoCommandError(
                f"cannot run {command}: there is no file for its answer: {exc.strerror}. Make room "
                "in the folder for temporary files, or name another with TMPDIR."
            ) from exc
        yield out, err


def _hint(exc: OSError) -> str:
    if not isinstance(exc, FileNotFoundError | PermissionError):
        return ""  # no processes or no memory are left for this user, say
    return (
        ". Work on a host from which jobs are submitted, with the commands of the batch system in "
        "the PATH."
    )


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def in_words(answer: Answer) -> str:
    """What a command has said, errors first."""
    return "\n".join(filter(None, (answer.err.strip(), answer.out.strip())))
