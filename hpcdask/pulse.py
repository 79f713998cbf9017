"""Whether another process does something, as its kernel sees it."""

from __future__ import annotations

from typing import NamedTuple

#: Stopped, traced, zombie, dead; proc(5).
_NOT_ALIVE = frozenset("TtZXx")


class _Look(NamedTuple):
    state: str  # one letter, as in proc(5)
    cpu: float  # time used by all its threads, in whatever unit: only compared


class Pulse:
    """Tells from one look to the next whether a process works.

    For who wonders about a process that is mute: C code that keeps the interpreter's lock keeps
    all its Python threads from running, and still is no reason to give it up. What such code may
    do is compute, or wait for a disk; in both it shows.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._last = _look(pid)

    def beats(self) -> bool:
        """Whether it has used CPU time since the last look, or waits for a disk.

        False if it is gone or stopped. An idle process has no pulse either: it can speak for
        itself.
        """
        before, self._last = self._last, _look(self.pid)
        if self._last is None or self._last.state in _NOT_ALIVE:
            return False
        return self._last.state == "D" or (before is not None and self._last.cpu > before.cpu)


def _look(pid: int) -> _Look | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # Behind the name, which is in parentheses and may have some of its own.
            fields = stat.read().rpartition(b") ")[2].split()
    except FileNotFoundError:
        return _look_elsewhere(pid)
    except OSError:  # it ended while we read
        return None
    return _Look(fields[0].decode(), int(fields[11]) + int(fields[12]))  # utime, stime


def _look_elsewhere(pid: int) -> _Look | None:
    """The same where there is no /proc; None if there is no such process."""
    import psutil

    letters = {psutil.STATUS_STOPPED: "T", psutil.STATUS_ZOMBIE: "Z", psutil.STATUS_DISK_SLEEP: "D"}
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return _Look(letters.get(process.status(), "S"), times.user + times.system)
    except psutil.Error:
        return None
