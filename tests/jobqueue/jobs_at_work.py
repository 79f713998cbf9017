"""Jobs of `Job` classes on a batch system of the tests, and the scheduler that they work for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from batch.bed import Bed
from batch.bed import Job as Submitted
from commands import Home

from hpcdask.jobqueue import Job, PBSJob, SGEJob, SLURMJob

ROOT = Path(__file__).resolve().parents[2]
KINDS: dict[str, type[Job]] = {"slurm": SLURMJob, "pbs": PBSJob, "sge": SGEJob}


class Cluster:
    """A scheduler in a home, and jobs of a batch system that work for it."""

    def __init__(self, bed: Bed, home: Home) -> None:
        self.bed, self.home, self.kind = bed, home, KINDS[bed.name]
        self.jobs: list[Submitted] = []
        self.file = home.folder / "s.json"
        (home.folder / "logs").mkdir()

    def start(self, on: str = "") -> None:
        """Start the scheduler, here or on a host of the batch system."""
        words = (sys.executable, "-m", "hpcdask", "scheduler", "--port", "0")
        where = self.bed.on(on, *words) if on else words
        self.home.run(*where, "--scheduler-file", self.file).line("Scheduler at")

    def submit(self, count: int = 1, **keywords: Any) -> tuple[Job, Submitted]:
        """Submit a job, whose logs have names with the id; by default with a process, and a CPU."""
        asked = {"cores": 1, "memory": "2 GiB", "nanny": "processes" in keywords, **keywords}
        if self.bed.name == "sge":  # of which each job has to have some here
            asked["resource_spec"] = "h_vmem=4G"
        job = self.kind(
            scheduler_file=self.file,
            log_directory=self.home.folder / "logs",
            # PBS and Grid Engine hand on no environment.
            job_script_prologue=[f"export PYTHONPATH={ROOT} XDG_CONFIG_HOME={self.home.folder}/c"],
            **asked,
        )
        path = self.home.file(f"job-{len(self.jobs)}", job.script(count))
        submitted = self.bed.submit(path, cwd=self.home.folder)
        self.jobs.append(submitted)
        return job, submitted

    def log(self, job: Job, id: str) -> str:
        """What a job has written, found by its id."""
        return "".join(Path(path).read_text() for path in job.log_paths(id) if Path(path).exists())

    def close(self) -> None:
        """Cancel all jobs, and wait until none of their processes is left."""
        if there := [job for job in self.jobs if job.exit_code is None]:
            self.bed.cancel(*there)
        for job in self.jobs:
            job.all_gone()
