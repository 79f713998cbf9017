"""The folder of a cluster: where its jobs find the scheduler, and what is known of them on disk.

It belongs to one user, and nobody else sees into it: the scheduler file in it holds the token.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hpcdask import network
from hpcdask.errors import ConfigError, RendezvousError
from hpcdask.rendezvous import (
    create_private,
    make_private_folder,
    read_private,
    replace_private,
)

#: Of the state file; who finds a higher one leaves the cluster to a later hpcdask.
VERSION = 1


def default_base(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the folders of clusters are: in the user's home, which all nodes see as a rule."""
    state = environ.get("XDG_STATE_HOME", "")
    # The XDG specification tells to ignore a relative path.
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local/state"
    return base / "hpcdask/clusters"


# ---------------------------------------------------------------- what is known


@dataclass(frozen=True)
class Owner:
    """The process that keeps a cluster's jobs."""

    host: str
    pid: int
    started: float  # seconds since the epoch, which tells it from a later one with its number

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(network.hostname(), os.getpid(), psutil.Process().create_time())

    def has_ended(self) -> bool | None:
        """Whether it is gone; None where that cannot be seen, from another host."""
        if self.host != network.hostname():
            return None
        try:
            # Clocks are set now and then, which moves the start of all processes.
            return abs(psutil.Process(self.pid).create_time() - self.started) > 60
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True)
class PoolState:
    """Jobs of one kind."""

    wanted: int
    jobs: tuple[str, ...] = ()  # ids of those that may be in the queue, and are wanted
    leaving: tuple[str, ...] = ()  # and of those that are not


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """What others have to know of a cluster, to list it, clear it up, or take it over.

    Parameters
    ----------
    name : str
    system : str
        Of the batch system, as in the command line.
    owner : Owner
    started : float
        Seconds since the epoch.
    scheduler_file : str
    pools : dict of str to PoolState
    """

    name: str
    system: str
    owner: Owner
    started: float
    scheduler_file: str
    pools: dict[str, PoolState] = field(default_factory=dict)

    @property
    def jobs(self) -> tuple[str, ...]:
        """Ids of all its jobs."""
        return tuple(id for pool in self.pools.values() for id in (*pool.jobs, *pool.leaving))

    def to_json(self) -> str:
        """The content of a state file."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ClusterState:
        """What a state file says. Keys that we do not know are left out.

        Raises
        ------
        RendezvousError
            If it is none, or that of a later version.
        """
        try:
            content = json.loads(text)
            version = content["version"]
            if version > VERSION:
                raise RendezvousError(
                    f"the state of a cluster of a later hpcdask (format {version}, this one knows "
                    f"{VERSION}): use that one"
                )
            return cls(
                name=str(content["name"]),
                system=str(content["system"]),
                owner=Owner(
                    str(content["owner"]["host"]),
                    int(content["owner"]["pid"]),
                    float(content["owner"]["started"]),
                ),
                started=float(content["started"]),
                scheduler_file=str(content["scheduler_file"]),
                pools={str(name): _pool_state(pool) for name, pool in content["pools"].items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            if isinstance(exc, RendezvousError):
                raise
            raise RendezvousError(f"no state of a cluster: {exc!r}") from None


def _pool_state(content: Mapping[str, Any]) -> PoolState:
    jobs, leaving = (tuple(map(str, content[name])) for name in ("jobs", "leaving"))
    return PoolState(int(content["wanted"]), jobs, leaving)


# ---------------------------------------------------------------- the folder


class ClusterFolder:
    """Where a cluster keeps its files.

    Attributes
    ----------
    path : Path
        Mode 0700.
    scheduler_file, state_file : Path
        Both mode 0600.
    logs : Path
        Folder for the jobs' logs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scheduler_file, self.state_file = path / "scheduler.json", path / "state.json"
        self.logs = path / "logs"

    @classmethod
    def planned(cls, name: str, base: Path | None = None) -> ClusterFolder:
        """The folder that `create` would make, which is not there yet; parameters as there.

        Raises
        ------
        ConfigError
            If the name cannot be that of a folder.
        """
        if not re.fullmatch(r"[\w.+-]+", name) or name.startswith((".", "-")):
            raise ConfigError(
                f"{name!r} cannot be the name of a cluster of jobs, since it names a folder, too: "
                "take letters, digits, '.', '_', '+' and '-'"
            )
        return cls((base or default_base()).expanduser().absolute() / name)

    @classmethod
    def create(cls, name: str, base: Path | None = None) -> ClusterFolder:
        """Make the folder of a new cluster.

        Parameters
        ----------
        name : str
            Of the cluster.
        base : Path, optional
            Folder to make it in, one that all nodes see; `default_base` by default. From there a
            link leads to it then.

        Raises
        ------
        ConfigError
            If the name is that of another cluster, or it cannot be made.
        """
        folder = cls.planned(name, base)
        try:
            make_private_folder(folder.path.parent)
            folder._make()
        except OSError as exc:
            raise ConfigError(
                f"cannot make the folder {folder.path}: {exc.strerror}. It has to be where all "
                "nodes see it: name another place with shared_temp_directory"
            ) from exc
        if base is not None:
            folder._link_from(default_base() / name)
        return folder

    def _make(self) -> None:
        try:
            self.path.mkdir(0o700)
        except FileExistsError:
            self.refuse_foreign()
            self._refuse_used()
        self.path.chmod(0o700)  # whatever the umask

    def refuse_foreign(self) -> None:
        """Raise `ConfigError` unless it is a folder of ours that nobody else sees into."""
        status = os.lstat(self.path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise ConfigError(f"{self.path} is no folder of yours; give the cluster another name")
        if status.st_mode & 0o077:
            raise ConfigError(
                f"the folder {self.path} is open to other users (mode "
                f"{stat.S_IMODE(status.st_mode):04o}): chmod 700 it, or remove it"
            )

    def _refuse_used(self) -> None:
        """An earlier cluster of this name must have ended, or its jobs would be forgotten."""
        if not self.state_file.exists():
            return
        state = self.read_state()
        whose = f"process {state.owner.pid} on {state.owner.host}"
        if state.owner.has_ended():
            raise ConfigError(
                f"a cluster {state.name} was left behind by {whose}, which has ended; its jobs may "
                f"still be there. Remove it with: hpc-dask clean {state.name}"
            )
        raise ConfigError(f"there is a cluster {state.name} already, of {whose}; take another name")

    def _link_from(self, path: Path) -> None:
        """Let it be found by its name; where that cannot be, all else works nevertheless."""
        with contextlib.suppress(OSError):
            make_private_folder(path.parent)
            if path.is_symlink():
                path.unlink()
            path.symlink_to(self.path)

    def write_script(self, name: str, text: str) -> Path:
        """Keep a job script, and return its path."""
        path = self.path / name
        replace_private(path, text)
        return path

    def write_first_state(self, state: ClusterState) -> None:
        """Let others know of a new cluster; of several that begin at once one gets the name.

        Raises
        ------
        ConfigError
            If another one has got it, or it cannot be written.
        """
        try:
            create_private(self.state_file, state.to_json())
        except FileExistsError:
            self._refuse_used()
            raise
        except OSError as exc:
            raise ConfigError(
                f"cannot write {self.state_file}: {exc.strerror}. Make room there, or name another "
                "place that all nodes see, with shared_temp_directory"
            ) from exc

    def write_state(self, state: ClusterState) -> None:
        """Let others know; they see all of it or what was there before."""
        replace_private(self.state_file, state.to_json())

    def read_state(self) -> ClusterState:
        """What is known of the cluster.

        Raises
        ------
        TokenError
            If others can read it, or it is another user's.
        OSError, RendezvousError
            If there is none, or it says something else.
        """
        return ClusterState.from_json(read_private(self.state_file))

    def clear(self, keep_state: bool = False) -> None:
        """Remove what was of use to jobs that are gone; logs stay, and the folder with them.

        Parameters
        ----------
        keep_state : bool
            Whether jobs may still be there, which somebody has to find.
        """
        kept = {self.logs.name} | ({self.state_file.name} if keep_state else set())
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.path)):
                if entry.name not in kept and not entry.is_dir():
                    os.unlink(entry)
        if keep_state:
            return
        for path in (self.logs, self.path):
            with contextlib.suppress(OSError):  # unless there are logs
                path.rmdir()
        link = default_base() / self.path.name
        if link.is_symlink() and not self.path.exists():
            with contextlib.suppress(OSError):
                link.unlink()


def cluster_folders(base: Path | None = None) -> Iterator[ClusterFolder]:
    """Those of this user's clusters that have a state, whether or not they still run."""
    base = base or default_base()
    if not base.is_dir():
        return
    for entry in sorted(base.iterdir()):
        folder = ClusterFolder(entry.resolve() if entry.is_symlink() else entry)
        with contextlib.suppress(OSError, ConfigError):
            folder.refuse_foreign()
            if folder.state_file.exists():
                yield folder
