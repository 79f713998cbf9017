"""Chaos: killed, stopped and cut off at random, a cluster loses time, and nothing else.

CHAOS_SECONDS (half for each kind of cluster) and CHAOS_SEED are read from the environment.
"""

from __future__ import annotations

import os
import random

import chaos_rounds
import hosts
import pytest
from commands import Home, home, new_home

__all__ = ["home", "new_home"]

SECONDS = float(os.environ.get("CHAOS_SECONDS") or 90)
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))

KINDS = ["LocalCluster", pytest.param("hosts", marks=hosts.needs_hosts)]


# By a signal, so that what has been started is ended in order when it takes too long.
@pytest.mark.timeout(SECONDS / 2 + 300, method="signal")
@pytest.mark.parametrize("kind", KINDS)
def test_chaos_costs_time_and_nothing_else(kind: str, home: Home) -> None:
    chaos = chaos_rounds.run(kind, home, SEED, SECONDS / 2)
    assert chaos.acts > chaos.rounds
    assert not hosts.left()
