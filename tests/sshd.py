"""Real SSH servers for tests: Debian's sshd, with keys, settings and folder of its own."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from commands import Home
from janitor import RUN, find, janitor, marked
from waiting import wait_until

import hpcdask

#: Where sshd keeps an empty folder, that it wants to be there if it runs as root.
_RUN = Path("/run/sshd")


class SSHServer:
    """A running sshd, and what is needed to log in.

    Attributes
    ----------
    address, port
        Where it listens.
    key, known_hosts : Path
        For those who may log in.
    mark : str
        In the environment of every process that it starts, as "NAME=value".
    """

    def __init__(
        self,
        folder: Path,
        address: str = "127.0.0.1",
        on: Sequence[str] = (),
        key: Path | None = None,
    ) -> None:
        folder.mkdir()
        self.folder, self.address = folder, address
        self.port = _free_port() if not on else 22
        self.user = getpass.getuser()
        self.key, host_key = key or folder / "user_key", folder / "host_key"
        for path in (self.key, host_key):
            if not path.exists():
                make_key(path)
        self.known_hosts = folder / "known_hosts"
        name = address if self.port == 22 else f"[{address}]:{self.port}"
        self.known_hosts.write_text(f"{name} {host_key.with_suffix('.pub').read_text()}")
        variable, value = "HPCDASK_TEST_SSHD", f"{os.getpid()}-{address}-{self.port}"
        self.mark = f"{variable}={value}"
        environ = {
            variable: value,
            RUN: os.environ[RUN],
            "PYTHONPATH": os.pathsep.join([str(Path(hpcdask.__file__).parents[1]), str(HERE)]),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "TMPDIR": os.environ["TMPDIR"],
            "PYTHONFAULTHANDLER": "1",
        }
        config = folder / "sshd_config"
        config.write_text(
            _CONFIG.format(
                address=address,
                port=self.port,
                folder=folder,
                environ=" ".join(f'"{name}={value}"' for name, value in environ.items()),
                key=self.key,
            )
        )
        # The mark is not in its own environment, nor that of its sessions: those must not be ended
        # before what they have started.
        self.log_file = folder / "log"
        self.process = subprocess.Popen(
            [*on, find("sshd") or "", "-D", "-f", str(config), "-E", str(self.log_file)],
            stdin=subprocess.DEVNULL,
        )
        wait_until(lambda: "Server listening" in self.log, what=f"sshd listens: {self.log}")

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    @property
    def connect_options(self) -> dict[str, object]:
        """Keywords of ``asyncssh.connect``, so that nothing of the real home is looked at."""
        return {
            "port": self.port,
            "client_keys": [str(self.key)],
            "known_hosts": str(self.known_hosts),
            "config": None,
            "agent_path": None,
        }

    def let_in(self, home: Home) -> None:
        """Give a user the key, and the settings that ssh looks for."""
        folder = home.folder / ".ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(self.key, folder / "id_ed25519")
        with (folder / "known_hosts").open("a") as known:
            known.write(self.known_hosts.read_text())
        home.env.pop("SSH_AUTH_SOCK", None)

    def processes(self) -> list[psutil.Process]:
        """All that it has started and that is alive, but for its own."""
        found = []
        for pid in marked(self.mark):
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(pid))
        return found

    def all_gone(self, timeout: float = 20.0) -> None:
        """Wait until nothing is left of what was started through it."""
        wait_until(lambda: not self.processes(), timeout, f"end of {self.processes()}")

    def close(self) -> None:
        """End it, and its sessions."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        for session in children:
            with contextlib.suppress(psutil.Error):
                if session.name().startswith("sshd"):
                    session.terminate()
        self.process.wait(10)


_CONFIG = """\
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {key}.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
LogLevel VERBOSE
SetEnv {environ}
"""


def make_key(path: Path) -> None:
    """Make a pair of keys: `path` and ``path.pub``."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def ssh_server(
    folder: Path, address: str = "127.0.0.1", on: Sequence[str] = (), key: Path | None = None
) -> Iterator[SSHServer]:
    """An SSH server for a block; at its end nothing may be left of what it has started."""
    if os.geteuid() == 0:  # it stays, as Debian's own service has it: others may be using it
        _RUN.mkdir(mode=0o755, exist_ok=True)
    server = SSHServer(folder, address, on, key)
    with janitor(mark=server.mark):
        try:
            yield server
        finally:
            try:
                server.all_gone()
            finally:
                server.close()


def _why_not() -> str:
    missing = [name for name in ("sshd", "ssh-keygen", "ssh-agent") if find(name) is None]
    if missing:
        return f"there is no {missing[0]}: apt-get install openssh-server openssh-client"
    if importlib.util.find_spec("asyncssh") is None:
        return "there is no asyncssh: pip install 'hpcdask[ssh]'"
    return ""


HERE = Path(__file__).parent

#: Why there can be no SSH server here; empty if there can.
WHY_NOT = _why_not()

#: Marks of a test, or `pytestmark` of a module, that needs one.
needs_sshd = [
    pytest.mark.system,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
