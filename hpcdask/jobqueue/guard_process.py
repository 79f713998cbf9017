"""The process of a `hpcdask.jobqueue.guard.Guard`: light until it has something to do."""

from __future__ import annotations

import os
import signal
import sys

#: Seconds for the jobs to leave the queue, a system that is down for a while included.
_LIMIT = 3600.0


class _KeptError(Exception):
    """Somebody else keeps the cluster, or may."""


def main(folder: str, pid: int, started: float) -> int:
    """Wait for the end of a process; if it came without a word, end its cluster.

    Parameters
    ----------
    folder : str
        Of the cluster.
    pid, started
        Of the process, as in the cluster's state: somebody else may keep it by then.
    """
    # A session that is closed takes all of its processes with it, at their own pace.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if os.read(0, 1):
        return 0
    import asyncio

    return asyncio.run(_end(folder, pid, started))


async def _end(path: str, pid: int, started: float) -> int:
    from pathlib import Path

    from hpcdask.errors import HpcdaskError
    from hpcdask.jobqueue.clearing import clear, in_short
    from hpcdask.jobqueue.commands import Commands
    from hpcdask.jobqueue.folder import ClusterFolder, ClusterState, Owner

    def approve(state: ClusterState) -> None:
        owner = state.owner
        if owner is None or (owner.pid, owner.started) != (pid, started):
            raise _KeptError

    folder = ClusterFolder(Path(path))
    if not folder.state_file.exists():
        return 0  # it had just ended in order
    try:
        state = folder.own(Owner.here(), approve)
    except _KeptError:
        return 0
    folder.note(f"{state.owner} has ended, and left {state.name} behind; ending its jobs")
    try:
        done = await clear(folder, state, Commands(), _LIMIT)
    except HpcdaskError as exc:
        folder.note(str(exc))
        return 1
    if done.is_clear:
        folder.note(f"cancelled {in_short(done.cancelled) or 'nothing: no job was left'}")
        return 0
    left = in_short([*done.left, *done.unclear])
    folder.note(f"may still be in the queue: {left}. {done.trouble}".rstrip())
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
