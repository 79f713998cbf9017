"""Folders that look like /proc and /sys."""

from __future__ import annotations

from pathlib import Path

GIB = 2**30


def fake_root(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def mount(root: str, point: str, fstype: str, options: str = "rw") -> str:
    """A line of /proc/self/mountinfo."""
    return f"36 35 98:0 {root} {point} rw,noatime shared:1 - {fstype} none {options}\n"


#: A job step of Slurm, in cgroups of version 2.
CGROUP2 = {
    "proc/self/cgroup": "0::/slurm/job_1/step_0\n",
    "proc/self/mountinfo": mount("/", "/sys/fs/cgroup", "cgroup2"),
}
