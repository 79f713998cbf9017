"""How many units the work is worth, and which cost the least to end: pure functions."""

from __future__ import annotations

import math

import pytest

from hpcdask.launchers.stock import Stock, Waiting, WorkerStock
from hpcdask.launchers.units import Fleet, Unit, UnitShape
from hpcdask.launchers.worth import idle_units, learn_hopeless
from hpcdask.launchers.worth import worth as both
from hpcdask.messages import Restriction

GIB = 2**30
GPU = Restriction((), False, (("GPU", 1.0),))
ALICE = Restriction(("alice",), False, ())


def world(units="", n_workers=1, nthreads=1, pending=0, starting=0, strangers=(), **of_each):
    """Units of equal workers."""
    names = {unit: [f"{unit}{i}" for i in range(n_workers)] for unit in units}
    workers = [WorkerStock(name, nthreads, **of_each) for unit in names.values() for name in unit]
    there = tuple(Unit(unit, tuple(names[unit])) for unit in units)
    return Stock(tuple(workers)), Fleet(there, pending, starting, tuple(strangers))


def worth(stock, fleet, *waiting, target=5.0, shape=None, hopeless=()):
    return of_both(stock, fleet, *waiting, target=target, shape=shape, hopeless=hopeless).now


def of_both(stock, fleet, *waiting, target=5.0, shape=None, hopeless=()):
    stock = stock._replace(waiting=tuple(waiting))
    found = both(stock, fleet, shape or UnitShape(), target, hopeless)
    assert found.later <= found.now
    return found


def waiting(n, seconds, restriction=None, n_able=1):
    return Waiting(restriction, n, seconds, n_able)


# -- Threads --------------------------------------------------------------------------------------


def test_no_work_is_worth_no_unit():
    assert worth(*world("ab")) == 0


def test_known_work_is_to_be_done_in_the_target_duration():
    assert worth(*world("a"), waiting(1000, 50.0)) == 10
    assert worth(*world("a"), waiting(1000, 50.0), target=25.0) == 2
    assert worth(*world("a", nthreads=4), waiting(1000, 50.0)) == 3
    assert worth(*world("a", n_workers=2, nthreads=2), waiting(1000, 50.0)) == 3
    assert worth(*world("a"), waiting(1000, 0.1)) == 1


def test_work_that_workers_have_been_given_counts():
    assert worth(*world("ab", seconds=25.0, n_runnable=100, is_busy=True)) == 10


def test_one_long_task_is_not_worth_more_than_one_thread():
    assert worth(*world("a"), waiting(1, 3600.0)) == 1


def test_without_a_unit_to_look_at_a_cluster_says_what_one_brings():
    stranded = waiting(1000, 50.0, n_able=0)
    assert worth(*world(), stranded, shape=UnitShape(nthreads=8)) == 2
    # One whose other workers are still to come is none to look at.
    shape = UnitShape(n_workers=2, nthreads=8)
    assert worth(*world("a", n_workers=1, nthreads=4), waiting(1000, 50.0), shape=shape) == 2


def test_workers_that_others_have_added_do_their_part():
    stock = Stock((WorkerStock("x", 4),))
    fleet = Fleet((), 0, 0, strangers=("x",))
    assert worth(stock, fleet, waiting(1000, 50.0)) == 6
    assert worth(stock, fleet, waiting(3, 50.0)) == 0


# -- Queues ---------------------------------------------------------------------------------------


def test_what_will_be_done_while_a_unit_is_waited_for_is_worth_none():
    an_hour = UnitShape(nthreads=8, wait=3600.0)
    there = world("a", nthreads=8)
    assert of_both(*there, waiting(9999, 7.9 * 3600), target=3600.0, shape=an_hour) == (1, 0)
    # 80 hours less the 8 of the first hour, in 4 hours.
    assert of_both(*there, waiting(9999, 80 * 3600.0), target=4 * 3600.0, shape=an_hour) == (3, 3)
    # 72 of 80 tasks.
    assert of_both(*there, waiting(80, 80 * 3600.0), target=60.0, shape=an_hour) == (10, 9)


# -- Resources ------------------------------------------------------------------------------------


def test_tasks_for_a_resource_are_worth_as_many_as_bring_it():
    """A worker of 8 threads and 1 GPU runs one of them at a time."""
    there = world("a", nthreads=8, resources=(("GPU", 1.0),))
    assert worth(*there, waiting(100, 50.0, GPU)) == 10
    assert worth(*there, waiting(4, 50.0, GPU)) == 4
    gpus = UnitShape(n_workers=2, nthreads=16, resources=(("GPU", 2.0),))
    assert worth(*world(), waiting(4, 50.0, GPU, n_able=0), shape=gpus) == 1
    two_each = Restriction((), False, (("GPU", 2.0),))
    three = world("a", nthreads=8, resources=(("GPU", 3.0),))
    assert worth(*three, waiting(3, 50.0, two_each)) == 3


def test_those_that_run_have_theirs():
    busy = {"resources": (("GPU", 1.0),), "taken": (("GPU", 1.0),), "seconds": 1, "n_runnable": 1}
    assert worth(*world("a", nthreads=8, **busy), waiting(2, 50.0, GPU)) == 3


def test_tasks_that_no_unit_can_run_are_worth_none():
    stranded = waiting(10, 50.0, GPU, n_able=0)
    assert worth(*world("a"), stranded, hopeless={GPU}) == 0
    assert worth(*world(), stranded, shape=UnitShape(resources=(("MEM", 1.0),))) == 0
    assert worth(*world(), stranded, shape=UnitShape(nthreads=1)) == 10


def test_what_units_do_not_bring_is_learnt_from_the_first():
    stock = Stock((), (waiting(10, 50.0, GPU, n_able=0), waiting(1, 1.0, ALICE, n_able=1)))
    none, one = Fleet((), 0, 0), world("a")[1]
    assert learn_hopeless(stock, none, frozenset()) == set()
    assert learn_hopeless(stock, one, frozenset()) == {GPU}
    assert learn_hopeless(stock, none, frozenset({GPU})) == {GPU}  # or one would start again
    assert learn_hopeless(Stock(), none, frozenset({GPU})) == set()


# -- Memory ---------------------------------------------------------------------------------------


def test_there_are_units_enough_to_hold_the_values():
    held = {"nbytes": int(1.5 * GIB), "memory_limit": 4 * GIB}
    assert worth(*world("abcd", **held)) == 3
    assert worth(*world("ab", n_workers=2, **held)) == 2
    assert worth(*world("abcd", nbytes=GIB)) == 1  # without a limit


def test_values_that_others_can_hold_need_none():
    stock, fleet = world("a", nbytes=GIB)
    other = WorkerStock("x", 1, memory_limit=4 * GIB)
    fleet = fleet._replace(strangers=("x",))
    assert worth(stock._replace(workers=(*stock.workers, other)), fleet) == 0


# -- Which cost the least -------------------------------------------------------------------------


def test_units_are_idle_when_all_their_workers_are():
    stock, fleet = world("abc", n_workers=2)
    workers = {worker.name: worker for worker in stock.workers}
    workers["a1"] = workers["a1"]._replace(is_busy=True)
    workers["b0"] = workers["b0"]._replace(is_leaving=True)
    assert idle_units(Stock(tuple(workers.values())), fleet.units) == ["c"]


def test_those_that_hold_least_come_first_then_those_that_end_soonest():
    nbytes = {"a": 5 * GIB, "b": 10_000, "c": 20_000, "d": 5}
    left = {"a": 10.0, "b": 3600.0, "c": 60.0, "d": math.inf}
    workers = tuple(WorkerStock(name, 1, nbytes=nbytes[name]) for name in nbytes)
    units = [Unit(name, (name,), left[name]) for name in nbytes]
    assert idle_units(Stock(workers), units) == ["c", "b", "d", "a"]


@pytest.mark.parametrize(("busy", "idle"), [("", "abcd"), ("a", "cd"), ("ac", "")])
def test_those_of_a_group_are_idle_together(busy, idle):
    hosts = {"a": "node1", "b": "node1", "c": "node2", "d": "node2"}
    workers = [WorkerStock(n, 1, group=hosts[n], is_busy=n in busy) for n in hosts]
    units = [Unit(name, (name,)) for name in hosts]
    assert sorted(idle_units(Stock(tuple(workers)), units)) == list(idle)
