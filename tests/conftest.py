"""What all tests share: a home of their own, and a look at what a module leaves behind."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from batch.fixtures import ordinary_user, pbs, sge, slurm
from janitor import RUN as MARK
from janitor import marked
from waiting import wait_until

__all__ = ["home_of_the_tests", "nothing_is_left", "ordinary_user", "pbs", "sge", "slurm"]


@pytest.fixture(scope="session", autouse=True)
def home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep token file, scratch folders and settings of the user out of the tests."""
    home = tmp_path_factory.mktemp("home")
    (home / "tmp").mkdir()
    before = {name: os.environ.get(name) for name in os.environ}
    for name in [name for name in os.environ if name.startswith("HPCDASK_")]:
        del os.environ[name]
    os.environ["XDG_CONFIG_HOME"] = str(home / "config")
    os.environ["HPCDASK_SITE_CONFIG"] = ""  # nor does this machine's site tell us anything
    os.environ["TMPDIR"] = str(home / "tmp")
    os.environ[MARK] = uuid.uuid4().hex
    tempfile.tempdir = None
    yield home
    os.environ.clear()
    os.environ.update({name: value for name, value in before.items() if value is not None})
    tempfile.tempdir = None


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(home_of_the_tests: Path) -> Iterator[None]:
    """Fail a module whose tests leave a process, port, file descriptor, thread or scratch file."""
    from hpcdask.client.loop import shared_loop

    shared_loop()  # the one thread that stays
    before = _belongings(home_of_the_tests)
    yield

    def left() -> dict[str, set[str]]:
        now = _belongings(home_of_the_tests)
        return {kind: now[kind] - before[kind] for kind in now if now[kind] - before[kind]}

    try:
        wait_until(lambda: not left(), timeout=5)
    except AssertionError:
        pytest.fail(f"the tests of this module left behind: {left()}")


def _belongings(home: Path) -> dict[str, set[str]]:
    return {
        "processes": _marked_processes(),
        "ports": _listening_ports(),
        "descriptors": _descriptors(),
        "threads": _threads(),
        "scratch": {str(path) for path in (home / "tmp").glob(f"hpcdask-{os.geteuid()}/*")},
    }


def _marked_processes() -> set[str]:
    found = set()
    for pid in marked(f"{MARK}={os.environ[MARK]}"):
        with contextlib.suppress(psutil.Error):
            found.add(f"{pid} {' '.join(psutil.Process(pid).cmdline())}")
    return found


def _listening_ports() -> set[str]:
    connections = psutil.Process().net_connections("tcp")
    return {str(c.laddr) for c in connections if c.status == psutil.CONN_LISTEN}


def _descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if not target.startswith(("/dev/", "/proc/")):
            found.add(f"{fd} -> {target}")
    return found


def _threads() -> set[str]:
    # "asyncio_N" resolve names for an event loop and stay with it; the other is pytest's own.
    return {
        f"{thread.name} {thread.ident}"
        for thread in threading.enumerate()
        if not thread.name.startswith(("asyncio_", "pytest_timeout"))
    }
