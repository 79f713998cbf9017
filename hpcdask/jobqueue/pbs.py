"""PBS, as in the manual pages of OpenPBS and PBS Professional; Torque's answers are read, too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from hpcdask.jobqueue.amounts import format_walltime, mebibytes
from hpcdask.jobqueue.answers import Exit, in_words, no_listing, of_shell_code, reads, seconds
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.shell import become_ranks, comment, run_by_mpi, start_workers
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase
from hpcdask.jobqueue.system import BatchSystem

#: One letter for each state: qstat(1B). C is Torque's for a job that has ended, X that of a job of
#: an array that goes on; an array has states of its own, and no job.
_PHASES = {
    **dict.fromkeys("QHWTM", Phase.PENDING),
    **dict.fromkeys("RSU", Phase.RUNNING),
    "E": Phase.ENDING,
    **dict.fromkeys("FXC", Phase.ENDED),
}

#: Exit codes of jobs that PBS has ended, or could not begin: JOB_EXEC_* in its job.h; of these, all
#: that are not here mean that it was not started.
_EXIT_CODES = {
    -20: End.NODE_FAIL,  # the first node was lost
    -24: End.CANCELLED,  # for more CPUs than it had asked for, as -25 and -28
    -25: End.CANCELLED,
    -26: End.OUT_OF_MEMORY,
    -27: End.OUT_OF_MEMORY,
    -28: End.CANCELLED,
    -29: End.TIMEOUT,
}
#: The same of Torque, where numbers mean other things.
_TORQUE_EXIT_CODES = {-10: End.OUT_OF_MEMORY, -11: End.TIMEOUT, -12: End.CANCELLED}

#: Exit codes of qstat that speak of some of the jobs it was asked for: all others are listed.
_UNKNOWN, _FINISHED = 153, 35


class PBS(BatchSystem):
    """qsub(1B), qdel(1B), qstat(1B), pbsdsh(1B), pbs_resources(7B)."""

    name, title = "pbs", "PBS"
    prefix, suffix = "#PBS", ".pbs"
    submit_command = ("qsub",)
    cancel_command = "qdel"
    launcher = "pbsdsh"
    job_id_expression = "${PBS_JOBID%%.*}"
    element_expression = "${PBS_JOBID%%.*}"  # it does not tell a job of a requeue
    takes_arguments = False
    scheduler_is_a_task = False

    def directives(self, job: JobSpec) -> Iterator[str]:
        yield f"#PBS -S {job.shell}"
        yield f"#PBS -N {job.name}"
        if job.count > 1:  # an array of one is refused
            yield f"#PBS -J 1-{job.count}"
        if job.resource_spec:
            yield f"#PBS -l {job.resource_spec}"
        else:
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
        yield from comment(
            "PBS starts a job in your home folder; this is the one from which it was submitted."
        )
        yield 'cd "$PBS_O_WORKDIR" || exit 1'

    def needs_environment(self, job: JobSpec) -> bool:
        return job.nodes > 1 if job.launch == "workers" else job.launch != "mpi"

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
        start = 'pbsdsh -n "$rank" -- /bin/bash -lc "export HPCDASK_RANK=$rank; $there"'
        yield from become_ranks(job, _SIZE, self.job_id_expression, start)

    def workers_on_each_node(self, job: JobSpec) -> Iterator[str]:
        yield from comment(
            "The workers of the first node are started here; pbsdsh starts those of the others, "
            "and hands nothing of this shell on."
        )
        start = 'pbsdsh -n "$node" -- /bin/bash -lc "$there --name $name.$node"'
        yield from start_workers(_SIZE, start)

    def job_id(self, submit_output: str) -> str:
        # "12.server", "12[].server" of an array; warnings may come before it.
        match = re.search(r"^(\d+(\[\])?)(\.\S+)?$", submit_output.strip(), re.MULTILINE)
        if match is None:
            raise ValueError(f"no job id in {submit_output!r}")
        return match[0]

    def elements(self, job_id: str, count: int) -> list[str]:
        number = self.file_id(job_id).removesuffix("[]")
        return [number] if count == 1 else [f"{number}[{n}]" for n in range(1, count + 1)]

    def status_command(self, ids: Sequence[str]) -> list[str]:
        # As text, not as JSON: of that some versions show one job only, some do not quote what is
        # in variables, and Torque has none. In full, since tables cut names and have no comments.
        arrays = dict.fromkeys(re.sub(r"\[\d+\]", "[]", id) for id in ids)
        return ["qstat", "-f", "-t", *arrays]

    def end_commands(self, ids: Sequence[str]) -> list[list[str]]:
        [qstat, *words] = self.status_command(ids)
        return [[qstat, "-x", *words]]  # with what has ended, where the server keeps that

    @reads
    def parse_status(self, answer: Answer) -> dict[str, JobStatus]:
        if answer.code not in (0, _UNKNOWN, _FINISHED):
            raise no_listing(self.title, answer)
        # Each job ends with an empty line.
        if answer.out.strip() and not re.search(r"\n\s*\n$", answer.out):
            raise no_listing(self.title, answer, "it is cut off, or no text of qstat -f")
        jobs = dict(map(_attributes, re.split(r"^Job Id:", answer.out, flags=re.MULTILINE)[1:]))
        if answer.out.strip() and not jobs:
            raise no_listing(self.title, answer)
        return {id: _status(id, job, jobs) for id, job in jobs.items() if not id.endswith("[]")}

    def can_never_run(self, status: JobStatus) -> bool:
        return status.phase is Phase.PENDING and bool(
            re.match(r"Can Never Run|.*[Tt]oo many failed attempts", status.reason)
        )

    def file_id(self, job_id: str) -> str:
        return job_id.partition(".")[0]


#: Nodes of the job, as the shell finds their number.
_SIZE = '$(wc -l <"$PBS_NODEFILE")'


def _attributes(job: str) -> tuple[str, dict[str, str]]:
    """Id and attributes of a job in what ``qstat -f`` prints: `` name = value``, folded by tabs."""
    id, _, rest = job.replace("\n\t", "").partition("\n")
    pairs = re.findall(r"^ +([\w.]+) = ?(.*)$", rest, re.MULTILINE)
    # A variable of the job may have lines in it that look like these: the first one counts.
    attributes: dict[str, str] = {}
    for name, value in pairs:
        attributes.setdefault(name.lower(), value.strip())
    return id.strip().partition(".")[0], attributes


def _status(id: str, job: Mapping[str, str], jobs: Mapping[str, Mapping[str, str]]) -> JobStatus:
    phase = _PHASES.get(job["job_state"], Phase.RUNNING)
    reason = job.get("comment", "")
    if phase is Phase.PENDING and not reason:  # only the array has one
        array = jobs.get(re.sub(r"\[\d+\]$", "[]", id), {})
        reason = array.get("comment", "") if array.get("job_state") != "B" else ""
    elapsed = seconds(job.get("resources_used.walltime", ""))
    limit = seconds(job.get("resource_list.walltime", ""))
    if phase is not Phase.RUNNING:
        limit = None
    end, left = _end(job) if phase is Phase.ENDED else (None, Exit())
    if phase is Phase.ENDED:
        code = job.get("exit_status")
        reason = in_words(reason, f"Exit_status {code}" if code not in (None, "0") else "")
    return JobStatus(
        id=id,
        phase=phase,
        reason=reason if phase in (Phase.PENDING, Phase.ENDED) else "",
        nodes=",".join(dict.fromkeys(re.findall(r"([^+/]+)/[^+]*", job.get("exec_host", "")))),
        elapsed=elapsed,
        left=None if limit is None else max(0.0, limit - (elapsed or 0.0)),
        end=end,
        exit_code=left.code,
        signal=left.signal,
        restarts=max(0, int(job.get("run_count", "1")) - 1),
    )


def _end(job: Mapping[str, str]) -> tuple[End, Exit]:
    """How a job has ended, and what it has left."""
    text = job.get("exit_status", "")
    if not text.lstrip("-").isdecimal():
        # It never ran, or nothing is kept: substate 91 is that of a job that was ended.
        ends = {"91": End.CANCELLED, "93": End.FAILED}
        return ends.get(job.get("substate", ""), End.UNKNOWN), Exit()
    status = int(text)
    if status < 0:
        own = _TORQUE_EXIT_CODES if job["job_state"] == "C" else _EXIT_CODES
        return own.get(status, End.LAUNCH_FAILED), Exit()
    left = of_shell_code(status) if status < 256 else Exit(None, status - 256)
    return (End.CANCELLED if left.signal == 15 else left.end), left  # that of qdel
