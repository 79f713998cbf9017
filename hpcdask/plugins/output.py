"""What tasks print and warn of, shown where the clients are."""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from hpcdask import network
from hpcdask.places import current_worker
from hpcdask.plugins.base import WorkerPlugin

if TYPE_CHECKING:
    from hpcdask.worker import Worker

#: Topics that clients are told of, and that they show.
PRINTED, WARNED = "print", "warn"

_STREAMS = ("stdout", "stderr")


def print(
    *args: Any,
    sep: str | None = " ",
    end: str | None = "\n",
    file: TextIO | None = None,
    flush: bool = False,
) -> None:
    """As the builtin `print`; within a task the text is also printed by all clients.

    Parameters
    ----------
    *args, sep, end, flush
        As of the builtin.
    file : sys.stdout or sys.stderr, optional
        By default ``sys.stdout``. Outside of tasks, any file.

    Raises
    ------
    TypeError
        Within a task, if `file` is another one.

    Examples
    --------
    >>> import hpcdask
    >>> def step(n):
    ...     hpcdask.print("step", n)
    >>> client.submit(step, 3).result()                                     # doctest: +SKIP
    step 3
    """
    worker = current_worker()
    if worker is not None:
        if file is not None and file not in (sys.stdout, sys.stderr):
            raise TypeError(
                "within a task, print() takes sys.stdout or sys.stderr as file=, since the text "
                f"is printed by clients, too; not {file!r}"
            )
        about = {
            "args": tuple(map(str, args)),
            "sep": sep,
            "end": end,
            "file": "stderr" if file is not None and file is sys.stderr else "stdout",
            "flush": flush,
        }
        worker.log_event(PRINTED, {**about, "process": this_process()})
    with _not_forwarded():  # by ForwardOutput, as clients have it already
        builtins.print(*args, sep=sep, end=end, file=file, flush=flush)


def warn(
    message: str | Warning,
    category: type[Warning] | None = UserWarning,
    stacklevel: int = 1,
    source: Any = None,
) -> None:
    """As `warnings.warn`; within a task the warning is also issued by all clients.

    Parameters
    ----------
    message, category
        As of `warnings.warn`.
    stacklevel, source
        As of `warnings.warn`; to clients they mean nothing.

    Examples
    --------
    >>> import hpcdask
    >>> def check(n):
    ...     if n > 100:
    ...         hpcdask.warn(f"{n} is a lot")
    """
    worker = current_worker()
    if worker is not None:
        about = {"message": message, "category": category}
        worker.log_event(WARNED, {**about, "process": this_process()})
    with _not_forwarded():
        warnings.warn(message, category, stacklevel + 1, source)


def show_printed(event: tuple[float, Any]) -> None:
    """Print what a task has printed; a client's handler of `PRINTED`."""
    about = event[1]
    if isinstance(about, dict) and about.get("process") != this_process():
        file = sys.stderr if about.get("file") == "stderr" else sys.stdout
        arguments = {name: about.get(name) for name in ("sep", "end")}
        flush = bool(about.get("flush"))
        builtins.print(*about.get("args", ()), **arguments, file=file, flush=flush)
    elif not isinstance(about, dict):  # a user's own event under that topic
        builtins.print(about)


def show_warning(event: tuple[float, Any]) -> None:
    """Issue the warning of a task; a client's handler of `WARNED`."""
    about = event[1]
    if not isinstance(about, dict):
        warnings.warn(str(about), stacklevel=2)
    elif about.get("process") != this_process():
        warnings.warn(about.get("message", ""), about.get("category"), stacklevel=2)


#: What every client listens to, and what it does then.
SHOWN: dict[str, Callable[[tuple[float, Any]], None]] = {
    PRINTED: show_printed,
    WARNED: show_warning,
}


def this_process() -> tuple[str, int]:
    """Tells this process from others, on whatever host."""
    return network.hostname(), os.getpid()


# -- All output ------------------------------------------------------------------------------------


class ForwardOutput(WorkerPlugin):
    """Has all clients print what workers print, to stdout and to stderr, line by line.

    All that Python code prints there is sent, of whatever thread; not what programs and C libraries
    write by themselves. Much output is a burden for the scheduler, through which it goes.

    Examples
    --------
    >>> results = client.register_plugin(ForwardOutput())                   # doctest: +SKIP
    """

    name = "forward-output"

    def setup(self, worker: Worker) -> None:
        """Listen to the streams."""
        self._streams = [_Forwarded(name, worker) for name in _STREAMS]

    def teardown(self, worker: Worker) -> None:
        """Send what is left, and leave the streams alone."""
        for stream in self._streams:
            stream.stop()


_local = threading.local()


@contextlib.contextmanager
def _not_forwarded() -> Iterator[None]:
    """What this thread writes meanwhile is not sent."""
    before = getattr(_local, "is_quiet", False)
    _local.is_quiet = True
    try:
        yield
    finally:
        _local.is_quiet = before


class _Forwarded:
    """Sends what is written to a stream, in whole lines, or as far as it was flushed."""

    def __init__(self, name: str, worker: Worker) -> None:
        self._name, self._worker = name, worker
        self._stream: Any = getattr(sys, name)
        self._pending: list[str] = []
        self._lock = threading.RLock()
        self._is_on = self._stream is not None
        if self._is_on:
            # Methods of the very object, which handlers of logging, for one, have kept.
            self._write, self._flush = self._stream.write, self._stream.flush
            self._stream.write, self._stream.flush = self.write, self.flush

    def write(self, text: str) -> Any:
        """Write, and send what has become a line."""
        written = self._write(text)
        if self._is_on and not getattr(_local, "is_quiet", False):
            with self._lock:
                self._pending.append(text)
                if "\n" in text:
                    lines, newline, rest = "".join(self._pending).rpartition("\n")
                    self._pending = [rest] if rest else []
                    self._send(lines + newline)
        return written

    def flush(self) -> Any:
        """Flush, and send what is left."""
        flushed = self._flush()
        if self._is_on and not getattr(_local, "is_quiet", False):
            with self._lock:
                text, self._pending = "".join(self._pending), []
                if text:
                    self._send(text)
        return flushed

    def _send(self, text: str) -> None:
        about = {"args": (text,), "sep": "", "end": "", "file": self._name, "flush": True}
        with _not_forwarded():  # sending may write to the log
            self._worker.log_event(PRINTED, {**about, "process": this_process()})

    def stop(self) -> None:
        """Send what is left, and nothing more."""
        if not self._is_on:
            return
        self.flush()
        self._is_on = False
        # Another worker of this process may listen, too; then this goes on doing nothing.
        if self._stream.write == self.write:
            self._stream.write, self._stream.flush = self._write, self._flush
