"""What adapting costs on a batch system, in virtual time; docs/adaptive.md has the whole table."""

from __future__ import annotations

import math

import pytest
from adaptive_simulation import MOST, WORKLOADS, all_at_once, peer, simulate


@pytest.mark.parametrize("kind", WORKLOADS)
def test_without_a_queue_little_is_idle_and_nothing_runs_twice(kind):
    found = simulate(kind, 0.0)
    assert found.n_again == 0
    assert found.node_hours <= 1.5 * found.needed
    assert found.n_withdrawn == found.world.n_failed == 0
    assert found.done < math.inf


@pytest.mark.parametrize("kind", ["burst", "waves", "growing"])
def test_with_a_queue_it_is_asked_once(kind):
    found = simulate(kind, 1800.0)
    assert found.n_again == 0
    assert found.n_asked <= 2 * MOST


def test_every_unit_that_ends_was_kept_for_its_time():
    found = simulate("waves", 60.0, keep_idle=300.0)
    assert found.n_asked == MOST  # the pauses are shorter
    found = simulate("waves", 60.0, keep_idle=30.0)
    assert found.n_asked > 3 * MOST


def test_the_end_of_a_walltime_is_no_reason_to_shrink():
    found = simulate("burst", 0.0, walltime=600.0)
    assert found.n_again == 0
    assert found.done < 1.5 * simulate("burst", 0.0, all_at_once).done


def test_the_rule_of_the_peers_pays_for_jobs_of_several_workers():
    """If not, the simulation would be too kind to tell."""
    theirs, mine = simulate("waves", 60.0, peer), simulate("waves", 60.0)
    assert theirs.n_asked > mine.n_asked or theirs.n_again > 0
    assert math.isfinite(theirs.done)
