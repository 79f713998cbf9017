"""A scheduler that lives in a batch job of its own, and how the rest of its cluster reaches it."""

from __future__ import annotations

import math
import re
import shlex
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

from hpcdask import host as hosts
from hpcdask.client.client import Client
from hpcdask.comm import connect
from hpcdask.config import jobs as settings_of_jobs
from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError, RendezvousError
from hpcdask.jobqueue.job import Job
from hpcdask.jobqueue.records import Shape
from hpcdask.jobqueue.worker_script import WorkerScript
from hpcdask.launchers.scheduler_access import SchedulerThere
from hpcdask.rendezvous import SchedulerFileReader
from hpcdask.scheduler import Scheduler
from hpcdask.threads import in_thread

#: The pool of its job.
SCHEDULER = "scheduler"

#: Of the keywords that a cluster is given, those that its scheduler's job has as well. Others say
#: what workers need: a directive that asks for a GPU, say.
_SHARED = {
    *("queue", "account", "project", "walltime", "python", "interface", "protocol", "shebang"),
    *("job_script_prologue", "env_extra", "job_directives_skip", "header_skip", "log_directory"),
    *("submit_command_extra", "cancel_command_extra", "use_stdin", "lsf_units"),
}
#: What it asks for unless it is told otherwise, whatever is configured for workers; as far as a
#: system has these keywords.
_SMALL = {
    "cores": 1,
    "processes": 1,
    "memory": "4GiB",
    "nodes_per_job": 1,
    "job_cpu": 1,
    "ncpus": 1,
    "job_mem": "",
    "resource_spec": "",
    "launcher": "",
    "job_script_epilogue": [],
}
#: Options of ``hpc-dask scheduler``, as parameters of `Scheduler`.
_OPTIONS = (
    *("host", "port", "interface", "contact_address", "protocol", "idle_timeout"),
    *("allowed_failures", "worker_ttl", "client_grace", "preload", "preload_argv", "dial_back"),
)
#: Seconds for a connection, of which the scheduler file may be stale.
_CONNECTS = 5.0
#: Directives by which workers are told in time that they have to leave. A scheduler that left would
#: look as if somebody had ended the cluster.
_NOTICES = ("--signal=", "-notify")


class SchedulerJob(Job):
    """A job in which a scheduler runs; mixed with the `Job` class of a batch system.

    Attributes
    ----------
    options : dict
        Parameters of `Scheduler`.
    token_file : str
        Where the scheduler finds the cluster's token.
    """

    options: Mapping[str, Any] = {}
    token_file: str = ""

    @property
    def shape(self) -> Shape:
        return Shape(n_workers=0, walltime=math.inf, is_service=True)

    @property
    def keywords(self) -> dict[str, Any]:
        return {**super().keywords, "options": dict(self.options)}

    def _script(self, header: str) -> str:
        lines = header.splitlines()
        header = "\n".join(line for line in lines if not any(word in line for word in _NOTICES))
        script = WorkerScript(
            worker=self._worker(),
            is_named=False,
            has_token=False,  # its --token-file goes before all else
            epilogue=self._asked["job_script_epilogue"],
            launcher=self._asked["launcher"] or "",
            shebang=self._asked["shebang"],
            title="The scheduler of a cluster, whose workers come in other jobs.",
        )
        return script.text(self.system, self.spec(), header)

    def _worker(self) -> list[str]:
        return [
            f"{self._asked['python'] or shlex.quote(sys.executable)} -m hpcdask scheduler",
            f"--scheduler-file {shlex.quote(self.scheduler_file)}",
            "--successor",  # whoever ends the job: only a client ends the cluster
            f"--token-file {shlex.quote(self.token_file)}",
            *option_words({"port": 0, **self.options}),
        ]


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options of ``hpc-dask scheduler`` for parameters of `Scheduler`, as words of shell.

    Raises
    ------
    ConfigError
        If there is no such option.
    """
    words = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if name not in _OPTIONS:
            raise ConfigError(
                f"scheduler_options={{{name!r}: ...}} is nothing that a scheduler in a job can be "
                f"told; there are {', '.join(_OPTIONS)}"
            )
        if value is None:
            continue
        if name == "dial_back":
            words.append(option if value else "--no-dial-back")
        elif name in ("preload", "preload_argv"):
            items = [value] if isinstance(value, str) else value
            words += [f"{option} {shlex.quote(str(item))}" for item in items]
        else:
            words.append(f"{option} {shlex.quote(str(value))}")
    return words


def scheduler_job_of(
    kind: type[Job],
    workers: Job,
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    options: Mapping[str, Any],
    **common: Any,
) -> SchedulerJob:
    """The job of a cluster's scheduler: small, and as long as those of the workers.

    Parameters
    ----------
    kind : type
        Of the workers' jobs.
    workers : Job
        One of them.
    given : mapping
        Keywords that it was made with, of which some are the scheduler's, too.
    own : mapping
        Keywords for the scheduler's job alone.
    options : mapping
        Parameters of the scheduler.
    **common
        As `config_name`.
    """
    option_words(options)  # or it raises
    known = {word.keyword for word in settings_of_jobs.words_of(kind.system.name)}
    keywords = {
        **{name: value for name, value in _SMALL.items() if name in known},
        **{name: value for name, value in given.items() if name in _SHARED},
        "walltime": given.get("walltime") or f"{workers.walltime}s",
        "job_name": f"{workers.job_name}-scheduler",
        **own,
    }
    job = _class_of(kind)(**{**common, **keywords})
    if job.n_workers != 1:
        raise ConfigError("a scheduler is one process: leave processes and nodes_per_job out")
    job.options = dict(options)
    return job


def scheduler_job_again(kind: type[Job], keywords: Mapping[str, Any]) -> SchedulerJob:
    """The job that was made with `keywords`, as `SchedulerJob.keywords` gives them."""
    options = keywords["options"]
    job = _class_of(kind)(**{name: each for name, each in keywords.items() if name != "options"})
    job.options = options
    return job


def _class_of(kind: type[Job]) -> type[SchedulerJob]:
    """That of schedulers, in jobs of this kind."""
    return type(f"Scheduler{kind.__name__}", (SchedulerJob, kind), {})


def id_of_job(told: str, ids: Collection[str]) -> str | None:
    """Which of these jobs a process is in that tells its job as `hpcdask.host.batch_job` does.

    Not all systems let a process see it; where there is but one job, it is in that.
    """
    number = re.search(r"\d+", told)
    if number is None:
        return next(iter(ids)) if len(ids) == 1 else None
    return next((id for id in ids if _number(id) == number[0]), None)


def _number(id: str) -> str:
    match = re.match(r"\d+", id)
    return match[0] if match else id


# ---------------------------------------------------------------- reaching it


def name_of_keeper(cluster: str) -> str:
    """What the client of who keeps a cluster is called, by which others find out that it lives."""
    return f"keeper-of-{cluster}"


class SchedulerInJob(SchedulerThere):
    """A scheduler that says in a file where it is, also when another has taken its place.

    Parameters
    ----------
    scheduler_file : str
    cluster : str
        Name of the cluster.
    """

    def __init__(self, scheduler_file: str, cluster: str) -> None:
        place = SchedulerPlace(scheduler_file=scheduler_file)
        super().__init__(place, "", name_of_keeper(cluster))
        self._file = SchedulerFileReader(scheduler_file)

    async def _connect(self) -> Client:
        # A client would wait, and complain all the time while the job is in the queue.
        contact = await in_thread(self._file.probe, time.time())
        if contact is None:
            raise RendezvousError(self._file.describe(time.time()))
        options = self._place.options(contact)
        (await connect(contact.address, options, _CONNECTS, was_there=True)).close()
        return await super()._connect()

    async def job(self) -> str:
        """The batch job that it is in, as `hpcdask.host.batch_job` has it."""
        job: str
        self._address, job = await self.run(_who_are_you)
        return job

    async def shut_down(self, reason: str) -> None:
        """Let it end, and all workers with it."""
        await self.run(shut_down, reason)


async def shut_down(reason: str, dask_scheduler: Scheduler) -> None:
    """Let a scheduler end, and all workers with it, when this is answered."""
    dask_scheduler._close_soon(reason)


def _who_are_you(dask_scheduler: Scheduler) -> tuple[str, str]:
    return dask_scheduler.address, hosts.batch_job()


def keepers(cluster: str, dask_scheduler: Scheduler) -> int:
    """Processes that keep this cluster's jobs, and are connected."""
    return sum(f"-{name_of_keeper(cluster)}-" in client for client in dask_scheduler.clients)
