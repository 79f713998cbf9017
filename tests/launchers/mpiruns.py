"""Starting commands on ranks: under Open MPI, under MPICH, and under Slurm's srun."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from batch.slurm import Slurm
from commands import Command, Home

#: Open MPI wants to be told twice that root may.
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
#: Seconds after which all ranks must be gone, when asked and when one was killed.
PROMPT, AFTER_A_CRASH = 5.0, 10.0
#: Where `make test` puts MPICH, whose commands have the names of Open MPI's.
_MPICH = Path(sys.prefix) / "mpich"


@dataclass(frozen=True, eq=False)
class Launcher:
    """A command that starts others on ranks.

    Attributes
    ----------
    argv : tuple of str
        Without the number of ranks.
    number : str
        The option that gives it.
    rank : str
        The variable that tells a process its rank.
    """

    name: str
    argv: tuple[str, ...]
    number: str
    rank: str
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, home: Home, np: int, *words: str | os.PathLike[str], **env: str) -> Command:
        """Start a command on so many ranks."""
        return home.run(*self.argv, self.number, str(np), *words, **{**self.env, **env})

    def ranks(self, command: Command) -> list[psutil.Process]:
        """Processes of the ranks, in their order."""
        found = {}
        for process in command.processes():
            words = " ".join(process.cmdline()[:3])
            if "hpc-dask" in words or "program.py" in words:
                found[int(process.environ()[self.rank])] = process
        return [found[rank] for rank in sorted(found)]


def _open_mpi() -> Launcher | None:
    words = shlex.split(os.environ.get("MPIRUN", "mpirun --map-by :OVERSUBSCRIBE --bind-to none"))
    found = shutil.which(words[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    argv = (found or "", *words[1:])
    return Launcher("Open MPI", argv, "-np", "OMPI_COMM_WORLD_RANK", ROOT) if found else None


def _mpich() -> Launcher | None:
    command = _MPICH / "bin/mpirun"
    env = {"LD_LIBRARY_PATH": str(_MPICH / "lib")}
    return Launcher("MPICH", (str(command),), "-np", "PMI_RANK", env) if command.exists() else None


# mpi4py is not imported: that would make this very process a rank.
_HAS_MPI4PY = any((Path(folder) / "mpi4py").is_dir() for folder in sys.path)
OPEN_MPI, MPICH = (_open_mpi(), _mpich()) if _HAS_MPI4PY else (None, None)
#: Those that are here.
LAUNCHERS = [launcher for launcher in (OPEN_MPI, MPICH) if launcher is not None]


def srun(slurm: Slurm) -> Launcher:
    """The srun of a Slurm; of two nodes, and with MPI that knows nothing of it."""
    # The first Ctrl-C only has it tell what runs, unless it is told otherwise.
    argv = ("srun", "--quiet", "--quit-on-interrupt", "--overcommit", "--nodes=1-2", "--mpi=none")
    return Launcher("srun", argv, "-n", "SLURM_PROCID", slurm.env)


#: Mark of a test, or `pytestmark` of a module, that needs mpirun and mpi4py.
needs_mpi = pytest.mark.skipif(
    OPEN_MPI is None, reason="no mpirun or no mpi4py here: pip install 'hpcdask[mpi]'"
)


def mpirun(home: Home, np: int, *words: str | os.PathLike[str], **env: str) -> Command:
    """Start a command on so many ranks, under Open MPI."""
    assert OPEN_MPI is not None
    return OPEN_MPI.start(home, np, *words, **env)


def ours(command: Command) -> list[str]:
    """Its lines on stderr without those that mpirun itself adds about exit codes and signals."""
    text = re.sub(r"(?ms)^-{50,}$.*?^-{50,}$\n?", "", command.err)  # Open MPI
    text = re.sub(r"(?ms)^={50,}$.*?^={50,}$\n?(YOUR APPL.*?suggestions$)?", "", text)  # MPICH
    text = re.sub(r"(?m)^(\[(mpiexec|proxy:)|srun: |slurmstepd).*$", "", text)
    return [line for line in text.splitlines() if line.strip()]


class Runs:
    """The same command under each launcher, each in a home of its own.

    Parameters
    ----------
    first : str
        The first word of the commands.
    """

    def __init__(
        self,
        new_home: Callable[[str], Home],
        launchers: Sequence[Launcher],
        first: str = "hpc-dask",
    ) -> None:
        self.homes = {launcher: new_home(launcher.name) for launcher in launchers}
        self.commands: dict[Launcher, Command] = {}
        self.first = first

    def without(self, name: str) -> Runs:
        """Where one of the launchers behaves in another way."""
        self.homes = {each: home for each, home in self.homes.items() if each.name != name}
        return self

    def file(self, name: str, text: str) -> None:
        for home in self.homes.values():
            home.file(name, text)

    def start(self, np: int, *words: str | os.PathLike[str], **env: str) -> Runs:
        for launcher, home in self.homes.items():
            self.commands[launcher] = launcher.start(home, np, self.first, *words, **env)
        return self

    def each(self) -> Iterator[tuple[Launcher, Command]]:
        yield from self.commands.items()

    def line(self, text: str) -> None:
        for _, command in self.each():
            command.line(text)

    def end(self, code: int | None, timeout: float = 30.0) -> None:
        """All end with this code (None: any but 0), and nothing of them is left."""
        for launcher, command in self.each():
            found = command.code(timeout)
            assert found != 0 if code is None else found == code, f"{launcher.name}\n{command}"
            command.all_gone(AFTER_A_CRASH)
            assert "Traceback" not in "\n".join(ours(command)) or code == 1, str(command)

    def nothing_is_left(self) -> None:
        for launcher, home in self.homes.items():
            left = [path for path in home.left_in_scratch() if "hpc" in path]
            assert left == [], launcher.name
