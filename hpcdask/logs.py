"""Logging of hpcdask's processes: one format, and the last lines kept for `get_logs`."""

from __future__ import annotations

import collections
import logging

FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"

_recent: collections.deque[tuple[str, str]] = collections.deque(maxlen=1000)


class _Keeper(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _recent.append((record.levelname, self.format(record)))


def configure(level: str | int = "info") -> None:
    """Send hpcdask's log to stderr and keep its last lines; may be called again.

    Parameters
    ----------
    level : str or int
        Lowest level to show; all from INFO up are kept.
    """
    number = logging.getLevelName(level.upper()) if isinstance(level, str) else level
    logger = logging.getLogger("hpcdask")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    shown, kept = logging.StreamHandler(), _Keeper(logging.INFO)
    shown.setLevel(number)
    for handler in (shown, kept):
        handler.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(handler)
    logger.setLevel(min(number, logging.INFO))
    logger.propagate = False


def recent(n: int | None = None) -> list[tuple[str, str]]:
    """The last `n` log lines of this process, as (level, line); all that are kept by default."""
    lines = list(_recent)
    return lines if n is None else lines[-n:]
