"""Batch systems as fixtures: started by the first test that asks, and there for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from batch import pbs as pbs_bed
from batch import sge as sge_bed
from batch import slurm as slurm_bed
from batch.bed import Bed
from batch.pbs import PBS
from batch.sge import GridEngine
from batch.slurm import Slurm
from batch.user import OrdinaryUser


def _started(bed: Bed) -> Iterator[Bed]:
    try:
        bed.start()
        yield bed
    finally:
        bed.close()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Bed]:
    """A real Slurm."""
    if slurm_bed.WHY_NOT:
        pytest.skip(slurm_bed.WHY_NOT)
    yield from _started(Slurm())


@pytest.fixture(scope="session")
def sge() -> Iterator[Bed]:
    """A real Grid Engine."""
    if sge_bed.WHY_NOT:
        pytest.skip(sge_bed.WHY_NOT)
    yield from _started(GridEngine())


@pytest.fixture(scope="session")
def pbs(request: pytest.FixtureRequest) -> Iterator[Bed]:
    """The commands of PBS in front of the real Slurm."""
    if pbs_bed.WHY_NOT:
        pytest.skip(pbs_bed.WHY_NOT)
    yield from _started(PBS(request.getfixturevalue("slurm")))


@pytest.fixture(scope="session")
def ordinary_user() -> Iterator[OrdinaryUser]:
    """A user who is not root and has hpcdask, for as long as the session."""
    if os.geteuid() != 0:
        pytest.skip("only root can make users")
    user = OrdinaryUser()
    try:
        if why_not := user.install():
            pytest.skip(why_not)
        yield user
    finally:
        user.close()
