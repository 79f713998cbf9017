"""The batch system of docs/new-batch-system.md, with the commands that the page shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import wait_until

from hpcdask.jobqueue import submission
from hpcdask.jobqueue.job_script import job_script
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase
from hpcdask.jobqueue.system import BatchSystem

PAGE = (Path(__file__).resolve().parents[2] / "docs/new-batch-system.md").read_text()

JOB = """\
case $MILL_JOB in
*.2) exit 3 ;;
*.3) exit 0 ;;
*) exec sleep 600 ;;
esac"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Site:
    """A host with the commands of the page."""

    def __init__(self, folder: Path, system: BatchSystem) -> None:
        self.folder, self.system = folder, system

    def ask(self, command: list[str]) -> Answer:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return Answer(done.returncode, done.stdout, done.stderr)

    def statuses(self, ids: list[str]) -> dict[str, JobStatus]:
        return self.system.parse_status(self.ask(self.system.status_command(ids)))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    [program] = blocks("python")
    names: dict[str, object] = {"__name__": "page"}
    exec(program, names)
    for text in blocks("bash"):
        name = re.search(r"^# (mill-\w+)", text, re.MULTILINE)[1]
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "jobs").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("MILL", str(tmp_path / "jobs"))
    monkeypatch.chdir(tmp_path)
    yield Site(tmp_path, names["mill"])
    for path in (tmp_path / "jobs").glob("*.pid"):
        if not path.with_suffix(".code").exists():
            os.killpg(int(path.read_text()), signal.SIGKILL)


def test_the_page_shows_a_whole_batch_system(site, capsys):
    system = site.system
    job = replace(system.template("workers"), environment=(JOB,))
    number = submission.submit(system, job_script(system, job))
    ids = system.elements(number, 4)
    assert ids == ["0.1", "0.2", "0.3", "0.4"]

    def ended() -> set[str]:
        return {id for id, s in site.statuses(ids).items() if s.phase is Phase.ENDED}

    wait_until(lambda: ended() == {"0.2", "0.3"}, 30, "two jobs have ended")
    statuses = site.statuses(ids)
    assert statuses["0.2"].exit_code == 3
    assert {id: status.end for id, status in statuses.items()} == {
        "0.1": None,
        "0.2": End.FAILED,
        "0.3": End.COMPLETED,
        "0.4": None,
    }

    [command] = system.cancel_commands(["0.1"])
    assert site.ask(command).code == 0
    wait_until(lambda: "0.1" in ended(), 30, "one job is cancelled")
    statuses = site.statuses(ids)
    assert statuses["0.1"].signal == signal.SIGTERM
    assert statuses["0.4"].phase is Phase.RUNNING
    site.ask(*system.cancel_commands(["0.4"]))
    wait_until(lambda: len(ended()) == 4, 30, "all have ended")


def test_it_is_as_short_as_the_page_says(site):
    assert len(re.search(r"class Mill.*?\n\n\n", PAGE, re.DOTALL)[0].splitlines()) <= 65
