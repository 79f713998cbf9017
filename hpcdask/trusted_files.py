"""Files that decide whom we trust or what we run: where a user's are, and reading these."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

StrPath = str | os.PathLike[str]

#: None of our files is larger; TLS credentials take a few KiB.
MAX_FILE_BYTES = 256 * 1024


def user_folder(environ: Mapping[str, str]) -> Path:
    """The folder of a user's files: ``$XDG_CONFIG_HOME/hpcdask``, or that in ``~/.config``."""
    config = environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification tells to ignore a relative path.
    base = Path(config) if os.path.isabs(config) else Path.home() / ".config"
    return base / "hpcdask"


def read_approved(path: StrPath, approve: Callable[[os.stat_result], None]) -> str:
    """Content of a file, after `approve` has seen the status of what was opened.

    It is cut off after `MAX_FILE_BYTES`.
    """
    # O_NONBLOCK: to open a FIFO must not hang us.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        approve(os.fstat(descriptor))
        return os.read(descriptor, MAX_FILE_BYTES).decode("utf-8", errors="replace")
    finally:
        os.close(descriptor)
