"""How many connections are possible, and what is said when they will be too few."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from waiting import on_a_loop

from hpcdask import Scheduler, descriptors


def run(limits: str, code: str) -> str:
    """Run a program under ulimit; return what it prints."""
    command = ["sh", "-c", f'{limits} && exec "$@"', "sh", sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


RAISE = "from hpcdask import descriptors as d; print(d.limit(), d.raise_limit({}), d.limit())"


@pytest.mark.parametrize(
    ("limits", "to", "expected"),
    [
        ("ulimit -Sn 300 && ulimit -Hn 900", "", "300 900 900"),
        ("ulimit -Sn 300 && ulimit -Hn 900", "500", "300 500 500"),
        ("ulimit -Sn 300 && ulimit -Hn 900", "200", "300 300 300"),
        ("ulimit -n 300", "", "300 300 300"),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_it_may_be(limits: str, to: str, expected: str) -> None:
    assert run(limits, RAISE.format(to)).strip() == expected


def test_a_limit_that_is_too_low_is_said_with_the_number_that_is_needed() -> None:
    assert descriptors.shortage(1000, 2256) == ""
    assert descriptors.shortage(1000, 2255).startswith(
        "this process may have 2255 files and connections open, and a scheduler of 1000 workers "
        "needs about 2256: raise the hard limit to that (ulimit -Hn"
    )


@on_a_loop
async def test_a_scheduler_that_knows_how_many_come_says_so_at_its_start(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("hpcdask"), "propagate", True)
    monkeypatch.setattr(descriptors, "limit", lambda: 1024)
    for number, is_said in ((100, False), (1000, True)):
        scheduler = Scheduler("127.0.0.1")
        scheduler.expected_nannies = number
        async with scheduler:
            assert (f"a scheduler of {number} workers needs" in caplog.text) == is_said
            scheduler.expected_nannies = 0  # it would wait for them
