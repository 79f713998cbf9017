"""Which rank of how many, from the variables that each launcher sets."""

from __future__ import annotations

import pytest

from hpcdask.errors import ConfigError
from hpcdask.grants import expand_counts
from hpcdask.world import World, launched_world, nodes_of_job

#: As seen with Open MPI 5.0, MPICH 5.0 and Slurm 22.05; the others as their manuals have them.
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-node1-4711@1",
    "PMIX_RANK": "3",
}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "6", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
}
MVAPICH = {
    "MV2_COMM_WORLD_RANK": "3",
    "MV2_COMM_WORLD_SIZE": "6",
    "MV2_COMM_WORLD_LOCAL_RANK": "1",
    "MV2_COMM_WORLD_LOCAL_SIZE": "2",
}
FLUX = {
    "FLUX_TASK_RANK": "3",
    "FLUX_JOB_SIZE": "6",
    "FLUX_TASK_LOCAL_ID": "1",
    "FLUX_JOB_ID": "f1",
}
OF_SRUN = World(3, 6, 1, 2, "Slurm's srun", "slurm-77.2.0")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, World()),
        (OPEN_MPI, World(3, 6, 1, 2, "Open MPI", "prterun-node1-4711@1")),
        (MPICH, World(3, 6, 1, 2, "MPICH", "")),
        ({**MPICH, "I_MPI_ROOT": "/opt/impi"}, World(3, 6, 1, 2, "Intel MPI", "")),
        ({**MPICH, "SLURM_JOB_ID": "77"}, World(3, 6, 1, 2, "MPICH", "")),
        ({**MPICH, "HPCDASK_LAUNCH_ID": "mine"}, World(3, 6, 1, 2, "MPICH", "mine")),
        (SLURM, OF_SRUN),
        # srun --mpi=pmi2 sets these, too
        ({**SLURM, "PMI_RANK": "3", "PMI_SIZE": "6"}, OF_SRUN),
        # mpirun in a job step of Slurm: the step is that of its own daemons
        ({**SLURM, **OPEN_MPI}, World(3, 6, 1, 2, "Open MPI", "prterun-node1-4711@1")),
        # The batch script itself, and the shell of salloc.
        ({name: v for name, v in SLURM.items() if name != "SLURM_STEP_ID"}, World()),
        ({**SLURM, "SLURM_STEP_ID": "4294967290"}, World()),
        ({**SLURM, "SLURM_RESTART_COUNT": "1"}, World(3, 6, 1, 2, "Slurm's srun", "slurm-77.2.1")),
        (MVAPICH, World(3, 6, 1, 2, "MVAPICH", "")),
        (FLUX, World(3, 6, 1, 2, "Flux", "f1")),
        ({"HPCDASK_RANK": "1", "HPCDASK_SIZE": "2"}, World(1, 2, 0, 1, "hand (HPCDASK_RANK)", "")),
    ],
)
def test_each_launcher_is_understood(environ, expected):
    assert launched_world(environ) == expected


def test_pbsdsh_numbers_the_lines_of_the_node_file(tmp_path):
    nodes = tmp_path / "nodes"
    nodes.write_text("node1\nnode1\nnode2\n")
    environ = {"PBS_JOBID": "9.server", "PBS_NODEFILE": str(nodes)}
    task = {**environ, "PBS_TASKNUM": "3", "PBS_VNODENUM": "1", "PBS_NODENUM": "0"}
    assert launched_world(task) == World(1, 3, 1, 2, "pbsdsh", "pbs-9.server")
    assert launched_world({**environ, "PBS_TASKNUM": "1", "PBS_NODENUM": "0"}) == World()


def test_a_job_knows_its_hosts(tmp_path):
    nodes = tmp_path / "nodes"
    nodes.write_text("node1\nnode1\nnode2\n")
    for environ in ({"SLURM_JOB_NUM_NODES": "2"}, {"NHOSTS": "2"}, {"PBS_NODEFILE": str(nodes)}):
        assert nodes_of_job(environ) == 2
    assert nodes_of_job({}) == 1


def test_a_rank_beyond_the_last_is_an_error():
    with pytest.raises(ConfigError, match=r"rank 6 of 6 .*Open MPI"):
        launched_world({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "6"})


@pytest.mark.parametrize("one", [{"HPCDASK_RANK": "1"}, {"HPCDASK_SIZE": "3"}])
def test_a_rank_by_hand_needs_both_numbers(one):
    with pytest.raises(ConfigError, match=r"is set without a number in HPCDASK_(RANK|SIZE):"):
        launched_world(one)


def test_slurm_shortens_counts():
    assert expand_counts("2(x3),1,4(x2)") == [2, 2, 2, 1, 4, 4]
    assert expand_counts("") == []
