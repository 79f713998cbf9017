"""Finding the other ranks of a launch, by MPI or through files."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcdask import network
from hpcdask.errors import ConfigError, HpcdaskError, LaunchError
from hpcdask.launchers.file_ranks import FileRanks
from hpcdask.launchers.ranks import MPIRanks, Ranks
from hpcdask.rendezvous import make_private_folder
from hpcdask.world import World, launched_world

log = logging.getLogger("hpcdask.mpi")

#: What mpi4py calls the kind of MPI that a launcher belongs to; others may not fit an MPI.
_ABIS = {"Open MPI": "openmpi", "MPICH": "mpich", "Intel MPI": "mpich", "MVAPICH": "mpich"}


#: How often this process has met others through files, by where: a program may do so again.
_times_met: Counter[str] = Counter()


class MPIHasEndedError(LaunchError):
    """This process has been a rank of MPI, and is none any more."""


def go_on_together(ranks: Ranks, problem: HpcdaskError | OSError | None) -> None:
    """Go on if no rank has a problem; all call it, and first of all that they agree on.

    What is wrong on one host alone, as a module that is missing there, would else leave the others
    waiting for ever, or the cluster without that host and nobody the wiser.

    Parameters
    ----------
    problem : Exception or None
        What keeps this rank from doing its part.

    Raises
    ------
    ConfigError, LaunchError
        On all ranks, if there is one on any; with the rank's name unless all have the same.
    """
    mine = None
    if problem is not None:
        mine = [isinstance(problem, ConfigError), network.hostname(), str(problem)]
    problems = ranks.gather_on_all(mine)
    found = [(rank, *each) for rank, each in enumerate(problems) if each is not None]
    if not found:
        return
    rank, is_config, host, text = found[0]
    if {each and each[2] for each in problems} != {text}:
        more = f" (and {len(found) - 1} more ranks)" if len(found) > 1 else ""
        text = f"rank {rank} on {host}{more}: {text}"
    raise (ConfigError if is_config else LaunchError)(text) from problem


def find_ranks(
    use_mpi: bool | None = None,
    folder: str | os.PathLike[str] | None = None,
    timeout: float = 60.0,
    comm: Any = None,
    environ: Mapping[str, str] | None = None,
) -> Ranks:
    """Find out which ranks were started together, and how they can agree.

    Parameters
    ----------
    use_mpi : bool, optional
        Whether to ask MPI. By default it is asked where its own mpirun has started this process and
        mpi4py is installed. Where Slurm or another launcher has, an MPI that does not fit it may
        end the process in ``MPI_Init``.
    folder : path, optional
        Where ranks meet without MPI; by default in the user's home.
    timeout : float
        Seconds that a rank waits for another there.
    comm : mpi4py communicator, optional
        The ranks, for a program that uses MPI itself.

    Raises
    ------
    LaunchError
        If MPI is asked for and cannot be used, or believes each process to be alone; or if the
        ranks cannot meet in the folder.
    ConfigError
        If they have no common name to meet by.
    """
    environ = os.environ if environ is None else environ
    launched = launched_world(environ)
    if comm is not None or use_mpi:
        ranks = MPIRanks(_mpi4py(launched), launched, comm)
        if ranks.world.size == 1 < launched.size:
            ranks.part()
            raise LaunchError(_contradiction(ranks, launched))
        return ranks
    if use_mpi is None and launched.launcher in _ABIS and importlib.util.find_spec("mpi4py"):
        found = _by_mpi(launched)
        if found is not None:
            return found
    if launched.size == 1:
        return Ranks(launched)
    if not launched.launch_id:
        raise ConfigError(
            f"{launched.launcher} has started {launched.size} ranks and gives them no common name "
            "by which they could meet without MPI: install mpi4py, or set HPCDASK_LAUNCH_ID to "
            "something that no other run has"
        )
    if folder is None:
        folder = _default_folder(environ)
        with contextlib.suppress(OSError):  # `FileRanks` says what is wrong with it
            make_private_folder(folder)
    place = f"{folder}/{launched.launch_id}"
    _times_met[place] += 1
    if _times_met[place] > 1:  # while some are still leaving the folder of the last time
        launched = replace(launched, launch_id=f"{launched.launch_id}-{_times_met[place]}")
    return FileRanks(launched, folder, timeout)


def _by_mpi(launched: World) -> Ranks | None:
    """The ranks as MPI sees them, unless it sees others than the launcher has started."""
    try:
        ranks = MPIRanks(_mpi4py(launched), launched)
    except MPIHasEndedError:  # as of the second cluster of a program
        return None
    except LaunchError as exc:
        if launched.local_rank == 0:
            log.warning("%s; going on without MPI", exc)
        return None
    if ranks.world.size == launched.size:
        return ranks
    if launched.rank == 0:
        log.warning("%s. Going on without MPI", _contradiction(ranks, launched))
    ranks.part()
    return None


def _contradiction(ranks: MPIRanks, launched: World) -> str:
    cure = "use the mpirun of the MPI that mpi4py is built with"
    if launched.launcher not in _ABIS:
        cure = "choose another 'srun --mpi=' (see 'srun --mpi=list'), or the mpirun of that MPI"
    return (
        f"{launched.launcher} has started {launched.size} ranks, but each of them is rank 0 of 1 "
        f"for MPI ({ranks.how}): {cure}; hpcdask itself needs no MPI (--no-mpi)"
    )


def _mpi4py(launched: World) -> Any:
    # An mpi4py from PyPI can use either, and takes the first that it finds.
    if launched.launcher in _ABIS:
        os.environ.setdefault("MPI4PY_MPIABI", _ABIS[launched.launcher])
    # Open MPI's transfer layer over libfabric takes a second to find out whether it is of use, in
    # every rank; for one broadcast it is of none. Who has chosen layers has chosen.
    os.environ.setdefault("OMPI_MCA_btl", "^ofi")
    try:
        import mpi4py

        mpi4py.rc.finalize = False  # we do it ourselves, early
        from mpi4py import MPI
    except (ImportError, RuntimeError) as exc:
        raise LaunchError(
            f"mpi4py cannot be used here: {exc}. Load the module of the MPI that it was installed "
            "with, or install it with 'pip install hpcdask[mpi]', or give --no-mpi, and the ranks "
            "meet through files"
        ) from exc
    if MPI.Is_finalized():  # anything but this question would now end the process
        raise MPIHasEndedError(
            "MPI has ended in this process, as it does when its first cluster has started. A "
            "program that goes on to use MPI gives its own comm=; without MPI (use_mpi=False) "
            "ranks can meet as often as they like"
        )
    if not MPI.Is_initialized():  # by a program that has told mpi4py to leave it alone
        MPI.Init()
    return MPI


def _default_folder(environ: Mapping[str, str]) -> Path:
    """A folder of the user's that all hosts see, as homes are on clusters."""
    cache = environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "hpcdask"
