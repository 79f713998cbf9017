"""What the doctor finds out, as plain data: it travels between ranks, and is what --json prints.

Times are seconds, sizes bytes. A problem is a sentence, and empty where there is none. The docs
page of the doctor lists these keys, so change them there as well.
"""

from __future__ import annotations

from typing import TypedDict


class Software(TypedDict):
    """Python and what hpcdask uses of others."""

    python: str
    implementation: str
    executable: str
    packages: dict[str, str]  # name -> version, of those that are installed
    problem: str  # with the settings in the environment


class Launch(TypedDict):
    """MPI and batch system."""

    launcher: str  # who has started this process; empty if nobody special
    mpirun: str  # path of the one in PATH, empty if none
    mpirun_version: str
    mpi_library: str  # that mpi4py is built with; empty without mpi4py
    mpi4py_problem: str
    batch_systems: list[str]  # whose commands are here, with version
    batch_problems: list[str]  # of those that were asked for jobs and gave no answer
    job: str  # as `hpcdask.host.batch_job` gives it
    nodes: list[str]  # hosts of that job, as far as the batch system lists them


class Place(TypedDict):
    """An address of a host that others may use."""

    interface: str
    address: str


class InterfaceFacts(TypedDict):
    """A network interface."""

    name: str
    is_up: bool
    addresses: list[str]
    speed: int  # Mbit/s; 0 if the driver does not say
    mtu: int


class Ports(TypedDict):
    """Where this host can listen."""

    range: str  # --port-range
    total: int
    free: int
    first_free: int
    last_free: int
    scheduler_port_is_free: bool
    problem: str


class Network(TypedDict):
    """Interfaces and addresses."""

    interfaces: list[InterfaceFacts]
    candidates: list[Place]
    chosen: Place | None  # what hpcdask would use
    problem: str  # of --interface on this host
    ports: Ports


class Folder(TypedDict):
    """The folder for the scheduler file."""

    path: str
    asked: bool  # the user has named it
    filesystem: str
    is_network: bool
    keeps_modes: bool
    problem: str


class TokenFacts(TypedDict):
    """The cluster token that commands would use here, without scheduler file."""

    source: str  # a path, or HPCDASK_TOKEN
    exists: bool
    mode: str
    folder: str
    folder_mode: str
    fingerprint: str  # of a hash, only to compare hosts
    problem: str


class Scratch(TypedDict):
    """Where workers put what they spill."""

    path: str
    filesystem: str
    is_network: bool
    is_memory: bool
    total: int
    free: int
    free_files: int
    write_seconds: float  # of one MiB, to the disk
    problem: str


class Grants(TypedDict):
    """What this process may use."""

    cpus: int
    cpu_sources: dict[str, int]
    affinity: list[int]
    job_cpus: int  # of all ranks of this job on this host together
    host_cpus: int
    memory: int
    memory_sources: dict[str, int]
    gpus: int
    gpu_source: str
    gpu_names: list[str]
    gpu_problem: str


class Limits(TypedDict):
    """ulimits and the like; -1 is unlimited."""

    open_files: int
    open_files_hard: int
    processes: int
    processes_hard: int
    processes_used: int  # tasks of this user on this host
    cgroup_tasks: int
    cgroup_tasks_used: int
    is_root: bool  # for whom the limit of processes does not hold


class Spawning(TypedDict):
    """A process started as a nanny starts a worker."""

    seconds: float
    problem: str


class HostFacts(TypedDict, total=False):
    """All about one host; a subject is missing if looking at it failed, see `errors`."""

    software: Software
    launch: Launch
    network: Network
    folder: Folder
    token: TokenFacts
    scratch: Scratch
    grants: Grants
    limits: Limits
    spawning: Spawning
    errors: dict[str, str]


class Attempt(TypedDict):
    """An address of rank 0 that was tried in vain."""

    address: str
    reason: str


class RankFacts(TypedDict):
    """What a rank says of itself; only one rank of each host says all about the host."""

    rank: int
    hostname: str
    identity: str  # of the host; unlike its name no other one has it
    pid: int
    python: str
    is_leader: bool  # it has looked at all
    ports: list[int]  # where it listens, on every interface
    towards: str  # its own address on the way to rank 0; empty on rank 0
    facts: HostFacts
    attempts: list[Attempt]


# -- What comes of all ranks -----------------------------------------------------------------------


class RankOfHost(TypedDict):
    """A rank, in the report."""

    rank: int
    host: str
    pid: int
    cpus: int
    affinity: list[int]
    python: str


class Reached(TypedDict):
    """One host dialled another: how long a message takes there and back, or why there is none."""

    source: str
    target: str
    interface: str  # of the target
    address: str  # host:port
    seconds: float | None
    reason: str


class Carried(TypedDict):
    """How fast one host sends to another."""

    source: str
    target: str
    interface: str
    bytes_per_second: float | None
    reason: str


class Seen(TypedDict):
    """A scheduler file that rank 0 wrote, as the others saw it."""

    path: str  # of the folder
    writer: str
    problem: str  # why it could not be written
    seconds: dict[str, float | None]  # by host; None if it was not seen in time
    problems: dict[str, str]  # of reading it, by host


class Clock(TypedDict):
    """A clock beside that of rank 0's host."""

    ahead: float
    uncertainty: float


class Examination(TypedDict):
    """Everything, of all hosts."""

    version: str
    seconds: float
    size: int
    nworkers: int  # for how many the limits should do
    launcher: str
    hosts: dict[str, HostFacts]
    ranks: list[RankOfHost]
    missing_ranks: list[int]
    missing_hosts: list[str]  # of the job, if some ranks are missing
    by_letter: list[str]  # hosts that could not reach rank 0 and said so in a file
    silent: list[str]  # hosts that reported, and then did not answer
    unwritten: list[str]  # where rank 0 could not say where it is, and why
    interface: str  # --interface
    reached: list[Reached]
    carried: list[Carried]
    scheduler_file: Seen | None
    clocks: dict[str, Clock]
    unfinished: list[str]  # stages for which there was no time
