"""The folder of a cluster: where its jobs find the scheduler, and what is known of them on disk.

It belongs to one user, and nobody else sees into it: the scheduler file in it holds the token.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from hpcdask import network
from hpcdask.errors import ConfigError, LaunchError, RendezvousError
from hpcdask.rendezvous import create_private, make_private_folder, read_private, replace_private

#: Seconds after which a claim to a cluster is void; making it good takes a moment.
_CLAIM = 60.0
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

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class PoolState:
    """Jobs of one kind.

    Parameters
    ----------
    wanted : int
        How many there should be.
    jobs : tuple of str
        Ids of those that may be in the queue, and are wanted.
    leaving : tuple of str
        Ids of others that may be there.
    cancel_command : str
        Words before the ids of jobs, if they are not the system's.
    keywords : dict
        Of the `Job` class, of which more are made; what JSON can hold.
    """

    wanted: int
    jobs: tuple[str, ...]
    leaving: tuple[str, ...] = ()
    cancel_command: str = ""
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClusterState:
    """What others have to know of a cluster, to list it, clear it up, or take it over.

    Parameters
    ----------
    name : str
    system : str
        Of the batch system, as in the command line.
    owner : Owner or None
        None if nobody keeps its jobs.
    started : float
        Seconds since the epoch.
    scheduler_file : str
    scheduler : str
        Where the scheduler is: "client", in the owner's process, or "job".
    pools : dict of str to PoolState
    """

    name: str
    system: str
    owner: Owner | None
    started: float
    scheduler_file: str
    scheduler: str = "client"
    pools: dict[str, PoolState] = field(default_factory=dict)

    @property
    def jobs(self) -> tuple[str, ...]:
        """Ids of all its jobs."""
        return tuple(id for pool in self.pools.values() for id in (*pool.jobs, *pool.leaving))

    @property
    def has_scheduler_job(self) -> bool:
        """Whether the scheduler is in a job of its own, and lives without the owner."""
        return self.scheduler == "job"

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
                owner=_owner(content["owner"]),
                started=float(content["started"]),
                scheduler_file=str(content["scheduler_file"]),
                scheduler=str(content.get("scheduler", "client")),
                pools={str(name): _pool_state(pool) for name, pool in content["pools"].items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            if isinstance(exc, RendezvousError):
                raise
            raise RendezvousError(f"no state of a cluster: {exc!r}") from None


def _owner(content: Mapping[str, Any] | None) -> Owner | None:
    if content is None:
        return None
    return Owner(str(content["host"]), int(content["pid"]), float(content["started"]))


def _pool_state(content: Mapping[str, Any]) -> PoolState:
    return PoolState(
        wanted=int(content["wanted"]),
        jobs=tuple(map(str, content["jobs"])),
        leaving=tuple(map(str, content.get("leaving", ()))),
        cancel_command=str(content.get("cancel_command", "")),
        keywords=dict(content.get("keywords", {})),
    )


# ---------------------------------------------------------------- the folder


@dataclass(frozen=True)
class Submission:
    """A job script in a cluster's folder, by its name."""

    pool: str
    request: int  # of the controller, another one each time
    count: int  # jobs
    suffix: str  # of the system's scripts

    @property
    def script(self) -> str:
        """Name of the script, and of no other."""
        return f"{self.pool}-{self.request}x{self.count}{self.suffix}"

    @classmethod
    def of(cls, name: str) -> Submission | None:
        """The submission of a script, if a file's name is that of one."""
        match = re.fullmatch(r"(.+)-(\d+)x(\d+)(\.\w+)", name)
        return match and cls(match[1], int(match[2]), int(match[3]), match[4])


class ClusterFolder:
    """Where a cluster keeps its files.

    Attributes
    ----------
    path : Path
        Mode 0700.
    scheduler_file, state_file, token_file : Path
        All mode 0600. The token is in a file of its own only for a scheduler elsewhere.
    logs : Path
        Folder for the jobs' logs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scheduler_file, self.state_file = path / "scheduler.json", path / "state.json"
        self.token_file, self.logs = path / "token", path / "logs"

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
        name, owner = state.name, state.owner
        if owner is not None and not owner.has_ended():
            raise ConfigError(f"there is a cluster {name} already, of {owner}; take another name")
        if state.has_scheduler_job:
            raise ConfigError(
                f"there is a cluster {name} already, which nobody keeps: take it over with "
                f"attach({name!r}), end it with hpc-dask clean {name}, or take another name"
            )
        raise ConfigError(
            f"a cluster {name} was left behind by {owner}, which has ended; its jobs may "
            f"still be there. Remove it with: hpc-dask clean {name}"
        )

    def _link_from(self, path: Path) -> None:
        """Let it be found by its name; where that cannot be, all else works nevertheless."""
        with contextlib.suppress(OSError):
            make_private_folder(path.parent)
            if path.is_symlink():
                path.unlink()
            path.symlink_to(self.path)

    @classmethod
    def find(cls, name: str, base: Path | None = None) -> ClusterFolder:
        """The folder of a cluster that is there, or was.

        Raises
        ------
        ConfigError
            If there is no cluster of this name, or the folder cannot be trusted.
        """
        folder = cls.planned(name, base)
        folder = cls(_followed(folder.path))
        if not folder.state_file.exists():
            there = ", ".join(other.path.name for other in cluster_folders(base)) or "none"
            raise ConfigError(
                f"there is no cluster {name!r} in {base or default_base()}; there is {there}. One "
                "that has ended in order leaves nothing but its logs"
            )
        folder.refuse_foreign()
        return folder

    def write_script(self, name: str, text: str) -> Path:
        """Keep a job script, and return its path."""
        path = self.path / name
        replace_private(path, text)
        return path

    def answer_file(self, script: str) -> Path:
        """Where the submit command says what the jobs are called.

        It goes on without us, and what it says is then known to whoever comes after us.
        """
        return self.path / f"{script}.answer"

    def submissions(self) -> list[Submission]:
        """All whose scripts are here."""
        found = [Submission.of(path.name) for path in self.path.iterdir()]
        return [submission for submission in found if submission is not None]

    def unheard(self) -> list[Submission]:
        """Submissions whose answers are here still: their jobs may not be in the state."""
        return [each for each in self.submissions() if self.answer_file(each.script).exists()]

    def write_token(self, token: bytes) -> None:
        """Keep the token of a scheduler that is to start elsewhere, mode 0600."""
        replace_private(self.token_file, token.hex() + "\n")

    def note(self, text: str) -> None:
        """Add a line to the log that stays when the cluster is gone."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        self.logs.mkdir(0o700, exist_ok=True)
        with (self.logs / "cluster.log").open("a") as file:
            file.write(line)

    def own(self, owner: Owner, approve: Callable[[ClusterState], None]) -> ClusterState:
        """Become who keeps a cluster's jobs; of several who try it at the same time, one does.

        Parameters
        ----------
        approve : callable
            Raises if the cluster is not to be had, as it is described now.

        Returns
        -------
        ClusterState
            As it was before.
        """
        claim = self.path / "claim"
        with contextlib.suppress(FileNotFoundError):
            if time.time() - claim.stat().st_mtime > _CLAIM:
                claim.unlink()  # who has made it was killed
        try:
            descriptor = os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise LaunchError(
                f"another process takes the cluster of {self.path} over just now; try it again"
            ) from None
        try:
            os.close(descriptor)
            state = self.read_state()
            approve(state)
            self.write_state(replace(state, owner=owner))
            return state
        finally:
            claim.unlink()

    def is_anothers(self, owner: Owner | None) -> bool:
        """Whether somebody else than this owner keeps the cluster now."""
        try:
            now = self.read_state().owner
        except (OSError, RendezvousError):  # its first state is not written yet
            return False
        return now is not None and now != owner

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
        kept |= (
            {self.answer_file(each.script).name for each in self.unheard()} if keep_state else set()
        )
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


def _followed(path: Path) -> Path:
    """The folder of which this may be a link, by the path that its cluster knows."""
    return Path(os.readlink(path)) if path.is_symlink() else path


def cluster_folders(base: Path | None = None) -> Iterator[ClusterFolder]:
    """Those of this user's clusters that have a state, whether or not they still run."""
    base = base or default_base()
    if not base.is_dir():
        return
    for entry in sorted(base.iterdir()):
        folder = ClusterFolder(_followed(entry))
        with contextlib.suppress(OSError, ConfigError):
            folder.refuse_foreign()
            if folder.state_file.exists():
                yield folder
