"""All ranks of one launch, for as long as they have something to agree on.

With mpi4py they agree by MPI, else through small files (`hpcdask.launchers.file_ranks`). Values are
what JSON can hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpcdask.world import World


class Ranks:
    """The ranks of a launch, as one of them sees them; here one that nobody else belongs to.

    Left as a context manager, it parts and leaves nothing behind.

    Attributes
    ----------
    world : World
        This rank's place.
    how : str
        How they agree, in words.
    """

    def __init__(self, world: World, how: str = "nobody") -> None:
        self.world, self.how = world, how
        self._has_parted = False

    @property
    def have_met(self) -> bool:
        """Whether this rank has heard of all others, so that each knows what is wrong on any."""
        return True

    def gather_on_all(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order, on each; all call it, and first."""
        return [value]

    def share(self, value: Any, root: int = 0) -> Any:
        """Return the value that rank `root` gives; all call it."""
        return value

    def gather(self, value: Any) -> list[Any] | None:
        """Return all values on rank 0, in the order of ranks, else None; all call it."""
        return [value]

    def count_here(self, is_counted: Callable[[int], bool]) -> int:
        """How many ranks of this host are such; all call it."""
        return int(is_counted(self.world.rank))

    def part(self) -> None:
        """Stop listening to each other. Nothing of the above is called afterwards."""
        if not self._has_parted:
            self._has_parted = True
            self._part()

    def _part(self) -> None:
        return

    def clean_up(self) -> None:
        """Remove what the agreement has left behind."""
        return

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exc: object) -> None:
        self.part()
        self.clean_up()


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

    def gather_on_all(self, value: Any) -> list[Any]:
        """Gather them."""
        return self._comm.allgather(value)  # type: ignore[no-any-return]

    def share(self, value: Any, root: int = 0) -> Any:
        """Broadcast it."""
        return self._comm.bcast(value, root=root)

    def gather(self, value: Any) -> list[Any] | None:
        """Gather them."""
        return self._comm.gather(value)  # type: ignore[no-any-return]

    def count_here(self, is_counted: Callable[[int], bool]) -> int:
        """Count them."""
        here = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        count = here.allreduce(int(is_counted(self.world.rank)))
        here.Free()
        return int(count)

    def _part(self) -> None:
        if self._is_ours:
            self._mpi.Finalize()
