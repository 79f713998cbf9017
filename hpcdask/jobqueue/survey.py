"""What has become of clusters of jobs: asked from outside, of all at once, with time limits."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hpcdask.comm import connect, ends_of_all
from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError, HpcdaskError, StatusError
from hpcdask.jobqueue.clearing import system_of
from hpcdask.jobqueue.commands import Commands
from hpcdask.jobqueue.folder import ClusterFolder, ClusterState
from hpcdask.jobqueue.pacing import Pace
from hpcdask.jobqueue.scheduler_job import SCHEDULER, keepers
from hpcdask.jobqueue.status import JobStatus, Phase
from hpcdask.launchers.scheduler_access import Member, SchedulerThere
from hpcdask.rendezvous import Contact, SchedulerFileReader
from hpcdask.threads import in_thread

#: Seconds for a scheduler to answer, and for a batch system.
SCHEDULER_ANSWERS, QUEUE_ANSWERS = 8.0, 15.0
#: Seconds for a connection to a scheduler, of which the file may be stale.
_CONNECTS = 3.0


class Condition(enum.Enum):
    """Who keeps a cluster."""

    KEPT = "kept"  # a process does
    UNATTENDED = "unattended"  # nobody does; it goes on, and can be attached to
    LEFT = "left behind"  # nobody does, and it cannot go on
    UNKNOWN = "unknown"  # its owner may live, on another host


@dataclass(frozen=True, kw_only=True)
class KnownCluster:
    """What is known of a cluster.

    Attributes
    ----------
    folder : ClusterFolder
    state : ClusterState
    contact : Contact or None
        Of a scheduler that answers.
    workers : tuple of Member
        That it has.
    has_keeper : bool
        Whether who keeps the cluster is connected with it.
    jobs : dict of str to JobStatus, or None
        By id, those of its jobs that are in the queue; None if that does not tell.
    trouble : str
        Why it does not.
    """

    folder: ClusterFolder
    state: ClusterState
    contact: Contact | None = None
    workers: tuple[Member, ...] = ()
    has_keeper: bool = False
    jobs: dict[str, JobStatus] | None = field(default_factory=dict)
    trouble: str = ""

    @property
    def condition(self) -> Condition:
        """Who keeps it."""
        owner = self.state.owner
        has_ended = True if owner is None else owner.has_ended()
        is_here = self.contact is not None
        if has_ended is False or (is_here and (self.has_keeper or not self.is_apart)):
            return Condition.KEPT
        if self.is_apart and (is_here or self._may_have_scheduler):
            return Condition.UNATTENDED if has_ended or is_here else Condition.UNKNOWN
        return Condition.LEFT if has_ended else Condition.UNKNOWN

    @property
    def is_apart(self) -> bool:
        """Whether its scheduler lives without its owner."""
        return self.state.has_scheduler_job

    @property
    def _may_have_scheduler(self) -> bool:
        """Whether the scheduler's job is in the queue, for all that is known."""
        pool = self.state.pools.get(SCHEDULER)
        return pool is not None and any(self.jobs is None or id in self.jobs for id in pool.jobs)

    def count(self, *phases: Phase) -> int:
        """Jobs in one of these phases."""
        return sum(status.phase in phases for status in (self.jobs or {}).values())


async def survey(folders: Iterable[ClusterFolder], asks_queue: bool = True) -> list[KnownCluster]:
    """Ask for some clusters, within about twenty seconds.

    Those whose state cannot be read are left out: they end, or begin, just now.
    """
    clusters = []
    for folder in folders:
        with contextlib.suppress(OSError, HpcdaskError):
            clusters.append((folder, folder.read_state()))
    systems: dict[str, list[ClusterState]] = {}
    for _, state in clusters if asks_queue else ():
        systems.setdefault(state.system, []).append(state)
    queues = dict(zip(systems, await asyncio.gather(*map(_listing, systems.values())), strict=True))
    schedulers = await asyncio.gather(*(_scheduler(folder, state) for folder, state in clusters))
    found = []
    for (folder, state), (contact, workers, n_keepers) in zip(clusters, schedulers, strict=True):
        listing, trouble = queues.get(state.system, (None, ""))
        found.append(
            KnownCluster(
                folder=folder,
                state=state,
                contact=contact,
                workers=tuple(workers),
                has_keeper=n_keepers > 0,
                jobs=None if listing is None else _own(listing, state),
                trouble=trouble,
            )
        )
    return found


def _own(listing: dict[str, JobStatus], state: ClusterState) -> dict[str, JobStatus]:
    return {
        id: listing[id]
        for id in state.jobs
        if id in listing and listing[id].phase is not Phase.ENDED
    }


async def _listing(states: Sequence[ClusterState]) -> tuple[dict[str, JobStatus] | None, str]:
    """What the queue of these clusters has, and why it does not tell."""
    ids = [id for state in states for id in state.jobs]
    if not ids:
        return {}, ""
    try:
        system = system_of(states[0])
        commands = Commands(Pace(burst=100), timeout=QUEUE_ANSWERS)
        return system.parse_status(await commands.run(system.status_command(ids))), ""
    except (StatusError, ConfigError) as exc:
        return None, str(exc)


async def _scheduler(
    folder: ClusterFolder, state: ClusterState
) -> tuple[Contact | None, Sequence[Member], int]:
    """Where the scheduler is, its workers, and how many keepers it has, if it answers."""
    contact = await in_thread(_contact, folder)
    if contact is None:
        return None, (), 0
    place = SchedulerPlace(contact.address, token=contact.token, auth=bool(contact.token))
    access = SchedulerThere(place, contact.address, "survey")

    async def ask() -> tuple[Sequence[Member], int]:
        # Who refuses is not there any more; a client would wait for it.
        comm = await connect(contact.address, place.options(), _CONNECTS, was_there=True)
        comm.close()
        await ends_of_all([comm], _CONNECTS)
        return await access.members((), 0.0), await access.run(keepers, state.name)

    try:
        return contact, *(await asyncio.wait_for(ask(), SCHEDULER_ANSWERS))
    except (HpcdaskError, OSError, asyncio.TimeoutError):
        return None, (), 0
    finally:
        await access.close("it was only a question")


def _contact(folder: ClusterFolder) -> Contact | None:
    try:
        return SchedulerFileReader(folder.scheduler_file).probe(time.time())
    except HpcdaskError:
        return None
