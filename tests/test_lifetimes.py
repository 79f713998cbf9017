"""Lifetimes as users write them."""

from __future__ import annotations

import pytest

from hpcdask import Nanny, Worker
from hpcdask.errors import ConfigError
from hpcdask.service import Lifetime


def test_lifetimes_are_spread_around_what_was_asked_for() -> None:
    lifetime = Lifetime.of("1h", "5 min", False)
    assert lifetime == Lifetime(3600, 300)
    lengths = [lifetime.drawn() for _ in range(200)]
    assert 3300 <= min(lengths) < 3500
    assert 3700 < max(lengths) <= 3900


def test_without_a_lifetime_it_is_for_ever() -> None:
    assert Lifetime.of(None, 0, False) is None


@pytest.mark.parametrize(
    ("lifetime", "stagger", "restart", "expected"),
    [
        ("soon", 0, False, "'soon' is not a duration"),
        ("1h", "some", False, "'some' is not a duration"),
        (-1, 0, False, "not a duration"),
        (0, 0, False, "a lifetime of 0 s is none"),
        ("1min", "1h", False, "cannot be 3600 s shorter"),
        (None, "1h", False, "lifetime-stagger means nothing without a lifetime"),
        (None, 0, True, "lifetime-restart means nothing without a lifetime"),
    ],
)
@pytest.mark.parametrize("kind", [Worker, Nanny])
def test_what_makes_no_sense_is_refused(kind, lifetime, stagger, restart, expected) -> None:
    with pytest.raises(ConfigError, match=expected):
        kind(
            "tcp://127.0.0.1:1",
            lifetime=lifetime,
            lifetime_stagger=stagger,
            lifetime_restart=restart,
        )


def test_only_a_nanny_can_start_another_worker() -> None:
    Nanny("tcp://127.0.0.1:1", lifetime="1h", lifetime_restart=True)
    with pytest.raises(ConfigError, match="a nanny's part"):
        Worker("tcp://127.0.0.1:1", lifetime="1h", lifetime_restart=True)
