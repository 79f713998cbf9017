"""Workers in what a batch system, taskset or mpirun grants them; by real cgroups and masks."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import cgroups
import pytest
from mpiruns import OPEN_MPI, ROOT, needs_mpi

from hpcdask import Client, host
from hpcdask.sizing import NANNY_MEMORY

MIB = 2**20
CPUS = sorted(os.sched_getaffinity(0))


def sized(command, name: str = "") -> str:
    """The line in which a worker's size is told."""
    return command.line(rf"Worker {name}.*: (\d+ threads? .*)")


def start_scheduler(home) -> None:
    home.hpc_dask("scheduler", "--port", "0", "--scheduler-file", "s.json").line("Scheduler at")


def infos(home, n_workers: int) -> list[dict]:
    with Client(scheduler_file=home.folder / "s.json", timeout=20) as client:
        client.wait_for_workers(n_workers, timeout=30)
        return list(client.scheduler_info()["workers"].values())


@pytest.mark.system
@pytest.mark.skipif(bool(cgroups.WHY_NOT), reason=cgroups.WHY_NOT)
def test_workers_in_a_job_share_what_its_cgroup_grants(home):
    start_scheduler(home)
    with cgroups.job(cpus=1, memory=1000 * MIB) as job:
        command = ("hpc-dask", "worker", "--scheduler-file", "s.json", "--nworkers", "2")
        worker = home.run(*job.command(*command))
        limit = 500 * MIB - NANNY_MEMORY
        for info in infos(home, 2):
            assert (info["nthreads"], info["memory_limit"]) == (1, limit)
        assert sized(worker).startswith(
            f"1 thread (1 CPU by cgroup /{job.name}, shared by 2 workers), 436.00 MiB (cgroup "
            f"/{job.name}, shared by 2 workers), OMP_NUM_THREADS=1, scratch {home.scratch}/"
        )
        assert worker.end() == 0


@pytest.mark.skipif(
    shutil.which("taskset") is None, reason="no taskset: apt-get install util-linux"
)
@pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU anyway")
def test_a_worker_under_taskset_has_a_thread_per_cpu_of_its_own(home):
    start_scheduler(home)
    command = ("hpc-dask", "worker", "--scheduler-file", "s.json", "--no-nanny")
    worker = home.run("taskset", "-c", str(CPUS[-1]), *command)
    [info] = infos(home, 1)
    assert info["nthreads"] == 1
    assert info["memory_limit"] == host.memory_limit()
    assert sized(worker).startswith("1 thread (affinity), ")
    assert "OMP_NUM_THREADS=1" in sized(worker)
    assert worker.end() == 0


@needs_mpi
class TestUnderMpirun:
    @pytest.fixture
    def mpirun(self, home):
        def start(binding: str, *command: str):
            assert OPEN_MPI is not None
            return home.run(OPEN_MPI.argv[0], *binding.split(), "-np", "3", *command, **ROOT)

        return start

    @pytest.mark.parametrize(
        "binding",
        [
            "--map-by :OVERSUBSCRIBE --bind-to none",
            "--map-by :OVERSUBSCRIBE --bind-to core:overload-allowed",
        ],
    )
    def test_the_ranks_of_a_host_share_its_cpus_and_its_memory(self, home, mpirun, binding):
        job = mpirun(binding, "hpc-dask", "--scheduler-file", "s.json")
        workers = infos(home, 2)
        assert sum(info["nthreads"] for info in workers) <= max(len(CPUS), 2)
        total = sum(info["memory_limit"] for info in workers)
        assert total == pytest.approx(host.memory_limit() - 2 * NANNY_MEMORY, abs=4)
        for n in (1, 2):
            assert "(the machine, shared by 2 workers" in sized(job, f"rank-{n}")
        shut_down(home)
        assert job.code() == 0

    @pytest.mark.skipif(len(CPUS) < 2, reason="two ranks cannot have a CPU each")
    def test_a_rank_that_is_bound_to_a_core_has_one_thread(self, home, mpirun):
        """Also where the ranks do not know of each other."""
        start_scheduler(home)
        command = ("hpc-dask", "worker", "--scheduler-file", "s.json")
        job = mpirun("--map-by core:OVERSUBSCRIBE --bind-to core:overload-allowed", *command)
        workers = infos(home, 3)
        assert {info["nthreads"] for info in workers} == {1}
        assert sum(info["memory_limit"] for info in workers) <= host.memory_limit()
        assert "shared by 3 workers" in sized(job)
        shut_down(home)
        assert job.code() == 0


def shut_down(home) -> None:
    with Client(scheduler_file=home.folder / "s.json", timeout=20) as client:
        client.shutdown()


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_scratch_on_a_network_is_complained_of(home, nanny):
    """The file system of the tests' folder is made one by a preload."""
    fstype = host.grants.filesystem(os.path.realpath(home.folder))
    assert fstype
    home.file("other.py", f"from hpcdask import host\nhost.NETWORK_FILESYSTEMS = {{{fstype!r}}}\n")
    start_scheduler(home)
    options = ("--scheduler-file", "s.json", "--local-directory", "here", "--preload", "other.py")
    worker = home.hpc_dask("worker", *options, nanny)
    folder = re.escape(str(Path(home.folder, "here")))
    worker.line(
        rf"WARNING - the scratch folder {folder}/hpcdask-\d+ \(--local-directory\) is on a "
        f"network file system, {fstype}: "
    )
    worker.line("Registered to: ")
    assert len(re.findall("network file system", worker.err)) == 1 + (nanny == "--no-nanny")
