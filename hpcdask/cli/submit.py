"""``hpc-dask submit``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from hpcdask.cli import options
from hpcdask.cli.jobscript import SystemFirst, job_options, system_and_job
from hpcdask.errors import ConfigError

if TYPE_CHECKING:
    from hpcdask.jobqueue.job_spec import JobSpec
    from hpcdask.jobqueue.system import BatchSystem


@click.command(cls=SystemFirst, context_settings={"allow_interspersed_args": False})
@job_options
def submit(**given: Any) -> None:
    """Submit the job script that 'hpc-dask jobscript' prints with the same options.

    Prints the job's id, and on stderr how to attach to its cluster. Ends with code 1 and the batch
    system's own words if that refuses the job.
    """

    def work() -> None:
        from hpcdask.jobqueue import submission
        from hpcdask.jobqueue.job_script import job_script
        from hpcdask.jobqueue.systems import refuse_foreign_commands

        system, job = system_and_job(given)
        _refuse_missing_script(job)
        refuse_foreign_commands(system)
        script = job_script(system, job)
        _make_folder_of_log(job)
        job_id = submission.submit(system, script, lambda words: click.echo(words, err=True))
        click.echo(job_id)
        for line in _what_next(system, job, job_id):
            click.echo(line, err=True)

    options.run("hpc-dask submit", "warning", work)


def _refuse_missing_script(job: JobSpec) -> None:
    """Say here what the job would only say when its time has come."""
    if not job.has_script:
        return
    if not job.script:
        raise ConfigError(f"--launch {job.launch} runs a script: name it after the options")
    if not os.path.isfile(job.script[0]):
        raise ConfigError(f"there is no script {job.script[0]!r} to run")


def _make_folder_of_log(job: JobSpec) -> None:
    """Without it some systems fail the job and some drop the log, and none says so."""
    folder = os.path.dirname(job.output)
    if folder and not set("%$^") & set(folder):
        os.makedirs(folder, exist_ok=True)


def _what_next(system: BatchSystem, job: JobSpec, job_id: str) -> Iterator[str]:
    from hpcdask.jobqueue.job_script import scheduler_file

    path = scheduler_file(system, job, os.getcwd(), job_id)
    if job.launch == "workers":
        yield f"its workers join the scheduler of {path}"
        if not os.path.exists(path):
            yield (
                "that file is not there yet: start one with hpc-dask scheduler --scheduler-file "
                f"{shlex.quote(path)}, or a job that writes it; workers wait a minute for it"
            )
    else:
        if os.environ.get("HPCDASK_TOKEN"):
            yield (
                "HPCDASK_TOKEN is not handed on to the job, where others might see it: unset it "
                "before you attach, and the token is read from the scheduler file"
            )
        yield f"attach to its cluster with hpcdask.Client(scheduler_file={path!r})"
        yield f"add workers with hpc-dask worker --scheduler-file {shlex.quote(path)}"
    yield f"cancel it with {system.cancel_command} {shlex.quote(job_id)}"
