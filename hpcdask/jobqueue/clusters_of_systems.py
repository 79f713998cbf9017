"""The clusters of batch systems, by the kind of their jobs."""

from hpcdask.jobqueue.cluster import JobQueueCluster
from hpcdask.jobqueue.jobs_of_systems import (
    HTCondorJob,
    LSFJob,
    MoabJob,
    OARJob,
    PBSJob,
    SGEJob,
    SLURMJob,
)


class SLURMCluster(JobQueueCluster):
    """A cluster in jobs of Slurm; parameters as of `JobQueueCluster` and `SLURMJob`."""

    job_cls = SLURMJob


class PBSCluster(JobQueueCluster):
    """A cluster in jobs of PBS; parameters as of `JobQueueCluster` and `PBSJob`."""

    job_cls = PBSJob


class SGECluster(JobQueueCluster):
    """A cluster in jobs of Grid Engine; parameters as of `JobQueueCluster` and `SGEJob`."""

    job_cls = SGEJob


class LSFCluster(JobQueueCluster):
    """A cluster in jobs of LSF; parameters as of `JobQueueCluster` and `LSFJob`."""

    job_cls = LSFJob


class OARCluster(JobQueueCluster):
    """A cluster in jobs of OAR; parameters as of `JobQueueCluster` and `OARJob`."""

    job_cls = OARJob


class HTCondorCluster(JobQueueCluster):
    """A cluster in jobs of HTCondor; parameters as of `JobQueueCluster` and `HTCondorJob`."""

    job_cls = HTCondorJob


class MoabCluster(JobQueueCluster):
    """A cluster in jobs of Moab; parameters as of `JobQueueCluster` and `MoabJob`."""

    job_cls = MoabJob
