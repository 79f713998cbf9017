"""Slurm, as in the manual pages of 22.05 and later."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpcdask.errors import ConfigError
from hpcdask.jobqueue.shell import BIND_TO_NONE, command, comment
from hpcdask.jobqueue.system import BatchSystem, JobSpec, format_walltime, mebibytes

#: Seconds before the time limit at which a worker is asked to leave. Slurm looks every 30 s, so it
#: comes up to that much earlier.
_NOTICE = 60


class Slurm(BatchSystem):
    """sbatch(1), srun(1), scancel(1)."""

    name, title = "slurm", "Slurm"
    prefix, suffix = "#SBATCH", ".sbatch"
    submit_command = ("sbatch", "--parsable")
    cancel_command = "scancel"
    launcher = "srun"
    job_id_expression = "$SLURM_JOB_ID"

    def check(self, job: JobSpec) -> None:
        super().check(job)
        if job.parallel_environment:
            raise ConfigError(
                "parallel environments are Grid Engine's; Slurm needs none: drop --pe"
            )

    def directives(self, job: JobSpec) -> Iterator[str]:
        yield f"#SBATCH --job-name={job.name}"
        if job.count > 1:
            yield f"#SBATCH --array=1-{job.count}"
        yield f"#SBATCH --nodes={job.nodes}"
        if job.launch == "workers":  # one command that starts them all
            yield "#SBATCH --ntasks-per-node=1"
            yield f"#SBATCH --cpus-per-task={job.cpus_per_node}"
        else:
            yield f"#SBATCH --ntasks-per-node={job.tasks_per_node}"
            yield f"#SBATCH --cpus-per-task={job.cpus_per_task}"
        if job.memory:
            yield f"#SBATCH --mem={_size(job.memory)}"
        yield f"#SBATCH --time={format_walltime(job.walltime)}"
        if job.queue:
            yield f"#SBATCH --partition={job.queue}"
        if job.account:
            yield f"#SBATCH --account={job.account}"
        yield f"#SBATCH --output={job.output or ('%x-%A_%a.log' if job.count > 1 else '%x-%j.log')}"
        if job.launch == "workers":
            yield from comment(
                f"{_NOTICE} s before its time is over a job is asked to end, and can hand over."
            )
            yield f"#SBATCH --signal=B:TERM@{_NOTICE}"

    def suggestions(self, job: JobSpec) -> Iterator[str]:
        if not job.queue:
            yield "# `sinfo -s` lists the partitions."
            yield "#SBATCH --partition=NAME"
        if not job.account:
            yield "#SBATCH --account=NAME"

    def launch(self, job: JobSpec) -> Iterator[str]:
        if job.launch == "mpi":
            yield from BIND_TO_NONE
            yield f"exec mpirun --bind-to none {command(job)}"
        else:
            yield from comment(
                "Since Slurm 22.05 srun does not take the CPUs of a task from the lines above."
            )
            yield 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
            yield "options+=(--no-mpi)"
            yield f"exec srun {command(job)}"

    def job_id(self, submit_output: str) -> str:
        # "123", or "123;cluster" where there are several; warnings may come before it.
        match = re.search(r"^(\d+)(;.*)?$", submit_output.strip(), re.MULTILINE)
        if match is None:
            raise ValueError(f"no job id in {submit_output!r}")
        return match[1]


def _size(nbytes: int) -> str:
    mib = mebibytes(nbytes)
    return f"{mib // 1024}G" if mib % 1024 == 0 else f"{mib}M"
