"""Leaving before the batch job ends: when, and what happens then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

import pytest
from waiting import on_a_loop

from hpcdask.launchers import departure as module
from hpcdask.launchers.departure import departure, leave_in_time
from hpcdask.launchers.process import live
from hpcdask.service import Service

HOUR = 3600.0


@pytest.mark.parametrize(
    ("left", "margin", "drain_timeout", "last"),
    [
        (HOUR / 4, None, 30, 45),  # 5 % of what is left
        (10 * 60, None, 30, 30),
        (HOUR, None, 30, 120),
        (24 * HOUR, None, 30, 120),
        (24 * HOUR, None, 300, 300),
        (HOUR, 10 * 60, 30, 600),
        (60, None, 30, 20),
        (60, 10 * 60, 30, 20),
    ],
    ids=str,
)
def test_it_is_so_many_seconds_before_the_end(left, margin, drain_timeout, last) -> None:
    assert left - departure(left, margin, drain_timeout, 0.0) == pytest.approx(last)
    first = left - departure(left, margin, drain_timeout, 1.0)
    assert first == pytest.approx(1.5 * last)
    assert first <= left / 2, "or more would be lost than won"


@pytest.mark.parametrize("left", [0.0, -5.0])
def test_of_a_job_in_overtime_it_is_now(left) -> None:
    assert departure(left, None, 30.0, 0.5) == 0.0


class Leaver(Service):
    """A service that notes how it left."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[tuple[str, float | None, bool]] = []

    async def _start(self) -> None: ...

    async def _close(self, reason: str) -> None: ...

    async def leave(self, reason="", limit=None, waits=False) -> None:
        self.left.append((reason, limit, waits))
        await self.close(reason)


@pytest.fixture(autouse=True)
def nobodys_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests may be part of a job themselves."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "PBS_", "LSB_", "OAR_", "SGE_", "_CONDOR_", "JOB_ID")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(module, "_SPREAD", 0.0)


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with what ``squeue`` of this job prints: one line for each time it is asked."""
    answers = tmp_path / "answers"
    command = tmp_path / "squeue"
    command.write_text(f"#!/bin/sh\nhead -n 1 {answers}; sed -i 1d {answers}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return answers


async def lives_of(*services: Leaver, limit=None, margin=None, drain_timeout=30.0) -> None:
    """Let services live until they leave by themselves."""
    beside = lambda: leave_in_time(services, limit, margin, drain_timeout)  # noqa: E731
    await asyncio.wait_for(live(services, beside), 50)


@on_a_loop
async def test_all_leave_in_time_and_have_the_rest_of_it(caplog, monkeypatch) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module.walltime, "age_of_job", lambda environ: 100.0)
    a, b = Leaver(), Leaver()
    await lives_of(a, b, limit=104)
    for [(reason, limit, waits)] in (a.left, b.left):
        assert reason.startswith("its job ends at ")
        assert 0.0 < limit <= 1.0, "half of the seconds that are left"
        assert waits
    assert "(--walltime): leaving at " in caplog.text


@on_a_loop
async def test_the_end_that_comes_first_counts(squeue, caplog) -> None:
    caplog.set_level(logging.INFO)
    squeue.write_text("0:01\n0:01\n")
    a = Leaver()
    await lives_of(a, limit=10 * HOUR)
    assert len(a.left) == 1
    assert "(squeue): leaving at " in caplog.text


@on_a_loop
async def test_a_job_that_got_more_time_goes_on(squeue, caplog) -> None:
    caplog.set_level(logging.INFO)
    squeue.write_text("0:01\n1:00:00\n")
    a = Leaver()
    living = asyncio.ensure_future(lives_of(a))
    while caplog.text.count("(squeue): leaving at ") < 2:
        await asyncio.sleep(0.01)
    assert a.left == []
    await a.close()
    await living


@on_a_loop
async def test_what_the_environment_says_is_asked_for_again_before_it_is_acted_on(
    squeue, caplog, monkeypatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1000")
    squeue.write_text("0:01\n")
    a = Leaver()
    await lives_of(a, drain_timeout=7)
    assert "(SLURM_JOB_END_TIME): leaving at " in caplog.text
    assert "(squeue)" in caplog.text
    [(_, limit, _)] = a.left
    assert limit is not None
    assert limit <= 1


@on_a_loop
async def test_an_answer_that_does_not_come_before_the_end_is_not_waited_for(
    squeue, monkeypatch
) -> None:
    monkeypatch.setattr(module.walltime, "age_of_job", lambda environ: 0.0)
    (squeue.parent / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    a = Leaver()
    await lives_of(a, limit=1)
    assert len(a.left) == 1


@on_a_loop
async def test_nobody_who_tells_is_one_line_in_the_log(squeue, caplog) -> None:
    caplog.set_level(logging.INFO)
    squeue.write_text("UNLIMITED\n")
    a = Leaver()
    living = asyncio.ensure_future(lives_of(a))
    while "when this job ends" not in caplog.text:
        await asyncio.sleep(0.01)
    await a.close()
    await living
    assert a.left == []
    told = [record.message for record in caplog.records if "when this job ends" in record.message]
    assert told == ["the batch system does not tell when this job ends: squeue tells of no limit"]


@pytest.mark.parametrize("options", [{"limit": 0.2, "margin": 0.0}, {}], ids=["wanted", "no job"])
@on_a_loop
async def test_who_is_to_stay_stays(options) -> None:
    a = Leaver()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(lives_of(a, **options), 1)
    assert a.left == []
