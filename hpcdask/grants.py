"""What this host and the allocation grant to this job here, and who says so: CPUs and memory.

Everything is read from the environment, from files below a root and from the kernel, and nothing is
decided: `hpcdask.sizing` does that.
"""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Grant(NamedTuple):
    """So many CPUs, or bytes of memory, and where that is written."""

    amount: int
    source: str  # "affinity", "cgroup /slurm/job_5", "SLURM_MEM_PER_NODE"


def smallest(grants: Iterable[Grant]) -> Grant:
    """The grant that counts; the first of equals."""
    return min(grants, key=lambda grant: grant.amount)


# ---------------------------------------------------------------- CPUs

#: CPUs of the job on one host, by the batch system: PBS (of the chunk) and Torque.
CPU_VARIABLES = ("SLURM_CPUS_ON_NODE", "NCPUS", "PBS_NUM_PPN")


def cpu_grants(environ: Mapping[str, str], root: Path = Path("/")) -> list[Grant]:
    """CPUs that all processes of this job on this host may keep busy together.

    By the quotas of the process's own cgroup and all parents of that (v1 and v2, rounded up), by
    the batch system, and by the CPUs of the cgroup. The affinity mask may be this process's alone:
    see `affinity`.

    Parameters
    ----------
    environ : mapping
        Environment to read.
    root : Path
        Where ``proc`` and ``sys`` are; tests give a folder.
    """
    return [
        *_cgroup_cpus(root),
        *_numbers(environ, CPU_VARIABLES),
        *_slurm_cpus_here(environ),
        *_grid_engine_slots(environ, root),
        *_cgroup_cpuset(root),
    ]


def cpus_of_a_task(environ: Mapping[str, str]) -> list[Grant]:
    """CPUs that a batch system grants to each task of a job step, as srun and mpirun start them."""
    return list(_numbers(environ, ["SLURM_CPUS_PER_TASK"]))


def machine_cpus() -> Grant:
    """CPUs of this host."""
    return Grant(os.cpu_count() or 1, "the machine")


def affinity() -> Grant:
    """CPUs on which the kernel lets this process run."""
    here = machine_cpus()
    allowed = len(affinity_mask())
    return Grant(allowed, "affinity") if 0 < allowed < here.amount else here


def affinity_mask(pid: int = 0) -> frozenset[int]:
    """Numbers of the CPUs on which a process may run; empty where the system does not tell."""
    try:
        return frozenset(os.sched_getaffinity(pid))
    except (AttributeError, OSError):  # macOS; a process that is gone, or hidden from us
        return frozenset()


def _cgroup_cpus(root: Path) -> Iterator[Grant]:
    for folder, name in _cgroup_folders("cpu", root):
        quota = _read(folder / "cpu.max").split()
        if not quota:
            quota = [_read(folder / f"cpu.cfs_{part}_us") for part in ("quota", "period")]
        if len(quota) == 2 and all(number.isdecimal() for number in quota):  # else "max" or "-1"
            yield Grant(max(1, math.ceil(int(quota[0]) / max(1, int(quota[1])))), f"cgroup {name}")


def _cgroup_cpuset(root: Path) -> Iterator[Grant]:
    """CPUs of the nearest cgroup that names any: a launcher may have bound us to some of them."""
    for folder, name in _cgroup_folders("cpuset", root):
        listed = _read(folder / "cpuset.cpus.effective") or _read(folder / "cpuset.effective_cpus")
        count = _count_listed(listed)
        if count:
            if count < machine_cpus().amount:  # else it grants nothing in particular
                yield Grant(count, f"cgroup {name}")
            return


def _count_listed(cpus: str) -> int:
    """How many CPUs a list like "0-3,8" has; see cpuset(7)."""
    count = 0
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            count += int(last or first) - int(first) + 1
    return count


def _slurm_cpus_here(environ: Mapping[str, str]) -> Iterator[Grant]:
    counts = expand_counts(environ.get("SLURM_JOB_CPUS_PER_NODE", ""))
    count = _here(counts, environ)
    if count:
        yield Grant(count, "SLURM_JOB_CPUS_PER_NODE")


def _grid_engine_slots(environ: Mapping[str, str], root: Path) -> Iterator[Grant]:
    """Slots of the job on this host; NSLOTS counts those on all hosts."""
    slots = positive_number(environ, "NSLOTS")
    if not slots:
        return
    hosts = environ.get("PE_HOSTFILE", "")
    me = socket.gethostname().partition(".")[0]
    for line in _read(root / hosts.lstrip("/")).splitlines() if hosts else ():
        words = line.split()  # host, slots, queue, processors; see sge_pe(5)
        if len(words) > 1 and words[0].partition(".")[0] == me and words[1].isdecimal():
            yield Grant(max(1, int(words[1])), "PE_HOSTFILE")
            return
    n_hosts = positive_number(environ, "NHOSTS") or 1
    yield Grant(max(1, slots // n_hosts), "NSLOTS")


# ---------------------------------------------------------------- memory

#: memory.high is no hard limit, but above it the kernel slows a process to a crawl.
CGROUP_MEMORY_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")

#: How cgroups v1 say that there is no limit: the largest multiple of a page, nearly 2**63.
_NO_LIMIT = 2**62


def memory_grants(environ: Mapping[str, str], root: Path = Path("/")) -> list[Grant]:
    """Bytes of memory that all processes of this job on this host may use together.

    By the limits of the process's own cgroup and all parents of that (v1 and v2), by the address
    space and data rlimits, by Slurm's ``--mem`` or ``--mem-per-cpu``, and the machine's RAM.

    Parameters
    ----------
    environ : mapping
        Environment to read.
    root : Path
        Where ``proc`` and ``sys`` are; tests give a folder.
    """
    return [
        *_cgroup_memory(root),
        *_memory_rlimits(),
        *_slurm_memory(environ, root),
        Grant(_machine_memory(), "the machine"),
    ]


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_rlimits() -> Iterator[Grant]:
    import resource

    # Of one process, in truth; but Grid Engine sets them to what it grants the whole job.
    for which in ("RLIMIT_AS", "RLIMIT_DATA"):
        soft, _hard = resource.getrlimit(getattr(resource, which))
        if soft != resource.RLIM_INFINITY and soft > 0:
            yield Grant(soft, which)


def _cgroup_memory(root: Path) -> Iterator[Grant]:
    for folder, name in _cgroup_folders("memory", root):
        for file in CGROUP_MEMORY_FILES:
            text = _read(folder / file)
            if text.isdecimal() and 0 < int(text) < _NO_LIMIT:
                yield Grant(int(text), f"cgroup {name}")


def _slurm_memory(environ: Mapping[str, str], root: Path) -> Iterator[Grant]:
    """Slurm's promise for this node; its unit is MiB and 0 means all of the node."""
    for per_node in _numbers(environ, ["SLURM_MEM_PER_NODE"]):
        yield per_node._replace(amount=per_node.amount * 2**20)
    for per_cpu in _numbers(environ, ["SLURM_MEM_PER_CPU"]):
        # The limit holds for all tasks of the job on this node together, so it counts their CPUs,
        # which are more than a task that is bound to some of them sees.
        counted = [*_numbers(environ, ["SLURM_CPUS_ON_NODE"]), *_slurm_cpus_here(environ)]
        cpus = smallest(counted or [affinity(), *cpu_grants(environ, root)])
        yield per_cpu._replace(amount=per_cpu.amount * 2**20 * cpus.amount)


# ---------------------------------------------------------------- numbers in the environment


def expand_counts(text: str) -> list[int]:
    """Numbers in Slurm's short form.

    Examples
    --------
    >>> expand_counts("2(x3),1")
    [2, 2, 2, 1]
    """
    counts = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def _here(counts: list[int], environ: Mapping[str, str]) -> int:
    """The count of this node."""
    node = environ.get("SLURM_NODEID", "")
    if node.isdecimal() and int(node) < len(counts):
        return counts[int(node)]
    return counts[0] if len(set(counts)) == 1 else 0


def positive_number(environ: Mapping[str, str], name: str) -> int:
    """The value of a variable that is a positive number, else 0."""
    text = environ.get(name, "").strip()
    return int(text) if text.isdecimal() else 0


def _numbers(environ: Mapping[str, str], names: Iterable[str]) -> Iterator[Grant]:
    for name in names:
        number = positive_number(environ, name)
        if number:
            yield Grant(number, name)


# ---------------------------------------------------------------- cgroups and mounts


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo, see proc(5)."""

    root: str  # the folder of that file system which is mounted
    point: str
    fstype: str
    options: tuple[str, ...]  # of the file system; for cgroup v1 they name its controllers


#: Where cgroups are on a host whose /proc/self/mountinfo we cannot read.
USUAL_CGROUP_MOUNTS = (
    Mount("/", "/sys/fs/cgroup", "cgroup2", ()),
    Mount("/", "/sys/fs/cgroup/cpu", "cgroup", ("cpu",)),
    Mount("/", "/sys/fs/cgroup/memory", "cgroup", ("memory",)),
)


def filesystem(path: str | os.PathLike[str], *, root: Path = Path("/")) -> str:
    """Type of the file system that holds `path`, as "ext4" or "nfs4"; "" if that is unknown.

    `path` is taken as it is, symbolic links are not followed.
    """
    place = PurePosixPath(os.path.abspath(path))
    holders = [mount for mount in _mounts(root) if place.is_relative_to(mount.point)]
    if not holders:
        return ""
    # Of equal mount points the later one covers the earlier, and max() would keep the first.
    holder = max(reversed(holders), key=lambda mount: len(PurePosixPath(mount.point).parts))
    return holder.fstype


def _mounts(root: Path) -> list[Mount]:
    mounts = []
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if separator and len(left) >= 5 and len(right) >= 3:
            mounts.append(Mount(left[3], left[4], right[0], tuple(right[2].split(","))))
    return mounts


def cgroup_tasks(root: Path = Path("/")) -> tuple[int, int] | None:
    """Most tasks (threads of all processes) that a cgroup allows, and how many it has now.

    Of this process's cgroup and its parents the one with the least room; None if none has a limit.
    """
    found = []
    for folder, _ in _cgroup_folders("pids", root):
        limit, current = _read(folder / "pids.max"), _read(folder / "pids.current")
        if limit.isdecimal() and current.isdecimal():
            found.append((int(limit), int(current)))
    return min(found, key=lambda each: each[0] - each[1], default=None)


def _cgroup_folders(controller: str, root: Path) -> Iterator[tuple[Path, str]]:
    """Folders that can hold a limit: of this process's own cgroup and of every parent we see.

    Each with the cgroup's name.
    """
    mounts = [m for m in _mounts(root) if m.fstype in ("cgroup", "cgroup2")]
    for fstype, path in _own_cgroups(controller, root):
        for mount in mounts or USUAL_CGROUP_MOUNTS:
            if mount.fstype == fstype and (fstype == "cgroup2" or controller in mount.options):
                inner = _path_inside(mount, path)
                for cgroup in (inner, *inner.parents):
                    name = "/" + str(cgroup) if cgroup.parts else "/"
                    yield root / mount.point.lstrip("/") / cgroup, name


def _own_cgroups(controller: str, root: Path) -> Iterator[tuple[str, str]]:
    """(file system type, path) of the cgroups of this process, see cgroups(7)."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            yield "cgroup2", path
        elif controller in controllers.split(","):
            yield "cgroup", path


def _path_inside(mount: Mount, path: str) -> PurePosixPath:
    """The cgroup `path` as seen below `mount`.

    A container often sees only its own part of the tree, mounted where the top would be, while
    /proc/self/cgroup still gives the host's path, or one with ".." in it.
    """
    cgroup = PurePosixPath(path)
    if ".." in cgroup.parts or not cgroup.is_relative_to(mount.root):
        return PurePosixPath()
    return cgroup.relative_to(mount.root)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
