"""The `Job` classes of batch systems: what only one of them takes, and where its logs are."""

from __future__ import annotations

import glob
import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from hpcdask.config import jobs
from hpcdask.jobqueue.amounts import mebibytes
from hpcdask.jobqueue.htcondor import HTCondor
from hpcdask.jobqueue.job import Job
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.lsf import LSF
from hpcdask.jobqueue.moab import Moab
from hpcdask.jobqueue.oar import OAR
from hpcdask.jobqueue.pbs import PBS
from hpcdask.jobqueue.sge import GridEngine
from hpcdask.jobqueue.slurm import Slurm, clusters_in


class SLURMJob(Job):
    """A job of Slurm.

    Parameters
    ----------
    job_cpu : int
        CPUs to ask for, in place of `cores`.
    job_mem : str
        Memory to ask for in place of `memory`, as ``--mem`` takes it: ``"500M"``, ``"0"``.
    **more
        As of `Job`.
    """

    system: Slurm = Slurm()
    _walltime_units = (60, 60)

    def _settle_commands(self) -> None:
        super()._settle_commands()
        words = ["--clusters", os.environ.get("SBATCH_CLUSTERS", "")]
        words += " ".join(self._asked["job_extra_directives"]).split()
        # Else it is the cluster of this host that is asked, and it knows no such jobs.
        self.system.clusters = clusters_in([*words, *shlex.split(self.submit_command)])

    def spec(self, count: int = 1) -> JobSpec:
        cpus, memory = self._asked["job_cpu"], self._asked["job_mem"]
        return replace(super().spec(count), cpus=cpus or self.cores, memory_request=memory or "")

    def _output(self, count: int) -> str:
        if not self.log_directory:
            return super()._output(count)
        path = os.path.join(self.log_directory, self.job_name).replace("%", "%%")
        return f"{path}-%A_%a.log" if count > 1 else f"{path}-%j.log"


class PBSJob(Job):
    """A job of PBS.

    Parameters
    ----------
    account : str
        By default what the variable PBS_ACCOUNT says.
    resource_spec : str
        What stands behind ``-l`` in place of ``select=...``, as in ``"select=1:ncpus=8:mem=9gb"``.
    **more
        As of `Job`.
    """

    system: PBS = PBS()
    _log_ending: str = ""  # what stands behind the id in the names of logs, once it is known

    def spec(self, count: int = 1) -> JobSpec:
        spec = super().spec(count)
        return replace(
            spec,
            account=spec.account or os.environ.get("PBS_ACCOUNT", ""),
            resource_spec=self._asked["resource_spec"] or "",
        )

    def _output(self, count: int) -> str:
        return os.path.join(self.log_directory, "") if self.log_directory else ""

    def log_paths(self, id: str) -> list[str]:
        if self.log_directory:  # it has the server's name in it, which the first one tells
            path = os.path.join(self.log_directory, id)
            found = [] if self._log_ending else sorted(glob.glob(f"{glob.escape(path)}.*OU"))
            if found:
                self._log_ending = found[0].removeprefix(path)
            return [path + self._log_ending] if self._log_ending else []
        number, _, index = id.rstrip("]").partition("[")
        return [f"{self.job_name}.o{number}" + (f".{index}" if index else "")]


class MoabJob(PBSJob):
    """A job of Moab; parameters as of `PBSJob`, of which `resource_spec` replaces ``nodes=...``."""

    system = Moab()


class SGEJob(Job):
    """A job of Grid Engine.

    Parameters
    ----------
    resource_spec : str
        What stands behind ``-l`` besides the walltime, as in ``"h_vmem=4G"``: sites differ in how
        memory is asked for, so it is not from `memory`.
    parallel_environment : str
        The rule by which slots, one for each of `cores`, are spread over hosts. By default smp, and
        mpi for several nodes: one with as many slots on each host.
    **more
        As of `Job`.
    """

    system = GridEngine()

    def spec(self, count: int = 1) -> JobSpec:
        usual = "smp" if self.nodes_per_job == 1 else "mpi"
        return replace(
            super().spec(count),
            memory=0,
            parallel_environment=self._asked["parallel_environment"] or usual,
            resource_spec=self._asked["resource_spec"] or "",
        )

    def _output(self, count: int) -> str:
        return os.path.join(self.log_directory, "") if self.log_directory else ""

    def log_paths(self, id: str) -> list[str]:
        return [os.path.join(self.log_directory, f"{self.job_name}.o{id}")]


class LSFJob(Job):
    """A job of LSF.

    Parameters
    ----------
    project : str
        Another name of `account`.
    ncpus, mem : int
        CPUs, and bytes or a size, to ask for in place of `cores` and `memory`.
    lsf_units : str
        What LSF counts memory in here: "kb", "mb", "gb" or "tb". By default what lsf.conf has for
        LSF_UNIT_FOR_LIMITS, or "kb", as LSF does.
    use_stdin : bool
        Whether ``bsub`` gets the script as its input, of which it reads the directives whatever the
        site has configured.
    **more
        As of `Job`.
    """

    system: LSF = LSF()
    _walltime_units = (60, 3600)
    _within_submit_command = "bsub"

    def _settle_commands(self) -> None:
        super()._settle_commands()
        self.system.units = self._asked["lsf_units"] or _units_of_lsf(os.environ)

    def _usual_submit_command(self) -> list[str]:
        return super()._usual_submit_command() if self._asked["use_stdin"] else ["bsub"]

    def spec(self, count: int = 1) -> JobSpec:
        cpus, memory = self._asked["ncpus"] or self.cores, self._asked["mem"] or self.memory
        return replace(super().spec(count), cpus=cpus, memory=memory)

    def _output(self, count: int) -> str:
        path = os.path.join(self.log_directory, self.job_name)
        return f"{path}-%J_%I.log" if count > 1 else f"{path}-%J.log"

    def log_paths(self, id: str) -> list[str]:
        return super().log_paths(id.replace("[", "_").removesuffix("]"))


def _units_of_lsf(environ: Mapping[str, str]) -> str:
    """What LSF counts memory in on this host."""
    try:
        with open(os.path.join(environ.get("LSF_ENVDIR", "/etc"), "lsf.conf")) as file:
            text = file.read()
    except OSError:
        return "kb"
    found = re.search(r"^\s*LSF_UNIT_FOR_LIMITS\s*=\s*\"?(\w+)", text, re.MULTILINE)
    units: str = jobs.WORDS["lsf-units"].kind.read(found[1] if found else "kb")
    return units


class OARJob(Job):
    """A job of OAR.

    Parameters
    ----------
    project : str
        Another name of `account`.
    memory_per_core_property_name : str
        The site's property of nodes with the MiB of each core: nodes with enough for `memory` are
        asked for. Without it, or with ``"not_applicable"``, OAR is asked for no memory.
    **more
        As of `Job`.
    """

    system = OAR()
    _walltime_units = (3600, 3600)
    _within_submit_command = "oarsub -S"

    def spec(self, count: int = 1) -> JobSpec:
        spec, name = super().spec(count), self._asked["memory_per_core_property_name"]
        if not name or name == "not_applicable":
            return spec
        each = mebibytes(math.ceil(self.memory / self.cores))
        return replace(spec, directives=(f'-p "{name}>={each}"', *spec.directives))

    def _output(self, count: int) -> str:
        path = os.path.join(self.log_directory, self.job_name)
        return f"{path}-%jobid%.log"


class HTCondorJob(Job):
    """A job of HTCondor.

    Parameters
    ----------
    disk : int or str
        Scratch on the node: bytes or a size.
    **more
        As of `Job`.
    """

    system = HTCondor()
    _within_submit_command = "condor_submit"

    def spec(self, count: int = 1) -> JobSpec:
        return replace(super().spec(count), disk=self._asked["disk"] or 0)

    def _output(self, count: int) -> str:
        path = os.path.join(self.log_directory, self.job_name)
        return f"{path}-$(ClusterId).$(ProcId).log"

    def log_paths(self, id: str) -> list[str]:
        [path] = super().log_paths(id)
        return [path, f"{path}.err"]
