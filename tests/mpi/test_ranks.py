"""The ranks together: each of these tests runs on every rank of one ``mpirun`` at the same time.

``mpirun -np 3 python -m pytest --with-mpi --only-mpi tests/mpi``
"""

from __future__ import annotations

import pytest

from hpcdask.errors import ConfigError, LaunchError
from hpcdask.launchers.meeting import find_ranks, go_on_together
from hpcdask.launchers.part import share_contact
from hpcdask.launchers.ranks import MPIRanks
from hpcdask.rendezvous import Contact

# pytest-mpi takes every test in a folder named "mpi" for one that ranks run together.
pytestmark = pytest.mark.mpi(min_size=2)

CONTACT = Contact(
    type="Scheduler",
    id="Scheduler-1",
    address="tcp://10.0.0.1:8786",
    dashboard="",
    token=bytes(range(32)),
    started=1.0,
    version="1",
    host="here",
    pid=1,
    job="",
)


@pytest.fixture
def mpi():
    return pytest.importorskip("mpi4py.MPI")


@pytest.fixture
def comm(mpi):
    """A communicator of all ranks, and a proof that they leave the test in step."""
    comm = mpi.COMM_WORLD
    yield comm
    assert comm.allreduce(1) == comm.Get_size()


@pytest.fixture
def ranks(comm):
    """They go on with MPI: other tests follow."""
    return find_ranks(comm=comm)


def test_every_rank_gets_the_contact_that_rank_0_has_made(ranks, comm):
    calls = []

    def start():
        calls.append(comm.Get_rank())
        return CONTACT

    assert share_contact(ranks, start) == CONTACT
    assert calls == ([0] if comm.Get_rank() == 0 else [])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (LaunchError("port 8786 is in use"), "port 8786 is in use"),
        (ConfigError("'x' is no port"), "'x' is no port"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ZeroDivisionError("a fault of ours"), "rank 0 could not start the scheduler: ZeroDiv"),
    ],
)
def test_every_rank_raises_the_error_of_rank_0(ranks, comm, error, text):
    def start():
        raise error

    with pytest.raises(LaunchError, match=text) as caught:
        share_contact(ranks, start)
    assert caught.value.__cause__ is (error if comm.Get_rank() == 0 else None)


def test_an_error_that_cannot_be_pickled_reaches_every_rank_too(ranks):
    class UnpicklableError(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    def start():
        raise UnpicklableError("one", lambda: None)

    with pytest.raises(LaunchError, match="UnpicklableError"):
        share_contact(ranks, start)


def test_a_value_of_any_rank_is_shared_and_all_are_gathered(ranks, comm):
    rank, size = comm.Get_rank(), comm.Get_size()
    assert ranks.share({"from": rank}, root=size - 1) == {"from": size - 1}
    assert ranks.gather(rank) == (list(range(size)) if rank == 0 else None)


def test_what_is_wrong_on_one_rank_alone_ends_all(ranks, comm):
    last = comm.Get_size() - 1
    problem = ConfigError("no module") if comm.Get_rank() == last else None
    with pytest.raises(ConfigError, match=rf"^rank {last} on \S+: no module$"):
        go_on_together(ranks, problem)


def test_ranks_know_their_place_and_their_neighbours(ranks, comm):
    assert type(ranks) is MPIRanks
    world = ranks.world
    assert (world.rank, world.size) == (comm.Get_rank(), comm.Get_size())
    # These ranks share a host: mpirun was started without a list of others.
    assert (world.local_rank, world.local_size) == (world.rank, world.size)
    assert ranks.count_here(lambda rank: rank > 0) == world.size - 1
