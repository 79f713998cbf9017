"""Folders of one process within the scratch of a host, and what killed processes left there."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile


def own_folder(scratch: str, of: str) -> tuple[str, int]:
    """Make a folder, and lock it by a file descriptor, which the kernel closes if we are killed."""
    while True:
        path = tempfile.mkdtemp(prefix=f"{of}-", dir=scratch)
        descriptor = _lock_folder(path)
        if descriptor is not None and os.path.isdir(path):
            return path, descriptor
        # Another worker took it for a leftover before it was locked.


def remove_leftovers(scratch: str) -> None:
    """Remove the folders of workers that were killed together with their nanny, and the like."""
    for name in os.listdir(scratch):
        if name.startswith(("worker-", "scheduler-")):
            path = os.path.join(scratch, name)
            descriptor = _lock_folder(path, is_needed=True)
            if descriptor is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)


def _lock_folder(path: str, is_needed: bool = False) -> int | None:
    """Open and lock a folder; None if it is gone, or the lock `is_needed` and cannot be had."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # taken; or a file system that knows no locks
        if is_needed:
            os.close(descriptor)
            return None
    return descriptor
