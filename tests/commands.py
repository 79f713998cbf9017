"""Running commands as a user does: in processes of their own, in a home of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from janitor import marked
from waiting import wait_until

#: Seconds that anything here may take, unless a test says otherwise. A loaded machine is slow.
PATIENCE = 30.0


class Command:
    """A running command, all processes that it has started, and all that it has printed.

    Its processes are those with the command's own mark in their environment, so that neither a new
    session nor a lost parent hides one.
    """

    def __init__(self, argv: list[str], folder: Path, env: dict[str, str], number: int) -> None:
        self.argv = argv
        self.mark = f"HPCDASK_TEST_COMMAND={os.getpid()}-{time.monotonic_ns()}"
        self._out, self._err = folder / f"out-{number}", folder / f"err-{number}"
        name, _, value = self.mark.partition("=")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                argv,
                cwd=folder,
                env={**env, name: value},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def line(self, pattern: str, timeout: float = PATIENCE) -> str:
        """Wait for `pattern` in stderr or stdout; return what its first group matched."""
        deadline = time.monotonic() + timeout
        while True:
            last_look = self.process.poll() is not None or time.monotonic() > deadline
            if match := re.search(pattern, self.err) or re.search(pattern, self.out):
                return match[1] if match.groups() else match[0]
            assert not last_look, f"no {pattern!r} within {timeout:g} s\n{self}"
            time.sleep(0.01)

    def code(self, timeout: float = PATIENCE) -> int:
        """Wait for the end; return the exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {timeout:g} s\n{self}") from None

    def end(self, number: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Send a signal and wait for the end; return the exit code."""
        self.process.send_signal(number)
        return self.code(timeout)

    def processes(self) -> list[psutil.Process]:
        """All processes of this command that are alive."""
        found = []
        for pid in marked(self.mark):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def all_gone(self, timeout: float = PATIENCE) -> None:
        """Wait until no process of this command is left."""
        wait_until(lambda: not self.processes(), timeout, f"end of all processes of {self}")

    def clean_up(self) -> list[str]:
        """End it as a user would, kill what is left, and return what that was."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        with contextlib.suppress(AssertionError):
            self.all_gone(5)
        names = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                names.append(" ".join(process.cmdline()))
                process.kill()
        self.process.wait(10)
        return names

    def __str__(self) -> str:
        tree = "\n".join(map(str, self.processes()))
        return f"{self.argv}, exit code {self.process.poll()}:\n{self.err}{self.out}\n{tree}"


class Home:
    """A user's environment: own home, own token, own scratch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True)
        self.env = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "TMPDIR": str(self.scratch),
        }
        self.commands: list[Command] = []

    def run(self, *argv: str | os.PathLike[str], **env: str) -> Command:
        """Start a command in `folder`."""
        words = [os.fspath(word) for word in argv]
        command = Command(words, self.folder, {**self.env, **env}, len(self.commands))
        self.commands.append(command)
        return command

    def hpc_dask(self, *argv: str | os.PathLike[str], **env: str) -> Command:
        """Start ``hpc-dask ...``."""
        return self.run(sys.executable, "-m", "hpcdask", *argv, **env)

    def file(self, name: str, text: str) -> Path:
        """Write a file into `folder`."""
        path = self.folder / name
        path.write_text(text)
        return path

    @property
    def token(self) -> bytes:
        """The token that this user's commands have made."""
        return bytes.fromhex((self.folder / "config/hpcdask/token").read_text())

    def left_in_scratch(self) -> list[str]:
        """What commands have left behind there, beside the per-user folder itself."""
        found = [str(path.relative_to(self.scratch)) for path in self.scratch.rglob("*")]
        return [path for path in found if path != f"hpcdask-{os.geteuid()}"]


@pytest.fixture
def new_home(tmp_path: Path) -> Iterator[Callable[[str], Home]]:
    """Makes homes for several users. At the end SIGTERM must end all that runs in them."""
    homes: list[Home] = []

    def make(name: str) -> Home:
        homes.append(Home(tmp_path / name))
        return homes[-1]

    yield make
    commands = [command for home in homes for command in home.commands]
    left = [name for command in reversed(commands) for name in command.clean_up()]
    assert not left, f"still running after SIGTERM at the end of the test: {left}"


@pytest.fixture
def home(new_home: Callable[[str], Home]) -> Home:
    """A home for commands. At the end SIGTERM must end all that runs in it."""
    return new_home("home")
