"""All ranks of one launch, for as long as they have something to agree on.

With mpi4py they agree by MPI, else through small files in a folder that all of them see. Values are
what JSON can hold.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpcdask.errors import ConfigError, LaunchError
from hpcdask.rendezvous import make_private_folder, read_private, replace_private
from hpcdask.world import World, launched_world

log = logging.getLogger("hpcdask.mpi")

#: What mpi4py calls the kind of MPI that a launcher belongs to; others may not fit an MPI.
_ABIS = {"Open MPI": "openmpi", "MPICH": "mpich", "Intel MPI": "mpich", "MVAPICH": "mpich"}
#: Longest pause between two looks for a file, in seconds.
_LONGEST_PAUSE = 1.0
#: Seconds that others get at the end to read what was shared with them.
_FAREWELL = 3.0


class Ranks:
    """The ranks of a launch, as one of them sees them; here one that nobody else belongs to.

    Attributes
    ----------
    world : World
        This rank's place.
    how : str
        How they agree, in words.
    """

    def __init__(self, world: World, how: str = "nobody") -> None:
        self.world, self.how = world, how

    def share(self, value: Any, root: int = 0) -> Any:
        """Return the value that rank `root` gives; all call it."""
        return value

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """Return all values on rank `root`, in the order of ranks, else None; all call it."""
        return [value]

    def count_here(self, is_counted: Callable[[int], bool]) -> int:
        """How many ranks of this host are such; all call it. They are taken to be neighbours."""
        first = self.world.rank - self.world.local_rank
        return sum(is_counted(rank) for rank in range(first, first + self.world.local_size))

    def part(self) -> None:
        """Stop listening to each other. Nothing of the above is called afterwards."""
        return

    def clean_up(self) -> None:
        """Remove what the agreement has left behind, at the end of all."""
        return


class MPIRanks(Ranks):
    """Ranks that agree by MPI.

    They leave MPI when they part: ranks that wait in MPI (a barrier, a bcast) burn a core each, and
    a rank that is lost after ``MPI_Finalize`` breaks no communicator.

    Parameters
    ----------
    mpi : module
        ``mpi4py.MPI``.
    comm : mpi4py communicator, optional
        Of all ranks; by default that of the world, which is left when they part. Who gives their
        own wants to go on using MPI.
    """

    def __init__(self, mpi: Any, launched: World, comm: Any = None) -> None:
        self._mpi, self._is_ours = mpi, comm is None
        self._comm = mpi.COMM_WORLD if comm is None else comm
        rank, size = self._comm.Get_rank(), self._comm.Get_size()
        library = mpi.Get_library_version().partition("\n")[0].partition(",")[0].strip("\0 \t")
        if size == 1:  # its neighbours are in the same MPI_COMM_WORLD at most
            local_rank, local_size = 0, 1
        else:
            here = self._comm.Split_type(mpi.COMM_TYPE_SHARED)
            local_rank, local_size = here.Get_rank(), here.Get_size()
            here.Free()
        launcher = launched.launcher or "MPI"
        super().__init__(
            World(rank, size, local_rank, local_size, launcher, launched.launch_id),
            f"by MPI ({' '.join(library.split())})",
        )

    def share(self, value: Any, root: int = 0) -> Any:
        """Broadcast it."""
        return self._comm.bcast(value, root=root)

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """Gather them."""
        return self._comm.gather(value, root=root)  # type: ignore[no-any-return]

    def count_here(self, is_counted: Callable[[int], bool]) -> int:
        """Count them, wherever they are."""
        here = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        count = here.allreduce(int(is_counted(self.world.rank)))
        here.Free()
        return int(count)

    def part(self) -> None:
        """Leave MPI."""
        if self._is_ours:
            self._mpi.Finalize()


class FileRanks(Ranks):
    """Ranks that agree through files.

    Parameters
    ----------
    world : World
        With a `launch_id`, which names their folder.
    folder : path
        A folder that all ranks see; they make one of their own in it, for their user only.
    timeout : float
        Seconds that a rank waits for another.

    Raises
    ------
    LaunchError
        If the folder cannot be used.
    """

    def __init__(self, world: World, folder: str | os.PathLike[str], timeout: float) -> None:
        self._folder = Path(folder) / f"ranks-{_as_file_name(world.launch_id)}"
        self._timeout = timeout
        self._n_agreements = 0
        super().__init__(world, f"through files in {self._folder}")
        try:
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir(0o700)
            if not os.access(self._folder, os.W_OK):
                raise PermissionError(None, "you may not write there")
        except OSError as exc:
            why = exc.strerror
            if not self._folder.parent.exists():
                why = f"the folder {self._folder.parent} does not exist"
            raise LaunchError(
                f"the ranks cannot meet in {self._folder.parent}: {why}. Name a file in a folder "
                "that you can write and all hosts can see, with --scheduler-file"
            ) from exc

    def share(self, value: Any, root: int = 0) -> Any:
        """Let `root` write it and the others read it."""
        self._n_agreements += 1
        name = f"{self._n_agreements}-share"
        if self.world.rank == root:
            self._write(name, value)
            return value
        value = self._read(name, root)
        self._write(f"{name}-{self.world.rank}", None)  # so that `root` knows when to clean up
        return value

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """Let all write theirs and `root` read them."""
        self._n_agreements += 1
        name = f"{self._n_agreements}-gather"
        if self.world.rank != root:
            self._write(f"{name}-{self.world.rank}", value)
            return None
        others = range(self.world.size)
        return [value if rank == root else self._read(f"{name}-{rank}", rank) for rank in others]

    def clean_up(self) -> None:
        """Remove the folder, once all others have read what was shared, or are late."""
        expected = self._n_agreements * (self.world.size - 1)
        with contextlib.suppress(LaunchError):
            self._wait_until(lambda: self._n_answers() >= expected or None, _FAREWELL, "the others")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _n_answers(self) -> int:
        with contextlib.suppress(OSError):
            names = os.listdir(self._folder)
            return sum(name.count("-") == 2 and not name.startswith(".") for name in names)
        return 0

    def _write(self, name: str, value: Any) -> None:
        try:
            replace_private(self._folder / name, json.dumps(value))
        except OSError as exc:
            raise LaunchError(f"cannot write {self._folder / name}: {exc.strerror}") from exc

    def _read(self, name: str, writer: int) -> Any:
        path = self._folder / name

        def look() -> Any:
            try:
                os.listdir(self._folder)  # NFS then asks its server again
            except FileNotFoundError:
                raise LaunchError(f"{self._folder} is gone: the other ranks have ended") from None
            with contextlib.suppress(FileNotFoundError):
                return json.loads(read_private(path)), True
            return None

        try:
            return self._wait_until(look, self._timeout, f"rank {writer} to write {path}")[0]
        except LaunchError:
            with contextlib.suppress(OSError):  # we may have come after all was over
                self._folder.rmdir()
            raise

    def _wait_until(self, look: Callable[[], Any], timeout: float, what: str) -> Any:
        deadline, pause = time.monotonic() + timeout, 0.01
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"rank {self.world.rank} has waited {timeout:g} s for {what}. Check that all "
                    "ranks were started, and that all hosts see that folder"
                )
            time.sleep(pause * random.uniform(0.5, 1.0))  # a thousand ranks ask the file server
            pause = min(1.5 * pause, _LONGEST_PAUSE)
        return found


def _as_file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


# -- Which of them --------------------------------------------------------------------------------


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
    return FileRanks(launched, folder, timeout)


def _by_mpi(launched: World) -> Ranks | None:
    """The ranks as MPI sees them, unless it sees others than the launcher has started."""
    try:
        ranks = MPIRanks(_mpi4py(launched), launched)
    except LaunchError as exc:
        if launched.rank == 0:
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
            f"mpi4py cannot be used here: {exc}. Install it with 'pip install hpcdask[mpi]', or "
            "give --no-mpi, and the ranks meet through files"
        ) from exc
    return MPI


def _default_folder(environ: Mapping[str, str]) -> Path:
    """A folder of the user's that all hosts see, as homes are on clusters."""
    cache = environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "hpcdask"
