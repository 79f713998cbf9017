"""What a job asks for, in words that every batch system has, and what none of them can do."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
        One of `LAUNCHES`. With "workers" each node of a job has one group of workers, without a
        scheduler.
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
    cpus : int
        Of each node, if not as many as its tasks have.
    memory_request : str
        What Slurm is asked for in place of `memory`, in its own words.
    memory, disk : int
        Bytes for each node; 0 to ask for none, which leaves it to the system. Only HTCondor is
        asked for room on a disk.
    walltime : int
        Seconds.
    queue, account : str
        Slurm calls a queue a partition, Grid Engine an account a project.
    resource_spec : str
        What PBS is asked for in place of CPUs and memory, and Grid Engine besides them.
    parallel_environment : str
        Of Grid Engine: the rule by which slots are spread over hosts.
    shell : str
        Path of what runs the script, for systems that do not look at its first line.
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
    cpus: int = 0
    memory_request: str = ""
    memory: int = 0
    disk: int = 0
    walltime: int = 1800
    queue: str = ""
    account: str = ""
    resource_spec: str = ""
    parallel_environment: str = ""
    shell: str = "/bin/bash"
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
        """What a node is asked for."""
        return self.cpus or self.tasks_per_node * self.cpus_per_task


def check(job: JobSpec) -> None:
    """Refuse what no system can do.

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


def _refuse_wrong_kind(job: JobSpec) -> None:
    if job.launch not in LAUNCHES:
        raise ConfigError(f"there is no launch {job.launch!r}; choose {', '.join(LAUNCHES)}")
    if job.script and not job.has_script:
        what = "joins a scheduler" if job.launch == "workers" else "waits for clients"
        raise ConfigError(
            f"--launch {job.launch} {what} and runs no script; leave {job.script[0]!r} out, "
            "or choose --launch mpi or native"
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
            hint = "; choose another log_directory" if option == "output" else ""
            raise ConfigError(
                f"{value!r} cannot be the {option} of a job: it has a blank in it{hint}"
            )
    if "/" in job.name:  # logs are called so; Slurm would fail all jobs for that without a word
        raise ConfigError(f"{job.name!r} cannot be the name of a job, nor of its log: it has a /")
    for line in job.directives:
        if "\n" in line:
            raise ConfigError(f"{line!r} is more than one directive; give each its own --directive")
