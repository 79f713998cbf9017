"""HTCondor, as in its manual of 23: workers only.

Its submit description and the script that it runs are one file here: the description is in the
comments of the script that begin with #HTCONDOR, which the submit command takes out.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from hpcdask.errors import ConfigError
from hpcdask.jobqueue.amounts import mebibytes
from hpcdask.jobqueue.answers import Exit, complete, in_words, reads
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.shell import comment
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase
from hpcdask.jobqueue.system import BatchSystem, chunks

#: Seconds from SIGTERM to SIGKILL.
_NOTICE = 60

_SUBMIT = (
    """{ sed -n 's/^#HTCONDOR //p' "$0"; echo "executable = $0"; echo 'queue $(n_jobs)'; }"""
    " | condor_submit -terse -"
)

#: Values of JobStatus: idle, running, removed, completed, held, sending its output, suspended. What
#: is removed and still in the queue has not ended on its host.
_PHASES = {1: Phase.PENDING, 3: Phase.ENDING, 4: Phase.ENDED, 5: Phase.PENDING, 6: Phase.ENDING}
_HELD, _REMOVED = 5, 3
_ATTRIBUTES = (
    "ClusterId,ProcId,JobStatus,HoldReason,RemoveReason,RemoteHost,LastRemoteHost,"
    "NumShadowStarts,ExitBySignal,ExitSignal,ExitCode"
)


class HTCondor(BatchSystem):
    """condor_submit(1), condor_rm(1), condor_q(1), condor_history(1)."""

    name, title = "htcondor", "HTCondor"
    prefix, suffix = "#HTCONDOR", ".condor"
    submit_command = ("sh", "-c", _SUBMIT)
    cancel_command, submit_usage = "condor_rm", shlex.join(submit_command)
    element_expression = (
        "$HPCDASK_JOB$(awk '/^NumShadowStarts = / && $3 > 1 { print \"r\" $3 - 1 }'"
        ' "$_CONDOR_JOB_AD" || :)'
    )

    def check(self, job: JobSpec) -> None:
        super().check(job)
        if job.queue:
            raise ConfigError("HTCondor has no queues; ask for what you need with directives")

    def directives(self, job: JobSpec) -> Iterator[str]:
        yield "#HTCONDOR universe = vanilla"
        yield f"#HTCONDOR batch_name = {job.name}"
        yield f"#HTCONDOR n_jobs = {job.count}"
        yield f"#HTCONDOR request_cpus = {job.cpus_per_node}"
        if job.memory:
            yield f"#HTCONDOR request_memory = {mebibytes(job.memory)}"
        if job.disk:
            yield f"#HTCONDOR request_disk = {math.ceil(job.disk / 1024)}"
        if job.account:
            yield f"#HTCONDOR accounting_group = {job.account}"
        output = job.output or f"{job.name}-$(ClusterId).$(ProcId).log"
        yield f"#HTCONDOR output = {output}"
        yield f"#HTCONDOR error = {output}.err"
        yield from comment("It has no walltime: a job that has run for so many seconds is removed.")
        over = f"JobStatus == 2 && time() - EnteredCurrentStatus > {job.walltime}"
        yield f"#HTCONDOR periodic_remove = {over}"
        yield from comment(f"A job that is to end is sent SIGTERM, and has {_NOTICE} s.")
        yield f"#HTCONDOR job_max_vacate_time = {_NOTICE}"
        yield from comment("The script is copied now, and a job is told what it is called.")
        yield "#HTCONDOR copy_to_spool = true"
        yield '#HTCONDOR environment = "HPCDASK_JOB=$(ClusterId).$(ProcId)"'

    def job_id(self, submit_output: str) -> str:
        # "18.0 - 18.2", as -terse makes it.
        match = re.search(r"^(\d+)\.\d+ - \1\.\d+$", submit_output.strip(), re.MULTILINE)
        if match is None:
            raise ValueError(f"no job id in {submit_output!r}")
        return match[1]

    def elements(self, job_id: str, count: int) -> list[str]:
        return [f"{job_id}.{n}" for n in range(count)]

    def status_command(self, ids: Sequence[str]) -> list[str]:
        clusters = dict.fromkeys(id.partition(".")[0] for id in ids)
        return ["condor_q", *clusters, "-json", "-attributes", _ATTRIBUTES]

    @reads
    def parse_status(self, answer: Answer) -> dict[str, JobStatus]:
        return self._parse(answer, is_history=False)

    def end_commands(self, ids: Sequence[str]) -> list[list[str]]:
        # It reads the books from their end, until it has found as many as it is to find.
        how = ("-json", "-attributes", _ATTRIBUTES, "-limit")
        return [["condor_history", *some, *how, str(len(some))] for some in chunks(ids)]

    @reads
    def parse_ends(self, answer: Answer) -> dict[str, JobStatus]:
        return self._parse(answer, is_history=True)

    def can_never_run(self, status: JobStatus) -> bool:
        return status.phase is Phase.PENDING and status.reason.startswith("held")

    def _parse(self, answer: Answer, is_history: bool) -> dict[str, JobStatus]:
        out = complete(self.title, answer).strip()
        jobs = json.loads(out or "[]")  # of no job some versions print nothing
        return {status.id: status for status in (_status(job, is_history) for job in jobs)}


def _status(job: dict[str, Any], is_history: bool) -> JobStatus:
    state = job["JobStatus"]
    phase = Phase.ENDED if is_history else _PHASES.get(state, Phase.RUNNING)
    removed = job.get("RemoveReason") or ""
    end, left = None, Exit()
    if phase is Phase.ENDED and state == _REMOVED:
        end = End.TIMEOUT if "PeriodicRemove" in removed else End.CANCELLED
    elif phase is Phase.ENDED:
        died = job.get("ExitBySignal")
        left = Exit(None, job["ExitSignal"]) if died else Exit(job.get("ExitCode", 0))
        end = left.end
    held = f"held: {job.get('HoldReason') or 'no reason given'}" if state == _HELD else ""
    host = job.get("RemoteHost") or job.get("LastRemoteHost") or ""
    return JobStatus(
        id=f"{job['ClusterId']}.{job['ProcId']}",
        phase=phase,
        reason=in_words(held, removed),
        nodes="" if phase is Phase.PENDING else host.rpartition("@")[2],
        end=end,
        exit_code=left.code,
        signal=left.signal,
        restarts=max(0, job.get("NumShadowStarts", 0) - 1),
    )
