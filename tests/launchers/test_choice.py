"""When units are asked for, withdrawn and ended: a pure decision."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest

from hpcdask.core.records import Prefix
from hpcdask.errors import ConfigError
from hpcdask.launchers.choice import Assumptions, Choice, Decision, Shortage
from hpcdask.launchers.stock import Running
from hpcdask.launchers.units import Bounds, Fleet, Unit, UnitShape, bounds
from hpcdask.launchers.worth import Worth

NOTHING = Decision()


def fleet(units="", pending=0, starting=0):
    return Fleet(tuple(Unit(name, (f"{name}-0", f"{name}-1")) for name in units), pending, starting)


class Looks:
    """A `Choice` that looks once a second."""

    def __init__(self, least=0, most=math.inf, wait_count=1, keep_idle=0.0):
        self._choice, self._now = Choice(), 0.0
        self._rules = (Bounds(least, most), wait_count, keep_idle)

    def look(self, n_wanted, units="", idle="", pending=0, starting=0):
        self._now += 1.0
        return self._choice.make(
            self._now, n_wanted, fleet(units, pending, starting), list(idle), *self._rules
        )


# -- More -----------------------------------------------------------------------------------------


def test_units_are_asked_for_at_once():
    assert Looks(wait_count=3, keep_idle=60.0).look(4, "a") == Decision(n_new=3)


def test_those_that_are_waited_for_count_so_nobody_asks_twice():
    looks = Looks()
    assert looks.look(4) == Decision(n_new=4)
    for _ in range(1000):  # however long it takes
        assert looks.look(4, pending=4) == NOTHING
    assert looks.look(4, "a", pending=2, starting=1) == NOTHING
    assert looks.look(6, "a", pending=2, starting=1) == Decision(n_new=2)


def test_there_are_never_fewer_than_the_least_nor_more_than_the_most():
    assert Looks(least=2).look(0) == Decision(n_new=2)
    assert Looks(most=4).look(9, "a") == Decision(n_new=3)
    assert Looks(least=2).look(0, "abc", idle="cba") == Decision(ended=("c",))
    assert Looks(least=2).look(0, "ab", idle="ba") == NOTHING
    assert Looks(least=2).look(0, "ab", pending=3) == Decision(n_withdrawn=3)


def test_a_lost_unit_is_replaced_while_there_is_work_for_it_or_it_is_of_the_least():
    looks = Looks(least=1)
    assert looks.look(2, "ab") == NOTHING
    assert looks.look(2, "a") == Decision(n_new=1)
    assert looks.look(0, "") == Decision(n_new=1)


# -- Fewer ----------------------------------------------------------------------------------------


def test_a_unit_ends_when_it_was_idle_at_several_looks_in_a_row():
    looks = Looks(wait_count=3)
    assert looks.look(0, "a", idle="a") == NOTHING
    assert looks.look(0, "a", idle="a") == NOTHING
    assert looks.look(0, "a", idle="a") == Decision(ended=("a",))


def test_a_wave_of_work_lets_the_count_begin_anew():
    looks = Looks(wait_count=2)
    assert looks.look(0, "a", idle="a") == NOTHING
    assert looks.look(0, "a") == NOTHING  # it is busy
    assert looks.look(0, "a", idle="a") == NOTHING
    assert looks.look(1, "a", idle="a") == NOTHING  # it is wanted
    assert looks.look(0, "a", idle="a") == NOTHING
    assert looks.look(0, "a", idle="a") == Decision(ended=("a",))


def test_units_are_kept_for_as_long_as_is_said():
    looks = Looks(keep_idle=60.0)
    assert looks.look(2, "ab") == NOTHING
    for _ in range(60):
        assert looks.look(0, "ab", idle="ab") == NOTHING
    assert looks.look(0, "ab", idle="ab") == Decision(ended=("a", "b"))


def test_a_wave_within_that_time_needs_no_new_unit():
    looks = Looks(keep_idle=60.0)
    for _ in range(20):
        assert looks.look(2, "ab") == NOTHING
        for _ in range(50):
            assert looks.look(0, "ab", idle="ab") == NOTHING


def test_a_trickle_that_one_unit_can_do_lets_the_others_end():
    """None of them is ever idle for long: the tasks go to one after the other."""
    looks = Looks(keep_idle=60.0, wait_count=3)
    for i in range(59):
        assert looks.look(1, "abc", idle="abc".replace("abc"[i // 5 % 3], "")) == NOTHING
    ended = []
    for i in range(59, 70):
        ended += looks.look(1, "abc", idle="abc".replace("abc"[i // 5 % 3], "")).ended
    assert ended


def test_who_begins_to_look_does_not_know_yet_what_was_needed():
    looks = Looks(keep_idle=60.0)
    for _ in range(60):
        assert looks.look(0, "a", idle="a") == NOTHING
    assert looks.look(0, "a", idle="a") == Decision(ended=("a",))


def test_a_busy_unit_is_never_ended():
    looks = Looks()
    for _ in range(5):
        assert looks.look(1, "abc", idle="b") == Decision(ended=("b",))
        assert looks.look(0, "a") == NOTHING


def test_one_that_has_not_reported_is_never_ended():
    for _ in range(100):
        assert Looks().look(0, starting=3) == NOTHING


def test_pending_ones_are_withdrawn_before_any_ends():
    assert Looks().look(1, "ab", idle="ab", pending=2) == Decision(n_withdrawn=2, ended=("a",))
    assert Looks().look(2, "ab", idle="ab", pending=2) == Decision(n_withdrawn=2)
    assert Looks().look(3, "ab", idle="ab", pending=2) == Decision(n_withdrawn=1)


def test_pending_ones_keep_their_place_in_the_queue_for_a_while():
    looks = Looks(keep_idle=60.0, wait_count=3)
    assert looks.look(4) == Decision(n_new=4)
    for _ in range(60):
        assert looks.look(1, pending=4) == NOTHING
    assert looks.look(1, pending=4) == Decision(n_withdrawn=3)


def test_while_some_start_none_ends_that_they_would_have_to_replace():
    assert Looks().look(2, "ab", idle="ab", starting=3) == NOTHING
    assert Looks().look(1, "ab", idle="ba", starting=3) == Decision(ended=("b",))


def test_those_whose_end_costs_least_go_first():
    assert Looks().look(1, "abc", idle="cab") == Decision(ended=("c", "a"))


def test_a_lower_maximum_counts_at_once():
    assert Looks(most=1, keep_idle=60.0).look(5, "ab", idle="b") == Decision(ended=("b",))


@pytest.mark.parametrize("seed", range(20))
def test_no_unit_goes_that_was_needed_of_late(seed):
    """In whatever way work comes and goes, and units come, are lost, and get tasks."""
    random, keep_idle, wait_count = Random(seed), 30.0, 3
    looks = Looks(least=1, most=9, wait_count=wait_count, keep_idle=keep_idle)
    units, pending, names, wanted, n_ended = [], 0, itertools.count(), [], 0
    for _ in range(3000):
        wanted.append(random.choice([0, wanted[-1] if wanted else 0] * 20 + [1, 2, 5, 12]))
        idle = [name for name in units if random.random() < 0.8]
        found = looks.look(wanted[-1], units, idle, pending)
        there = len(units) + pending
        if found.n_new:
            assert there + found.n_new == min(max(wanted[-1], 1), 9)
            assert found == Decision(found.n_new)
        elif found != NOTHING:
            of_late = wanted[-int(keep_idle) :]
            assert there - found.n_withdrawn - len(found.ended) >= min(max(*of_late, 1), 9)
            assert set(found.ended) <= set(idle)
            assert len(wanted) > keep_idle
        n_ended += len(found.ended)
        pending += found.n_new - found.n_withdrawn
        units = [name for name in units if name not in found.ended and random.random() < 0.999]
        if pending and random.random() < 0.1:
            units.append(f"u{next(names)}")
            pending -= 1
    assert n_ended > 3  # it has been tried


# -- Tasks of unknown length ----------------------------------------------------------------------


def test_a_task_that_still_runs_takes_twice_as_long_as_it_has():
    assumptions = Assumptions(0.5)
    first, second = Running("f", "f-1", 1), Running("f", "f-2", 1)
    assert assumptions.update(0.0, [first]).cost(Prefix("f")) == 0.5
    assert assumptions.update(30.0, [first, second]).cost(Prefix("f")) == 60.0
    assert assumptions.update(30.0, [first, second]).cost(Prefix("g")) == 0.5
    # Of the first the length is known now; the second is new to us since 30 s.
    assert assumptions.update(40.0, [second]).cost(Prefix("f")) == 20.0
    assert assumptions.update(50.0, [Running("f", "f-2", 2)]).cost(Prefix("f")) == 0.5
    known = Prefix("f")
    known.observe(3.0)
    assert assumptions.update(90.0, [Running("f", "f-2", 2)]).cost(known) == known.cost


# -- Queues ---------------------------------------------------------------------------------------


def test_what_comes_too_late_for_the_work_is_not_asked_for():
    shortage = Shortage()
    assert shortage.wanted(0.0, Worth(now=8, later=1), there=1, wait=1800.0) == 1
    assert shortage.wanted(1.0, Worth(now=8, later=5), there=1, wait=1800.0) == 5
    assert shortage.wanted(2.0, Worth(now=8, later=1), there=5, wait=1800.0) == 5  # as they come
    assert shortage.wanted(3.0, Worth(now=3, later=0), there=5, wait=1800.0) == 3


def test_but_if_it_would_have_been_of_use_for_as_long_as_it_is_queued_for():
    shortage = Shortage()
    for second in range(1800):
        assert shortage.wanted(second, Worth(now=8, later=1), there=1, wait=1800.0) == 1
    assert shortage.wanted(1800, Worth(now=8, later=1), there=1, wait=1800.0) == 8


def test_waves_of_work_with_shorter_pauses_add_up():
    shortage = Shortage()
    wanted = set()
    for second in range(7200):
        found = Worth(now=8, later=1) if second % 1000 < 750 else Worth(now=0, later=0)
        wanted.add(shortage.wanted(second, found, there=1, wait=1800.0))
    assert wanted == {0, 1, 8}


def test_rare_waves_do_not():
    shortage = Shortage()
    for second in range(72000):
        found = Worth(now=8, later=1) if second % 3000 < 750 else Worth(now=0, later=0)
        assert shortage.wanted(second, found, there=1, wait=1800.0) <= 1


# -- Bounds ---------------------------------------------------------------------------------------

JOB = UnitShape(n_workers=4, nthreads=8, memory=16 * 2**30)


def test_the_stricter_bound_counts():
    assert bounds(JOB, {"workers": 0}, {"workers": math.inf}) == (0, math.inf)
    assert bounds(JOB, {"workers": 5}, {"workers": 11}) == (2, 2)
    assert bounds(JOB, {"workers": 1, "jobs": 3}, {"jobs": 9, "cores": 64}) == (3, 8)
    assert bounds(JOB, {"cores": 9}, {"memory": 100 * 2**30, "workers": math.inf}) == (2, 6)


@pytest.mark.parametrize(
    ("least", "most", "why"),
    [
        ({"workers": 3}, {"workers": 2}, "at least 3 workers and at most 2 workers"),
        (
            {"jobs": 2},
            {"cores": 8},
            r"at least 2 jobs and at most 8 cores.* at least 2 and at most 1",
        ),
        ({"workers": -1}, {}, "cannot have -1 workers"),
        ({}, {"workers": 0}, "a maximum of 0 workers is less than one worker"),
        ({}, {"workers": math.nan}, "cannot have nan workers"),
    ],
)
def test_contradictions_are_refused(least, most, why):
    with pytest.raises(ConfigError, match=why):
        bounds(UnitShape(1, 8), least, most)


def test_a_maximum_below_one_job_is_refused():
    text = r"3 workers is less than one job of 4 workers \(8 threads, 16.00 GiB\)"
    with pytest.raises(ConfigError, match=text):
        bounds(JOB, {}, {"workers": 3})
    with pytest.raises(ConfigError, match=r"15.00 GiB of memory is less than one job"):
        bounds(JOB, {}, {"memory": 15 * 2**30})


def test_what_is_not_known_of_a_worker_cannot_be_counted_in():
    with pytest.raises(ConfigError, match=r"give the workers a memory_limit"):
        bounds(UnitShape(1, 8), {"memory": 1}, {})
    with pytest.raises(ConfigError, match=r"wait until the cluster has started"):
        bounds(UnitShape(1), {"cores": 1}, {})
