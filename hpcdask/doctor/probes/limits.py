"""ulimits and their like."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from hpcdask import host as hosts
from hpcdask.doctor.facts import Limits

UNLIMITED = -1


def look() -> Limits:
    """Limits of this process."""
    files, files_hard = map(_plain, resource.getrlimit(resource.RLIMIT_NOFILE))
    processes, processes_hard = map(_plain, resource.getrlimit(resource.RLIMIT_NPROC))
    tasks = hosts.cgroup_tasks() or (UNLIMITED, 0)
    return {
        "open_files": files,
        "open_files_hard": files_hard,
        "processes": processes,
        "processes_hard": processes_hard,
        "processes_used": tasks_of_user(),
        "cgroup_tasks": tasks[0],
        "cgroup_tasks_used": tasks[1],
        "is_root": os.geteuid() == 0,
    }


def _plain(limit: int) -> int:
    return UNLIMITED if limit == resource.RLIM_INFINITY else limit


def tasks_of_user(root: Path = Path("/proc")) -> int:
    """Threads of all processes of this user, which is what RLIMIT_NPROC counts."""
    count, uid = 0, os.geteuid()
    for entry in root.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # gone meanwhile
                if entry.stat().st_uid == uid:
                    count += len(os.listdir(entry / "task"))
    return count
