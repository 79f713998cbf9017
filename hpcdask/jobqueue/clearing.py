"""Ending what is left of a cluster that nobody keeps any more: its jobs, and its folder."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from hpcdask.errors import ConfigError, StatusError
from hpcdask.jobqueue.commands import Commands, in_words
from hpcdask.jobqueue.folder import ClusterFolder, ClusterState, Submission
from hpcdask.jobqueue.queue import Queue
from hpcdask.jobqueue.status import Phase
from hpcdask.jobqueue.system import BatchSystem
from hpcdask.jobqueue.systems import WORKER_SYSTEMS

log = logging.getLogger("hpcdask.jobqueue")

#: Shortest and longest pause between two looks, and when to cancel once more, in seconds.
_PAUSES, _AGAIN = (0.2, 2.0), 10.0
#: Seconds for a submit command to answer that was under way when its process was killed.
_ANSWER = 20.0
#: Complete listings in a row that lack a cancelled job, until it is taken for gone.
_LOOKS = 2


@dataclass
class Cleared:
    """What came of it.

    Attributes
    ----------
    cancelled : list of str
        Ids of the jobs that were there, or may have been.
    left : list of str
        Those that still are, or may be.
    unclear : list of str
        Submissions of which nobody knows what came of them.
    trouble : str
        What the batch system has said last, if it did not answer.
    """

    cancelled: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    trouble: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether nothing of the cluster can be in the queue."""
        return not self.left and not self.unclear


def in_short(ids: Sequence[str]) -> str:
    """Some ids, and how many more there are."""
    return ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")


def system_of(state: ClusterState) -> BatchSystem:
    """The batch system of a cluster.

    Raises
    ------
    ConfigError
        If it is none of ours.
    """
    try:
        return WORKER_SYSTEMS[state.system]
    except KeyError:
        raise ConfigError(
            f"cluster {state.name} is on a batch system {state.system!r}, of which this hpcdask "
            f"knows nothing; its jobs are {', '.join(state.jobs) or 'none'}"
        ) from None


async def clear(
    folder: ClusterFolder, state: ClusterState, commands: Commands, limit: float
) -> Cleared:
    """Cancel all jobs of a cluster, and remove what it has left on disk but for its logs.

    Parameters
    ----------
    limit : float
        Seconds for jobs to leave the queue. What is left then is not forgotten.
    """
    return await _Clearing(folder, state, commands).clear(time.monotonic() + limit)


class _Clearing:
    def __init__(self, folder: ClusterFolder, state: ClusterState, commands: Commands) -> None:
        self._folder, self._state, self._commands = folder, state, commands
        self._system = system_of(state)
        self._queue = Queue(self._system, commands, folder)
        self._done = Cleared()

    async def clear(self, deadline: float) -> Cleared:
        done = self._done
        of_pools = {name: [*pool.jobs, *pool.leaving] for name, pool in self._state.pools.items()}
        for submission in self._folder.unheard():
            ids = await self._ids_of(submission, min(deadline, time.monotonic() + _ANSWER))
            if ids is None:
                done.unclear.append(submission.script)
            else:
                of_pools.setdefault(submission.pool, []).extend(ids)
        of_pools = {name: list(dict.fromkeys(ids)) for name, ids in of_pools.items()}
        done.left = [id for ids in of_pools.values() for id in ids]
        missed = dict.fromkeys(done.left, 0)
        there = await self._there(done.left)
        # Of all that may be there; a listing that fails, or lies, saves nothing.
        done.cancelled = [id for id in done.left if there is None or id in there]
        pause, again = _PAUSES[0], 0.0
        while done.left and time.monotonic() < deadline:
            if time.monotonic() >= again:
                again = time.monotonic() + _AGAIN
                await self._cancel(of_pools, done.left)
            there = await self._there(done.left)
            for id in done.left if there is not None else ():
                missed[id] = 0 if id in (there or ()) else missed[id] + 1
            done.left = [id for id in done.left if missed[id] < _LOOKS]
            if done.left:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSES[1])
        # Of what is unclear nobody will know more later.
        self._folder.clear(keep_state=bool(done.left))
        return done

    async def _ids_of(self, submission: Submission, deadline: float) -> list[str] | None:
        """Its jobs; its command goes on without who has started it, and is waited for."""
        while True:
            ids = await self._queue.ids_of(submission)
            if ids or time.monotonic() >= deadline:
                return ids
            await asyncio.sleep(_PAUSES[1])

    async def _there(self, ids: Collection[str]) -> set[str] | None:
        """Which of these jobs are in the queue; None if it does not tell."""
        if not ids:
            return set()
        try:
            command = self._system.status_command(list(ids))
            found = self._system.parse_status(await self._commands.run(command))
        except StatusError as exc:
            self._done.trouble = str(exc)
            return None
        self._done.trouble = ""
        return {id for id in ids if id in found and found[id].phase is not Phase.ENDED}

    async def _cancel(self, of_pools: dict[str, list[str]], left: Iterable[str]) -> None:
        there = set(left)
        for name, ids in of_pools.items():
            system, pool = copy.copy(self._system), self._state.pools.get(name)
            if pool is not None and pool.cancel_command:
                system.cancel_command = pool.cancel_command
            own = [id for id in ids if id in there]
            for command in system.cancel_commands(own) if own else ():
                try:
                    answer = await self._commands.run(command)
                except StatusError as exc:
                    self._done.trouble = str(exc)
                    continue
                if answer.code:  # of one that has ended meanwhile, most likely
                    log.info("%s says: %s", command[0], in_words(answer))
