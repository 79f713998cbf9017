"""The commands of PBS in front of Slurm, as Debian has no PBS.

States, limits and signals are Slurm's. What a job script sees is that of OpenPBS: see the scripts
in pbs_commands/, which go around the commands in Debian's slurm-wlm-torque.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch import slurm
from batch.bed import Bed, Job, StrPath
from batch.slurm import Slurm, SlurmJob

#: Where tests/system-packages.sh unpacks it: it cannot be installed beside Grid Engine's qsub.
UNPACKED = Path("/opt/slurm-wlm-torque")

_COMMANDS = Path(__file__).parent / "pbs_commands"


#: Why there can be no PBS here; empty if there can.
WHY_NOT = slurm.WHY_NOT or (
    ""
    if UNPACKED.exists()
    else f"there is no {UNPACKED} here: as root on Debian run tests/system-packages.sh"
)


class PBS(Bed):
    """PBS as far as it goes, in the folder of the Slurm that runs its jobs."""

    name = "pbs"

    def __init__(self, slurm: Slurm) -> None:  # not that of Bed: folder and janitor are Slurm's
        self.slurm = slurm
        self.hosts, self.names = slurm.hosts, slurm.names
        self.folder, self.mark = slurm.folder, slurm.mark
        self.bin = slurm.folder / "pbs"
        self.env = {**slurm.env, "PATH": f"{self.bin}:{slurm.env['PATH']}"}

    def start(self) -> None:
        self.bin.mkdir()
        for name in ("qsub", "qstat", "qdel", "pbsdsh"):
            script = self.bin / name
            script.write_text((_COMMANDS / name).read_text())
            script.chmod(0o755)
        for name in ("qsub", "qstat"):
            (self.bin / f"slurm-{name}").symlink_to(UNPACKED / "usr/bin" / name)
        (self.bin / "sbatch").symlink_to("/usr/bin/sbatch")  # which it looks for beside itself

    def close(self) -> None:
        """It is all Slurm's."""

    def submit(
        self,
        script: StrPath,
        *words: StrPath,
        cwd: Path,
        variables: Mapping[str, str] | None = None,
        user: str = "",
    ) -> SlurmJob:
        handed = [word for item in (variables or {}).items() for word in ("-v", "=".join(item))]
        return self.qsub(*handed, script, *words, cwd=cwd, user=user)

    def qsub(self, *words: StrPath, cwd: Path, **how: Any) -> SlurmJob:
        """Submit a job from the folder `cwd`."""
        done = self.run("qsub", *words, cwd=cwd, **how)
        return self.job(done.stdout.strip(), cwd)

    def job(self, id: str, folder: Path) -> SlurmJob:
        number = id.partition(".")[0].removesuffix("[]")
        marks = (f"PBS_JOBID={number}.pbshost", f"PBS_ARRAY_ID={number}")
        return SlurmJob(self, number, folder, rf"\.[oe]{number}(\.\d+)?$", marks)

    def qdel(self, *words: str) -> None:
        """Delete jobs."""
        self.run("qdel", *words)

    def cancel(self, *jobs: Job) -> None:
        self.qdel(*(f"{job.id}.pbshost" for job in jobs))
