"""Times, sizes and numbers as batch systems write them."""

from __future__ import annotations

import math
import re

from hpcdask.errors import ConfigError


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


def parse_walltime(text: str) -> int:
    """Seconds in ``"1:30:00"``, ``"2-00:00:00"`` or a length of time like ``"90min"``.

    Not in a bare number or in ``"1:30"``, which batch systems read differently: a number is minutes
    for Slurm and seconds for PBS.

    Raises
    ------
    ConfigError
        If `text` has none of these forms, or is no time at all.
    """
    from hpcdask.host import parse_timedelta

    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)", text.strip())
    if clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    elif re.fullmatch(r"[\d.:]+", text.strip()):
        raise ConfigError(
            f"{text!r} means other things to other batch systems; give hours:minutes:seconds, "
            "as in 1:30:00, or a unit, as in 90min"
        )
    else:
        total = math.ceil(parse_timedelta(text))
    if total < 1:
        raise ConfigError(f"{text!r} is no time for a job; give at least a second")
    return total


def mebibytes(nbytes: int) -> int:
    """The whole MiB in which `nbytes` has room."""
    return math.ceil(nbytes / 2**20)
