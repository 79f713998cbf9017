"""Times, sizes and numbers as batch systems write them."""

from __future__ import annotations

import math


def counted(n: int, noun: str) -> str:
    """A number of things, in words."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{n} {noun if n == 1 else plural}"


def format_walltime(seconds: int) -> str:
    """`seconds` as hours:minutes:seconds, which all systems read alike.

    Examples
    --------
    >>> format_walltime(100 * 3600 + 61)
    '100:01:01'
    """
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}"


def mebibytes(nbytes: int) -> int:
    """The whole MiB in which `nbytes` has room."""
    return math.ceil(nbytes / 2**20)
