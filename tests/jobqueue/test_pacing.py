"""Commands follow each other at a pace that is no burden to a batch system."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdask.jobqueue.pacing import Pace


def test_some_commands_run_at_once_and_then_one_each_second() -> None:
    pace = Pace(burst=5, rate=1.0)
    assert [pace.take(100.0) for _ in range(8)] == [0, 0, 0, 0, 0, 1, 2, 3]


def test_after_a_rest_some_run_at_once_again() -> None:
    pace = Pace(burst=2, rate=0.5)
    assert [pace.take(0.0) for _ in range(3)] == [0, 0, 2]
    assert [pace.take(6.0) for _ in range(3)] == [0, 0, 2]


def test_a_pace_at_which_nothing_would_ever_run_is_refused() -> None:
    for burst, rate in [(0, 1.0), (1, 0.0), (1, float("nan"))]:
        with pytest.raises(ValueError, match="ever be due"):
            Pace(burst, rate)


@given(
    st.integers(1, 6),
    st.sampled_from([0.25, 1.0, 4.0]),
    st.lists(st.sampled_from([0.0, 0.25, 1.0, 10.0]), max_size=60),
)
def test_in_no_length_of_time_are_there_more_than_allowed(
    burst: int, rate: float, pauses: list[float]
) -> None:
    pace, now, runs = Pace(burst, rate), 0.0, []
    for pause in pauses:
        now += pause
        runs.append(now + pace.take(now))
    assert runs == sorted(runs)
    for first, start in enumerate(runs):
        for last in range(first, len(runs)):
            assert last - first + 1 <= burst + rate * (runs[last] - start)
