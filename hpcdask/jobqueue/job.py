"""Jobs that bring workers: what a user asks for of each, and the script that its system gets."""

from __future__ import annotations

import copy
import math
import os
import shlex
import sys
from dataclasses import replace
from typing import Any, ClassVar

from hpcdask import config, sizing
from hpcdask.errors import ConfigError
from hpcdask.jobqueue import job_script
from hpcdask.jobqueue.amounts import counted, format_walltime
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.keywords import read_walltime, settled
from hpcdask.jobqueue.records import Shape
from hpcdask.jobqueue.system import BatchSystem
from hpcdask.jobqueue.worker_script import WorkerScript
from hpcdask.launchers.departure import leads

_MIB = 2**20
_DEFAULT_COMMAND, _COMMAND_OF_DASK = "hpcdask worker", "distributed.cli.dask_worker"


def _ours(worker_command: str) -> str:
    """The command of a worker: that of dask, which its configuration has at many sites, is ours."""
    return _DEFAULT_COMMAND if worker_command == _COMMAND_OF_DASK else worker_command


class Job:
    """Workers in a job of a batch system.

    Keywords have the names that they have in dask-jobqueue. One that is not given, or None, is
    configured by the key ``jobqueue.SYSTEM.KEYWORD``, with hyphens, or in another section of
    `jobqueue` that `config_name` names.

    Parameters
    ----------
    scheduler : str, optional
        Address of the scheduler.
    name : str, optional
        Of the workers, in place of the job's id, by which a cluster knows them; for scripts that
        are submitted by hand.
    config_name : str, optional
        Section of the configuration to read, if not the system's.
    scheduler_file : str, optional
        Path of the file in which the scheduler says where it is. By default scheduler.json in the
        folder of the submission, if there is no address.
    security : None
        There are no certificates to hand over: workers have the token from the scheduler file.
    cores : int
        CPUs of the job; with several nodes, of each.
    memory : int or str
        Bytes or a size, likewise. What workers get is less than the system is asked for: each
        nanny keeps 64 MiB, so that the system does not kill a job whose workers stay within their
        limits.
    processes : int
        Workers that share `cores` and `memory`. By default the whole part of the square root of
        `cores`.
    nodes_per_job : int
        Each with so many workers; 1 by default.
    walltime : str or timedelta
        ``"12:00:00"``, ``"2-00:00:00"``, ``"90min"``; shorter forms as the system reads them.
    queue, account : str
        Slurm calls a queue a partition, Grid Engine an account a project.
    job_name : str
        Of the job.
    log_directory : str
        Where the logs of jobs are, by default the folder of the submission. It has to be there.
    job_extra_directives : list of str
        Each as it stands behind ``#SBATCH``, ``#PBS`` or the like.
    job_directives_skip : list of str
        Directives with one of these in them are left out, but for those in `job_extra_directives`.
    submit_command_extra, cancel_command_extra : list of str
        Words for these commands.
    job_script_prologue, job_script_epilogue : list of str
        Lines of shell before the workers start, and when they have ended. One that fails does not
        end the job.
    launcher : str
        Words in front of the command that starts the workers, as ``"jsrun -n 1"``. By default
        those of several nodes are started by the system's own: srun, pbsdsh, qrsh.
    shebang : str
        First line of the script, of a shell that understands bash.
    python : str
        Words that start Python in the job; by default the path of this one.
    worker_command : str
        What stands behind ``python -m``.
    worker_extra_args : list of str
        Words of shell at the end of that command.
    nanny : bool
        Whether workers are watched and replaced. Without, a job has one process.
    interface, protocol, local_directory, death_timeout, resources
        As of `Worker`. Variables in `local_directory` are filled in within the job.
    **more
        What only some systems have, see their classes.

    Attributes
    ----------
    system : BatchSystem
        Whose jobs these are.
    n_workers : int
        Of each job.
    nthreads : int
        Of each worker.
    memory_limit : int
        Bytes of each worker.
    walltime : int
        Seconds.
    submit_command, cancel_command : str
        Words before the path of a script, and before the ids of jobs. A subclass may have others.
    log_directory, scheduler_file : str
        May be set until a script is made.

    Raises
    ------
    ConfigError
        If there is no `cores` or `memory`, or the system cannot do what is asked for.
    TypeError
        If there is no such keyword.

    Examples
    --------
    >>> from hpcdask.jobqueue import SLURMJob
    >>> job = SLURMJob(cores=16, memory="64GiB", processes=4, queue="short")
    >>> job.n_workers, job.nthreads
    (4, 4)
    """

    system: BatchSystem
    #: Section of the configuration, if not the one that is called as the system.
    config_name: str = ""
    #: In place of the system's.
    submit_command: str = ""
    cancel_command: str = ""
    #: Seconds of a bare number's unit, and of the unit that is left of a single colon.
    _walltime_units: ClassVar[tuple[int, int]] = (1, 60)
    #: What takes further words, where it stands in a line of shell.
    _within_submit_command: ClassVar[str] = ""

    def __init__(
        self,
        scheduler: str | None = None,
        name: str | None = None,
        *,
        config_name: str | None = None,
        scheduler_file: str | os.PathLike[str] | None = None,
        security: Any = None,
        **keywords: Any,
    ) -> None:
        if security:
            raise ConfigError(
                "this version has no TLS; leave security out. Connections need the cluster's "
                "token, which workers read from the scheduler file."
            )
        section = config_name or self.config_name
        self.config_name = section or self.system.name
        self._asked = settled(
            type(self).__name__, self.system.name, self.config_name, bool(section), keywords
        )
        self.scheduler, self.name = scheduler, name
        self.scheduler_file = os.path.expanduser(scheduler_file) if scheduler_file else ""
        self.job_name: str = self._asked["job_name"]
        logs = self._asked["log_directory"]
        self.log_directory = os.path.abspath(logs) if logs else ""
        self.walltime = read_walltime(self._asked["walltime"], self._walltime_units)
        self._settle_size()
        self._settle_commands()
        self._own_header: str | None = None
        self.system.check(self.spec())
        if self.nodes_per_job > 1:
            list(self.system.workers_on_each_node(self.spec()))  # refuse it here, not at a submit

    def _settle_size(self) -> None:
        """How many workers there are, and what each gets of the node."""
        asked, owner = self._asked, type(self).__name__
        lacking = [name for name in ("cores", "memory") if asked[name] is None]
        if lacking:
            raise ConfigError(
                f"{owner} has to be told {' and '.join(lacking)} of each job, as in "
                f"{owner}(cores=8, memory='16GB'), or by jobqueue.{self.config_name}.{lacking[0]}"
            )
        self.cores: int = asked["cores"]
        self.memory: int = asked["memory"]
        self.nodes_per_job: int = asked.get("nodes_per_job", 1)
        self.processes: int = asked["processes"] or math.isqrt(self.cores)
        self.nthreads = self.cores // self.processes
        if not self.nthreads:
            raise ConfigError(
                f"{counted(self.processes, 'process')} cannot share {counted(self.cores, 'CPU')}: "
                f"each needs one at least. Give {owner} fewer processes or more cores."
            )
        has_nanny = config.current().value("worker.nanny", asked["nanny"])
        if not has_nanny and self.processes > 1:
            raise ConfigError(
                f"without nannies a job of {owner} is one process, and not {self.processes}: "
                "leave nanny=False out, or give processes=1"
            )
        share = self.memory // self.processes
        # As a worker would reckon by itself. The batch system counts the nannies, too, and kills
        # the whole job for the last byte of its memory.
        share -= min(sizing.NANNY_MEMORY, share // 4) if has_nanny else 0
        self.memory_limit = share - share % _MIB if share > _MIB else share

    def _settle_commands(self) -> None:
        """The commands of these jobs; what uses the system runs them, too."""
        submit = shlex.split(self.submit_command) or self._usual_submit_command()
        extra, program = self._asked["submit_command_extra"], self._within_submit_command
        if extra and program and program in submit[-1]:
            submit[-1] = submit[-1].replace(program, f"{program} {shlex.join(extra)}", 1)
        else:
            submit += extra
        cancel = self.cancel_command or self.system.cancel_command
        self.submit_command = shlex.join(submit)
        self.cancel_command = shlex.join(
            [*shlex.split(cancel), *self._asked["cancel_command_extra"]]
        )
        self.system = copy.copy(self.system)
        self.system.submit_command, self.system.cancel_command = tuple(submit), self.cancel_command

    def _usual_submit_command(self) -> list[str]:
        return list(self.system.submit_command)

    @property
    def n_workers(self) -> int:
        """Workers of each job."""
        return self.processes * self.nodes_per_job

    @property
    def interface(self) -> str | None:
        """The network of all processes, if one was named."""
        interface: str | None = self._asked["interface"]
        return interface

    @property
    def resources(self) -> dict[str, float]:
        """What tasks may ask for, of each worker."""
        resources: dict[str, float] = self._asked["resources"]
        return resources

    @property
    def shape(self) -> Shape:
        """What a controller has to know of it."""
        settings, margin = config.current(), 0.0
        asked = settings["worker.walltime.margin"]
        if asked != 0.0 and not math.isinf(self.walltime):
            margin, _ = leads(self.walltime, asked, settings["worker.drain-timeout"])
        return Shape(n_workers=self.n_workers, walltime=self.walltime, margin=margin)

    @property
    def keywords(self) -> dict[str, Any]:
        """All that it was made with, settled, as JSON can hold it; another is made with them."""
        python = {"python": self._asked["python"] or shlex.quote(sys.executable)}
        return {**self._asked, **python}

    def log_paths(self, id: str) -> list[str]:
        """Where the log of a job may be, as far as the system names it after the job.

        Parameters
        ----------
        id : str
            As `BatchSystem.elements` gives it.
        """
        return [os.path.join(self.log_directory, f"{self.job_name}-{id}.log")]

    def _output(self, count: int) -> str:
        """Where the system is told to write logs, in its own pattern; empty for its own choice."""
        return ""

    # -- What the batch system gets ---------------------------------------------------------------

    def spec(self, count: int = 1) -> JobSpec:
        """What an array of `count` jobs asks for; systems add what only they have."""
        asked = self._asked
        return JobSpec(
            launch="workers",
            name=self.job_name,
            count=count,
            nodes=self.nodes_per_job,
            tasks_per_node=self.processes,
            cpus_per_task=self.nthreads,
            cpus=self.cores,
            memory=self.memory,
            walltime=self.walltime,
            queue=asked.get("queue") or "",
            account=asked["account"] or "",
            output=self._output(count),
            directives=asked["job_extra_directives"],
            skip=asked["job_directives_skip"],
            shell=_shell(asked["shebang"]),
            environment=asked["job_script_prologue"],
        )

    @property
    def job_header(self) -> str:
        """The directives of a job, as text. It may be replaced."""
        return self._header(1) if self._own_header is None else self._own_header

    @job_header.setter
    def job_header(self, text: str) -> None:
        self._own_header = text

    def job_script(self) -> str:
        """The script of a job."""
        return self._script(self.job_header)

    def script(self, count: int = 1) -> str:
        """The script of an array of `count` jobs; of one, that is `job_script`."""
        if count == 1:
            return self.job_script()
        kind = type(self)
        is_theirs = kind.job_script is not Job.job_script or kind.job_header is not Job.job_header
        if not is_theirs and self._own_header is None:
            return self._script(self._header(count))
        lines = self.job_script().split("\n")
        directives = [n for n, line in enumerate(lines) if line.startswith(self.system.prefix)]
        below = max(directives, default=0) + 1  # of two that contradict each other the last counts
        return "\n".join([*lines[:below], *self._array(count), *lines[below:]])

    def _header(self, count: int) -> str:
        spec = self.spec(count)
        self.system.check(spec)
        return "\n".join(self._directives(spec))

    def _array(self, count: int) -> list[str]:
        """The directives that make an array of a job, and nothing else."""
        spec = replace(self.spec(), output="log", skip=())
        alone = self._directives(spec)
        return [line for line in self._directives(replace(spec, count=count)) if line not in alone]

    def _directives(self, spec: JobSpec) -> list[str]:
        prefix = self.system.prefix
        return [
            line for line in job_script.directives(self.system, spec) if line.startswith(prefix)
        ]

    def _script(self, header: str) -> str:
        script = WorkerScript(
            worker=self._worker(),
            name=self.name,
            launcher=self._asked["launcher"] or "",
            epilogue=self._asked["job_script_epilogue"],
            shebang=self._asked["shebang"],
            title=f"A job with {self._size_in_words()}, for a cluster that is there already.",
            has_token=bool(self._path_to_scheduler()),
        )
        return script.text(self.system, self.spec(), header)

    def _size_in_words(self) -> str:
        workers, threads = counted(self.processes, "worker"), counted(self.nthreads, "thread")
        each = " each" if self.processes > 1 else ""
        where = f" on each of {self.nodes_per_job} nodes" if self.nodes_per_job > 1 else ""
        return f"{workers} of {threads} and {self.memory_limit // _MIB} MiB{each}{where}"

    def _worker(self) -> list[str]:
        """The command that starts the workers of a node, but for their name; words of shell."""
        asked = self._asked
        death_timeout = config.current().value("worker.death-timeout", asked["death_timeout"])
        size = f"--nthreads {self.nthreads} --nworkers {self.processes}"
        # Of nodes from which the batch system cannot be asked a worker would not know its end.
        times = f"--death-timeout {death_timeout:g}s --walltime {format_walltime(self.walltime)}"
        lines = [
            f"{asked['python'] or shlex.quote(sys.executable)} -m {_ours(asked['worker_command'])}",
            self._where_the_scheduler_is(),
            f"{size} --memory-limit {_size(self.memory_limit)}",
            times,
        ]
        if asked["nanny"] is not None:
            lines.append("--nanny" if asked["nanny"] else "--no-nanny")
        for option in ("interface", "protocol"):
            if asked[option]:
                lines.append(f"--{option} {shlex.quote(asked[option])}")
        if asked["local_directory"]:
            lines.append(f"--local-directory {_filled_in_later(asked['local_directory'])}")
        if asked["resources"]:
            amounts = " ".join(f"{k}={_number(v)}" for k, v in asked["resources"].items())
            lines.append(f"--resources {shlex.quote(amounts)}")
        return [*lines, *asked["worker_extra_args"]]

    def _path_to_scheduler(self) -> str:
        return self.scheduler_file or ("" if self.scheduler else "scheduler.json")

    def _where_the_scheduler_is(self) -> str:
        words = [shlex.quote(self.scheduler)] if self.scheduler else []
        file = self._path_to_scheduler()
        words += ["--scheduler-file", shlex.quote(file)] if file else []
        return " ".join(words)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._size_in_words()}>"


def _shell(shebang: str) -> str:
    """Path of the shell in the first line of a script, for systems that do not look there."""
    words = shebang.removeprefix("#!").split()
    is_path = bool(words) and words[0].startswith("/") and os.path.basename(words[0]) != "env"
    return words[0] if is_path else "/bin/bash"


def _size(nbytes: int) -> str:
    return str(nbytes) if nbytes % _MIB else f"{nbytes // _MIB}MiB"


def _number(amount: float) -> str:
    return str(int(amount)) if amount == int(amount) else repr(amount)


def _filled_in_later(path: str) -> str:
    """A path as a word of shell, in which home and variables are those of the job."""
    home = path == "~" or path.startswith("~/")
    text = "".join(f"\\{c}" if c in '\\"`' else c for c in path[home:])
    return f'"{"$HOME" if home else ""}{text}"'
