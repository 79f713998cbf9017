"""Batch systems: what each one calls things, and workers in jobs of any of them.

Names are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcdask.jobqueue.cluster import JobQueueCluster
    from hpcdask.jobqueue.clusters_of_systems import (
        HTCondorCluster,
        LSFCluster,
        MoabCluster,
        OARCluster,
        PBSCluster,
        SGECluster,
        SLURMCluster,
    )
    from hpcdask.jobqueue.job import Job
    from hpcdask.jobqueue.jobs_of_systems import (
        HTCondorJob,
        LSFJob,
        MoabJob,
        OARJob,
        PBSJob,
        SGEJob,
        SLURMJob,
    )
    from hpcdask.jobqueue.runner import MPIRunner, PBSRunner, SGERunner, SLURMRunner

_SYSTEMS = ("HTCondor", "LSF", "Moab", "OAR", "PBS", "SGE", "SLURM")
_WHERE = {
    "Job": "job",
    "JobQueueCluster": "cluster",
    **{f"{system}Cluster": "clusters_of_systems" for system in _SYSTEMS},
    **{f"{system}Job": "jobs_of_systems" for system in _SYSTEMS},
    **dict.fromkeys(["MPIRunner", "PBSRunner", "SGERunner", "SLURMRunner"], "runner"),
}

__all__ = [
    "HTCondorCluster",
    "HTCondorJob",
    "Job",
    "JobQueueCluster",
    "LSFCluster",
    "LSFJob",
    "MPIRunner",
    "MoabCluster",
    "MoabJob",
    "OARCluster",
    "OARJob",
    "PBSCluster",
    "PBSJob",
    "PBSRunner",
    "SGECluster",
    "SGEJob",
    "SGERunner",
    "SLURMCluster",
    "SLURMJob",
    "SLURMRunner",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
