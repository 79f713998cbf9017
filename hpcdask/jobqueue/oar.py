"""OAR, as in its manual of 2.5: workers only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hpcdask.jobqueue.amounts import format_walltime, mebibytes
from hpcdask.jobqueue.answers import Exit, complete, in_words, of_wait_status, reads
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.shell import comment
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase
from hpcdask.jobqueue.system import BatchSystem

_NOTICE = 60

_PHASES = {
    **dict.fromkeys(
        ("Waiting", "Hold", "toLaunch", "toAckReservation", "Launching"), Phase.PENDING
    ),
    **dict.fromkeys(("Finishing", "toError"), Phase.ENDING),
    **dict.fromkeys(("Terminated", "Error"), Phase.ENDED),
}
#: Types of events that tell why a job has ended; the first that a job has counts.
_EVENTS = {
    "WALLTIME": End.TIMEOUT,
    "BESTEFFORT_KILL": End.PREEMPTED,
    "FRAG_JOB_REQUEST": End.CANCELLED,
}


class OAR(BatchSystem):
    """oarsub(1), oardel(1), oarstat(1).

    Parameters
    ----------
    memory_property : str
        The site's property of a resource that is its memory in MiB; without one no memory is asked
        for.
    """

    name, title = "oar", "OAR"
    prefix, suffix = "#OAR", ".oar"
    # It runs the file itself, when the job's time has come.
    submit_command = ("sh", "-c", 'chmod u+x "$0" && exec oarsub -S "$0"')
    cancel_command, submit_usage = "oardel", "oarsub -S"
    element_expression = "$OAR_JOB_ID"  # a job that is tried again gets a new one

    def __init__(self, memory_property: str = "") -> None:
        self.memory_property = memory_property

    def directives(self, job: JobSpec) -> Iterator[str]:
        yield f"#OAR -n {job.name}"
        if job.count > 1:
            yield f"#OAR --array {job.count}"
        walltime = format_walltime(job.walltime)
        yield f"#OAR -l /nodes=1/core={job.cpus_per_node},walltime={walltime}"
        if job.memory and self.memory_property:
            yield f'#OAR -p "{self.memory_property}>={mebibytes(job.memory)}"'
        if job.queue:
            yield f"#OAR -q {job.queue}"
        if job.account:
            yield f"#OAR --project {job.account}"
        if job.output:
            yield f"#OAR -O {job.output}"
            yield f"#OAR -E {job.output}"
        yield from comment(f"{_NOTICE} s before its time is over a job is asked to end.")
        yield f"#OAR --checkpoint {_NOTICE}"
        yield "#OAR --signal 15"

    def job_id(self, submit_output: str) -> str:
        # The jobs of an array have numbers of their own, each on a line: all of them.
        ids = re.findall(r"^OAR_JOB_ID *= *(\d+)$", submit_output, re.MULTILINE)
        if not ids:
            raise ValueError(f"no job id in {submit_output!r}")
        return ",".join(ids)

    def elements(self, job_id: str, count: int) -> list[str]:
        return job_id.split(",")

    def status_command(self, ids: Sequence[str]) -> list[str]:
        # It knows jobs that have ended, too, and forgets none.
        return ["oarstat", "-f", "-J", *(word for id in ids for word in ("-j", id))]

    @reads
    def parse_status(self, answer: Answer) -> dict[str, JobStatus]:
        jobs = json.loads(complete(self.title, answer))
        return {id: _status(id, job) for id, job in (jobs or {}).items()}


def _status(id: str, job: dict[str, Any]) -> JobStatus:
    state, message = job["state"], job.get("message") or ""
    phase = _PHASES.get(state, Phase.RUNNING)
    end, left = None, Exit()
    if phase is Phase.ENDED:
        if job.get("exit_code") is not None:
            left = of_wait_status(int(job["exit_code"]))
        events = {event["type"]: event for event in job.get("events") or ()}
        kind = next((kind for kind in _EVENTS if kind in events), "")
        if kind:
            end, message = _EVENTS[kind], events[kind].get("description") or kind
        elif left == Exit():
            end = End.LAUNCH_FAILED if state == "Error" else End.UNKNOWN
        else:
            end = left.end
    plain = state in ("Waiting", "Running", "Terminated")
    return JobStatus(
        id=id,
        phase=phase,
        reason=in_words("" if plain else state, "" if phase is Phase.RUNNING else message),
        nodes=",".join(job.get("assigned_network_address") or ()),
        end=end,
        exit_code=left.code,
        signal=left.signal,
    )
