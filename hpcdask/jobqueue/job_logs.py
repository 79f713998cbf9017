"""What jobs have written last: their logs may come late, and lie in a slow file system."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence

from hpcdask.jobqueue.controller import Controller
from hpcdask.jobqueue.job import Job
from hpcdask.threads import in_thread

#: Lines of a log that are shown, and bytes of its end that are read for them.
_TAIL, _TAIL_BYTES = 20, 16384
#: Seconds for a log to come: PBS copies it after the end, and file systems of networks are late.
_LOG_COMES = 3.0
#: Seconds between two looks for it.
_PAUSE = 0.5


class JobLogs:
    """Reads the logs of a cluster's jobs.

    Parameters
    ----------
    kinds : dict of str to Job
        By pool, what its jobs are like.
    """

    def __init__(self, kinds: Mapping[str, Job]) -> None:
        self._kinds = kinds

    def paths(self, pool: str, id: str) -> Sequence[str]:
        """Where the log of a job is, or will be."""
        return [os.fspath(path) for path in self._kinds[pool].log_paths(id)]

    async def after(self, why: str, controller: Controller) -> str:
        """`why`, and what the last job that has failed wrote last."""
        failed = [
            job
            for job in controller.history
            if not job.has_reported or (job.status.end and job.status.end.is_failure)
        ]
        if not failed:
            return why
        pool, id = failed[-1].pool, failed[-1].id
        deadline = time.monotonic() + _LOG_COMES
        while True:  # of some systems its name is known when it is there
            paths, text = await in_thread(self._read, pool, id)
            if text or time.monotonic() >= deadline:
                break
            await asyncio.sleep(_PAUSE)
        if text:
            return f"{why}\nThe last lines of {' and '.join(paths)}:\n{text}"
        where = " or ".join(paths) or self._kinds[pool].log_directory
        return f"{why}\nIt has left no log in {where}."

    async def of(self, jobs: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Last lines of the logs of jobs, each a pool and an id, by "job" and the id."""
        asked = list(jobs)

        def read() -> dict[str, str]:
            texts = {id: self._read(pool, id)[1] for pool, id in asked}
            return {f"job {id}": text for id, text in texts.items() if text}

        return await in_thread(read)

    def _read(self, pool: str, id: str) -> tuple[Sequence[str], str]:
        paths = self.paths(pool, id)
        return paths, _tail(paths)


def _tail(paths: Sequence[str]) -> str:
    """Last lines of files, as far as they are there."""
    texts = []
    for path in dict.fromkeys(paths):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
            texts.append("\n".join(lines[-_TAIL:]))
    return "\n".join(filter(None, texts))
