"""How large workers are, on given hosts, and in which words that is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_trees import CGROUP2, GIB, fake_root

from hpcdask import grants, sizing
from hpcdask.errors import ConfigError
from hpcdask.grants import Grant
from hpcdask.host import Scratch
from hpcdask.sizing import NANNY_MEMORY, Sharing, WorkerSize

NOTHING = Path("/nowhere")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight CPUs, all of them ours, and 64 GiB."""
    monkeypatch.setattr(grants, "machine_cpus", lambda: Grant(8, "the machine"))
    monkeypatch.setattr(grants, "affinity_mask", lambda pid=0: frozenset(range(8)))
    monkeypatch.setattr(grants, "_machine_memory", lambda: 64 * GIB)
    monkeypatch.setattr(grants, "_memory_rlimits", lambda: iter(()))


def size(
    nthreads: int | None = None,
    memory: str | float | None = "auto",
    sharing: Sharing | None = None,
    environ: dict[str, str] | None = None,
    root: Path = NOTHING,
    has_nanny: bool = False,
) -> WorkerSize:
    return sizing.size_worker(
        nthreads, memory, sharing, has_nanny=has_nanny, environ=environ or {}, root=root
    )


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize(
    ("sharing", "nthreads", "why"),
    [
        (Sharing(), 8, "the machine"),
        (Sharing(1, 2), 4, "8 CPUs by the machine, shared by 2 workers"),
        (Sharing(3, 1), 2, "8 CPUs by the machine, shared by 3 workers"),
        (Sharing(2, 2), 2, "8 CPUs by the machine, shared by 4 workers"),
        (Sharing(16, 1), 1, "8 CPUs by the machine, shared by 16 workers"),
        (Sharing(4, 1, cpus=2), 2, "affinity"),
        (Sharing(4, 2, cpus=2), 1, "2 CPUs by affinity, shared by 2 workers"),
        # Bound to more than its part: all four are bound to the same ones, say.
        (Sharing(4, 1, cpus=3), 2, "8 CPUs by the machine, shared by 4 workers"),
    ],
)
def test_workers_share_the_cpus(sharing: Sharing, nthreads: int, why: str) -> None:
    found = size(sharing=sharing)
    assert found.nthreads == nthreads
    threads = "1 thread" if nthreads == 1 else f"{nthreads} threads"
    assert found.why.startswith(f"{threads} ({why}), ")


def test_the_threads_that_are_asked_for_are_given() -> None:
    assert size(20).nthreads == 20
    assert size(20).why.startswith("20 threads (as asked), 64.00 GiB (the machine)")


#: Of a task of a job step with 16 CPUs on its node.
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "4",
    "SLURM_CPUS_ON_NODE": "16",
}


OPEN_MPI = {f"OMPI_COMM_WORLD_{name}": "4" for name in ("SIZE", "LOCAL_SIZE")} | {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
}


def test_a_task_of_slurm_has_the_cpus_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "affinity_mask", lambda pid=0: frozenset(range(16)))
    monkeypatch.setattr(grants, "machine_cpus", lambda: Grant(64, "the machine"))
    assert size(environ=STEP).nthreads == 4, "16 CPUs, four tasks"
    assert size(environ=STEP | {"SLURM_CPUS_PER_TASK": "2"}).nthreads == 2
    assert "(SLURM_CPUS_PER_TASK)" in size(environ=STEP | {"SLURM_CPUS_PER_TASK": "2"}).why


def test_the_shell_of_a_batch_job_has_what_the_job_has_on_its_node() -> None:
    environ = {"SLURM_CPUS_ON_NODE": "6", "SLURM_CPUS_PER_TASK": "2", "SLURM_TASKS_PER_NODE": "3"}
    assert size(environ=environ).nthreads == 6


def test_ranks_that_are_bound_to_cpus_have_them_to_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = {0: frozenset({4, 5})}  # ours; the launcher's are all
    monkeypatch.setattr(grants, "affinity_mask", lambda pid=0: masks.get(pid, frozenset(range(8))))
    assert Sharing.here(2, environ=OPEN_MPI) == Sharing(4, 2, 2, 8)
    assert Sharing.here(2, 3, OPEN_MPI) == Sharing(3, 2, 2, 8), "one of them starts no workers"
    masks[0] = frozenset(range(8))
    assert Sharing.here(2, environ=OPEN_MPI) == Sharing(4, 2)
    assert Sharing.here(2, environ={}) == Sharing(1, 2)


@pytest.mark.parametrize(
    ("own", "launchers", "ranks", "expected"),
    [
        (2, 8, 4, 2),  # each is bound to its own
        (1, 8, 4, 1),  # bound to fewer than it might have
        (4, 8, 4, 2),  # bound to sockets, two ranks on each
        (2, 4, 4, 1),  # more ranks than CPUs for two each
        (1, 2, 5, 1),
    ],
)
def test_ranks_that_are_bound_to_the_same_cpus_share_them(
    own: int, launchers: int, ranks: int, expected: int
) -> None:
    assert size(sharing=Sharing(ranks, 1, own, launchers)).nthreads == expected


@pytest.mark.parametrize("nworkers", range(1, 10))
@pytest.mark.parametrize("ranks", range(1, 10))
def test_the_cpus_are_never_overcommitted_nor_is_the_memory(ranks: int, nworkers: int) -> None:
    found = size(sharing=Sharing(ranks, nworkers), has_nanny=True)
    n = ranks * nworkers
    assert n * found.nthreads <= max(8, n), "one thread each is the least"
    assert n * (found.memory_limit + NANNY_MEMORY) <= 64 * GIB


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("given", "nthreads", "sharing", "expected"),
    [
        ("auto", 8, Sharing(), 64 * GIB),
        ("auto", 4, Sharing(), 32 * GIB),
        ("auto", 4, Sharing(1, 2), 32 * GIB),
        ("auto", 8, Sharing(1, 4), 16 * GIB),  # more threads than CPUs: it is shared only once
        (" AUTO ", None, Sharing(), 64 * GIB),
        ("auto", None, Sharing(4, 1, cpus=2), 16 * GIB),
        ("auto", 1, Sharing(4, 1, cpus=2), 8 * GIB),
        ("auto", None, Sharing(16, 1), 4 * GIB),
        ("2GiB", 1, Sharing(), 2 * GIB),
        (1000, 1, Sharing(), 1000),
        ("1000", 1, Sharing(), 1000),
        (0.25, 1, Sharing(1, 4), 16 * GIB),
        ("0.5", 1, Sharing(), 32 * GIB),
        (1.0, 1, Sharing(), 64 * GIB),
        (0, 1, Sharing(), 0),
        ("0", 1, Sharing(), 0),
        (None, 1, Sharing(), 0),
    ],
)
def test_a_workers_memory_limit(
    given: str | float | None, nthreads: int | None, sharing: Sharing, expected: int
) -> None:
    assert size(nthreads, given, sharing).memory_limit == expected


def test_a_nanny_gets_some_of_it() -> None:
    assert size(has_nanny=True).memory_limit == 64 * GIB - NANNY_MEMORY
    assert size(memory="2GiB", has_nanny=True).memory_limit == 2 * GIB, "who asks gets it"


def test_of_little_memory_a_nanny_gets_a_quarter(tmp_path: Path) -> None:
    tree = {"sys/fs/cgroup/slurm/memory.max": f"{100 * 2**20}"}
    found = size(root=fake_root(tmp_path, CGROUP2 | tree), has_nanny=True)
    assert found.memory_limit == 75 * 2**20


def test_a_memory_limit_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="'lots' is not a size"):
        size(1, "lots")
    with pytest.raises(ConfigError, match="at least one worker"):
        size(1, "auto", Sharing(1, 0))


# ---------------------------------------------------------------- words


def test_all_that_a_worker_gets_is_told_in_one_line(tmp_path: Path) -> None:
    tree = {
        "sys/fs/cgroup/slurm/job_1/memory.max": f"{8 * GIB}",
        "sys/fs/cgroup/slurm/job_1/cpu.max": "400000 100000",
    }
    root = fake_root(tmp_path, CGROUP2 | tree)
    found = size(sharing=Sharing(2), root=root)
    scratch = Scratch(str(tmp_path), "TMPDIR")
    assert sizing.in_words(found, {"OMP_NUM_THREADS": "1"}, scratch).startswith(
        "2 threads (4 CPUs by cgroup /slurm/job_1, shared by 2 workers), "
        "4.00 GiB (cgroup /slurm/job_1, shared by 2 workers), OMP_NUM_THREADS=1, "
        f"scratch {scratch.path} (TMPDIR"
    )


@pytest.mark.parametrize(
    ("nthreads", "memory", "words"),
    [
        (2, "auto", "16.00 GiB (the machine, for 2 of 8 CPUs)"),
        (2, "1 GiB", "1.00 GiB (as asked)"),
        (2, 0.5, "32.00 GiB (0.5 of the machine)"),
        (2, None, "no memory limit (as asked)"),
    ],
)
def test_the_memory_limit_is_explained(
    nthreads: int, memory: str | float | None, words: str
) -> None:
    assert size(nthreads, memory).why == f"2 threads (as asked), {words}"
