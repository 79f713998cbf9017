"""A scheduler for all tests of a module that only have workers join it, or be refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest
from commands import Command, Home, home, new_home
from in_process import Finished, run_here
from waiting import wait_until

from hpcdask import Client

__all__ = ["home", "new_home"]


@dataclass(frozen=True)
class Standing:
    """``hpc-dask scheduler``, as seen by one of the tests that share it.

    Attributes
    ----------
    home : Home
        Of the user who has started it.
    """

    command: Command
    address: str
    home: Home
    _told_before: int = 0

    def workers(self) -> list[tuple[str, int]]:
        """(name, nthreads) of the workers that have registered since the test began."""
        found = re.findall(r"Register worker (\S+), (\d+) threads", self.told())
        return sorted((name, int(nthreads)) for name, nthreads in found)

    def line(self, pattern: str) -> None:
        """Wait for it to say something in this test."""
        wait_until(lambda: re.search(pattern, self.told()), 30, f"{pattern!r} of {self.command}")

    def client(self) -> Client:
        """A client of it."""
        return Client(self.address, token=self.home.token, set_as_default=False, timeout=20)

    def told(self) -> str:
        """What it has said since the test began."""
        return self.command.err[self._told_before :]


@pytest.fixture(scope="module")
def _standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    home = Home(tmp_path_factory.mktemp("standing") / "home")
    command = home.hpc_dask("scheduler", "--port", "0")
    yield Standing(command, command.line(r"Scheduler at: +(tcp://\S+)"), home)
    assert command.end() == 0
    assert "Traceback" not in command.err
    assert command.clean_up() == []


@pytest.fixture
def standing(_standing: Standing) -> Standing:
    """A scheduler that is up."""
    return replace(_standing, _told_before=len(_standing.command.err))


@pytest.fixture
def visitor(home: Home, standing: Standing) -> Home:
    """A home of the same user, as on another host: with the token of the scheduler."""
    home.env["HPCDASK_TOKEN"] = standing.home.token.hex()
    return home


@pytest.fixture
def here(home: Home) -> Callable[..., Finished]:
    """Runs ``hpc-dask ...`` in this process."""
    return partial(run_here, home)
