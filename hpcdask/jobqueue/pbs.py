"""PBS, as in the manual pages of OpenPBS and PBS Professional."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpcdask.errors import ConfigError
from hpcdask.jobqueue.shell import become_ranks, comment, run_by_mpi
from hpcdask.jobqueue.system import BatchSystem, JobSpec, format_walltime, mebibytes


class PBS(BatchSystem):
    """qsub(1B), qdel(1B), pbsdsh(1B), pbs_resources(7B)."""

    name, title = "pbs", "PBS"
    prefix, suffix = "#PBS", ".pbs"
    submit_command = ("qsub",)
    cancel_command = "qdel"
    launcher = "pbsdsh"
    job_id_expression = "${PBS_JOBID%%.*}"
    takes_arguments = False
    scheduler_is_a_task = False

    def check(self, job: JobSpec) -> None:
        super().check(job)
        if job.parallel_environment:
            raise ConfigError("parallel environments are Grid Engine's; PBS needs none: drop --pe")

    def directives(self, job: JobSpec) -> Iterator[str]:
        yield "#PBS -S /bin/bash"
        yield f"#PBS -N {job.name}"
        if job.count > 1:  # an array of one is refused
            yield f"#PBS -J 1-{job.count}"
        yield f"#PBS -l select={self.select(job)}"
        if job.nodes > 1:
            yield "#PBS -l place=scatter"
        yield f"#PBS -l walltime={format_walltime(job.walltime)}"
        if job.queue:
            yield f"#PBS -q {job.queue}"
        if job.account:
            yield f"#PBS -A {job.account}"
        yield "#PBS -j oe"
        if job.output:
            yield f"#PBS -o {job.output}"

    def select(self, job: JobSpec) -> str:
        """Value of ``-l select``: chunks, each of which ``place=scatter`` puts on its own node.

        The node file has a line for each MPI process. pbsdsh follows it too, and is to start one
        command per node, so only MPI gets as many as there are tasks.
        """
        chunk = f"{job.nodes}:ncpus={job.cpus_per_node}"
        if job.launch == "mpi":
            chunk += f":mpiprocs={job.tasks_per_node}"
        if job.memory:
            chunk += f":mem={mebibytes(job.memory)}mb"
        return chunk

    def suggestions(self, job: JobSpec) -> Iterator[str]:
        if not job.queue:
            yield "# `qstat -Q` lists the queues."
            yield "#PBS -q NAME"
        if not job.account:
            yield "#PBS -A NAME"
        yield "# The log grows while the job runs, instead of coming after its end."
        yield "#PBS -k oed"

    def first_steps(self, job: JobSpec) -> Iterator[str]:
        yield from super().first_steps(job)
        yield from comment(
            "PBS starts a job in your home folder; this is the one from which it was submitted."
        )
        yield 'cd "$PBS_O_WORKDIR"'

    def needs_environment(self, job: JobSpec) -> bool:
        return job.launch in ("native", "cluster")

    def launch(self, job: JobSpec) -> Iterator[str]:
        if job.launch == "mpi":
            yield from comment("Hosts of this job, each with the number of its ranks.")
            yield "hosts=$(sort \"$PBS_NODEFILE\" | uniq -c | awk '{ print $2, $1 }')"
            yield ""
            yield from run_by_mpi(job, self.title)
            return
        yield from comment(
            "One rank on each node. This shell becomes rank 0, with scheduler and workers; pbsdsh "
            "starts the others, and hands nothing of this shell on."
        )
        n, nthreads = job.tasks_per_node, job.cpus_per_task
        yield f"options+=(--inclusive-workers --nworkers {n} --nthreads {nthreads})"
        size = '$(wc -l <"$PBS_NODEFILE")'
        start = 'pbsdsh -n "$rank" -- /bin/bash -lc "export HPCDASK_RANK=$rank; $there"'
        yield from become_ranks(job, size, self.job_id_expression, start)

    def job_id(self, submit_output: str) -> str:
        # "12.server", "12[].server" of an array; warnings may come before it.
        match = re.search(r"^(\d+(\[\])?)(\.\S+)?$", submit_output.strip(), re.MULTILINE)
        if match is None:
            raise ValueError(f"no job id in {submit_output!r}")
        return match[0]

    def file_id(self, job_id: str) -> str:
        return job_id.partition(".")[0]
