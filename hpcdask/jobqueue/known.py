"""What is known of clusters of jobs, as text and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcdask.jobqueue.ownership import line_to_use
from hpcdask.jobqueue.status import Phase
from hpcdask.jobqueue.survey import Condition, KnownCluster

#: Classes of clusters, by the name of their system.
_CLASSES = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "htcondor": "HTCondorCluster",
    "moab": "MoabCluster",
}


def as_dict(known: KnownCluster, now: float) -> dict[str, Any]:
    """For programs: times in seconds, None for what nobody knows."""
    state, owner = known.state, known.state.owner
    return {
        "name": state.name,
        "system": state.system,
        "state": known.condition.value,
        "scheduler": None if known.contact is None else known.contact.address,
        "scheduler_in": state.scheduler,
        "workers": len(known.workers) if known.contact else None,
        "nthreads": sum(worker.nthreads for worker in known.workers) if known.contact else None,
        "jobs": None
        if known.jobs is None
        else {
            id: {"phase": status.phase.value, "reason": status.reason, "node": status.nodes}
            for id, status in known.jobs.items()
        },
        "wanted": {name: pool.wanted for name, pool in state.pools.items()},
        "owner": None if owner is None else {"host": owner.host, "pid": owner.pid},
        "age": round(now - state.started, 1),
        "folder": str(known.folder.path),
        "scheduler_file": state.scheduler_file,
        "trouble": known.trouble,
    }


def table(found: Sequence[KnownCluster], now: float) -> str:
    """A line for each cluster."""
    head = ["NAME", "SYSTEM", "STATE", "SCHEDULER", "WORKERS", "RUNNING", "PENDING", "OWNER", "AGE"]
    lines = [head, *(_cells(known, now) for known in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(row.rstrip() for row in rows)


def _cells(known: KnownCluster, now: float) -> list[str]:
    state, owner = known.state, known.state.owner
    has_listing = known.jobs is not None
    return [
        state.name,
        state.system,
        known.condition.value,
        known.contact.address if known.contact else "no answer",
        str(len(known.workers)) if known.contact else "?",
        str(known.count(Phase.RUNNING, Phase.ENDING)) if has_listing else "?",
        str(known.count(Phase.PENDING)) if has_listing else "?",
        "nobody" if owner is None else f"{owner.pid}@{owner.host}",
        _age(now - state.started),
    ]


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def description(known: KnownCluster, now: float) -> str:
    """Some lines on one cluster: what it is, where, its jobs, and how it is used."""
    state, place = known.state, "in a job of its own" if known.is_apart else "in its owner"
    lines = [
        f"{state.name}: a cluster on {state.system}, {_age(now - state.started)} old, "
        f"{_who(known)}",
        f"scheduler: {_scheduler(known)}, {place}",
        f"folder: {known.folder.path}",
    ]
    for name, pool in state.pools.items():
        lines.append(f"pool {name}: {pool.wanted} wanted, {_jobs(known, name)}")
    if known.trouble:
        lines.append(f"the queue does not tell: {known.trouble}")
    return "\n".join([*lines, *_uses(known)])


def _who(known: KnownCluster) -> str:
    owner = known.state.owner
    match known.condition:
        case Condition.KEPT:
            return f"kept by {owner}"
        case Condition.UNATTENDED:
            return "which nobody keeps now"
        case Condition.UNKNOWN:
            return f"which was kept by {owner}, of which nobody can see from here whether it runs"
    return "which was left behind" + (f" by {owner}, which has ended" if owner else "")


def _scheduler(known: KnownCluster) -> str:
    if known.contact is None:
        return "does not answer"
    return f"{known.contact.address} on {known.contact.host}, with {len(known.workers)} workers"


def _jobs(known: KnownCluster, pool: str) -> str:
    if known.jobs is None:
        return f"jobs {', '.join(known.state.pools[pool].jobs) or 'none'}"
    own = {*known.state.pools[pool].jobs, *known.state.pools[pool].leaving}
    told = [
        f"{id} {status.phase.value}"
        + (f" ({status.reason})" if status.reason else "")
        + (f" on {status.nodes}" if status.nodes else "")
        for id, status in known.jobs.items()
        if id in own
    ]
    return "jobs: " + ("; ".join(told) or "none in the queue")


def _uses(known: KnownCluster) -> list[str]:
    """Lines of Python, as far as they would work."""
    state, kind = known.state, _CLASSES.get(known.state.system, "JobQueueCluster")
    lines = []
    if known.contact is not None:
        lines.append(f"use it:    {line_to_use(state)}")
    if known.is_apart and known.condition is not Condition.KEPT:
        more = "" if known.condition is not Condition.UNKNOWN else ", take_over=True"
        lines.append(f"keep it:   cluster = {kind}.attach({state.name!r}{more})")
    if known.condition is not Condition.KEPT:
        lines.append(f"end it:    hpc-dask clean {state.name}")
    return lines
