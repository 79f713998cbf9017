"""Slurm, as in the manual pages and the source of 20.11 to 23.11."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hpcdask.jobqueue.amounts import format_walltime, mebibytes
from hpcdask.jobqueue.answers import (
    Exit,
    complete,
    in_words,
    indices,
    no_listing,
    of_wait_status,
    ranges,
    reads,
    seconds,
)
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.shell import BIND_TO_NONE, command, comment
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase
from hpcdask.jobqueue.system import BatchSystem, chunks

#: Seconds before the time limit at which a worker is asked to leave. Slurm looks every 30 s, so it
#: comes up to that much earlier.
_NOTICE, _EARLY = 60, 30


def _notice(walltime: int) -> int:
    """The same for a job: not before its workers leave by themselves, one after the other.

    They do in the last twentieth, as `hpcdask.launchers.departure.leads` has it, when others have
    come. Slurm asks all jobs of an array at the same moment, and they would have nobody to hand
    over to. Those that do not know the end have KillWait, 30 s by default, after the time limit.
    """
    return min(_NOTICE, max(walltime // 20 - _EARLY, 1))


# States: "JOB STATE CODES" of squeue(1). One that is in neither table is of a job that is there.
_PHASES = {
    # A job that waits for its nodes to boot runs nothing yet, and one that was requeued waits.
    **dict.fromkeys(("PENDING", "CONFIGURING", "POWER_UP_NODE", "REQUEUED"), Phase.PENDING),
    **dict.fromkeys(("REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"), Phase.PENDING),
    "RESV_DEL_HOLD": Phase.PENDING,
    **dict.fromkeys(("COMPLETING", "STAGE_OUT"), Phase.ENDING),
}
_ENDS = {
    "COMPLETED": End.COMPLETED,
    "FAILED": End.FAILED,
    "TIMEOUT": End.TIMEOUT,
    "DEADLINE": End.TIMEOUT,
    "CANCELLED": End.CANCELLED,
    "REVOKED": End.CANCELLED,  # a sibling of it runs in another cluster
    "PREEMPTED": End.PREEMPTED,
    "NODE_FAIL": End.NODE_FAIL,
    "BOOT_FAIL": End.NODE_FAIL,
    "OUT_OF_MEMORY": End.OUT_OF_MEMORY,
    "LAUNCH_FAILED": End.LAUNCH_FAILED,
    "RECONFIG_FAIL": End.NODE_FAIL,
}

#: Columns of squeue, and how wide each is. Nodes come last, since only they are never cut off.
_COLUMNS = {
    "JobArrayID": 40,
    "State": 20,
    "exit_code": 12,
    "RestartCnt": 14,
    "TimeUsed": 20,
    "TimeLeft": 20,
    "Reason": 200,
    "NodeList": 40,
}

#: What a user may have set to see less in squeue would hide jobs, and so make them look lost.
_FILTERS = ("ACCOUNT", "LICENSES", "NAMES", "PARTITION", "QOS", "USERS")
_WITHOUT_FILTERS = ["env", *(word for name in _FILTERS for word in ("-u", f"SQUEUE_{name}"))]

#: Reasons that only a change of the job, or of the site's rules, takes away: what one job may
#: have, not what a user or a group may have at a time.
_NEVER = re.compile(
    r"PartitionTimeLimit|PartitionNodeLimit|BadConstraints|MaxMemPerLimit"
    r"|(QOS|Assoc)Max\w*Per(Job|Node)(Limit)?|QOSMin\w+"
    r"|Invalid(Account|QOS)|(Account|QOS)NotAllowed|DependencyNeverSatisfied"
    r"|Reservation(Deleted|Invalid)|JobHoldMaxRequeue"
    # It could not be started, and waits for somebody to release it.
    r"|.*requeued.held.*"
)

#: Of what a trial complains where the job itself may be taken, and wait: "Requested node
#: configuration is not available" it says, too, while nodes are drained.
_NOT_NOW = re.compile(
    r"Requested node configuration is not available|Requested nodes are busy"
    r"|Required (node|partition) not available|[Uu]nable to contact|[Tt]imed out"
    r"|[Tt]emporarily|[Rr]eserved|[Tt]ry again"
)


class Slurm(BatchSystem):
    """sbatch(1), srun(1), scancel(1), squeue(1), sacct(1)."""

    name, title = "slurm", "Slurm"
    prefix, suffix = "#SBATCH", ".sbatch"
    submit_command = ("sbatch", "--parsable")
    cancel_command = "scancel"
    launcher = "srun"
    job_id_expression = "$SLURM_JOB_ID"
    # SLURM_JOB_ID of a job in an array is a number of its own.
    element_expression = (
        "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
        "${SLURM_RESTART_COUNT:+r$SLURM_RESTART_COUNT}"
    )
    #: Names of other clusters than that of this host, where jobs go; as behind ``--clusters``.
    clusters: str = ""

    @property
    def _where(self) -> list[str]:
        return ["-M", self.clusters] if self.clusters else []

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
        if job.memory_request or job.memory:
            yield f"#SBATCH --mem={job.memory_request or _size(job.memory)}"
        yield f"#SBATCH --time={format_walltime(job.walltime)}"
        if job.queue:
            yield f"#SBATCH --partition={job.queue}"
        if job.account:
            yield f"#SBATCH --account={job.account}"
        yield f"#SBATCH --output={job.output or ('%x-%A_%a.log' if job.count > 1 else '%x-%j.log')}"
        if job.launch == "workers":
            notice = _notice(job.walltime)
            yield from comment(
                f"{notice} s before its time is over a job is asked to end, and can hand over."
            )
            # B: the process of the script; without it all that srun has started.
            where = "B:" if job.nodes == 1 else ""
            yield f"#SBATCH --signal={where}TERM@{notice}"

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
            yield from _CPUS_FOR_SRUN
            yield "options+=(--no-mpi)"
            yield f"exec srun {command(job)}"

    def workers_on_each_node(self, job: JobSpec) -> Iterator[str]:
        yield from _CPUS_FOR_SRUN
        yield from comment("Workers of one node may end without those of the others.")
        yield "srun --kill-on-bad-exit=0 --wait=0 \\"
        yield """    bash -c 'exec "$@" --name "$0.$SLURM_NODEID"' "$name" "${worker[@]}" &"""
        yield "workers+=($!)"

    def array_command(self) -> list[str]:
        return ["scontrol", *self._where, "show", "config"]

    def parse_array(self, answer: Answer) -> int | None:
        # MaxArraySize is one more than the highest index; 0 is for none. The other one is among
        # SchedulerParameters.
        size = re.search(r"^MaxArraySize\s*= (\d+)$", answer.out, re.MULTILINE)
        tasks = re.search(r"\bmax_array_tasks=(\d+)", answer.out)
        limits = [int(size[1]) - 1] if size else []
        limits += [int(tasks[1])] if tasks else []
        return max(min(limits), 1) if limits else None

    def trial_command(self, path: str) -> list[str]:
        return [*self.submit_command, "--test-only", path]

    def refusal(self, trial: Answer) -> str:
        words = super().refusal(trial)
        return "" if _NOT_NOW.search(words) else words

    def job_id(self, submit_output: str) -> str:
        # "123", or "123;cluster" where there are several; what a site prints comes before it, and
        # may begin with a number. Without --parsable, as of a command of the user's own, it is
        # "Submitted batch job 123".
        form = r"^(?:(\d+)(?:;\S+)?|Submitted batch job (\d+)(?: .*)?)$"
        found = re.findall(form, submit_output.strip(), re.MULTILINE)
        if not found:
            raise ValueError(f"no job id in {submit_output!r}")
        return "".join(found[-1])

    def elements(self, job_id: str, count: int) -> list[str]:
        return [job_id] if count == 1 else [f"{job_id}_{n}" for n in range(1, count + 1)]

    def cancel_commands(self, ids: Sequence[str]) -> list[list[str]]:
        # Jobs of an array by one request: 5_[1-3,7].
        arrays: dict[str, list[int]] = {}
        for id in ids:
            job, _, index = id.partition("_")
            arrays.setdefault(job, []).extend(indices(index))
        words = [f"{job}_[{ranges(n)}]" if n else job for job, n in arrays.items()]
        command = self.cancel_command.split()
        command += [] if clusters_in(command) else self._where
        return [[*command, *some] for some in chunks(words)]

    def status_command(self, ids: Sequence[str]) -> list[str]:
        # Of all states: jobs that have ended are kept for a while (MinJobAge, 5 minutes). By
        # columns, whose contents nothing can break, and with a header, so that silence is no list.
        columns = ",".join(f"{name}:{width}" for name, width in _COLUMNS.items())
        jobs = ",".join(dict.fromkeys(id.partition("_")[0] for id in ids))
        return [*self._squeue, "-r", "-t", "all", "-O", columns, "-j", jobs]

    @property
    def _squeue(self) -> list[str]:
        return [*_WITHOUT_FILTERS, "squeue", *self._where]

    @reads
    def parse_status(self, answer: Answer) -> dict[str, JobStatus]:
        if answer.code == 1 and "Invalid job id specified" in answer.err:
            return {}  # it knows none of them; where it knows some it leaves out the others
        out = complete(self.title, answer)
        lines = _rows(out, "JOBID ")
        if lines is None:
            raise no_listing(self.title, answer, "no header")
        if not out.endswith("\n") or any(len(line) < sum(_COLUMNS.values()) for line in lines):
            raise no_listing(self.title, answer, "it is cut off")
        return {status.id: status for status in map(_of_squeue, lines)}

    def end_commands(self, ids: Sequence[str]) -> list[list[str]]:
        # From the books, where a site keeps any: squeue tells all that the controller knows.
        jobs = dict.fromkeys(id.partition("_")[0] for id in ids)
        what = ("-X", "-P", "-o", "JobID,State,ExitCode,NodeList")
        return [["sacct", *self._where, *what, "-j", ",".join(some)] for some in chunks(jobs)]

    @reads
    def parse_ends(self, answer: Answer) -> dict[str, JobStatus]:
        header, *lines = complete(self.title, answer).splitlines() or [""]
        if header != "JobID|State|ExitCode|NodeList":
            raise no_listing(self.title, answer, "no header")
        ends = {}
        for id, words, exit_status, nodes in (line.split("|") for line in lines):
            end = _ENDS.get(words.partition(" ")[0])  # as in "CANCELLED by 1000"
            if end is None:
                continue  # the books may be late; whether it runs is for squeue to say
            code, _, signal = exit_status.partition(":")
            left = of_wait_status(int(code) << 8 | int(signal))
            for each in _expanded(id):
                ends[each] = _ended(each, end, words, left, _names(nodes))
        return ends

    def find_command(self) -> list[str]:
        return [*self._squeue, "--me", "-r", "-t", "all", "-o", "%i|%o"]

    def parse_found(self, answer: Answer, path: str) -> list[str]:
        lines = _rows(complete(self.title, answer), "JOBID|COMMAND")
        if lines is None:
            raise no_listing(self.title, answer, "no header")
        found = (line.partition("|") for line in lines)
        return [id for id, _, command in found if command == path]

    def can_never_run(self, status: JobStatus) -> bool:
        return status.phase is Phase.PENDING and bool(_NEVER.fullmatch(status.reason))


_CPUS_FOR_SRUN = [
    *comment("Since Slurm 22.05 srun does not take the CPUs of a task from the lines above."),
    'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
]


def clusters_in(words: Sequence[str]) -> str:
    """The clusters that are named in words for sbatch or scancel, the last time; empty for none.

    Examples
    --------
    >>> clusters_in(["sbatch", "-M", "a"]), clusters_in(["--clusters=b,c"]), clusters_in(["-Mmax"])
    ('a', 'b,c', 'max')
    """
    found = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("-M", "--clusters", "--cluster"):
            found = following
        elif match := re.fullmatch(r"(?:-M|--clusters?=)(.+)", word):
            found = match[1]
    return found


def _rows(out: str, header: str) -> list[str] | None:
    """Lines of squeue's but for the headers, of which each cluster has one; None without any."""
    lines = [line for line in out.splitlines() if not line.startswith("CLUSTER: ")]
    rows = [line for line in lines if not line.startswith(header)]
    return rows if lines and lines[0].startswith(header) else None


def _of_squeue(line: str) -> JobStatus:
    fields, start = {}, 0
    for name, width in _COLUMNS.items():
        stop = None if name == "NodeList" else start + width
        fields[name] = line[start:stop].strip()
        start += width
    id, state, reason = fields["JobArrayID"], fields["State"], in_words(fields["Reason"])
    restarts, nodes = int(fields["RestartCnt"]), _names(fields["NodeList"])
    if state in _ENDS:
        left = of_wait_status(int(fields["exit_code"]))
        end = _ENDS[state]
        # It names a job so, too, that has run and was killed for its memory.
        if end is End.FAILED and reason == "JobLaunchFailure" and left.signal != 9:
            end, left = End.LAUNCH_FAILED, Exit()  # what it left is Slurm's own
        return _ended(id, end, in_words(state, reason), left, nodes, restarts)
    phase = _PHASES.get(state, Phase.RUNNING)
    if state not in ("PENDING", "RUNNING"):
        reason = in_words(state, reason)
    has_started = phase is not Phase.PENDING
    return JobStatus(
        id=id,
        phase=phase,
        reason=reason,
        nodes=nodes,
        elapsed=seconds(fields["TimeUsed"]) if has_started else None,
        left=seconds(fields["TimeLeft"]) if has_started else None,
        restarts=restarts,
    )


def _ended(id: str, end: End, reason: str, left: Exit, nodes: str, restarts: int = 0) -> JobStatus:
    return JobStatus(
        id=id,
        phase=Phase.ENDED,
        reason=reason,
        nodes=nodes,
        end=end,
        exit_code=left.code,
        signal=left.signal,
        restarts=restarts,
    )


def _names(nodes: str) -> str:
    return "" if nodes in ("None assigned", "(null)", "n/a") else nodes


def _expanded(id: str) -> list[str]:
    """Ids in one of the books: ``5_2``, ``5``, or ``5_[1-3%2]`` of jobs that never started."""
    job, _, index = id.partition("_")
    return [f"{job}_{n}" for n in indices(index)] if index else [job]


def _size(nbytes: int) -> str:
    mib = mebibytes(nbytes)
    return f"{mib // 1024}G" if mib % 1024 == 0 else f"{mib}M"
