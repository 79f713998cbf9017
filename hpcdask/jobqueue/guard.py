"""A small process that ends a cluster's jobs if the process that keeps them is killed."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import weakref
from pathlib import Path

from hpcdask.jobqueue.commands import environment
from hpcdask.jobqueue.folder import ClusterFolder, Owner

log = logging.getLogger("hpcdask.jobqueue")

_guards: weakref.WeakSet[Guard] = weakref.WeakSet()
#: Seconds in which it ends when it is told to.
_ENDING = 2.0


class Guard:
    """Waits beside this process for its end; does nothing unless that comes without a word.

    It is at the other end of a pipe, so it uses no CPU and learns of any end at once, of a
    ``kill -9`` too. It is in a session of its own, so what ends a terminal does not end it.

    Parameters
    ----------
    folder : ClusterFolder
        Of the cluster, which this process keeps.
    """

    def __init__(self, folder: ClusterFolder) -> None:
        owner = Owner.here()
        source = str(Path(__file__).parents[2])
        paths = filter(None, (source, os.environ.get("PYTHONPATH")))
        environ = environment(os.environ, submits=True) | {"PYTHONPATH": os.pathsep.join(paths)}
        words = [os.fspath(folder.path), str(owner.pid), repr(owner.started)]
        read_end, self._pipe = os.pipe()
        try:
            with open(folder.path / "guard.log", "wb", opener=_private) as errors:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "hpcdask.jobqueue.guard_process", *words],
                    stdin=read_end,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    cwd="/",
                    env=environ,
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(read_end)
        _guards.add(self)

    def dismiss(self) -> None:
        """Let it end: the cluster is in order."""
        if self._pipe < 0:
            return
        with contextlib.suppress(OSError):  # it has ended before
            os.write(self._pipe, b".")
        self._let_go()
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_ENDING)
            if code:
                log.warning("the guard of a cluster has ended before its time, with code %d", code)

    def _let_go(self) -> None:
        pipe, self._pipe = self._pipe, -1
        os.close(pipe)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _let_go_all() -> None:
    """A fork of this process is not what is guarded, and must not seem to be."""
    for guard in list(_guards):
        if guard._pipe >= 0:
            guard._let_go()


os.register_at_fork(after_in_child=_let_go_all)
