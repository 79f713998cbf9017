"""What a batch system is to hpcdask: text out (directives, commands) and text in (its answers).

One small file per system fills this in; nothing here runs a command or touches a file.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from hpcdask.errors import ConfigError

#: Kinds of launch: by MPI, by the batch system's own launcher, without a script, as an array.
LAUNCHES = ("mpi", "native", "cluster", "workers")

#: The environment of a script that nobody has filled in.
PLACEHOLDER = "source ~/hpcdask-venv/bin/activate"


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What a job asks for, in words that every batch system has.

    Parameters
    ----------
    launch : str
        One of `LAUNCHES`.
    script : sequence of str
        A Python script and its arguments. Without one, the job takes what follows its own name
        where it is submitted, as far as the system hands that on.
    name : str
        Of the job.
    count : int
        Jobs in the array; 1 is a plain job.
    nodes, tasks_per_node, cpus_per_task : int
        The shape of each job. Every task is one process of the cluster, and each of its CPUs one
        thread of a worker.
    memory : int
        Bytes for each node; 0 to ask for none, which leaves it to the system.
    walltime : int
        Seconds.
    queue, account : str
        Slurm calls a queue a partition, Grid Engine an account a project.
    parallel_environment : str
        Of Grid Engine: the rule by which slots are spread over hosts.
    output : str
        The file for the job's log, in the system's own pattern.
    directives : sequence of str
        What else to ask for, each as it stands behind ``#SBATCH``, ``#PBS`` or ``#$``.
    skip : sequence of str
        Directives with one of these in them are left out, but for those in `directives`.
    environment : sequence of str
        Lines of shell that make `hpc-dask` and Python available.
    interface : str
        The network that the cluster is to use.
    scheduler_file : str
        Path of the scheduler file.
    """

    launch: str
    script: tuple[str, ...] = ()
    name: str = "hpcdask"
    count: int = 1
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    memory: int = 0
    walltime: int = 1800
    queue: str = ""
    account: str = ""
    parallel_environment: str = ""
    output: str = ""
    directives: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    environment: tuple[str, ...] = (PLACEHOLDER,)
    interface: str = ""
    scheduler_file: str = ""

    @property
    def has_script(self) -> bool:
        """Whether this kind of launch runs one."""
        return self.launch in ("mpi", "native")

    @property
    def ntasks(self) -> int:
        """Of each job."""
        return self.nodes * self.tasks_per_node

    @property
    def cpus_per_node(self) -> int:
        """What the tasks of a node need together."""
        return self.tasks_per_node * self.cpus_per_task


class BatchSystem(ABC):
    """What one batch system calls things."""

    #: As in the command line, and as in prose.
    name: ClassVar[str]
    title: ClassVar[str]
    #: What begins a directive, and the ending of a job script's name.
    prefix: ClassVar[str]
    suffix: ClassVar[str]
    submit_command: ClassVar[tuple[str, ...]]
    cancel_command: ClassVar[str]
    #: Starts processes on the nodes of a job.
    launcher: ClassVar[str]
    #: The job's id within the job, as an expression of the shell.
    job_id_expression: ClassVar[str]
    #: Whether a job script gets the words behind its name where it is submitted.
    takes_arguments: ClassVar[bool] = True
    #: Whether one of the tasks is the scheduler where MPI is not used, too; else it comes besides.
    scheduler_is_a_task: ClassVar[bool] = True

    def template(self, launch: str) -> JobSpec:
        """The job of the templates in jobscripts/, which everything else departs from."""
        nodes, count = (1, 4) if launch == "workers" else (2, 1)
        return JobSpec(
            launch=launch,
            count=count,
            nodes=nodes,
            tasks_per_node=4,
            cpus_per_task=4,
            memory=32 * 2**30,
        )

    def template_name(self, launch: str) -> str:
        """Name of the template's file."""
        return f"{self.name}-{self.launcher if launch == 'native' else launch}{self.suffix}"

    def check(self, job: JobSpec) -> None:
        """Refuse what this system, or no system, can do.

        Raises
        ------
        ConfigError
            With what to do instead.
        """
        _refuse_wrong_kind(job)
        _refuse_broken_lines(job)
        if 0 < job.memory < 2**20:
            raise ConfigError(
                f"{job.memory} bytes are no memory for a node; give a unit, as in {job.memory}GiB"
            )

    def shape(self, job: JobSpec) -> str:
        """The size of a job, in words, as far as it is granted."""
        return f"{counted(job.nodes, 'node')} with {counted(job.tasks_per_node, 'process')} each"

    @abstractmethod
    def directives(self, job: JobSpec) -> Iterator[str]:
        """Lines that ask for the job's resources, with comments where a reader may wonder."""

    @abstractmethod
    def suggestions(self, job: JobSpec) -> Iterator[str]:
        """Directives that a site may want too, for what the job does not name, with comments.

        They are made comments themselves, by one # more.
        """

    def first_steps(self, job: JobSpec) -> Iterator[str]:
        """Lines of shell before all others."""
        yield "set -e"

    @abstractmethod
    def launch(self, job: JobSpec) -> Iterator[str]:
        """Lines of shell that start the cluster; the last one takes the place of the shell.

        They find in ``options`` what all processes of the cluster are told, in ``$@`` the script,
        and where `needs_environment` the function ``environment``.
        """

    def needs_environment(self, job: JobSpec) -> bool:
        """Whether `launch` has to make the environment on other nodes anew, by a function."""
        return False

    @abstractmethod
    def job_id(self, submit_output: str) -> str:
        """The id in what the submit command printed.

        Raises
        ------
        ValueError
            If there is none.
        """

    def file_id(self, job_id: str) -> str:
        """The part of an id that `job_id_expression` stands for."""
        return job_id


def _refuse_wrong_kind(job: JobSpec) -> None:
    if job.launch not in LAUNCHES:
        raise ConfigError(f"there is no launch {job.launch!r}; choose {', '.join(LAUNCHES)}")
    if job.script and not job.has_script:
        what = "joins a scheduler" if job.launch == "workers" else "waits for clients"
        raise ConfigError(
            f"--launch {job.launch} {what} and runs no script; leave {job.script[0]!r} out, "
            "or choose --launch mpi or native"
        )
    if job.launch == "workers" and job.nodes != 1:
        raise ConfigError(
            f"with --launch workers each job is one node; ask for {job.nodes} of them with "
            f"--jobs {job.nodes} in place of --nodes"
        )
    if job.launch != "workers" and job.count != 1:
        raise ConfigError(
            f"--jobs is for --launch workers; one job is the whole cluster of {job.launch}, "
            "whose size is --nodes"
        )


def _refuse_broken_lines(job: JobSpec) -> None:
    """A directive is one line of words: a blank would end a name, a new line a directive."""
    for option in ("name", "queue", "account", "parallel_environment", "output", "interface"):
        value = getattr(job, option)
        if re.search(r"\s", value):
            raise ConfigError(f"{value!r} cannot be the {option} of a job: it has a blank in it")
    for line in job.directives:
        if "\n" in line:
            raise ConfigError(f"{line!r} is more than one directive; give each its own --directive")


# ---------------------------------------------------------------- times, sizes and numbers


def counted(n: int, noun: str) -> str:
    """A number of things, in words."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{n} {noun if n == 1 else plural}"


def format_walltime(seconds: int) -> str:
    """`seconds` as hours:minutes:seconds, which all systems read alike.

    Examples
    --------
    >>> format_walltime(100 * 3600 + 61)
    '100:01:01'
    """
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}"


def parse_walltime(text: str) -> int:
    """Seconds in ``"1:30:00"``, ``"2-00:00:00"`` or a length of time like ``"90min"``.

    Not in a bare number or in ``"1:30"``, which batch systems read differently: a number is minutes
    for Slurm and seconds for PBS.

    Raises
    ------
    ConfigError
        If `text` has none of these forms, or is no time at all.
    """
    from hpcdask.host import parse_timedelta

    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)", text.strip())
    if clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    elif re.fullmatch(r"[\d.:]+", text.strip()):
        raise ConfigError(
            f"{text!r} means other things to other batch systems; give hours:minutes:seconds, "
            "as in 1:30:00, or a unit, as in 90min"
        )
    else:
        total = math.ceil(parse_timedelta(text))
    if total < 1:
        raise ConfigError(f"{text!r} is no time for a job; give at least a second")
    return total


def mebibytes(nbytes: int) -> int:
    """The whole MiB in which `nbytes` has room."""
    return math.ceil(nbytes / 2**20)
