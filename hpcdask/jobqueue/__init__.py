"""Batch systems: what each one calls things, and workers in jobs of any of them.

Names are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcdask.jobqueue.cluster import (
        HTCondorCluster,
        JobQueueCluster,
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

_WHERE = {
    **dict.fromkeys(
        [
            "HTCondorCluster",
            "JobQueueCluster",
            "LSFCluster",
            "MoabCluster",
            "OARCluster",
            "PBSCluster",
            "SGECluster",
            "SLURMCluster",
        ],
        "cluster",
    ),
    "Job": "job",
    **dict.fromkeys(
        ["HTCondorJob", "LSFJob", "MoabJob", "OARJob", "PBSJob", "SGEJob", "SLURMJob"],
        "jobs_of_systems",
    ),
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
