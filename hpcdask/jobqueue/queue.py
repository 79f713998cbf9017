"""The queue of a batch system, as a cluster uses it: questions and orders become commands."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import shlex
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from hpcdask.errors import ConfigError, StatusError, SubmitError
from hpcdask.jobqueue.commands import Commands, NoCommandError, in_words
from hpcdask.jobqueue.folder import ClusterFolder, Submission
from hpcdask.jobqueue.job import Job
from hpcdask.jobqueue.refusal import offending_line
from hpcdask.jobqueue.status import JobStatus, Phase
from hpcdask.jobqueue.system import BatchSystem
from hpcdask.threads import in_thread

log = logging.getLogger("hpcdask.jobqueue")

#: Seconds for an answer that one can do without.
_SOON = 3.0
#: Seconds between two questions why jobs wait, where the listing does not tell.
_REASONS = 15.0


class UnclearError(SubmitError):
    """Nobody knows whether jobs were submitted."""


class Queue:
    """Submits, lists and cancels jobs.

    Parameters
    ----------
    system : BatchSystem
    commands : Commands
    folder : ClusterFolder
        For job scripts.
    """

    def __init__(self, system: BatchSystem, commands: Commands, folder: ClusterFolder) -> None:
        self.system, self._commands, self._folder = system, commands, folder
        self._tried: set[Job] = set()  # whose script the system has found good
        self._reasons: dict[str, str] = {}  # why jobs wait, and when to ask again
        self._reasons_due = -math.inf

    async def max_array(self) -> int | None:
        """Most jobs of one submission, if the system says soon what that is."""
        if not self.system.has_arrays:
            return 1
        command = self.system.array_command()
        if command is None:
            return None
        try:
            answer = await asyncio.wait_for(self._commands.run(command), _SOON)
        except (StatusError, asyncio.TimeoutError) as exc:
            log.debug("%s does not say how large an array may be: %r", self.system.title, exc)
            return None
        return self.system.parse_array(answer)

    # -- Submitting -------------------------------------------------------------------------------

    async def submit(self, job: Job, count: int, name: str) -> list[str]:
        """Submit an array of `count` jobs and return their ids.

        What the command says is kept in the folder, until somebody has written the ids down.

        Parameters
        ----------
        name : str
            Of the script, and of no other: by this `find` finds the jobs.

        Raises
        ------
        UnclearError
            If nobody knows what has come of it.
        SubmitError
            If there is no such job for certain.
        """
        try:
            script = job.script(count)
        except Exception as exc:  # of a user's own class
            why = str(exc) if isinstance(exc, ConfigError) else repr(exc)
            raise SubmitError(f"{type(job).__name__} gives no job script: {why}") from exc
        try:
            path = os.fspath(
                await in_thread(self._folder.write_script, self.script_name(name), script)
            )
        except OSError as exc:
            raise SubmitError(
                f"cannot write a job script into {self._folder.path}: {exc.strerror}. Make room "
                "there, or have the cluster's folder elsewhere, with shared_temp_directory."
            ) from exc
        await self._try_out(job, script, path)
        command = [*shlex.split(job.submit_command), path]
        kept = self._folder.answer_file(self.script_name(name))
        try:
            answer = await self._commands.run(command, submits=True, answer=kept)
        except NoCommandError as exc:
            await in_thread(kept.unlink)
            raise SubmitError(str(exc)) from exc
        except StatusError as exc:
            raise UnclearError(_unclear(str(exc))) from exc
        if answer.code:
            await in_thread(kept.unlink)
            raise self._refused(script, in_words(answer))
        try:
            return self.system.elements(self.system.job_id(answer.out), count)
        except ValueError:
            words = f"{command[0]} named no id that {self.system.title} has: {in_words(answer)}"
            raise UnclearError(_unclear(words)) from None

    def script_name(self, name: str) -> str:
        """The file of a script."""
        return f"{name}{self.system.suffix}"

    async def _try_out(self, job: Job, script: str, path: str) -> None:
        """Ask the system, where it can be asked, before the first submission of a job."""
        trial = self.system.trial_command(path)
        if trial is None or job in self._tried:
            return
        try:
            words = self.system.refusal(await self._commands.run(trial, submits=True))
        except StatusError as exc:
            raise SubmitError(str(exc)) from exc
        if words:
            raise self._refused(script, words)
        self._tried.add(job)

    def _refused(self, script: str, words: str) -> SubmitError:
        line = offending_line(script, self.system.prefix, words)
        about = f"\nThis line of the job script is meant, it seems: {line}" if line else ""
        return SubmitError(f"{self.system.title} refused the jobs:\n{words}{about}")

    async def find(self, name: str, count: int, strangers: Collection[str]) -> set[str]:
        """Ids of the jobs that were submitted by a script of this name after all.

        Parameters
        ----------
        strangers : collection of str
            Ids, perhaps, of jobs of workers that have come, and that nobody has submitted as it
            seems; or any other words, of workers that somebody has started by hand.

        Raises
        ------
        StatusError
            If the system does not tell.
        """
        if ids := {id for stranger in strangers for id in self._array_of(stranger, count)}:
            return ids
        command = self.system.find_command()
        if command is None:
            return set()
        path = os.fspath(self._folder.path / self.script_name(name))
        return set(self.system.parse_found(await self._commands.run(command), path))

    async def ids_of(self, submission: Submission) -> list[str] | None:
        """Ids of the jobs of a submission whose process was killed before it wrote them down.

        They are in what the submit command has said, which goes on by itself, or in the queue.

        Returns
        -------
        list of str or None
            None if nobody knows.
        """
        try:
            number = self.system.job_id(self._folder.answer_file(submission.script).read_text())
            return self.system.elements(number, submission.count)
        except (OSError, ValueError):
            pass
        command = self.system.find_command()
        if command is None:
            return None
        try:
            path = os.fspath(self._folder.path / submission.script)
            return self.system.parse_found(await self._commands.run(command), path)
        except StatusError as exc:
            log.warning("%s does not tell of the jobs: %s", self.system.title, exc)
            return None

    def _array_of(self, id: str, count: int) -> list[str]:
        """All jobs of the array that a job is of; none unless it is one of `count`."""
        number = _number(id)
        for base in (number, f"{number}[]"):  # as PBS has it
            if number and id in (ids := self.system.elements(base, count)):
                return ids
        return []

    # -- Listing ----------------------------------------------------------------------------------

    async def listing(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """How jobs are, by id; those that are missing may have ended.

        Raises
        ------
        StatusError
            If the system does not tell.
        """
        answer = await self._commands.run(self.system.status_command(ids))
        found = self.system.parse_status(answer)
        for id in ids:
            # Slurm shows what was cancelled of an array before it began as one job.
            rest = found.get(_number(id))
            if rest is not None and rest.phase is Phase.ENDED and id not in found:
                found[id] = replace(rest, id=id)
        return found

    def never(self, found: dict[str, JobStatus]) -> list[str]:
        """Ids of the jobs that wait for what will not come."""
        return [id for id, status in found.items() if self.system.can_never_run(status)]

    async def with_reasons(
        self, found: dict[str, JobStatus], ours: Collection[str]
    ) -> dict[str, JobStatus]:
        """Add why jobs wait, where that takes another command, which is not run each time."""
        pending = {id for id, status in found.items() if status.phase is Phase.PENDING}
        waiting = [id for id in ours if id in pending]
        command = self.system.reason_command(waiting) if waiting else None
        if command is None:
            return found
        if time.monotonic() >= self._reasons_due or not self._reasons.keys() >= set(waiting):
            self._reasons_due = time.monotonic() + _REASONS
            self._reasons = await self._ask_reasons(command, waiting)
        told = {id: self._reasons[id] for id in waiting if self._reasons[id]}
        return {
            id: replace(status, reason=_joined(status.reason, told[id])) if id in told else status
            for id, status in found.items()
        }

    async def _ask_reasons(self, command: list[str], waiting: Iterable[str]) -> dict[str, str]:
        told: dict[str, str] = {}
        try:
            told = self.system.parse_reasons(await self._commands.run(command))
        except StatusError as exc:
            log.debug("%s does not say why jobs wait: %s", self.system.title, exc)
        # What an array waits for, all of its jobs do.
        return {id: told.get(id) or told.get(_number(id), "") for id in waiting}

    async def ends(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """How jobs have ended that are no longer listed, as far as the system knows."""
        found: dict[str, JobStatus] = {}
        for command in self.system.end_commands(ids):
            try:
                found.update(self.system.parse_ends(await self._commands.run(command)))
            except StatusError as exc:
                log.info("%s does not tell how jobs have ended: %s", self.system.title, exc)
        return found

    def make_haste(self) -> None:
        """Let no command wait for its turn any more, since it is the end."""
        self._commands.make_haste()

    # -- Cancelling -------------------------------------------------------------------------------

    async def cancel(self, job: Job, ids: Sequence[str]) -> None:
        """Cancel these, which are of one kind; the next listing tells what has come of it."""
        for command in job.system.cancel_commands(ids):
            try:
                answer = await self._commands.run(command)
            except StatusError as exc:
                log.warning("jobs may still be there: %s", exc)
                continue
            if answer.code:  # of one that has ended meanwhile, most likely
                log.info("%s says: %s", command[0], in_words(answer))


def _unclear(words: str) -> str:
    return f"{words}; the jobs may be in the queue nevertheless, and are looked for there"


def _joined(*reasons: str) -> str:
    return ", ".join(filter(None, reasons))


def _number(id: str) -> str:
    """Of the array that a job belongs to."""
    match = re.match(r"\d+", id)
    return match[0] if match else ""
