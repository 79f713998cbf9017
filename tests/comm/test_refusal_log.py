"""Refusals are told of at a bounded rate, and none is lost."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from hpcdask.comm.refusals import RefusalLog


class Handle:
    def __init__(self, when: float, function: Callable[[], None]) -> None:
        self.when, self.function, self.is_cancelled = when, function, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now, self.timers = 0.0, []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, function: Callable[[], None]) -> Handle:
        self.timers.append(Handle(self.now + delay, function))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [t for t in self.timers if t.when <= end and not t.is_cancelled]:
            timer = min(due, key=lambda t: t.when)
            self.timers.remove(timer)
            self.now = timer.when
            timer.function()
        self.now = end


@pytest.fixture
def lines(caplog: Any) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "hpcdask.comm")
    return lambda: [record.getMessage() for record in caplog.records]


def told(lines: list[str]) -> int:
    """How many refusals the lines tell of."""
    summaries = [re.match(r"refused (\d+) more", line) for line in lines]
    return sum(int(summary[1]) if summary else 1 for summary in summaries)


def test_each_refusal_of_a_few_has_its_line(lines: Any) -> None:
    refusals = RefusalLog(Loop())
    for n in range(20):
        refusals.note(f"peer{n}", "no token")
    assert lines() == [f"refused a connection from peer{n}: no token" for n in range(20)]


def test_those_left_out_of_a_burst_are_counted_although_no_other_follows(lines: Any) -> None:
    loop = Loop()
    refusals = RefusalLog(loop)
    for n in range(500):
        refusals.note(f"peer{n}", "no token")
    assert len(lines()) == 20
    loop.advance(2)
    assert lines()[20:] == ["refused 480 more connections since the last such line"]
    loop.advance(100)
    assert len(lines()) == 21


def test_a_steady_flood_is_told_completely_in_two_lines_a_second(lines: Any) -> None:
    loop = Loop()
    refusals = RefusalLog(loop)
    for n in range(10_000):
        refusals.note(f"peer{n}", "no token")
        loop.advance(0.01)
    loop.advance(5)
    assert told(lines()) == 10_000
    assert len(lines()) <= 20 + 2 * 105
    assert sum("peer" in line for line in lines()) > 60  # not only numbers


def test_after_a_quiet_time_there_is_room_for_another_burst(lines: Any) -> None:
    loop = Loop()
    refusals = RefusalLog(loop)
    for _ in range(2):
        for n in range(30):
            refusals.note(f"peer{n}", "no token")
        loop.advance(60)
    assert len(lines()) == 2 * 21
    assert told(lines()) == 60


def test_what_is_left_out_is_told_at_the_end_too(lines: Any) -> None:
    loop = Loop()
    refusals = RefusalLog(loop)
    for n in range(25):
        refusals.note(f"peer{n}", "no token")
    refusals.summarise()
    refusals.summarise()
    loop.advance(10)
    assert told(lines()) == 25
    assert len(lines()) == 21
