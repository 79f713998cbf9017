"""Who does what among the ranks."""

from __future__ import annotations

import pytest

from hpcdask.errors import ConfigError
from hpcdask.launchers.roles import Roles


def words(*args, **kwargs):
    roles = Roles(*args, **kwargs)
    return [roles.of(rank) for rank in range(roles.size)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1,), ["scheduler + worker"]),
        ((2,), ["scheduler", "worker"]),
        ((3, 2), ["worker", "worker", "scheduler"]),
        ((3, 0, None, False), ["scheduler + worker", "worker", "worker"]),
        ((3, 0, None, True), ["scheduler", "worker", "worker"]),
        ((3, None), ["worker", "worker", "worker"]),
        ((2, 0, None, None, 3), ["scheduler", "3 workers"]),
        # with a client of its own
        ((1, 0, 0), ["scheduler + client + worker"]),
        ((2, 0, 1), ["scheduler", "client + worker"]),
        ((4, 0, 1), ["scheduler", "client", "worker", "worker"]),
        ((2, 0, 0), ["scheduler + client", "worker"]),
        ((3, None, 1), ["worker", "client", "worker"]),
        ((2, 0, 1, False), ["scheduler + worker", "client + worker"]),
    ],
)
def test_roles(given, expected):
    assert words(*given) == expected
    assert Roles(*given).n_workers >= 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((2, 2), "rank 2 cannot be the scheduler: there are 2 ranks, from 0. Start at least 3"),
        ((2, 0, 5), "rank 5 cannot be the client"),
        ((1, 0, None, True), "1 rank is too few for exclusive workers"),
        ((2, 0, 1, True), "2 ranks are too few for exclusive workers: .* take 2. Start at least 3"),
    ],
)
def test_impossible_roles_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Roles(*given)
