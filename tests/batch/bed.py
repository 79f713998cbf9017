"""What the batch systems for tests have in common: a folder, a mark, commands, jobs."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import janitor
from hosts import Hosts
from waiting import wait_until

#: Root's folders too, which Debian has in the PATH of root only.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
#: Seconds that a command, or the start of daemons, may take. A loaded machine is slow.
PATIENCE = 60.0

StrPath = str | os.PathLike[str]


def why_not(*commands: str) -> str:
    """Why a batch system with these commands cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "only root can start a batch system that runs jobs of any user"
    missing = [command for command in commands if janitor.find(command) is None]
    if missing:
        return f"there is no {missing[0]} here: as root on Debian run tests/system-packages.sh"
    return ""


def free_ports(n: int) -> list[int]:
    """Different ports on which nothing listens, below those that the system takes by itself."""
    found: dict[int, None] = {}
    while len(found) < n:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found[port] = None
    return list(found)


#: Gives a command the name and the /etc/hosts of a host.
_BECOME_HOST = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


class Bed(ABC):
    """A batch system in a folder of its own.

    Parameters
    ----------
    hosts : Hosts, optional
        On which it runs, the commands for it on the first of them; by default on this machine.

    Attributes
    ----------
    names : tuple of str
        Of its hosts.
    folder : Path
        Everything that it writes; readable by all users.
    env : dict
        What its commands need in their environment, besides that of the test.
    """

    #: Of the batch system; and of a variable with a path in `folder` that its daemons and all of
    #: its jobs have in their environment.
    name, variable, value = "", "", ""

    def __init__(self, hosts: Hosts | None = None) -> None:
        self.hosts = hosts
        self.names = hosts.names if hosts else (socket.gethostname().partition(".")[0],)
        self.folder = Path(tempfile.mkdtemp(prefix=f"hpcdask-{self.name}-", dir="/tmp"))
        self.folder.chmod(0o755)
        value = str(self.folder / self.value)
        self.mark = f"{self.variable}={value}"
        self.env = {self.variable: value, "PATH": PATH}
        self._janitor = janitor.janitor_of_the_session(self.mark, self.folder)
        if hosts:
            lines = [f"{address} {name}\n" for name, address in hosts.addresses.items()]
            (self.folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *lines]))

    @abstractmethod
    def start(self) -> None:
        """Start the daemons and wait until jobs can run."""

    def close(self) -> None:
        """End daemons and jobs, and remove every trace."""
        janitor.dismiss(self._janitor)
        assert not list(janitor.marked(self.mark)), "processes that could not be killed"
        assert not self.folder.exists()

    @abstractmethod
    def submit(
        self,
        script: StrPath,
        *words: StrPath,
        cwd: Path,
        variables: Mapping[str, str] | None = None,
        user: str = "",
    ) -> Job:
        """Submit a job script from the folder `cwd`.

        Parameters
        ----------
        script, *words
            The job script, and its arguments if the system hands them on.
        variables : mapping, optional
            Environment variables for the job, beside those that the system hands on by itself.
        user : str, optional
            Who submits; root by default.
        """

    @abstractmethod
    def job(self, id: str, folder: Path) -> Job:
        """The job of this id, as the system prints it, which writes its log into `folder`."""

    @abstractmethod
    def cancel(self, *jobs: Job) -> None:
        """Cancel jobs."""

    def on(self, name: str, *command: StrPath) -> list[str]:
        """The command that runs a command on one of the hosts."""
        words = [os.fspath(word) for word in command]
        if self.hosts is None:
            return words
        become = ("unshare", "--uts", "--mount", "sh", "-c", _BECOME_HOST, "sh")
        return [*self.hosts.on(name, *become, name, str(self.folder / "hosts")), *words]

    def daemon(self, *command: StrPath, on: str = "") -> None:
        """Run a command that becomes a daemon, by default on the first host."""
        # Of the environment of the tests nothing is to get into jobs by way of the daemons.
        environ = {"HOME": "/root", "LANG": "C.UTF-8", **self.env}
        # Not to a pipe, which the daemon would keep open.
        with (self.folder / "daemons.log").open("ab") as log:
            subprocess.run(
                self.on(on or self.names[0], *command),
                env=environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
                timeout=PATIENCE,
            )

    def run(
        self,
        *command: StrPath,
        cwd: Path | None = None,
        check: bool = True,
        user: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the system's commands, by default as root."""
        as_user = ("runuser", "-u", user, "--") if user else ()
        words = self.on(self.names[0], *as_user, *command)
        done = subprocess.run(
            words,
            cwd=cwd or self.folder,
            env={**os.environ, **self.env, **(variables or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done


@dataclass(repr=False)
class Job(ABC):
    """A job, as its own log and the system's books tell of it.

    Attributes
    ----------
    bed : Bed
        That runs it.
    id : str
        A number, without what comes behind it.
    folder : Path
        From which it was submitted, and where its logs are.
    log_pattern : str
        A regular expression of the ends of their names.
    marks : tuple of str
        Environment variables of its processes, of which one suffices.
    """

    bed: Bed
    id: str
    folder: Path
    log_pattern: str
    marks: tuple[str, ...]

    @property
    @abstractmethod
    def state(self) -> str:
        """In the system's own word; of an array, those of all its jobs."""

    @property
    @abstractmethod
    def exit_code(self) -> int | None:
        """None until it has ended; of an array, the highest."""

    @property
    def log(self) -> str:
        """What it has written, to stdout and stderr."""
        logs = [path for path in self.folder.iterdir() if re.search(self.log_pattern, path.name)]
        return "".join(path.read_text(errors="replace") for path in sorted(logs))

    def line(self, pattern: str, timeout: float = PATIENCE) -> str:
        """Wait for `pattern` in its log; return what its first group matched."""
        deadline = time.monotonic() + timeout
        while True:
            is_last_look = time.monotonic() > deadline or self.exit_code is not None
            if match := re.search(pattern, self.log):
                return match[1] if match.groups() else match[0]
            assert not is_last_look, f"no {pattern!r} within {timeout:g} s: {self}"
            time.sleep(0.05)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; return the exit code."""
        wait_for(self, timeout=timeout)
        assert self.exit_code is not None
        return self.exit_code

    def processes(self) -> list[int]:
        """Ids of its processes that are alive, wherever they were started."""
        of_bed = set(janitor.marked(self.bed.mark))
        return sorted(of_bed & {pid for mark in self.marks for pid in janitor.marked(mark)})

    def all_gone(self, timeout: float = PATIENCE) -> None:
        """Wait until none of its processes is left."""
        wait_until(lambda: not self.processes(), timeout, f"processes {self.processes()} of {self}")

    def __repr__(self) -> str:
        return f"job {self.id}, {self.state}:\n{self.log}"


def wait_for(*jobs: Job, timeout: float = PATIENCE) -> None:
    """Wait until jobs have ended."""
    waiting = list(jobs)

    def all_have_ended() -> bool:
        waiting[:] = [job for job in waiting if job.exit_code is None]
        return not waiting

    try:
        wait_until(all_have_ended, timeout)
    except AssertionError:
        late = "; ".join(map(str, waiting))
        raise AssertionError(f"not ended within {timeout:g} s: {late}") from None
