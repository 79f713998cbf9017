"""Cleans up behind a test, even behind one whose process was killed.

A janitor is a process that waits for the end of the one that started it, or to be dismissed, and
then ends the processes that belong to the test, deletes its network namespaces and removes its
folders and users. So the ordinary end, Ctrl-C, pytest-timeout's `os._exit` and kill -9 all take the
same way out.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
    own, wanted = str(os.getpid()), mark.encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and name != own:
            # Gone meanwhile, or not ours. A zombie has no environment.
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as environ:
                if wanted in environ.read().split(b"\0"):
                    yield int(name)


def clean(mark: str, namespaces: Sequence[str] = ()) -> None:
    """End the processes that bear the mark or are in the namespaces, and delete the latter."""
    deadline = time.monotonic() + _PATIENCE
    while (alive := _belonging(mark, namespaces)) and time.monotonic() < deadline:
        for pid in alive:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for name in namespaces:
        ip("netns", "del", name, check=False)


def _belonging(mark: str, namespaces: Sequence[str]) -> set[int]:
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


def janitor_of_the_session(mark: str, folder: Path, user: str = "") -> subprocess.Popen[bytes]:
    """Start one for all the time that this process lives, or until SIGTERM dismisses it.

    It ends what bears the mark, removes the folder and the user. It watches this process by its id:
    at a pipe's end here, every module of tests would be told that it has left a descriptor behind.
    """
    environ = {name: value for name, value in os.environ.items() if name != RUN}
    process = subprocess.Popen(
        [sys.executable, __file__, "--of", str(os.getpid()), mark, str(folder), user],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()  # or SIGTERM could come before it is understood
    return process


def dismiss(process: subprocess.Popen[bytes]) -> None:
    """Let a janitor of the session do its work, and wait until it is done."""
    process.terminate()
    process.wait(_PATIENCE + 10)


class _Dismissed(Exception):
    pass


def _dismissed(*signal: object) -> None:
    raise _Dismissed


def _wait_for(pid: int) -> None:
    """Wait until a process ends, or until SIGTERM."""
    with contextlib.suppress(_Dismissed, ProcessLookupError):
        signal.signal(signal.SIGTERM, _dismissed)
        print("ready", flush=True)
        select.select([os.pidfd_open(pid)], [], [])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def main(arguments: list[str]) -> None:
    """Wait, then clean."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if arguments[0] != "--of":
        sys.stdin.read()
        clean(arguments[0], arguments[1:])
        return
    _, pid, mark, folder, user = arguments
    _wait_for(int(pid))
    clean(mark)
    shutil.rmtree(folder, ignore_errors=True)
    if user:
        # By force, which does not wait until the last process of the user is gone.
        subprocess.run([find("userdel") or "userdel", "--force", user], check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
