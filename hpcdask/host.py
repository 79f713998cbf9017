"""What this machine and the allocation grant to this process: CPUs, memory, interfaces, scratch."""

from __future__ import annotations

import math
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hpcdask.errors import ConfigError

# ---------------------------------------------------------------- CPUs and memory

#: CPUs the batch system promises to this task; NCPUS is PBS, NSLOTS is Grid Engine.
CPU_VARIABLES = ("SLURM_CPUS_PER_TASK", "NSLOTS", "NCPUS")

#: memory.high is no hard limit, but above it the kernel slows a process to a crawl.
CGROUP_MEMORY_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")

#: How cgroups v1 say that there is no limit: the largest multiple of a page, nearly 2**63.
_NO_LIMIT = 2**62


def cpu_count(*, environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """CPUs that this process may keep busy, at least 1: the smallest of `cpu_grants`."""
    return max(1, min(cpu_grants(environ=environ, root=root).values()))


def cpu_grants(
    *, environ: Mapping[str, str] | None = None, root: Path = Path("/")
) -> dict[str, int]:
    """What bounds the CPUs of this process, by who says so.

    Its affinity mask, the smallest quota of its own cgroup and all parents of that (v1 and v2,
    rounded up), and what the batch system says in `CPU_VARIABLES`.

    Parameters
    ----------
    environ : mapping, optional
        Environment to read; by default that of this process.
    root : Path
        Where ``proc`` and ``sys`` are; tests give a folder.

    Returns
    -------
    dict
        CPUs by "affinity", "cgroup" and the names of variables; without those that say nothing.
    """
    environ = os.environ if environ is None else environ
    grants = {"affinity": _affinity()}
    quotas = list(_cgroup_cpus(root))
    if quotas:
        grants["cgroup"] = min(quotas)
    promised = {name: _positive_number(environ, name) for name in CPU_VARIABLES}
    return grants | {name: number for name, number in promised.items() if number}


def cpu_count_of_job(
    *, environ: Mapping[str, str] | None = None, root: Path = Path("/"), parent: int | None = None
) -> int:
    """CPUs that this process and its siblings of the same job have on this host together.

    More than `cpu_count` where the launcher has bound each of them to some: the smallest of the
    CPUs of the nearest cgroup that names any, of those that the parent process, which is the
    launcher's, may use, and of those that Slurm gave the job on this host.

    Parameters
    ----------
    environ, root
        As of `cpu_count`.
    parent : int, optional
        Process id of the launcher; by default that of our parent.
    """
    environ = os.environ if environ is None else environ
    grants = [_positive_number(environ, "SLURM_CPUS_ON_NODE")]
    try:
        grants.append(len(os.sched_getaffinity(os.getppid() if parent is None else parent)))
    except (AttributeError, OSError):  # no Linux; or it has ended
        pass
    for folder in _cgroup_folders("cpuset", root):
        cpus = _read(folder / "cpuset.cpus.effective") or _read(folder / "cpuset.effective_cpus")
        if cpus:
            grants.append(_count_listed(cpus))
            break
    return max(cpu_count(environ=environ, root=root), min(filter(None, grants), default=1))


def _count_listed(cpus: str) -> int:
    """How many CPUs a list like "0-3,8" has; see cpuset(7)."""
    count = 0
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            count += int(last or first) - int(first) + 1
    return count


def memory_limit(*, environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """Bytes of memory that this process and its siblings of the same job may use on this host.

    The smallest of `memory_grants`.
    """
    return min(memory_grants(environ=environ, root=root).values())


def memory_grants(
    *, environ: Mapping[str, str] | None = None, root: Path = Path("/")
) -> dict[str, int]:
    """What bounds the memory of this process and its siblings of the same job, by who says so.

    The machine's RAM, the smallest limit of its own cgroup and all parents of that (v1 and v2),
    the address space and data rlimits, and Slurm's ``--mem`` or ``--mem-per-cpu``.

    Parameters
    ----------
    environ : mapping, optional
        Environment to read; by default that of this process.
    root : Path
        Where ``proc`` and ``sys`` are; tests give a folder.

    Returns
    -------
    dict
        Bytes by "machine", "cgroup", "rlimit" and the names of Slurm's variables; without those
        that say nothing.
    """
    environ = os.environ if environ is None else environ
    grants = {"machine": _machine_memory()}
    for name, limits in (("cgroup", list(_cgroup_memory(root))), ("rlimit", [*_memory_rlimits()])):
        if limits:
            grants[name] = min(limits)
    return grants | dict(_slurm_memory(environ, root))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_rlimits() -> Iterator[int]:
    import resource

    for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _hard = resource.getrlimit(which)
        if soft != resource.RLIM_INFINITY and soft > 0:
            yield soft


def _slurm_memory(environ: Mapping[str, str], root: Path) -> Iterator[tuple[str, int]]:
    """Slurm's promise for this node; its unit is MiB and 0 means all of the node."""
    per_node = _positive_number(environ, "SLURM_MEM_PER_NODE")
    if per_node:
        yield "SLURM_MEM_PER_NODE", per_node * 2**20
    per_cpu = _positive_number(environ, "SLURM_MEM_PER_CPU")
    if per_cpu:
        # The limit holds for all tasks of the job on this node together, so it counts their CPUs.
        cpus = _positive_number(environ, "SLURM_CPUS_ON_NODE")
        cpus = cpus or cpu_count(environ=environ, root=root)
        yield "SLURM_MEM_PER_CPU", per_cpu * 2**20 * cpus


def _positive_number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "").strip()
    return int(text) if text.isdecimal() else 0


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

NETWORK_FILESYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "fuse.sshfs", "gfs2", "gpfs"}
    | {"lustre", "nfs", "nfs4", "panfs", "pvfs2", "smb3", "smbfs", "wekafs"}
)


def network_filesystem(path: str | os.PathLike[str], *, root: Path = Path("/")) -> str:
    """Type of the network file system that holds `path` ("nfs4", "lustre"), or "" if it is local.

    `path` is taken as it is, symbolic links are not followed.
    """
    kind = filesystem(path, root=root)
    return kind if kind in NETWORK_FILESYSTEMS else ""


def filesystem(path: str | os.PathLike[str], *, root: Path = Path("/")) -> str:
    """Type of the file system that holds `path` ("ext4", "tmpfs", "nfs4"), or "" if unknown."""
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


def _cgroup_cpus(root: Path) -> Iterator[int]:
    for folder in _cgroup_folders("cpu", root):
        quota = _read(folder / "cpu.max").split()
        if not quota:
            quota = [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        if len(quota) == 2 and all(number.isdecimal() for number in quota):  # else "max" or "-1"
            yield math.ceil(int(quota[0]) / max(1, int(quota[1])))


def _cgroup_memory(root: Path) -> Iterator[int]:
    for folder in _cgroup_folders("memory", root):
        for name in CGROUP_MEMORY_FILES:
            text = _read(folder / name)
            if text.isdecimal() and 0 < int(text) < _NO_LIMIT:
                yield int(text)


def cgroup_tasks(root: Path = Path("/")) -> tuple[int, int] | None:
    """Most tasks (threads of all processes) that a cgroup allows, and how many it has now.

    Of this process's cgroup and its parents the one with the least room; None if none has a limit.
    """
    found = []
    for folder in _cgroup_folders("pids", root):
        limit, current = _read(folder / "pids.max"), _read(folder / "pids.current")
        if limit.isdecimal() and current.isdecimal():
            found.append((int(limit), int(current)))
    return min(found, key=lambda each: each[0] - each[1], default=None)


def _cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders that can hold a limit: of this process's own cgroup and of every parent we see."""
    mounts = [m for m in _mounts(root) if m.fstype in ("cgroup", "cgroup2")]
    for fstype, path in _own_cgroups(controller, root):
        for mount in mounts or USUAL_CGROUP_MOUNTS:
            if mount.fstype == fstype and (fstype == "cgroup2" or controller in mount.options):
                yield from _upwards(root / mount.point.lstrip("/"), _path_inside(mount, path))


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


def _upwards(top: Path, inner: PurePosixPath) -> Iterator[Path]:
    yield top / inner
    for parent in inner.parents:
        yield top / parent


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


# ---------------------------------------------------------------- sizes and durations

_PREFIXES = "kmgtpe"
_BYTE_UNITS = {
    "": 1,
    "b": 1,
    **{p + b: 1000 ** (i + 1) for i, p in enumerate(_PREFIXES) for b in ("", "b")},
    **{p + b: 1024 ** (i + 1) for i, p in enumerate(_PREFIXES) for b in ("i", "ib")},
}
_TIME_UNITS = {
    **dict.fromkeys(("us", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
_QUANTITY = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*([a-z]*)", re.ASCII)


def parse_bytes(size: str | float) -> int:
    """Size in bytes of ``"2GiB"``, ``"500 MB"``, ``"1e9"`` or a number.

    "k", "M", "G" … are powers of 1000, "Ki", "Mi", "Gi" … of 1024, with or without a "B";
    case does not matter.

    Raises
    ------
    ConfigError
        If `size` has none of these forms, or is negative.
    """
    amount = _quantity(size, _BYTE_UNITS, default_unit="")
    if amount is None:
        raise ConfigError(
            f"{size!r} is not a size. Give bytes as a number, or with a unit: "
            "'500 MB' (powers of 1000) or '2GiB' (powers of 1024)."
        )
    return int(amount)


def format_bytes(nbytes: float) -> str:
    """`nbytes` for a reader: ``"2.00 GiB"``, and ``"500 B"`` below one KiB."""
    if abs(nbytes) < 1024:
        return f"{int(nbytes)} B"
    size = float(nbytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if abs(size) < 1024:
            return f"{size:.2f} {unit}"
    return f"{size / 1024:.2f} PiB"


def parse_timedelta(duration: str | float | timedelta, default: str = "s") -> float:
    """Seconds in ``"30s"``, ``"5 min"``, ``"1h"``, ``"200ms"``, a number or a timedelta.

    Parameters
    ----------
    duration : str, float or timedelta
        What to read.
    default : str
        The unit of a bare number.

    Raises
    ------
    ConfigError
        If `duration` has none of these forms, or is negative.
    """
    if isinstance(duration, timedelta):
        duration, default = duration.total_seconds(), "s"
    seconds = _quantity(duration, _TIME_UNITS, default_unit=default)
    if seconds is None:
        raise ConfigError(
            f"{duration!r} is not a duration. Give it as a number, or with a unit: "
            "'200ms', '30s', '5 min', '1h' or '2 days'."
        )
    return float(seconds)


def _quantity(given: object, units: Mapping[str, float], default_unit: str) -> float | None:
    """`given` in the base unit, or None if it is not a finite quantity of at least 0."""
    if isinstance(given, bool) or not isinstance(given, (str, int, float)):
        return None
    if isinstance(given, str):
        match = _QUANTITY.fullmatch(given.strip().lower())
        if match is None:
            return None
        digits, exponent, unit = match.groups(default="")
        number = float(digits + exponent)
    else:
        number, unit = given, ""
    factor = units.get(unit or default_unit)
    if factor is None or not math.isfinite(number) or number < 0:
        return None
    return number * factor


def resolve_memory_limit(text: str | float | None, nthreads: int, nworkers: int) -> int:
    """Memory limit of one worker in bytes; 0 is no limit.

    Parameters
    ----------
    text : str, int, float or None
        "auto": this worker's share of `memory_limit`, by its threads among the CPUs granted.
        A size ("2GiB", 2000000000): as it says. A bare number above 0 and up to 1: that part of
        `memory_limit`, for each worker. 0, "0" and None: no limit.
    nthreads : int
        Threads of one worker.
    nworkers : int
        Workers that share the grant on this host.

    Raises
    ------
    ConfigError
        If `text` has none of these forms.
    """
    if nthreads < 1 or nworkers < 1:
        raise ConfigError(
            f"cannot share memory among {nworkers} workers of {nthreads} threads each. "
            "Give at least one worker with at least one thread."
        )
    if text is None:
        return 0
    if isinstance(text, str) and text.strip().lower() == "auto":
        share = min(1.0, nthreads * nworkers / cpu_count())
        return int(memory_limit() * share / nworkers)
    fraction = _bare_number(text)
    if fraction is not None and 0 < fraction <= 1:  # nobody means one byte
        return int(memory_limit() * fraction)
    return parse_bytes(text)


def _bare_number(given: str | float) -> float | None:
    try:
        return float(given)
    except ValueError:
        return None


# ---------------------------------------------------------------- scratch

#: Folders of the batch system for this job on this host, most specific first.
SCRATCH_VARIABLES = ("SLURM_TMPDIR", "TMPDIR", "PBS_JOBFS")


def local_directory(spec: str | None = None, *, environ: Mapping[str, str] | None = None) -> str:
    """Make and return this user's scratch folder, ``hpcdask-<uid>`` with mode 0700.

    Parameters
    ----------
    spec : str, optional
        Folder to make it in, itself made when missing. By default the first of
        `SCRATCH_VARIABLES` that is a writable folder, else the system's folder for temporary files.
    environ : mapping, optional
        Environment to read; by default that of this process.

    Raises
    ------
    ConfigError
        If it cannot be made, or belongs to another user, or is a symbolic link.
    """
    base = spec or scratch_base(environ)
    path = os.path.join(os.path.abspath(base), f"hpcdask-{os.geteuid()}")
    try:
        os.makedirs(base, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            _refuse_foreign_folder(path)
        os.chmod(path, 0o700)  # for one that was there, and for an odd umask
    except OSError as exc:
        raise ConfigError(
            f"cannot make the scratch folder {path}: {exc.strerror}. "
            "Name a writable folder on this host with --local-directory."
        ) from exc
    return path


def scratch_base(environ: Mapping[str, str] | None = None) -> str:
    """The folder in which scratch folders are made by default, see `local_directory`."""
    import tempfile  # here, since it pulls in shutil, random and hashlib

    environ = os.environ if environ is None else environ
    for name in SCRATCH_VARIABLES:
        folder = environ.get(name, "")
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return tempfile.gettempdir()


def _refuse_foreign_folder(path: str) -> None:
    """Keep another user of /tmp from luring us into a folder of theirs."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        fault = "it is a symbolic link"
    elif not stat.S_ISDIR(status.st_mode):
        fault = "it is not a folder"
    elif status.st_uid != os.geteuid():
        fault = f"it belongs to user {status.st_uid} and we are user {os.geteuid()}"
    else:
        return
    raise ConfigError(
        f"will not use {path} for scratch: {fault}, so others could read or replace what is in it. "
        f"Look with 'ls -ld {shlex.quote(path)}' and remove it, "
        "or name another folder with --local-directory."
    )


# ---------------------------------------------------------------- the job around us

#: Pools that numerical libraries start for each calling thread. The last column says whether the
#: library falls back on OMP_NUM_THREADS, so that a user's value of that one already rules it.
_THREAD_VARIABLES = (
    ("OMP_NUM_THREADS", True),
    ("MKL_NUM_THREADS", True),
    ("OPENBLAS_NUM_THREADS", True),
    ("BLIS_NUM_THREADS", True),
    ("NUMEXPR_NUM_THREADS", True),
    ("VECLIB_MAXIMUM_THREADS", False),
)


def thread_environment(nthreads: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to set for a worker, so its task threads do not each start a thread per core.

    Each of the `nthreads` task threads is one CPU's share, so BLAS and OpenMP get 1. Numba has one
    pool for the process, which all task threads share: it gets `nthreads`. What the user has set
    stays, and who set only OMP_NUM_THREADS meant the libraries that follow it, too.
    """
    omp_is_the_users = "OMP_NUM_THREADS" in environ and not omp_is_from_pbs(environ)
    chosen = {
        name: "1"
        for name, follows_omp in _THREAD_VARIABLES
        if not (follows_omp and omp_is_the_users)
        and (name not in environ or name == "OMP_NUM_THREADS")
    }
    if "NUMBA_NUM_THREADS" not in environ:
        chosen["NUMBA_NUM_THREADS"] = str(max(1, nthreads))
    return chosen


def omp_is_from_pbs(environ: Mapping[str, str]) -> bool:
    """PBS sets OMP_NUM_THREADS to NCPUS in every job: nobody's wish, and n threads in each of n."""
    return "PBS_JOBID" in environ and environ.get("OMP_NUM_THREADS") == environ.get("NCPUS")


def batch_job(environ: Mapping[str, str] | None = None) -> str:
    """The batch job this process is part of: "slurm:123", "pbs:1.server", "sge:55", or ""."""
    environ = os.environ if environ is None else environ
    if environ.get("SLURM_JOB_ID"):
        return "slurm:" + environ["SLURM_JOB_ID"]
    if environ.get("PBS_JOBID"):
        return "pbs:" + environ["PBS_JOBID"]
    # JOB_ID alone is too common a name to mean Grid Engine.
    if environ.get("JOB_ID") and environ.get("SGE_ROOT"):
        task = environ.get("SGE_TASK_ID", "undefined")  # "undefined" outside of an array
        return f"sge:{environ['JOB_ID']}" + (f".{task}" if task.isdecimal() else "")
    return ""
