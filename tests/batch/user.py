"""An ordinary user for tests, since most jobs are not root's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import janitor

from batch.bed import PATH, PATIENCE, Bed

#: What hpcdask takes to run.
_PACKAGES = ("hpcdask", "tornado", "msgpack", "cloudpickle", "psutil", "click")


class OrdinaryUser:
    """A user that is made for the session.

    Attributes
    ----------
    name : str
    home : Path
        Where jobs can be submitted from: tests' own folders are closed to other users.
    """

    def __init__(self) -> None:
        self.name = f"hpcdask-{os.getpid()}"
        folder = Path(tempfile.mkdtemp(prefix="hpcdask-user-", dir="/tmp"))
        folder.chmod(0o755)
        self.home = folder / "home"
        # Without a mark: what the user runs is ended with the batch system.
        self._janitor = janitor.janitor_of_the_session("", folder, self.name)
        useradd = janitor.find("useradd") or "useradd"
        options = ("--create-home", "--home-dir", self.home, "--shell", "/bin/bash")
        subprocess.run([useradd, *options, self.name], check=True, capture_output=True)

    def install(self) -> str:
        """Give the user hpcdask, as ``~/bin/hpc-dask``; return why it cannot be, if so.

        The environment of the tests, or its Python, may be in a home that is closed to others.
        """
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        pythons = (sys.executable, os.path.realpath(sys.executable), f"/usr/bin/python{version}")
        usable = [python for python in pythons if self.run(python, "-c", "").returncode == 0]
        if not usable:
            return f"{self.name} can execute no Python {version}: install one in /usr/bin"
        packages, command = self.home / "packages", self.home / "bin/hpc-dask"
        for name in _PACKAGES:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.submodule_search_locations
            shutil.copytree(spec.submodule_search_locations[0], packages / name)
        command.parent.mkdir()
        command.write_text(
            f"#!{usable[0]}\nimport sys\nsys.path.insert(0, {str(packages)!r})\n"
            "from hpcdask.cli.main import main\nmain()\n"
        )
        command.chmod(0o755)
        return ""

    def run(
        self, *command: str, cwd: Path | None = None, bed: Bed | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the user, at home, and where the batch system is known."""
        return subprocess.run(
            self.become(*command),
            cwd=cwd or self.home,
            env=self.environ(bed),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def become(self, *command: str) -> list[str]:
        """The words that run a command as the user."""
        return ["runuser", "-u", self.name, "--", *command]

    def environ(self, bed: Bed | None = None) -> dict[str, str]:
        """What the user has in the environment."""
        environ = {"HOME": str(self.home), "USER": self.name, "LOGNAME": self.name, "PATH": PATH}
        environ |= {"TMPDIR": str(self.home), "PYTHONPATH": str(self.home / "packages")}
        return environ | (bed.env if bed is not None else {})

    @property
    def python(self) -> str:
        """A Python that the user can execute."""
        return (self.home / "bin/hpc-dask").read_text().splitlines()[0][2:]

    def folder(self, name: str) -> Path:
        """A folder of the user's."""
        path = self.home / name
        path.mkdir()
        shutil.chown(path, self.name, self.name)
        return path

    def close(self) -> None:
        """Remove the user, with all files."""
        janitor.dismiss(self._janitor)
