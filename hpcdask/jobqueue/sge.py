"""Grid Engine, as in the manual pages of Son of Grid Engine 8.1.9; Univa's differ little."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from xml.etree import ElementTree

from hpcdask.errors import ConfigError
from hpcdask.jobqueue.amounts import counted, format_walltime
from hpcdask.jobqueue.answers import complete, in_words, indices, no_listing, of_shell_code, reads
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.shell import become_ranks, comment, run_by_mpi, start_workers
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase
from hpcdask.jobqueue.system import BatchSystem

#: "failed" in the books, where it is not about the start: sge_status(5). After 24, and 25 (by an
#: exit code of 99, too), the job waits in the queue again.
_AGAIN = (24, 25)
_ENDS = {0: None, 37: End.TIMEOUT, 100: None, **dict.fromkeys((12, 13, 14, 15, 16, 17, 30), None)}


class GridEngine(BatchSystem):
    """qsub(1), qdel(1), qstat(1), qacct(1), qrsh(1), sge_pe(5), sge_status(5)."""

    name, title = "sge", "Grid Engine"
    prefix, suffix = "#$", ".sge"
    submit_command = ("qsub", "-terse")
    cancel_command = "qdel"
    launcher = "qrsh"
    job_id_expression = "$JOB_ID"
    # RESTARTED is no number: it is 1 in all lives but the first.
    element_expression = (
        '$JOB_ID$([[ $SGE_TASK_ID == undefined ]] || echo ".$SGE_TASK_ID")'
        "$([[ ${RESTARTED:-0} == 0 ]] || echo r1)"
    )

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
        yield f"#$ -S {job.shell}"
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
        if job.resource_spec:
            yield f"#$ -l {job.resource_spec}"
        if job.queue:
            yield f"#$ -q {job.queue}"
        if job.account:
            yield f"#$ -P {job.account}"
        yield "#$ -j y"
        if job.output:
            yield f"#$ -o {job.output}"
        if job.launch == "workers":
            yield from comment(
                "Before a job is killed it is sent SIGUSR2, and can hand over. How long before, is "
                "`notify` in `qconf -sq QUEUE`."
            )
            yield "#$ -notify"

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
        return job.nodes > 1 if job.launch == "workers" else job.launch != "mpi"

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
        # "6", or "6.1-4:1" of an array; warnings may come before it. Without -terse, as of a
        # command of the user's own, it is 'Your job 6 ("name") has been submitted'.
        form = r"^(?:Your job(?:-array)? )?(\d+)(\.\d+-\d+:\d+)?( \(.*)?$"
        match = re.search(form, submit_output.strip(), re.MULTILINE)
        if match is None:
            raise ValueError(f"no job id in {submit_output!r}")
        return match[1]

    def workers_on_each_node(self, job: JobSpec) -> Iterator[str]:
        slots = job.cpus_per_node
        yield f"if awk '$2 != {slots} {{ exit 1 }}' \"$PE_HOSTFILE\"; then"
        yield "    mapfile -t hosts < <(awk '{ print $1 }' \"$PE_HOSTFILE\")"
        yield "else"
        yield f'    echo "not {slots} slots on each host: use a -pe that gives so many" >&2'
        yield "    exit 1"
        yield "fi"
        yield from comment(
            "The workers of the first host are started here; qrsh starts those of the others, and "
            "hands nothing of this shell on."
        )
        start = 'qrsh -inherit "${hosts[node]}" bash -l <<<"$there --name $name.$node"'
        yield from start_workers("${#hosts[@]}", start)

    def trial_command(self, path: str) -> list[str]:
        return [*self.submit_command, "-w", "v", path]  # as if the cluster were empty

    def refusal(self, trial: Answer) -> str:
        words = super().refusal(trial)
        return "" if "commlib error" in words else words  # nobody has answered

    def elements(self, job_id: str, count: int) -> list[str]:
        return [job_id] if count == 1 else [f"{job_id}.{n}" for n in range(1, count + 1)]

    def status_command(self, ids: Sequence[str]) -> list[str]:
        # All jobs of the user's: it cannot list some, but by -j, which tells no state. As XML,
        # since the table cuts names, and this cannot be cut off itself.
        # A user's own ~/.sge_qstat may ask for less, if that is not said here.
        return ["qstat", "-xml", "-u", "$user", "-s", "a"]

    @reads
    def parse_status(self, answer: Answer) -> dict[str, JobStatus]:
        try:
            root = ElementTree.fromstring(complete(self.title, answer))
        except ElementTree.ParseError as error:
            raise no_listing(self.title, answer, f"no XML: {error}") from None
        if root.tag != "job_info":
            raise no_listing(self.title, answer)
        jobs = {}
        for job in root.iter("job_list"):
            number, tasks = job.findtext("JB_job_number", ""), job.findtext("tasks")
            for id in [f"{number}.{n}" for n in indices(tasks)] if tasks else [number]:
                jobs[id] = _status(id, job)
        return jobs

    def end_commands(self, ids: Sequence[str]) -> list[list[str]]:
        # It takes one job only, and tells of all those of an array.
        return [["qacct", "-j", job] for job in dict.fromkeys(id.partition(".")[0] for id in ids)]

    @reads
    def parse_ends(self, answer: Answer) -> dict[str, JobStatus]:
        if answer.code == 1 and re.search(r"job (id|name) \S+ not found", answer.err):
            return {}  # it may come later, and never comes of a job that was cancelled in the queue
        _, *records = re.split(r"^=+\n", complete(self.title, answer), flags=re.MULTILINE)
        if not records:
            raise no_listing(self.title, answer)
        ends: dict[str, JobStatus] = {}
        for record in records:
            fields = dict(re.findall(r"^(\w+) +(.*?) *$", record, re.MULTILINE))
            id = fields["jobnumber"]
            if fields["taskid"] != "undefined":
                id += f".{fields['taskid']}"
            if fields.get("pe_taskid", "NONE") not in ("NONE", "undefined"):
                continue  # what qrsh has started on one of its hosts
            ends.pop(id, None)  # of several lives the last one counts
            end = _end(id, fields)
            if end is not None:
                ends[id] = end
        return ends

    def reason_command(self, ids: Sequence[str]) -> list[str]:
        return ["qstat", "-j", ",".join(dict.fromkeys(id.partition(".")[0] for id in ids))]

    def parse_reasons(self, answer: Answer) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for record, ids in _records(answer.out):
            for n, words in re.findall(r"^error reason +(\d+): +(.*)$", record, re.MULTILINE):
                reasons[ids[int(n)]] = words
            info = re.search(r"^scheduling info: +(.*\n(?: +.*\n)*)", record, re.MULTILINE)
            if info and not re.search("no messages|turned off", info[1]):
                words = "; ".join(line.strip() for line in info[1].splitlines())
                reasons = {**dict.fromkeys(ids.values(), words), **reasons}
        return reasons

    def find_command(self) -> list[str]:
        return ["sh", "-c", _FIND]

    def parse_found(self, answer: Answer, path: str) -> list[str]:
        if not complete(self.title, answer).endswith("complete\n"):
            raise no_listing(self.title, answer)
        found: list[str] = []
        for record, ids in _records(answer.out):
            script = re.search(r"^script_file: +(.*)$", record, re.MULTILINE)
            found += ids.values() if script and script[1] == path else ()
        return found

    def can_never_run(self, status: JobStatus) -> bool:
        return status.phase is Phase.PENDING and status.reason.startswith("Eqw")


#: All of this user's jobs in full. It tells that only of jobs that are named.
_FIND = """\
list=$(qstat -xml -u '$user' -s a) || exit
ids=$(echo "$list" | sed -n 's:.*<JB_job_number>\\(.*\\)</JB_job_number>.*:\\1:p' | sort -u)
[ -z "$ids" ] || qstat -j "$(echo $ids | tr ' ' ,)" || exit
echo complete"""


def _records(text: str) -> Iterator[tuple[str, dict[int, str]]]:
    """What ``qstat -j`` tells of each submission, and the ids of its jobs by their task."""
    for record in re.split(r"^=+\n", text, flags=re.MULTILINE)[1:]:
        job = re.search(r"^job_number: +(\d+)", record, re.MULTILINE)
        if job is not None:
            array = re.search(r"^job-array tasks: +(\S+)", record, re.MULTILINE)
            yield (
                record,
                ({n: f"{job[1]}.{n}" for n in indices(array[1])} if array else {1: job[1]}),
            )


def _status(id: str, job: ElementTree.Element) -> JobStatus:
    """Of an element of qstat's, whose ``state`` is a word of letters: sge_status(5)."""
    state, queue = job.findtext("state", ""), job.findtext("queue_name") or ""
    if "d" in state:
        phase = Phase.ENDING
    elif "q" in state or state.startswith("h"):
        phase = Phase.PENDING
    else:
        phase = Phase.RUNNING
    return JobStatus(
        id=id,
        phase=phase,
        reason="" if state in ("qw", "r", "t") else state,
        nodes=queue.partition("@")[2],
        restarts=1 if "R" in state else 0,
    )


def _end(id: str, fields: dict[str, str]) -> JobStatus | None:
    """What one of the books' records says; None if the job is to run again."""
    failed, _, words = fields["failed"].partition(":")
    reason, status = int(failed), int(fields["exit_status"].split()[0])
    if reason in _AGAIN:
        return None
    left = of_shell_code(status)
    end = _ENDS.get(reason, End.LAUNCH_FAILED) or left.end
    killed = reason == 100 and left.signal in (signal.SIGKILL, signal.SIGUSR2)
    if killed or fields.get("deleted_by", "NONE") != "NONE":
        # There is no other trace of qdel, which is why a kill is taken for one; SIGUSR2 is what
        # -notify sends first. Univa says who it was.
        end = End.CANCELLED
    return JobStatus(
        id=id,
        phase=Phase.ENDED,
        reason=in_words(words.strip() if reason else ""),
        nodes=fields.get("hostname", ""),
        end=end,
        exit_code=left.code if end is not End.LAUNCH_FAILED else None,
        signal=left.signal,
    )
