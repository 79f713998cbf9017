"""A batch system for tests: real commands, jobs that are processes, and faults at will."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from hpcdask.errors import StatusError
from hpcdask.jobqueue.cluster import JobQueueCluster
from hpcdask.jobqueue.job import Job
from hpcdask.jobqueue.pacing import Pace
from hpcdask.jobqueue.slurm import Slurm
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase
from hpcdask.jobqueue.system import JobSpec

_ROOT = Path(__file__).resolve().parents[2]
_COMMANDS = str(Path(__file__).with_name("queue_commands.sh"))


class Queue(Slurm):
    """What the commands in queue_commands.sh take and print.

    It has Slurm's name, and so Slurm's section of the configuration; nothing else is Slurm's.

    Parameters
    ----------
    folder : Path
        Where the queue keeps its books.
    """

    title = "the fake queue"
    prefix = "#FAKE"
    element_expression = "$FAKE_ID"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.submit_command = (_COMMANDS, str(folder), "submit")  # type: ignore[misc]
        self.cancel_command = f"{_COMMANDS} {folder} cancel"  # type: ignore[misc]

    def directives(self, job: JobSpec) -> Iterator[str]:
        yield f"#FAKE --count={job.count}"
        yield f"#FAKE --queue={job.queue}"

    def array_command(self) -> None:  # type: ignore[override]
        return None

    def trial_command(self, path: str) -> None:  # type: ignore[override]
        return None

    def refusal(self, trial: Answer) -> str:
        raise AssertionError

    def job_id(self, submit_output: str) -> str:
        return str(int(submit_output))

    def elements(self, job_id: str, count: int) -> list[str]:
        return [f"{job_id}_{n}" for n in range(1, count + 1)]

    def cancel_commands(self, ids: Sequence[str]) -> list[list[str]]:
        return [[*shlex.split(self.cancel_command), *ids]]

    def status_command(self, ids: Sequence[str]) -> list[str]:
        return [_COMMANDS, str(self.folder), "list"]

    def parse_status(self, answer: Answer) -> dict[str, JobStatus]:
        if answer.code or not answer.out.endswith("done\n"):
            raise StatusError(f"no listing: {answer.err}")
        lines = (line.split(" ", 2) for line in answer.out.splitlines()[:-1])
        return {id: _status(id, *rest) for id, *rest in lines}

    def end_commands(self, ids: Sequence[str]) -> list[list[str]]:
        return []

    def find_command(self) -> None:  # type: ignore[override]
        return None

    def can_never_run(self, status: JobStatus) -> bool:
        return status.reason == "Never"

    # -- What tests do ----------------------------------------------------------------------------

    def commands(self, action: str) -> list[str]:
        """What the commands of a kind were about, in their order."""
        lines = (self.folder / "commands").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{action} ")]

    def groups(self) -> dict[str, int]:
        """Process groups of the jobs that run, by id."""
        found = {}
        for path in self.folder.glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                if not path.with_suffix(".end").exists():
                    os.killpg(int(path.read_text()), 0)
                    found[path.stem] = int(path.read_text())
        return found

    def kill(self, id: str) -> None:
        """Let a job end by the hand of somebody else."""
        subprocess.run([*self.submit_command[:2], "cancel", id], check=True)

    def logs(self) -> str:
        """What all jobs have written."""
        paths = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in paths)

    def end(self) -> list[str]:
        """Kill what runs, and return which jobs that were."""
        left = self.groups()
        for group in left.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        wait_until(lambda: not self.groups(), 10, "the end of all jobs")
        return sorted(left)


def _status(id: str, state: str, rest: str = "") -> JobStatus:
    if state != "ENDED":
        return JobStatus(id=id, phase=Phase[state], reason=rest, nodes="here", elapsed=1.0)
    code = int(rest)
    end = End.CANCELLED if code == 143 else End.FAILED if code else End.COMPLETED
    return JobStatus(id=id, phase=Phase.ENDED, end=end, exit_code=code)


def jobs_of(queue: Queue) -> type[Job]:
    """The kind of jobs that a queue has."""

    class QueueJob(Job):
        system = queue

        def log_paths(self, id: str) -> list[str]:
            return [os.fspath(queue.folder / f"{id}.log")]

    return QueueJob


class QueueCluster(JobQueueCluster):
    """A cluster on a `Queue`."""

    def __init__(self, system: Queue, n_workers: int = 0, **options: Any) -> None:
        given = {"cores": 1, "memory": "1GB", "host": "127.0.0.1", **options}
        super().__init__(n_workers, job_cls=jobs_of(system), **given)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """A queue of its own; at the end no job may be left."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", str(_ROOT))
    monkeypatch.setenv("HPCDASK_JOBQUEUE__SLURM__POLL_INTERVAL", "0.2s")
    # Commands of a few lines need no rest.
    monkeypatch.setattr("hpcdask.jobqueue.commands.Pace", functools.partial(Pace, burst=10_000))
    folder = tmp_path / "queue"
    folder.mkdir()
    made = Queue(folder)
    yield made
    left = made.end()
    assert left == []
