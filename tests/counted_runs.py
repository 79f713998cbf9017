"""Tasks of which every run leaves a file: what is computed twice can be seen."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from waiting import wait_until


def note_and_fill(folder: Path, x: int, nbytes: int) -> bytes:
    """A value; with some thousand bytes too large to go to the client by the way."""
    (folder / f"{x}-{uuid.uuid4().hex}").touch()
    time.sleep(0.02)
    return bytes([x]) * nbytes


def note_and_wait(folder: Path, x: int, go_on: Path) -> int:
    """A value that comes when another file is there."""
    (folder / f"{x}-{uuid.uuid4().hex}").touch()
    wait_until(go_on.exists, 60)
    return x


def count_runs(folder: Path) -> int:
    """How often tasks have begun that were given this folder."""
    return len(list(folder.iterdir()))
