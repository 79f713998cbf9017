"""LSF, as in IBM's manual of 10.1: workers only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from hpcdask.jobqueue.answers import (
    Exit,
    complete,
    in_words,
    no_listing,
    of_shell_code,
    reads,
    seconds,
)
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.shell import comment
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase
from hpcdask.jobqueue.system import BatchSystem

#: bjobs(1), "Job status". A host that does not answer (UNKWN) may still run the job.
_PHASES = {
    **dict.fromkeys(("PEND", "PSUSP", "PROV", "WAIT"), Phase.PENDING),
    **dict.fromkeys(("DONE", "EXIT"), Phase.ENDED),
    "ZOMBI": Phase.ENDING,
}
#: Termination reasons: the word before the colon of ``exit_reason``.
_ENDS = {
    **dict.fromkeys(("TERM_RUNLIMIT", "TERM_CPULIMIT", "TERM_DEADLINE"), End.TIMEOUT),
    **dict.fromkeys(("TERM_MEMLIMIT", "TERM_SWAP"), End.OUT_OF_MEMORY),
    **dict.fromkeys(("TERM_PREEMPT", "TERM_LOAD", "TERM_WINDOW"), End.PREEMPTED),
    **dict.fromkeys(
        ("TERM_OWNER", "TERM_FORCE_OWNER", "TERM_ADMIN", "TERM_FORCE_ADMIN"), End.CANCELLED
    ),
    "TERM_CWD_NOTEXIST": End.LAUNCH_FAILED,
}
_FIELDS = "jobid jobindex stat exec_host run_time time_left exit_code exit_reason pend_reason"
_HEADER = _FIELDS.upper().replace(" ", "^")
_NOT_FOUND = re.compile(r"Job <\S+> is not found\.?")
_UNITS = {"kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}


class LSF(BatchSystem):
    """bsub(1), bkill(1), bjobs(1).

    Parameters
    ----------
    units : str
        In which the site counts memory, its LSF_UNIT_FOR_LIMITS: "kb", "mb", "gb" or "tb".
    """

    name, title = "lsf", "LSF"
    prefix, suffix = "#BSUB", ".lsf"
    # It reads the directives of its input only, unless a site has told it otherwise.
    submit_command = ("sh", "-c", 'exec bsub <"$0"')
    cancel_command, submit_usage = "bkill", "bsub <"
    element_expression = (
        '$LSB_JOBID$([[ ${LSB_JOBINDEX:-0} == 0 ]] || echo "[$LSB_JOBINDEX]")${LSB_RESTART:+r1}'
    )

    def __init__(self, units: str = "kb") -> None:
        self.units = units

    def directives(self, job: JobSpec) -> Iterator[str]:
        array = f"[1-{job.count}]" if job.count > 1 else ""
        yield f'#BSUB -J "{job.name}{array}"'
        yield f"#BSUB -n {job.cpus_per_node}"
        if job.cpus_per_node > 1:
            yield '#BSUB -R "span[hosts=1]"'
        if job.memory:
            yield f"#BSUB -M {math.ceil(job.memory / _UNITS[self.units])}"
        hours, minutes = divmod(math.ceil(job.walltime / 60), 60)
        yield f"#BSUB -W {hours}:{minutes:02d}"
        if job.queue:
            yield f"#BSUB -q {job.queue}"
        if job.account:
            yield f'#BSUB -P "{job.account}"'
        yield f"#BSUB -o {job.output or job.name + ('-%J_%I.log' if array else '-%J.log')}"
        yield from comment("A minute before its time is over a job is asked to end.")
        yield "#BSUB -wa TERM -wt 1"

    def job_id(self, submit_output: str) -> str:
        match = re.search(r"^Job <(\d+)> is submitted to", submit_output, re.MULTILINE)
        if match is None:
            raise ValueError(f"no job id in {submit_output!r}")
        return match[1]

    def elements(self, job_id: str, count: int) -> list[str]:
        return [job_id] if count == 1 else [f"{job_id}[{n}]" for n in range(1, count + 1)]

    def status_command(self, ids: Sequence[str]) -> list[str]:
        # With those that have ended within the last hour (CLEAN_PERIOD).
        jobs = dict.fromkeys(id.partition("[")[0] for id in ids)
        return ["bjobs", "-a", "-o", f"{_FIELDS} delimiter='^'", *jobs]

    @reads
    def parse_status(self, answer: Answer) -> dict[str, JobStatus]:
        complaints = answer.err.split("\n") if answer.err.strip() else []
        if not any(map(_NOT_FOUND.fullmatch, complaints)):  # else it lists the others
            complete(self.title, answer)
        elif not all(_NOT_FOUND.fullmatch(line) for line in complaints if line):
            raise no_listing(self.title, answer)
        lines = answer.out.splitlines()
        if not lines and complaints:
            return {}
        if not lines or lines.pop(0) != _HEADER:
            raise no_listing(self.title, answer, "no header")
        if any(line.count("^") != _HEADER.count("^") for line in lines):
            raise no_listing(self.title, answer, "it is cut off")
        return {status.id: status for status in map(_of_bjobs, lines)}


def _of_bjobs(line: str) -> JobStatus:
    values = ("" if value.strip() == "-" else value.strip() for value in line.split("^"))
    field = dict(zip(_FIELDS.split(), values, strict=True))
    index = field["jobindex"]
    job = field["jobid"].partition("[")[0]  # some sites have the index there, too
    phase = _PHASES.get(field["stat"], Phase.RUNNING)
    why = field["pend_reason"] if phase is Phase.PENDING else field["exit_reason"]
    end, left = None, Exit()
    if phase is Phase.ENDED:
        has_code = field["exit_code"] or field["stat"] == "DONE"
        left = of_shell_code(int(field["exit_code"] or 0)) if has_code else Exit()
        end = _ENDS.get(why.partition(":")[0], left.end)
    ran = re.match(r"\d+", field["run_time"])
    hours_left = field["time_left"].partition(" ")[0]  # as in "0:29 L"
    return JobStatus(
        id=f"{job}[{index}]" if index not in ("", "0") else job,
        phase=phase,
        reason=in_words(field["stat"] if field["stat"] not in ("PEND", "RUN", "DONE") else "", why),
        nodes=",".join(
            dict.fromkeys(re.sub(r"^\d+\*", "", host) for host in field["exec_host"].split(":"))
        ),
        elapsed=float(ran[0]) if ran else None,
        left=seconds(f"{hours_left}:00"),
        end=end,
        exit_code=left.code,
        signal=left.signal,
    )
