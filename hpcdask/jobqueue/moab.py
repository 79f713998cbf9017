"""Moab in front of Torque or PBS: its own commands to submit and cancel, those of PBS otherwise."""

from __future__ import annotations

import re

from hpcdask.errors import ConfigError
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.pbs import PBS


class Moab(PBS):
    """msub(1), canceljob(1), and qstat(1B) of what runs the jobs."""

    name, title = "moab", "Moab"
    suffix = ".moab"
    submit_command = ("msub",)
    cancel_command = "canceljob"
    # Its arrays are jobs of its own, with ids that qstat does not know.
    has_arrays = False

    def check(self, job: JobSpec) -> None:
        super().check(job)
        if job.count > 1:
            raise ConfigError("jobs of Moab are submitted one by one: count has to be 1")

    def job_id(self, submit_output: str) -> str:
        # "Moab.12", "12" or "12.server", after an empty line.
        match = re.search(r"^(?:Moab\.)?(\d+)(\.\S+)?$", submit_output.strip(), re.MULTILINE)
        if match is None:
            raise ValueError(f"no job id in {submit_output!r}")
        return match[1]
