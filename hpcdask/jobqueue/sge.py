"""Grid Engine, as in the manual pages of Son of Grid Engine 8.1.9."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from hpcdask.errors import ConfigError
from hpcdask.jobqueue.shell import become_ranks, comment, run_by_mpi
from hpcdask.jobqueue.system import BatchSystem, JobSpec, counted, format_walltime


class GridEngine(BatchSystem):
    """qsub(1), qdel(1), qrsh(1), sge_pe(5)."""

    name, title = "sge", "Grid Engine"
    prefix, suffix = "#$", ".sge"
    submit_command = ("qsub", "-terse")
    cancel_command = "qdel"
    launcher = "qrsh"
    job_id_expression = "$JOB_ID"

    def template(self, launch: str) -> JobSpec:
        environment = "smp" if launch == "workers" else "mpi"
        return replace(super().template(launch), memory=0, parallel_environment=environment)

    def check(self, job: JobSpec) -> None:
        super().check(job)
        if job.memory:
            raise ConfigError(
                "Grid Engine has no request for memory that means the same everywhere; give your "
                "site's as it stands, for each slot, as in --directive '-l h_vmem=4G'"
            )

    def shape(self, job: JobSpec) -> str:
        return f"{counted(job.ntasks, 'process')} of {counted(job.cpus_per_task, 'slot')} each"

    def directives(self, job: JobSpec) -> Iterator[str]:
        yield "#$ -S /bin/bash"
        yield "#$ -cwd"
        yield f"#$ -N {job.name}"
        if job.count > 1:
            yield f"#$ -t 1-{job.count}"
        slots = job.nodes * job.cpus_per_node
        if slots > 1 or job.launch != "workers":  # the others need the host file of an environment
            yield from comment(
                "Edit: the parallel environment, one of those that `qconf -spl` lists. Its "
                "allocation_rule in `qconf -sp NAME` tells on how many hosts the slots will be. "
                "Each thread takes one slot."
            )
            yield f"#$ -pe {job.parallel_environment} {slots}"
        yield f"#$ -l h_rt={format_walltime(job.walltime)}"
        if job.launch == "workers":
            yield from comment("Before it is killed a job gets SIGUSR2, and can hand over.")
            yield "#$ -notify"
        if job.queue:
            yield f"#$ -q {job.queue}"
        if job.account:
            yield f"#$ -P {job.account}"
        yield "#$ -j y"
        if job.output:
            yield f"#$ -o {job.output}"

    def suggestions(self, job: JobSpec) -> Iterator[str]:
        if not job.queue:
            yield "# `qconf -sql` lists the queues."
            yield "#$ -q NAME"
        if not job.account:
            yield "#$ -P NAME"
        if not any("h_vmem" in line for line in job.directives):
            yield "# Memory for each slot. This is address space, of which threads take a lot."
            yield "#$ -l h_vmem=4G"

    def needs_environment(self, job: JobSpec) -> bool:
        return job.launch in ("native", "cluster")

    def launch(self, job: JobSpec) -> Iterator[str]:
        cpus = job.cpus_per_task
        yield from comment("Hosts of this job, each with the number of ranks that its slots allow.")
        yield f"hosts=$(awk '$2 >= {cpus} {{ print $1, int($2 / {cpus}) }}' \"$PE_HOSTFILE\")"
        if cpus > 1:
            yield 'if [[ -z "$hosts" ]]; then'
            yield f'    echo "no host of this job has {cpus} slots for a rank: use another -pe" >&2'
            yield "    exit 1"
            yield "fi"
        yield f"options+=(--nthreads {cpus})"
        yield ""
        if job.launch == "mpi":
            yield from run_by_mpi(job, self.title)
            return
        yield from comment(
            "One rank for each worker and one for the scheduler, and the host of each. This shell "
            "becomes rank 0; qrsh starts those of other hosts, and hands nothing of this shell on."
        )
        yield "mapfile -t hosts < <(awk '{ for (i = 0; i < $2; i++) print $1 }' <<<\"$hosts\")"
        yield "start() {"
        yield '    if [[ $1 == "${hosts[0]}" ]]; then bash; else qrsh -inherit "$1" bash -l; fi'
        yield "}"
        start = 'start "${hosts[rank]}" <<<"export HPCDASK_RANK=$rank; $there"'
        yield from become_ranks(job, "${#hosts[@]}", self.job_id_expression, start)

    def job_id(self, submit_output: str) -> str:
        # "6", or "6.1-4:1" of an array; warnings may come before it.
        match = re.search(r"^(\d+)(\.\d+-\d+:\d+)?$", submit_output.strip(), re.MULTILINE)
        if match is None:
            raise ValueError(f"no job id in {submit_output!r}")
        return match[1]
