"""Logging of hpcdask's processes: one format, and the last lines kept for `get_logs`."""

from __future__ import annotations

import collections
import logging

from hpcdask import config

_recent: collections.deque[tuple[str, str]] = collections.deque()


class _Keeper(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _recent.append((record.levelname, self.format(record)))


def configure(level: str | int = "info", settings: config.Settings | None = None) -> None:
    """Send hpcdask's log to stderr and keep its last lines, as configured; may be called again.

    Parameters
    ----------
    level : str or int
        Lowest level to show; all from INFO up are kept.
    settings : hpcdask.config.Settings, optional
        By default as configured.
    """
    global _recent
    settings = config.current() if settings is None else settings
    _recent = collections.deque(_recent, maxlen=settings["admin.log-length"])
    number = logging.getLevelName(level.upper()) if isinstance(level, str) else level
    logger = logging.getLogger("hpcdask")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    shown, kept = logging.StreamHandler(), _Keeper(logging.INFO)
    shown.setLevel(number)
    for handler in (shown, kept):
        handler.setFormatter(logging.Formatter(settings["admin.log-format"]))
        logger.addHandler(handler)
    logger.setLevel(min(number, logging.INFO))
    logger.propagate = False


def recent(n: int | None = None) -> list[tuple[str, str]]:
    """The last `n` log lines of this process, as (level, line); all that are kept by default."""
    lines = list(_recent)
    return lines if n is None else lines[-n:]
