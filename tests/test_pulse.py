"""Whether a process works, told from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from hpcdask import pulse
from hpcdask.pulse import Pulse

#: A name that /proc/PID/stat shows as it is, in parentheses.
BUSY = """
import ctypes
ctypes.CDLL(None).prctl(15, b"a) R (b")
print("ready", flush=True)
while True:
    pass
"""
IDLE = "print('ready', flush=True); import time; time.sleep(3600)"


@pytest.fixture(params=["/proc", "psutil"])
def look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "psutil":
        monkeypatch.setattr(pulse, "_look", pulse._look_elsewhere)


def started(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    with started(BUSY) as process:
        yield process
        process.kill()


def test_a_process_that_computes_has_a_pulse(look: None, busy: subprocess.Popen[bytes]) -> None:
    heart = Pulse(busy.pid)
    wait_until(heart.beats)
    wait_until(heart.beats)


def test_a_stopped_process_has_none_whatever_it_did_before(
    look: None, busy: subprocess.Popen[bytes]
) -> None:
    heart = Pulse(busy.pid)
    wait_until(lambda: psutil.Process(busy.pid).cpu_times().user > 0.1)
    busy.send_signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(busy.pid).status() == psutil.STATUS_STOPPED)
    assert not heart.beats()
    busy.send_signal(signal.SIGCONT)
    wait_until(heart.beats)


def test_neither_a_zombie_nor_one_that_is_gone_has_one(
    look: None, busy: subprocess.Popen[bytes]
) -> None:
    heart = Pulse(busy.pid)
    wait_until(heart.beats)
    busy.kill()
    wait_until(lambda: psutil.Process(busy.pid).status() == psutil.STATUS_ZOMBIE)
    assert not heart.beats()
    busy.wait()
    assert not heart.beats()


def test_an_idle_process_has_none(look: None) -> None:
    with started(IDLE) as idle:
        wait_until(lambda: psutil.Process(idle.pid).status() == psutil.STATUS_SLEEPING)
        heart = Pulse(idle.pid)
        assert not heart.beats()
        idle.kill()


def test_one_that_waits_for_a_disk_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "_look", lambda pid: pulse._Look("D", 1.0))
    assert Pulse(1).beats()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_a_look_costs_next_to_nothing() -> None:
    heart = Pulse(os.getpid())
    start = time.process_time()
    for _ in range(1000):
        heart.beats()
    assert time.process_time() - start < 1.0, "a thousandth of a second each, on a slow machine"
