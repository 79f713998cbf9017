"""Keeps a cluster's state file as it should be, from which others learn of its jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from hpcdask.jobqueue.folder import ClusterFolder, ClusterState, Owner
from hpcdask.threads import in_thread

log = logging.getLogger("hpcdask.jobqueue")

#: Seconds that a file server may take to write a small file, when nobody can wait any longer.
_WRITING = 3.0
#: Seconds until it is tried again, where it has failed.
_WRITE_AGAIN = 5.0


class AnothersError(Exception):
    """The cluster is kept by somebody else."""


class StateWriter:
    """Writes the state of a cluster whenever it has changed.

    Parameters
    ----------
    folder : ClusterFolder
    owner : Owner, optional
        Who keeps the cluster here.
    state : callable
        Gives the state as it is now.
    """

    def __init__(
        self, folder: ClusterFolder, owner: Owner | None, state: Callable[[], ClusterState]
    ) -> None:
        self._folder, self._owner, self._state = folder, owner, state
        self._heard: list[str] = []  # scripts whose jobs are known, but not on disk yet
        self._scripts: dict[str, frozenset[str]] = {}  # their jobs, the latest last
        self._changed = asyncio.Event()
        self._changed.set()
        self._writing: asyncio.Future[None] | None = None  # in a thread

    def changed(self) -> None:
        """There may be something to write."""
        self._changed.set()

    def heard(self, script: str, ids: Iterable[str]) -> None:
        """It is known which jobs came of a script: once they are written, its answer may go.

        And so may the script when they have ended. Some systems read it when a job starts.
        """
        self._heard.append(script)
        self._scripts[script] = frozenset(ids)

    async def run(self) -> None:
        """Write, until somebody else keeps the cluster.

        Raises
        ------
        AnothersError
            If so.
        """
        saved, trouble = None, ""
        while True:
            await self._changed.wait()
            self._changed.clear()
            state, heard = self._state(), list(self._heard)
            if state == saved:
                continue
            over = self._over(state)
            try:
                self._writing = in_thread(self._write, state, heard, over)
                await asyncio.shield(self._writing)
                saved, trouble = state, ""
                del self._heard[: len(heard)]
                for script in over:
                    del self._scripts[script]
            except OSError as exc:  # a quota, say; it may change though nothing happens here
                if trouble != str(exc.strerror):
                    trouble = str(exc.strerror)
                    log.warning("cannot write %s: %s", self._folder.state_file, trouble)
                await asyncio.sleep(_WRITE_AGAIN)
                self._changed.set()

    async def write_last(self, state: ClusterState) -> None:
        """Write this, after `run` has been cancelled.

        Raises
        ------
        AnothersError
            If somebody else keeps the cluster.
        """
        await in_thread(self._write, state, self._heard)

    async def settle(self) -> None:
        """Wait for what is being written: who clears the folder up comes after it."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=_WRITING)

    def _over(self, state: ClusterState) -> list[str]:
        """Scripts whose jobs have ended, but the latest, of whose number later ones take heed."""
        there = set(state.jobs)
        return [script for script in list(self._scripts)[:-1] if not self._scripts[script] & there]

    def _write(self, state: ClusterState, heard: Sequence[str], over: Sequence[str] = ()) -> None:
        """Write the state, and then forget by what else jobs could have been found."""
        if self._folder.is_anothers(self._owner):
            raise AnothersError(f"{self._folder.read_state().owner} keeps it now")
        self._folder.write_state(state)
        for script in heard:
            self._folder.answer_file(script).unlink(missing_ok=True)
        for script in over:
            (self._folder.path / script).unlink(missing_ok=True)
