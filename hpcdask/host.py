"""What this host grants to a job: CPUs, memory, scratch. And how sizes and times are written."""

from __future__ import annotations

import math
import os
import re
import shlex
import stat
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from hpcdask import grants
from hpcdask.errors import ConfigError
from hpcdask.grants import Grant
from hpcdask.grants import cgroup_tasks as cgroup_tasks
from hpcdask.grants import filesystem as filesystem

# ---------------------------------------------------------------- CPUs and memory


def cpu_count(*, environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """CPUs that this process may keep busy: the smallest of `cpu_grants`."""
    return min(cpu_grants(environ=environ, root=root).values())


def cpu_grants(
    *, environ: Mapping[str, str] | None = None, root: Path = Path("/")
) -> dict[str, int]:
    """What bounds the CPUs of this process, by who says so: affinity, cgroups, variables.

    How workers share them with others is told by `hpcdask.sizing`.

    Parameters
    ----------
    environ : mapping, optional
        Environment to read; by default that of this process.
    root : Path
        Where ``proc`` and ``sys`` are; tests give a folder.
    """
    environ = os.environ if environ is None else environ
    affinity = grants.affinity()._replace(source="affinity")
    common = grants.cpu_grants(environ, root)
    return _by_source([affinity, *common, *grants.cpus_of_a_task(environ)])


def cpu_count_of_job(
    *, environ: Mapping[str, str] | None = None, root: Path = Path("/"), parent: int | None = None
) -> int:
    """CPUs that this process and its siblings of the same job have on this host together.

    More than `cpu_count` where the launcher has bound each of them to some.

    Parameters
    ----------
    environ, root
        As of `cpu_grants`.
    parent : int, optional
        Process id of the launcher, who may use all of them; by default that of our parent.
    """
    environ = os.environ if environ is None else environ
    launchers = len(grants.affinity_mask(os.getppid() if parent is None else parent))
    together = [each.amount for each in grants.cpu_grants(environ, root)]
    together += [launchers] if launchers else []
    return max(cpu_count(environ=environ, root=root), min(together, default=1))


def memory_limit(*, environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """Bytes of memory that this job may use on this host: the smallest of `memory_grants`."""
    return min(memory_grants(environ=environ, root=root).values())


def memory_grants(
    *, environ: Mapping[str, str] | None = None, root: Path = Path("/")
) -> dict[str, int]:
    """What bounds the memory of this job on this host, by who says so.

    Parameters
    ----------
    environ, root
        As of `cpu_grants`.
    """
    environ = os.environ if environ is None else environ
    return _by_source(grants.memory_grants(environ, root))


def _by_source(found: Iterable[Grant]) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for amount, source in found:
        amounts[source] = min(amount, amounts.get(source, amount))
    return amounts


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


def parse_walltime(text: str) -> int:
    """Seconds in ``"1:30:00"``, ``"2-00:00:00"`` or a length of time like ``"90min"``.

    Not in a bare number or in ``"1:30"``, which batch systems read differently: a number is minutes
    for Slurm and seconds for PBS.

    Raises
    ------
    ConfigError
        If `text` has none of these forms, or is no time at all.
    """
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


# ---------------------------------------------------------------- scratch

#: Folders of the batch system for this job on this host, most specific first.
SCRATCH_VARIABLES = ("SLURM_TMPDIR", "TMPDIR", "PBS_JOBFS", "TMP")

NETWORK_FILESYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "fuse.sshfs", "gfs2", "gpfs"}
    | {"lustre", "nfs", "nfs4", "panfs", "pvfs2", "smb3", "smbfs", "wekafs"}
)
MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs"})


def network_filesystem(path: str | os.PathLike[str], *, root: Path = Path("/")) -> str:
    """Type of the network file system that holds `path` ("nfs4", "lustre"), or "" if it is local.

    `path` is taken as it is, symbolic links are not followed.
    """
    fstype = grants.filesystem(path, root=root)
    return fstype if fstype in NETWORK_FILESYSTEMS else ""


class Scratch(NamedTuple):
    """A folder for scratch, and who has named it."""

    base: str
    source: str  # "--local-directory", "SLURM_TMPDIR", "the default"

    @property
    def path(self) -> str:
        """This user's own folder in it."""
        return os.path.join(os.path.abspath(self.base), f"hpcdask-{os.geteuid()}")

    def __str__(self) -> str:
        fstype = grants.filesystem(os.path.realpath(self.base))
        remark = self.source
        if fstype in NETWORK_FILESYSTEMS:
            remark += f"; {fstype}, a network file system"
        elif fstype in MEMORY_FILESYSTEMS:
            remark += f"; {fstype}, so it takes memory"
        return f"scratch {self.path} ({remark})"

    @property
    def complaint(self) -> str:
        """What is wrong with it: a network file system; empty if nothing is."""
        fstype = network_filesystem(os.path.realpath(self.base))
        if not fstype:
            return ""
        return (
            f"the scratch folder {self.path} ({self.source}) is on a network file system, {fstype}:"
            " what workers put there is slow and may fill a quota. Name a folder on this host's "
            "own disk with --local-directory."
        )


def find_scratch(spec: str | None = None, environ: Mapping[str, str] | None = None) -> Scratch:
    """Where scratch goes; parameters as of `local_directory`, which makes it."""
    environ = os.environ if environ is None else environ
    if spec:
        return Scratch(spec, "--local-directory")
    for name in SCRATCH_VARIABLES:
        folder = environ.get(name, "")
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return Scratch(folder, name)
    import tempfile  # here, since it pulls in shutil, random and hashlib

    return Scratch(tempfile.gettempdir(), "the default")


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
    scratch = find_scratch(spec, environ)
    base, path = scratch.base, scratch.path
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
    is_set = "PBS_JOBID" in environ and "OMP_NUM_THREADS" in environ  # Torque sets neither
    return is_set and environ["OMP_NUM_THREADS"] == environ.get("NCPUS")


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
