"""What `adapt` is told of a controller's jobs, and what it does with them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from hpcdask.jobqueue.actions import Cancel, Retire, Submit
from hpcdask.jobqueue.controller import Controller
from hpcdask.jobqueue.job_units import JobUnits
from hpcdask.jobqueue.records import Shape
from hpcdask.jobqueue.status import JobStatus, Phase
from hpcdask.launchers.stock import Stock, WorkerStock

NONE = Stock()


class Jobs:
    """A controller, and the part of a `Keeper` that tells it things."""

    def __init__(self) -> None:
        self.controller = Controller()
        self.controller.add_pool("workers", Shape(n_workers=2, walltime=3600.0))
        self.pools = {"workers": SimpleNamespace()}
        self.time = 0.0
        self.units = JobUnits(self, "workers", lambda: ["workers"])  # type: ignore[arg-type]

    def now(self) -> float:
        return self.time

    async def scale(self, pool: str, n_jobs: int, **how: Any) -> None:
        self.controller.scale(self.time, pool, n_jobs, **how)

    def release(self, ids: list[str]) -> None:
        self.controller.release(self.time, ids)

    def answered(self, *ids: str) -> None:
        [submit] = self.take(Submit)
        assert submit.count == len(ids)
        self.controller.submitted(self.time, submit.request, ids)

    def listed(self, pending: str = "", running: str = "", left: float = 3600.0) -> None:
        waiting = {id: JobStatus(id=id, phase=Phase.PENDING) for id in pending.split()}
        there = {id: JobStatus(id=id, phase=Phase.RUNNING, left=left) for id in running.split()}
        self.controller.listed(self.time, waiting | there)

    def take(self, kind: type) -> list[Any]:
        found = [action for action in self.controller.outbox if isinstance(action, kind)]
        self.controller.outbox.clear()
        return found

    @property
    def numbers(self) -> tuple[list[str], int, int]:
        fleet = self.units.fleet(NONE)
        return [unit.name for unit in fleet.units], fleet.n_pending, fleet.n_starting


def grown(n: int = 3) -> Jobs:
    jobs = Jobs()
    asyncio.run(jobs.units.grow(n))
    return jobs


def test_jobs_count_from_the_moment_they_are_asked_for():
    jobs = grown(3)
    assert jobs.numbers == ([], 3, 0)
    jobs.answered("1_0", "1_1", "1_2")
    assert jobs.numbers == ([], 3, 0)
    jobs.listed(pending="1_2", running="1_0 1_1")
    assert jobs.numbers == ([], 1, 2)
    jobs.controller.worker_joined(jobs.time, "1_0-1")
    assert jobs.numbers == (["1_0"], 1, 1)
    stranger = WorkerStock("laptop", 4)
    assert jobs.units.fleet(Stock((stranger,))).strangers == ("laptop",)


def test_those_that_could_not_be_submitted_are_not_asked_for_twice():
    jobs = grown(3)
    [submit] = jobs.take(Submit)
    jobs.controller.submit_failed(jobs.time, submit.request, "the controller is down")
    assert jobs.numbers == ([], 3, 0)
    asyncio.run(jobs.units.withdraw(2))
    assert jobs.numbers == ([], 1, 0)


def test_the_youngest_pending_ones_are_withdrawn():
    jobs = grown(3)
    jobs.answered("1_0", "1_1", "1_2")
    jobs.listed(pending="1_1 1_2", running="1_0")
    asyncio.run(jobs.units.withdraw(1))
    assert jobs.take(Cancel) == [Cancel(("1_2",))]
    assert jobs.numbers == ([], 1, 1)
    asyncio.run(jobs.units.withdraw(5))  # never one that has started
    assert jobs.take(Cancel) == [Cancel(("1_1",))]
    assert jobs.numbers == ([], 0, 1)


@pytest.mark.parametrize("is_answered", [True, False])
def test_one_near_the_end_of_its_walltime_and_its_successor_are_one(is_answered):
    """Else the successor would be one too many, and be withdrawn."""
    jobs = grown(1)
    jobs.answered("1")
    jobs.listed(running="1")
    jobs.controller.worker_joined(jobs.time, "1-0")
    jobs.time = 3590.0
    jobs.listed(running="1", left=10.0)
    if is_answered:
        jobs.answered("2")
        jobs.listed(running="1", pending="2", left=10.0)
    assert jobs.numbers == ([], 1, 0)


def test_jobs_that_end_let_their_workers_hand_over_first():
    jobs = grown(1)
    jobs.answered("1")
    jobs.listed(running="1")
    jobs.controller.worker_joined(jobs.time, "1-0")
    jobs.release(["1"])
    assert jobs.take(Retire) == [Retire("1", ("1-0",))]
    assert jobs.numbers == ([], 0, 0)
