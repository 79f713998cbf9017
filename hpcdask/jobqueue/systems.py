"""Which batch systems there are, and which one is here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping

from hpcdask.errors import ConfigError
from hpcdask.jobqueue.htcondor import HTCondor
from hpcdask.jobqueue.lsf import LSF
from hpcdask.jobqueue.moab import Moab
from hpcdask.jobqueue.oar import OAR
from hpcdask.jobqueue.pbs import PBS
from hpcdask.jobqueue.sge import GridEngine
from hpcdask.jobqueue.slurm import Slurm
from hpcdask.jobqueue.system import BatchSystem

#: By their name in the command line: those in whose jobs hpcdask can start a whole cluster.
SYSTEMS: dict[str, BatchSystem] = {system.name: system for system in (Slurm(), PBS(), GridEngine())}

#: All of which jobs with workers can be had.
WORKER_SYSTEMS: dict[str, BatchSystem] = {
    **SYSTEMS,
    **{system.name: system for system in (Moab(), LSF(), OAR(), HTCondor())},
}


def refuse_foreign_commands(
    system: BatchSystem, which: Callable[[str], str | None] = shutil.which
) -> None:
    """Do not hand a job script to the commands of another system: PBS and Grid Engine have a qsub.

    Grid Engine would take a script for PBS, and heed none of its directives.

    Parameters
    ----------
    which : callable
        Finds a command's path, or None.

    Raises
    ------
    ConfigError
        If the first one in the PATH is of the other.
    """
    qsub = which("qsub")
    if system.name != "pbs" or qsub is None:
        return
    if os.path.exists(os.path.join(os.path.dirname(qsub), "qconf")):
        raise ConfigError(
            f"{qsub} is that of Grid Engine, which would heed none of the #PBS lines: submit to "
            "sge, or put the commands of PBS first into the PATH"
        )


def detect(
    which: Callable[[str], str | None] = shutil.which, environ: Mapping[str, str] = os.environ
) -> BatchSystem:
    """The batch system whose commands are here.

    Parameters
    ----------
    which : callable
        Finds a command's path, or None.
    environ : mapping
        Environment to read.

    Raises
    ------
    ConfigError
        If there is none, or more than one.
    """
    found = []
    if which("sbatch"):
        found.append("slurm")
    if which("qsub") and (environ.get("SGE_ROOT") or which("qconf")):
        found.append("sge")
    elif which("qsub") and not found:  # Slurm brings a qsub of its own, too
        found.append("pbs")
    if len(found) == 1:
        return SYSTEMS[found[0]]
    if found:
        raise ConfigError(f"more than one batch system is here: name {' or '.join(found)}")
    raise ConfigError(
        "no batch system is here: there is neither sbatch nor qsub in the PATH. Go to a host from "
        f"which jobs are submitted, or name one of {', '.join(SYSTEMS)} for its script alone"
    )
