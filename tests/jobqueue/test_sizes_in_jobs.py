"""Workers in real jobs have what the batch system grants them, and say who does."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from batch.bed import Bed, Job
from commands import Home

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(180),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers would share one CPU"),
]

ROOT = Path(__file__).resolve().parents[2]
# Grid Engine hands on no environment.
WORKER = f"env PYTHONPATH={ROOT} {sys.executable} -m hpcdask worker --scheduler-file s.json"
#: Lines of a job script, what its worker has to say of itself, and how many workers there are.
JOBS = {
    "slurm": {
        "alone": (
            f"#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=1 --mem=2G\n{WORKER}",
            "1 thread (SLURM_CPUS_ON_NODE), 1.94 GiB (SLURM_MEM_PER_NODE), OMP_NUM_THREADS=1, ",
            1,
        ),
        "tasks": (
            f"#SBATCH --nodes=1 --ntasks=2 --cpus-per-task=1 --mem-per-cpu=1G\nsrun -n 2 {WORKER}",
            "1 thread (SLURM_CPUS_PER_TASK), 960.00 MiB (SLURM_MEM_PER_CPU, shared by 2 workers), ",
            2,
        ),
        # Its script is no task of srun's: it has what the job has on its node.
        "split": (
            f"#SBATCH --nodes=1 --ntasks=2 --mem=3G\n{WORKER} --nworkers 2",
            "1 thread (2 CPUs by SLURM_CPUS_ON_NODE, shared by 2 workers), "
            "1.44 GiB (SLURM_MEM_PER_NODE, shared by 2 workers), ",
            2,
        ),
    },
    "sge": {
        "alone": (
            f"#$ -cwd -j y -S /bin/bash -l h_vmem=2G\n{WORKER}",
            "1 thread (NSLOTS), 1.94 GiB (RLIMIT_AS), OMP_NUM_THREADS=1, ",
            1,
        ),
        # Memory is granted for each slot, and the limit of each process is that of all.
        "split": (
            f"#$ -cwd -j y -S /bin/bash -pe smp 2 -l h_vmem=1G\n{WORKER} --nworkers 2",
            "1 thread (2 CPUs by PE_HOSTFILE, shared by 2 workers), "
            "960.00 MiB (RLIMIT_AS, shared by 2 workers), OMP_NUM_THREADS=1, ",
            2,
        ),
    },
}


@pytest.mark.parametrize("system", ["slurm", "sge"])
def test_workers_in_a_job_have_what_it_grants(
    home: Home, request: pytest.FixtureRequest, system: str
) -> None:
    bed: Bed = request.getfixturevalue(system)
    home.hpc_dask("scheduler", "--port", "0", "--scheduler-file", "s.json").line("Scheduler at")
    jobs: dict[str, Job] = {}
    try:
        for name, (script, _, _) in JOBS[system].items():
            folder = home.folder / name
            folder.mkdir()
            (folder / "s.json").symlink_to(home.folder / "s.json")
            (folder / "job").write_text(f"#!/bin/bash\n{script}\n")
            jobs[name] = bed.submit("job", cwd=folder)
        for name, (_, words, number) in JOBS[system].items():
            job = jobs[name]
            job.line(r"(?s)" + r"Start Nanny at.*" * number)
            sized = re.findall(r"Worker \S+: (.*)", job.log)
            assert [line.startswith(words) for line in sized] == [True] * number, sized
    finally:
        bed.cancel(*jobs.values())
        for job in jobs.values():
            job.all_gone()
