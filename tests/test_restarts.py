"""When a nanny starts another worker, and when it stops trying."""

from __future__ import annotations

from hpcdask.restarts import HEALTHY, MAX_FAILED_STARTS, MAX_PAUSE, MAX_PAUSE_CUT_OFF, Restarts


def pauses_of_deaths(lives: list[float]) -> list[float]:
    """Pauses after workers that started well and then lived for so many seconds."""
    restarts, now, pauses = Restarts(), 0.0, []
    for seconds in lives:
        restarts.started(now)
        now += seconds
        restarts.died(now)
        pauses.append(restarts.pause())
    return pauses


def test_the_first_death_costs_no_pause_and_later_ones_ever_more() -> None:
    pauses = pauses_of_deaths([1.0] * 10)
    assert pauses[0] == 0
    assert pauses[1] > 0
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_PAUSE


def test_a_long_life_begins_the_count_anew() -> None:
    pauses = pauses_of_deaths([1.0, 1.0, 1.0, HEALTHY + 1, 1.0])
    assert pauses[3:] == pauses[:2]


def test_workers_that_cannot_start_are_given_up_and_those_that_die_later_are_not() -> None:
    restarts = Restarts()
    for _ in range(100):
        restarts.started(0.0)
        restarts.died(1.0)
        assert not restarts.why_hopeless(0.0)
    for n in range(MAX_FAILED_STARTS):
        assert not restarts.why_hopeless(0.0), n
        restarts.failed_to_start()
    assert "5 times" in restarts.why_hopeless(0.0)


def test_a_good_start_forgives_failed_ones() -> None:
    restarts = Restarts()
    for _ in range(MAX_FAILED_STARTS - 1):
        restarts.failed_to_start()
    assert restarts.pause() > 1
    restarts.started(0.0)
    restarts.died(HEALTHY + 1)
    restarts.failed_to_start()
    assert not restarts.why_hopeless(0.0)


def test_workers_that_do_not_reach_the_scheduler_are_tried_for_so_long() -> None:
    restarts = Restarts(patience=60.0)
    for now in range(61):
        restarts.was_cut_off(float(now))
        assert not restarts.why_hopeless(float(now))
        assert restarts.pause() <= MAX_PAUSE_CUT_OFF
    assert "for 61 s" in restarts.why_hopeless(61.0)
    restarts.started(62.0)
    restarts.was_cut_off(100.0)
    assert not restarts.why_hopeless(101.0)


def test_without_patience_a_worker_that_does_not_reach_the_scheduler_has_failed() -> None:
    restarts = Restarts(patience=0.0)
    for now in range(MAX_FAILED_STARTS):
        assert not restarts.why_hopeless(float(now))
        restarts.was_cut_off(float(now))
    assert restarts.why_hopeless(float(MAX_FAILED_STARTS))
