"""Ranks that agree through small files in a folder that all of them see.

A folder may be left from a launch that was killed, and ranks come in any order. So each rank brings
a number of its own, rank 0 first removes what it finds, and a rank goes on when rank 0 repeats its
number. All that is agreed on afterwards bears the name of that session.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hpcdask import network
from hpcdask.errors import LaunchError, TokenError
from hpcdask.launchers.ranks import Ranks
from hpcdask.rendezvous import read_private, replace_private
from hpcdask.world import World

#: Longest pause between two looks for a file, in seconds.
_LONGEST_PAUSE = 1.0
#: Times that the folder is removed, while others may still write into it.
_REMOVALS = 10
#: Seconds that others get at the end to read what was shared with them.
_FAREWELL = 3.0


class FileRanks(Ranks):
    """Ranks that agree through files.

    Parameters
    ----------
    world : World
        With a `launch_id`, which names their folder.
    folder : path
        A folder that all ranks see; they make one of their own in it, for their user only.
    timeout : float
        Seconds that a rank waits for another.

    Raises
    ------
    LaunchError
        If the folder cannot be used.
    """

    def __init__(self, world: World, folder: str | os.PathLike[str], timeout: float) -> None:
        self._folder = Path(folder) / f"ranks-{as_file_name(world.launch_id)}"
        self._timeout = timeout
        self._me = secrets.token_hex(16)
        self._session = ""
        self._hosts: list[str] = []
        self._n_shared = 0
        self._cleaner: threading.Thread | None = None
        super().__init__(world, f"through files in {self._folder}")
        _make_own_folder(self._folder)

    # -- Agreeing ---------------------------------------------------------------------------------

    @property
    def have_met(self) -> bool:
        """Whether this rank has heard of all others."""
        return bool(self._session)

    def gather_on_all(self, value: Any) -> list[Any]:
        """Begin a session: rank 0 collects what all others bring, and tells it to all."""
        hello = [self._me, network.hostname(), value]
        hellos = self._collect(hello) if self.world.rank == 0 else self._bring(hello)
        self._hosts = [host for _, host, _ in hellos]
        return [each for _, _, each in hellos]

    def _collect(self, mine: list[Any]) -> list[list[Any]]:
        for name in self._names():  # of a launch that was killed, or of who was faster than we
            if not name.startswith("."):  # which is just being written
                (self._folder / name).unlink(missing_ok=True)
        hellos: dict[int, list[Any]] = {0: mine}

        def look() -> dict[int, list[Any]] | None:
            for name in self._names():
                rank = name.removeprefix("hello-")
                if rank != name and int(rank) not in hellos:
                    hello = self._look_at(name)
                    if hello is not None:
                        hellos[int(rank)] = hello
            return hellos if len(hellos) == self.world.size else None

        def missing() -> str:
            ranks = [str(rank) for rank in range(self.world.size) if rank not in hellos]
            more = f" and {len(ranks) - 5} more" if len(ranks) > 5 else ""
            return f"rank {', '.join(ranks[:5])}{more} of {self.world.size} to come"

        self._wait_until(look, self._timeout, missing)
        ordered = [hellos[rank] for rank in range(self.world.size)]
        self._session = secrets.token_hex(16)
        self._write("session", [self._session, ordered])
        return ordered

    def _bring(self, mine: list[Any]) -> list[list[Any]]:
        name = f"hello-{self.world.rank}"

        def look() -> tuple[str, list[list[Any]]] | None:
            session = self._look_at("session")
            if session is not None and session[1][self.world.rank][0] == self._me:
                return session[0], session[1]
            if name not in self._names():  # rank 0 has just come
                self._write(name, mine)
            return None

        # Rank 0 may wait for others for as long, and says which: hence the second half.
        what = f"rank 0 to come to {self._folder}"
        self._write(name, mine)
        try:
            self._session, hellos = self._wait_until(look, 1.5 * self._timeout, lambda: what)
        except LaunchError:
            with contextlib.suppress(OSError):  # we may have come after all was over
                (self._folder / name).unlink()
                self._folder.rmdir()
            raise
        self._acknowledge("session")
        return list(hellos)

    def share(self, value: Any, root: int = 0) -> Any:
        """Let `root` write it and the others read it."""
        self._n_shared += 1
        name = f"share-{self._n_shared}-{self._session}"
        if self.world.rank == root:
            self._write(name, [value])
            return value
        what = f"rank {root} to write {self._folder / name}"
        [value] = self._wait_until(lambda: self._look_at(name), self._timeout, lambda: what)
        self._acknowledge(name)
        return value

    def gather(self, value: Any) -> list[Any] | None:
        """Let all write theirs and rank 0 read them."""
        name = f"gather-{self._session}-"
        if self.world.rank != 0:
            self._write(f"{name}{self.world.rank}", [value])
            return None
        values = [value]
        for rank in range(1, self.world.size):
            what = f"rank {rank} to write {self._folder / name}{rank}"
            look = partial(self._look_at, f"{name}{rank}")
            values += self._wait_until(look, self._timeout, partial(str, what))
        return values

    def count_here(self, is_counted: Callable[[int], bool]) -> int:
        """Count them by the names of their hosts."""
        here = network.hostname()
        return sum(is_counted(rank) for rank, host in enumerate(self._hosts) if host == here)

    # -- The end ----------------------------------------------------------------------------------

    def _part(self) -> None:
        """Remove the folder as soon as all have read what is in it: there may be no time later."""
        if self.world.rank == 0:
            self._cleaner = threading.Thread(target=self._remove, args=(self._timeout,))
            self._cleaner.daemon = True
            self._cleaner.start()

    def clean_up(self) -> None:
        """Remove the folder, though others may be late."""
        if self._cleaner is not None:
            self._cleaner.join(_FAREWELL)
            self._remove_folder()

    def _remove(self, patience: float) -> None:
        expected = (self._n_shared + 1) * (self.world.size - 1) if self._session else 0

        def look() -> bool | None:
            return sum(name.startswith("ack-") for name in self._names()) >= expected or None

        with contextlib.suppress(LaunchError):
            self._wait_until(look, patience, lambda: "the others")
        self._remove_folder()

    def _remove_folder(self) -> None:
        for _ in range(_REMOVALS):
            shutil.rmtree(self._folder, ignore_errors=True)
            if not os.path.exists(self._folder):
                return
            # One that looks for us has just written its name into it.

    # -- Files ------------------------------------------------------------------------------------

    def _acknowledge(self, name: str) -> None:
        self._write(f"ack-{name}-{self.world.rank}", None)

    def _write(self, name: str, value: Any) -> None:
        try:
            replace_private(self._folder / name, json.dumps(value))
        except FileNotFoundError:
            raise self._is_over() from None
        except OSError as exc:
            raise LaunchError(f"cannot write {self._folder / name}: {exc.strerror}") from exc

    def _names(self) -> list[str]:
        """List the folder: NFS then asks its server again."""
        try:
            return os.listdir(self._folder)
        except FileNotFoundError:
            raise self._is_over() from None
        except OSError:  # a file server that stumbles
            return []

    def _look_at(self, name: str) -> Any:
        self._names()
        try:
            return json.loads(read_private(self._folder / name))
        except TokenError:
            raise
        except OSError:  # not there yet, or replaced while we read it
            return None

    def _is_over(self) -> LaunchError:
        return LaunchError(f"{self._folder} is gone: the other ranks have ended")

    def _wait_until(self, look: Callable[[], Any], timeout: float, what: Callable[[], str]) -> Any:
        deadline, pause = time.monotonic() + timeout, 0.01
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"rank {self.world.rank} has waited {timeout:g} s for {what()}. Check that all "
                    f"ranks were started, and that all hosts see {self._folder}"
                )
            time.sleep(pause * random.uniform(0.5, 1.0))  # a thousand ranks ask the file server
            pause = min(1.5 * pause, _LONGEST_PAUSE)
        return found


def as_file_name(text: str) -> str:
    """A text with nothing in it that a file's name may not have."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def _make_own_folder(path: Path) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o700)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(None, f"{path} is not a folder of yours")
        if status.st_mode & 0o077:
            raise PermissionError(None, f"{path} is open to other users")
        if not os.access(path, os.W_OK):
            raise PermissionError(None, "you may not write there")
    except OSError as exc:
        why = exc.strerror
        if not path.parent.exists():
            why = f"the folder {path.parent} does not exist"
        raise LaunchError(
            f"the ranks cannot meet in {path.parent}: {why}. Name a file in a folder that you can "
            "write and all hosts can see, with --scheduler-file"
        ) from exc
