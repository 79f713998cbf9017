"""Fixtures of the tests of the core."""

from __future__ import annotations

import pytest

from hpcdask.core import ahead


@pytest.fixture
def nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tasks wait on the scheduler until their inputs are in memory."""
    monkeypatch.setattr(ahead, "MAX_AHEAD", 0)
