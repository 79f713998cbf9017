"""Cleans up behind a test, even behind one whose process was killed.

A janitor is a process that waits for the end of the one that started it, or to be dismissed, and
then ends the processes that belong to the test and deletes its network namespaces. So the ordinary
end, Ctrl-C, pytest-timeout's `os._exit` and kill -9 all take the same way out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

#: In the environment of every process that a run of the tests starts, however many levels down.
RUN = "HPCDASK_TEST_RUN"
#: Seconds that the kernel may take to end killed processes and to take down a namespace.
_PATIENCE = 20.0


def ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `ip`; root's folders are searched too, as Debian has them in the PATH of root only."""
    command = [find("ip") or "ip", *words]
    return subprocess.run(command, check=check, capture_output=True, text=True)


def find(command: str) -> str | None:
    """Path of a command of root's."""
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def marked(mark: str) -> Iterator[int]:
    """Ids of the living processes that have "NAME=value" in their environment, but for this one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            # Gone meanwhile, or not ours. A zombie has no environment.
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def clean(mark: str, namespaces: list[str]) -> None:
    """End the processes that bear the mark or are in the namespaces, and delete the latter."""
    deadline = time.monotonic() + _PATIENCE
    while (alive := _belonging(mark, namespaces)) and time.monotonic() < deadline:
        for pid in alive:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for name in namespaces:
        ip("netns", "del", name, check=False)


def _belonging(mark: str, namespaces: list[str]) -> set[int]:
    found = set(marked(mark)) if mark else set()
    for name in namespaces:
        found.update(map(int, ip("netns", "pids", name, check=False).stdout.split()))
    return found


@contextlib.contextmanager
def janitor(mark: str = "", namespaces: tuple[str, ...] = ()) -> Iterator[None]:
    """Have all that bears the mark "NAME=value" or is in the namespaces ended after the block."""
    command = [sys.executable, __file__, mark, *namespaces]
    # In a session of its own, out of reach of a Ctrl-C and of who kills pytest's process group.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_PATIENCE + 10)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    clean(sys.argv[1], sys.argv[2:])
