"""The simulator finds bugs: each of these breakages is noticed within a bounded number of seeds."""

from __future__ import annotations

import pytest
from calm import replace_the_scheduler, take_turns
from mutations import BREAKAGES, FIRST_SEEDS, Breakage
from simulator import SeedFailed, live_through

#: Seeds with troubles, and without.
MAX_SEEDS, MAX_CALM = 150, 10


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_a_breakage_is_noticed(breakage: Breakage, monkeypatch: pytest.MonkeyPatch) -> None:
    breakage(monkeypatch)
    for seed in [FIRST_SEEDS.get(breakage.__name__, 0), *range(MAX_SEEDS)]:
        try:
            live_through(seed)
            if seed < MAX_CALM:
                replace_the_scheduler(seed)
                take_turns(seed)
        except SeedFailed:
            return
    pytest.fail(f"{MAX_SEEDS} seeds did not notice that {breakage.__name__.replace('_', ' ')}")
