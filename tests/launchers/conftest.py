from collections.abc import Iterator

import pytest
from batch import slurm
from commands import Home, home, new_home
from mpiruns import LAUNCHERS, Launcher, srun
from sshd import SSHServer, ssh_server

__all__ = ["home", "launchers", "new_home", "ssh_home", "sshd"]


@pytest.fixture(scope="module")
def launchers(request: pytest.FixtureRequest) -> list[Launcher]:
    """All launchers that are here."""
    if slurm.WHY_NOT:
        return LAUNCHERS
    return [*LAUNCHERS, srun(request.getfixturevalue("slurm"))]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SSHServer]:
    """An SSH server on this machine; nothing that is started through it may stay."""
    with ssh_server(tmp_path_factory.mktemp("sshd") / "server") as server:
        yield server


@pytest.fixture
def ssh_home(home: Home, sshd: SSHServer) -> Home:
    """A home whose user may log in there."""
    sshd.let_in(home)
    return home
