"""Who tries whom."""

from __future__ import annotations

from collections import Counter

import pytest

from hpcdask.doctor.planning import Target, dialling_orders, ring_rounds


def targets_of(*names):
    return {name: [Target(name, name, "ib0", f"tcp://{name}:1")] for name in names}


def test_every_host_dials_every_host_itself_included():
    orders = dialling_orders(["a", "b", "c"], targets_of("a", "b", "c"))
    assert sorted(orders) == ["a", "b", "c"]
    for order in orders.values():
        assert sorted(target.host for target in order) == ["a", "b", "c"]


def test_no_host_is_dialled_by_two_at_the_same_place_in_their_orders():
    names = [f"n{n}" for n in range(10)]
    orders = dialling_orders(names, targets_of(*names))
    for place in range(10):
        assert len({orders[name][place].host for name in names}) == 10


def test_a_host_that_cannot_be_told_is_dialled_all_the_same():
    orders = dialling_orders(["a", "b"], targets_of("a", "b", "c"))
    assert [t.host for t in orders["b"]] == ["c", "a", "b"]
    assert "c" not in orders


@pytest.mark.parametrize("number", range(2, 10))
def test_a_ring_has_each_pair_once_and_no_host_twice_in_a_round(number):
    names = [f"n{n}" for n in range(number)]
    rounds = ring_rounds(names)
    pairs = [pair for each in rounds for pair in each]
    assert sorted(pairs) == sorted(zip(names, [*names[1:], names[0]], strict=True))
    assert len(rounds) <= 3
    for each in rounds:
        assert max(Counter(name for pair in each for name in pair).values()) == 1


def test_one_host_has_no_ring():
    assert ring_rounds(["a"]) == []
