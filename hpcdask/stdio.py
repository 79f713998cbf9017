"""Standard streams that a process keeps for whoever started it, out of reach of tasks."""

from __future__ import annotations

import io
import os
import sys


def take_stdin() -> int:
    """Return another descriptor of stdin, which becomes empty: a task that reads it finds nothing.

    Nor do its children, that would else read what we are told, or wait for it for ever.
    """
    ours = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return ours


def print_line_by_line() -> None:
    """Let what is printed be seen at the end of each line, although stdout is a pipe or a file."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def take_stdout() -> int:
    """Return another descriptor of stdout; what is printed from now on goes to stderr."""
    ours = os.dup(1)
    os.dup2(2, 1)
    return ours
