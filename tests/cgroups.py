"""Real control groups, of whichever version the machine has: a job's, with a step in it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from waiting import wait_until

#: Where version 1 has its memory and CPU controllers, and version 2 all.
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_NAME = re.compile(r"hpcdask-(\d+)$")


class Job:
    """The cgroup of a batch job, which has the limits, and below it one that has none."""

    def __init__(self) -> None:
        self.name = f"hpcdask-{os.getpid()}"
        tops = _tops()
        self.folders = [top / self.name for top in tops]
        self._steps = [folder / "step_0" for folder in self.folders]

    def set_up(self, cpus: int, memory: int) -> None:
        for step in self._steps:
            step.mkdir(parents=True)
        for folder in self.folders:
            _enable_controllers(folder.parent)
            _write(folder / "memory.max", str(memory))
            _write(folder / "memory.limit_in_bytes", str(memory))
            _write(folder / "cpu.max", f"{cpus}00000 100000")
            _write(folder / "cpu.cfs_period_us", "100000")
            _write(folder / "cpu.cfs_quota_us", f"{cpus}00000")

    def command(self, *words: str) -> tuple[str, ...]:
        """The command that runs a command in the step's cgroup; the process is its own."""
        join = "".join(f"echo $$ >{step}/cgroup.procs && " for step in self._steps)
        return ("sh", "-c", join + 'exec "$@"', "sh", *words)

    def tear_down(self) -> None:
        for folder in (*self._steps, *self.folders):
            with contextlib.suppress(FileNotFoundError):
                wait_until(lambda folder=folder: _removed(folder), 10, f"{folder} is empty")


@contextlib.contextmanager
def job(cpus: int, memory: int) -> Iterator[Job]:
    """A job that may use so many CPUs and bytes, for a block."""
    sweep()
    made = Job()
    try:
        made.set_up(cpus, memory)
        yield made
    finally:
        made.tear_down()


def sweep() -> None:
    """Remove what is left of runs that were killed."""
    for top in _tops():
        for folder in top.glob("hpcdask-*"):
            match = _NAME.match(folder.name)
            if match and not os.path.exists(f"/proc/{match[1]}"):
                for each in (folder / "step_0", folder):
                    with contextlib.suppress(OSError):
                        each.rmdir()


def _tops() -> list[Path]:
    if (_V1 / "cgroup.procs").exists():
        return [_V1, _V1.parent / "cpu"]
    return [_V2]


def _enable_controllers(folder: Path) -> None:
    if (folder / "cgroup.subtree_control").exists() and folder == _V2:
        (folder / "cgroup.subtree_control").write_text("+cpu +memory")


def _write(path: Path, text: str) -> None:
    if path.exists():
        path.write_text(text)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # processes that end just now
        return False
    return True


def _why_not() -> str:
    if os.geteuid() != 0:
        return "only root can make control groups"
    try:
        with job(1, 2**30):
            return ""
    except OSError as exc:
        return f"no control groups can be made here ({exc}): give the container a writable /sys"


#: Why there can be no jobs here; empty if there can.
WHY_NOT = _why_not()
