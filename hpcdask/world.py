"""This process's place among those that one mpirun, srun or the like has started.

What the launcher says in the environment is enough; mpi4py is asked too where it is installed, by
`hpcdask.launchers.ranks`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hpcdask import network
from hpcdask.errors import ConfigError
from hpcdask.grants import expand_counts

#: Slurm's numbers of steps that are no steps of srun: the batch script, the interactive shell, ...
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class World:
    """A rank and those it belongs to.

    Attributes
    ----------
    rank, size : int
        This one's number, from 0, and how many there are.
    local_rank, local_size : int
        The same among the ranks of this host.
    launcher : str
        Who started them, in words; empty if nobody did.
    launch_id : str
        The same in all ranks of this launch and another in every other one; empty if the launcher
        gives none.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = ""
    launch_id: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size}"


def launched_world(environ: Mapping[str, str] | None = None) -> World:
    """The world that the launcher's environment variables describe; `World()` without any.

    Raises
    ------
    ConfigError
        If the variables of a launcher contradict each other.

    Examples
    --------
    >>> launched_world({"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"})
    World(rank=1, size=4, local_rank=0, local_size=2, launcher='MPICH', launch_id='')
    """
    environ = os.environ if environ is None else environ
    for look in _LAUNCHERS:
        world = look(environ)
        if world is not None:
            if not 0 <= world.rank < world.size:
                raise ConfigError(
                    f"the environment says rank {world.rank} of {world.size} ({world.launcher}), "
                    "which cannot be; start this with mpirun or srun, or set none of its variables"
                )
            return world
    return World()


# -- One function per launcher, the most specific first -------------------------------------------


def _by_hand(environ: Mapping[str, str]) -> World | None:
    """For launchers that give no ranks (``qrsh -inherit``, ssh in a loop)."""
    for name, other in (("HPCDASK_RANK", "HPCDASK_SIZE"), ("HPCDASK_SIZE", "HPCDASK_RANK")):
        if environ.get(name) and _number(environ, other) is None:  # else each would be alone
            raise ConfigError(
                f"{name} is set without a number in {other}: give each process both, a rank from 0 "
                "and the number of all ranks"
            )
    return _numbered(environ, "hand (HPCDASK_RANK)", "HPCDASK_RANK", "HPCDASK_SIZE")


def _open_mpi(environ: Mapping[str, str]) -> World | None:
    return _numbered(
        environ,
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    )


def _hydra(environ: Mapping[str, str]) -> World | None:
    if "MPI_LOCALNRANKS" not in environ:  # only Hydra sets it, the mpirun of MPICH and Intel MPI
        return None
    name = "Intel MPI" if any(each.startswith("I_MPI_") for each in environ) else "MPICH"
    local = ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    world = _numbered(environ, name, "PMI_RANK", "PMI_SIZE", *local)
    if world is not None and not world.launch_id and world.local_size == world.size:
        return replace(world, launch_id=f"{network.hostname()}-{os.getppid()}")  # the proxy's
    return world


def _mvapich(environ: Mapping[str, str]) -> World | None:
    names = [f"MV2_COMM_WORLD_{what}" for what in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
    return _numbered(environ, "MVAPICH", *names)


def _slurm(environ: Mapping[str, str]) -> World | None:
    """A task of a step of srun; the batch script itself is none, although it has a SLURM_PROCID."""
    step = _number(environ, "SLURM_STEP_ID")
    if step is None or step >= _FIRST_SPECIAL_STEP:
        return None
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    world = _numbered(environ, "Slurm's srun", "SLURM_PROCID", size, "SLURM_LOCALID")
    if world is None:
        return None
    counts = expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = _number(environ, "SLURM_NODEID") or 0
    local_size = counts[node] if node < len(counts) else world.local_rank + 1
    restart = environ.get("SLURM_RESTART_COUNT", "0")
    launch_id = f"slurm-{environ.get('SLURM_JOB_ID', '')}.{step}.{restart}"
    return World(world.rank, world.size, world.local_rank, local_size, world.launcher, launch_id)


def _flux(environ: Mapping[str, str]) -> World | None:
    local = ("FLUX_TASK_LOCAL_ID", "")
    return _numbered(environ, "Flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", *local, job="FLUX_JOB_ID")


def _jsrun(environ: Mapping[str, str]) -> World | None:
    names = [f"JSM_NAMESPACE_{what}" for what in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
    return _numbered(environ, "jsrun", *names)


def _pals(environ: Mapping[str, str]) -> World | None:
    names = ("PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE")
    return _numbered(environ, "Cray PALS", *names, job="PALS_APID")


def _other_pmi(environ: Mapping[str, str]) -> World | None:
    names = ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE")
    return _numbered(environ, "a launcher with PMI", *names, job="PMI_JOBID")


def _pbsdsh(environ: Mapping[str, str]) -> World | None:
    """A task of pbsdsh: one for each line of the node file. The job script itself is task 1."""
    task = _number(environ, "PBS_TASKNUM")
    lines = _node_file(environ)
    if task is None or task < 2 or not lines:
        return None
    # Torque numbers the lines; OpenPBS the hosts, each of which has one line then.
    number = _number(environ, "PBS_VNODENUM")
    rank = _number(environ, "PBS_NODENUM") if number is None else number
    if rank is None or rank >= len(lines):
        return None
    here = lines[rank]
    return World(
        rank,
        len(lines),
        lines[:rank].count(here),
        lines.count(here),
        "pbsdsh",
        f"pbs-{environ.get('PBS_JOBID', '')}",
    )


_LAUNCHERS: tuple[Callable[[Mapping[str, str]], World | None], ...] = (
    _by_hand,
    _open_mpi,
    _hydra,
    _mvapich,
    _flux,
    _jsrun,
    _pals,
    _slurm,
    _other_pmi,
    _pbsdsh,
)


def nodes_of_job(environ: Mapping[str, str] | None = None) -> int:
    """How many hosts the batch job around us has, as far as its variables tell."""
    environ = os.environ if environ is None else environ
    told = (_number(environ, name) or 0 for name in ("SLURM_JOB_NUM_NODES", "NHOSTS"))
    return max(1, len(set(_node_file(environ))), *told)


def _numbered(
    environ: Mapping[str, str],
    launcher: str,
    rank: str,
    size: str,
    local_rank: str = "",
    local_size: str = "",
    job: str = "",
) -> World | None:
    """The world whose numbers are in these variables, if there are both rank and size."""
    found_rank, found_size = _number(environ, rank), _number(environ, size)
    if found_rank is None or found_size is None:
        return None
    here = _number(environ, local_rank) or 0
    number_here = _number(environ, local_size) or here + 1
    return World(found_rank, found_size, here, number_here, launcher, _launch_id(environ, job))


def _launch_id(environ: Mapping[str, str], job: str) -> str:
    """A name for this launch: the user's own, PMIx's or the launcher's.

    That of the batch job would not do: several launches of one job would meet in it.
    """
    for name in ("HPCDASK_LAUNCH_ID", "PMIX_NAMESPACE", job):
        if environ.get(name):
            return environ[name]
    return ""


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else None


def _node_file(environ: Mapping[str, str]) -> list[str]:
    try:
        with open(environ.get("PBS_NODEFILE", ""), encoding="utf-8") as file:
            return file.read().split()
    except OSError:
        return []
