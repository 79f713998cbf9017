"""The simulator finds bugs: each of these breakages is noticed within a bounded number of seeds."""

from __future__ import annotations

import pytest
from mutations import BREAKAGES, Breakage
from simulator import SeedFailed, live_through

#: The same seeds that the unbroken states live through in test_simulated_clusters.py.
MAX_SEEDS = 200


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_a_breakage_is_noticed(breakage: Breakage, monkeypatch: pytest.MonkeyPatch) -> None:
    breakage(monkeypatch)
    for seed in range(MAX_SEEDS):
        try:
            live_through(seed)
        except SeedFailed:
            return
    pytest.fail(f"{MAX_SEEDS} seeds did not notice that {breakage.__name__.replace('_', ' ')}")
