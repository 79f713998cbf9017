"""The simulator finds bugs: each of these breakages is noticed within a bounded number of seeds."""

from __future__ import annotations

import pytest
from mutations import BREAKAGES, MAX_SEEDS, Breakage, is_noticed, seeds_for


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_a_breakage_is_noticed(breakage: Breakage, monkeypatch: pytest.MonkeyPatch) -> None:
    breakage(monkeypatch)
    if not any(map(is_noticed, seeds_for(breakage))):
        pytest.fail(f"{MAX_SEEDS} seeds did not notice that {breakage.__name__.replace('_', ' ')}")
