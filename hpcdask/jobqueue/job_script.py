"""Job scripts: one text for every batch system and kind of launch, with the system's own words in.

The files in jobscripts/ are what this makes of `BatchSystem.template`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator

from hpcdask.jobqueue.amounts import counted
from hpcdask.jobqueue.job_spec import LAUNCHES, PLACEHOLDER, JobSpec
from hpcdask.jobqueue.shell import AWAIT_WORKERS, NOTE_SIGNALS, comment
from hpcdask.jobqueue.system import BatchSystem


def job_script(system: BatchSystem, job: JobSpec) -> str:
    """The whole script of a job.

    Raises
    ------
    ConfigError
        If the system cannot do what the job asks for.
    """
    system.check(job)
    paragraphs = [
        _head(system, job),
        _directives(system, job),
        ["set -e", *system.first_steps(job)],
        _script(system, job),
        environment(system, job),
        _scheduler_file(system, job),
        _launch(system, job),
    ]
    return joined(paragraphs)


def joined(paragraphs: Iterable[Iterable[str]]) -> str:
    """A text of paragraphs, each of lines; without the empty ones."""
    texts = ["\n".join(lines) for lines in paragraphs]
    return "\n\n".join(filter(None, texts)) + "\n"


def templates(systems: Iterator[BatchSystem]) -> Iterator[tuple[str, str]]:
    """Name and content of each file in jobscripts/."""
    for system in systems:
        for launch in LAUNCHES:
            yield system.template_name(launch), job_script(system, system.template(launch))


def scheduler_file(system: BatchSystem, job: JobSpec, folder: str, job_id: str) -> str:
    """Path of the file that clients of a submitted job read, as `folder` is the job's."""
    name = job.scheduler_file or _default_scheduler_file(job, system.file_id(job_id))
    return os.path.join(folder, name)


def _default_scheduler_file(job: JobSpec, job_id: str) -> str:
    return "scheduler.json" if job.launch == "workers" else f"hpcdask-{job_id}.json"


# ---------------------------------------------------------------- what a reader is told first

_TITLES = {
    "mpi": "A task cluster for one Python script, as one {title} job. MPI starts its processes.",
    "native": "A task cluster for one Python script, as one {title} job. {launcher} starts its "
    "processes; there is no MPI in it.",
    "cluster": "A task cluster that stays up as long as its {title} job, for programs elsewhere.",
    "workers": "Workers for a scheduler that is there already, as an array of {title} jobs.",
}


def _head(system: BatchSystem, job: JobSpec) -> Iterator[str]:
    yield "#!/bin/bash"
    title = _TITLES[job.launch].format(title=system.title, launcher=system.launcher)
    yield from comment(title)
    yield "#"
    for line in _usage(system, job):
        yield f"#     {line}"
    for paragraph in (_meaning(system, job), _shape(system, job)):
        yield "#"
        yield from comment(paragraph)


def _usage(system: BatchSystem, job: JobSpec) -> Iterator[str]:
    if job.launch == "workers" and not job.scheduler_file:
        yield "hpc-dask scheduler --scheduler-file scheduler.json    # first, or a job that has one"
    name = "FILE" if job.script else system.template_name(job.launch)
    words = [system.submit_usage or system.submit_command[0], name]
    if job.has_script and system.takes_arguments and not job.script:
        words += ["script.py", "[its arguments]"]
    yield " ".join(words)


def _meaning(system: BatchSystem, job: JobSpec) -> str:
    if job.has_script:
        return (
            "In the script, `Client()` of hpcdask connects to the cluster of this job. When the "
            "script ends, the cluster does too, and the job's exit code is the script's. The "
            "script runs in the folder from which the job is submitted."
        )
    if job.launch == "cluster":
        name = job.scheduler_file or _default_scheduler_file(job, "JOBID")
        return (
            f"Your programs use it with `Client(scheduler_file={name!r})`, as soon as that file is "
            f"there. `client.shutdown()` ends it, and so does `{system.cancel_command} JOBID`."
        )
    return (
        "Each job finds the scheduler by the file that it writes, which has to be in a folder that "
        "all nodes see. The jobs end when the scheduler does."
    )


def _shape(system: BatchSystem, job: JobSpec) -> str:
    each = counted(job.cpus_per_task, "thread")
    if job.launch == "workers":
        n, jobs = counted(job.tasks_per_node, "worker"), counted(job.count, "job")
        if job.nodes > 1:
            return f"{jobs} of {job.nodes} nodes, with {n} of {each} on each."
        return f"{jobs} with {n} of {each} each."
    if job.launch == "mpi" or system.scheduler_is_a_task:
        rest = counted(max(job.ntasks - 1, 1), "worker")
        what = "scheduler and script" if job.has_script else "the scheduler"
        return f"{system.shape(job)}: one runs {what}, which leaves {rest} of {each}."
    return (
        f"{counted(job.nodes, 'node')} with {counted(job.tasks_per_node, 'worker')} of {each} "
        f"each, and {'scheduler and script' if job.has_script else 'the scheduler'} on the first."
    )


# ---------------------------------------------------------------- what it asks for


def directives(system: BatchSystem, job: JobSpec) -> Iterator[str]:
    """Lines that ask for what a job needs: the system's, and those of the user's own."""
    for line in system.directives(job):
        if not (line.startswith(system.prefix) and any(text in line for text in job.skip)):
            yield line
    yield from (f"{system.prefix} {line}" for line in job.directives)


def _directives(system: BatchSystem, job: JobSpec) -> Iterator[str]:
    yield from directives(system, job)
    suggestions = list(system.suggestions(job))
    if suggestions:
        yield from comment(
            "Edit: your site may want some of these, too. Remove one # to use a line."
        )
        yield from (line if line.startswith("# ") else f"#{line}" for line in suggestions)


# ---------------------------------------------------------------- what it does


def _script(system: BatchSystem, job: JobSpec) -> Iterator[str]:
    if not job.has_script:
        return
    if job.script:
        yield "# Your script and its arguments."
        yield f"set -- {shlex.join(job.script)}"
    elif not system.takes_arguments:
        yield from comment(
            f"Edit: your script and its arguments. {system.title} takes none where you submit this."
        )
        yield "set -- script.py"
    else:
        yield "if (($# == 0)); then"
        yield f'    echo "usage: {list(_usage(system, job))[-1]}" >&2'
        yield "    exit 2"
        yield "fi"


def environment(system: BatchSystem, job: JobSpec) -> Iterator[str]:
    """Lines of the user's own, that make Python and all else available on each node."""
    if job.environment == (PLACEHOLDER,):
        yield from comment(
            "Edit: your Python environment, with hpcdask in it, where all nodes see it. Lines with "
            "`module load` do as well, and of conda `source ~/miniconda3/bin/activate NAME`."
        )
    if not system.needs_environment(job):
        yield from job.environment
        return
    yield "environment() {"
    yield from (f"    {line}" for line in job.environment or (":",))
    yield "}"
    yield "environment"


def _scheduler_file(system: BatchSystem, job: JobSpec) -> Iterator[str]:
    yield from comment("Through this file the processes find each other. Only you can read it.")
    if job.scheduler_file:
        yield f"scheduler_file={shlex.quote(job.scheduler_file)}"
    else:
        name = _default_scheduler_file(job, system.job_id_expression)
        yield f'scheduler_file="$PWD/{name}"'
    yield 'options=(--scheduler-file "$scheduler_file")'
    if job.interface:
        yield f"options+=(--interface {shlex.quote(job.interface)})"
        return
    yield from comment(
        "Edit: the network between the nodes, if it is not that of the default route: remove the "
        "#. `ip -brief address` on a compute node lists them."
    )
    yield "#options+=(--interface ib0)"


def _launch(system: BatchSystem, job: JobSpec) -> Iterator[str]:
    if job.launch == "cluster":
        yield "echo \"Attach to this cluster with Client(scheduler_file='$scheduler_file')\""
    if job.launch != "workers":
        yield from system.launch(job)
        return
    numbers = f"--nworkers {job.tasks_per_node} --nthreads {job.cpus_per_task}"
    worker = f'hpc-dask worker "${{options[@]}}" {numbers}'
    if job.nodes > 1:
        yield f'name="{system.element_expression}"'
        yield f"worker=({worker})"
        yield from NOTE_SIGNALS
        yield "workers=()"
        yield from system.workers_on_each_node(job)
        yield from AWAIT_WORKERS
        yield 'exit "$code"'
        return
    yield from comment(
        "exec: signals reach the workers, which hand over what only they hold before they end."
    )
    yield f"exec {worker}"
