"""Ending clusters from outside, whether or not anybody keeps them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError, HpcdaskError, LaunchError
from hpcdask.jobqueue.clearing import Cleared, clear
from hpcdask.jobqueue.commands import Commands
from hpcdask.jobqueue.folder import ClusterFolder, ClusterState, Owner, default_base
from hpcdask.jobqueue.scheduler_job import shut_down
from hpcdask.jobqueue.survey import Condition, KnownCluster
from hpcdask.launchers.scheduler_access import SchedulerThere
from hpcdask.rendezvous import Contact

#: Seconds for a scheduler to hear that it is to end, and for who keeps a cluster to end it then.
_HEARS, _ENDS = 5.0, 30.0


async def end(known: KnownCluster, limit: float) -> Cleared:
    """End a cluster, whoever keeps it.

    Parameters
    ----------
    limit : float
        Seconds for jobs to leave the queue.

    Raises
    ------
    LaunchError
        If a process keeps it that does not let go.
    """
    folder, state = known.folder, known.state
    condition = known.condition  # now, and not when it ends
    if known.contact is not None:
        await _shut_down(known.contact)
    if condition is Condition.KEPT:
        # It ends the cluster with the scheduler. Jobs that we cancelled it would replace.
        if not await _is_ended(folder):
            raise LaunchError(
                f"{state.owner} keeps cluster {state.name}, and has not ended it within "
                f"{_ENDS:g} s. End that process first"
            )
        return Cleared(cancelled=list(known.jobs or ()))

    def approve(now: ClusterState) -> None:
        if now.owner != state.owner:
            raise LaunchError(f"{now.owner} keeps cluster {state.name} now")

    if not folder.state_file.exists():  # its guard was faster
        return Cleared()
    owned = folder.own(Owner.here(), approve)
    return await clear(folder, owned, Commands(), limit)


async def _shut_down(contact: Contact) -> None:
    place = SchedulerPlace(contact.address, token=contact.token, auth=bool(contact.token))
    access = SchedulerThere(place, contact.address, "clean")
    with contextlib.suppress(HpcdaskError, OSError, asyncio.TimeoutError):
        await asyncio.wait_for(access.run(shut_down, "hpc-dask clean"), _HEARS)
    await access.close("all is said")


async def _is_ended(folder: ClusterFolder) -> bool:
    deadline = asyncio.get_running_loop().time() + _ENDS
    while folder.state_file.exists():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


def remove_logs(folder: ClusterFolder) -> None:
    """Remove all that a cluster that has ended has left: its logs, that is."""
    with contextlib.suppress(FileNotFoundError):
        folder.refuse_foreign()
        shutil.rmtree(folder.path)
    link = default_base() / folder.path.name
    if link.is_symlink():
        link.unlink()


def logs_of_ended() -> Iterator[ClusterFolder]:
    """Folders of this user's clusters that have ended, in which there are logs."""
    base = default_base()
    for entry in sorted(base.iterdir()) if base.is_dir() else ():
        folder = ClusterFolder(Path(entry.readlink() if entry.is_symlink() else entry))
        with contextlib.suppress(OSError, ConfigError):
            folder.refuse_foreign()
            if not folder.state_file.exists():
                yield folder
