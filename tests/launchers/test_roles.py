"""Who does what among the ranks, and with how much of the host."""

from __future__ import annotations

import pytest

from hpcdask.errors import ConfigError
from hpcdask.launchers.roles import Roles, cpus_per_worker


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


@pytest.mark.parametrize(
    ("own", "of_job", "workers", "expected"),
    [
        (8, 8, 1, 8),
        (8, 8, 4, 2),  # no rank is bound
        (2, 8, 4, 2),  # each is bound to its own
        (1, 8, 4, 1),  # bound to fewer than it might have
        (4, 8, 4, 2),  # bound to sockets, two ranks on each
        (2, 2, 5, 1),  # more workers than CPUs
        (8, 4, 2, 4),  # the launcher knows less than we have
    ],
)
def test_workers_of_a_host_never_take_more_than_the_job_has(own, of_job, workers, expected):
    share = cpus_per_worker(own, of_job, workers)
    assert share == expected
    assert share * workers <= max(own, of_job, workers)
