"""Folders: for the scheduler file, for the token, for scratch."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from hpcdask import host as hosts
from hpcdask.doctor.facts import Folder, Scratch, TokenFacts
from hpcdask.errors import ConfigError, TokenError
from hpcdask.rendezvous import read_token_file, resolve_token, token_path

_MIB = 2**20


def look_at_folder(path: str, is_asked: bool) -> Folder:
    """Whether a scheduler file can be written into a folder, and is safe there."""
    folder = os.path.realpath(path)
    kind = hosts.filesystem(folder)
    problem, keeps_modes = "", True
    try:
        descriptor, name = tempfile.mkstemp(prefix=".hpc-dask-doctor-", dir=folder)
        try:
            os.fchmod(descriptor, 0o600)
            keeps_modes = stat.S_IMODE(os.stat(name).st_mode) == 0o600
        finally:
            os.close(descriptor)
            os.unlink(name)
    except OSError as exc:
        problem = _problem(exc)
    return {
        "path": folder,
        "asked": is_asked,
        "filesystem": kind,
        "is_network": kind in hosts.NETWORK_FILESYSTEMS,
        "keeps_modes": keeps_modes,
        "problem": problem,
    }


def look_at_token(environ: Mapping[str, str], own_file: str | None = None) -> TokenFacts:
    """The token that a command would use here, if there is one yet; none is made.

    Parameters
    ----------
    own_file : str, optional
        The user's own token file, if it is not in its usual place.
    """
    named = environ.get("HPCDASK_TOKEN_FILE") or ""
    path = Path(named or own_file or token_path(environ))
    inline = not named and bool(environ.get("HPCDASK_TOKEN"))
    token, problem, exists = b"", "", True
    try:
        token = resolve_token(environ=environ) if inline else read_token_file(path)
    except FileNotFoundError:
        exists = False
        problem = f"there is no such file, which HPCDASK_TOKEN_FILE names: {path}" if named else ""
    except TokenError as exc:
        problem = str(exc)
    return {
        "source": "HPCDASK_TOKEN" if inline else str(path),
        "exists": exists,
        "mode": "" if inline else _mode(path),
        "folder": "" if inline else str(path.parent),
        "folder_mode": "" if inline else _mode(path.parent),
        # A token is 32 random bytes, so its hash tells nothing about it.
        "fingerprint": hashlib.sha256(b"doctor" + token).hexdigest()[:12] if token else "",
        "problem": problem or _cannot_be_made(path, exists or inline),
    }


def _cannot_be_made(path: Path, exists: bool) -> str:
    """Why the user's token file could not be made when it is needed."""
    if exists:
        return ""
    parent = next(each for each in path.parents if each.exists())
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return ""
    return f"there is no token file {path} yet, and it cannot be made: {parent} is not writable"


def _mode(path: Path) -> str:
    try:
        return f"{stat.S_IMODE(path.stat().st_mode):04o}"
    except OSError:
        return ""


def look_at_scratch(spec: str | None) -> Scratch:
    """Where a worker would spill to, and how much room is there."""
    path, problem, seconds = spec or "", "", 0.0
    total = free = free_files = 0
    try:
        path = hosts.local_directory(spec)
        status = os.statvfs(path)
        total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
        free_files = status.f_favail if status.f_files else -1  # some count none
        seconds = _write(path)
    except ConfigError as exc:
        problem = str(exc)
    except OSError as exc:
        problem = _problem(exc)
    kind = hosts.filesystem(os.path.realpath(path)) if path else ""
    return {
        "path": path,
        "filesystem": kind,
        "is_network": kind in hosts.NETWORK_FILESYSTEMS,
        "is_memory": kind in ("tmpfs", "ramfs"),
        "total": total,
        "free": free,
        "free_files": free_files,
        "write_seconds": seconds,
        "problem": problem,
    }


def _write(folder: str) -> float:
    """Seconds to get a MiB to the disk; a quota that is used up shows here and nowhere else."""
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(os.urandom(_MIB))
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - start


def _problem(exc: OSError) -> str:
    return exc.strerror or str(exc)
