"""Configuration: arguments go before what a program sets, then environment, files, defaults.

`schema` has all settings, `settling` decides which value counts, `files` reads what user and site
have written. This module holds what the process knows, and each component settles its options once,
from `current`.

Examples
--------
>>> import hpcdask.config
>>> hpcdask.config.get("scheduler.worker-ttl")
30.0
>>> with hpcdask.config.set({"scheduler.worker-ttl": "5 min"}):
...     hpcdask.config.get("scheduler.worker-ttl")
300.0
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from hpcdask.config import files
from hpcdask.config.settling import Found, Layer, Settings, from_program, settle

__all__ = ["DEFAULTS", "Settings", "adopt", "current", "get", "hand_over", "refresh", "set"]

#: What there is where nobody has configured anything.
DEFAULTS = settle(Layer(), {}, ())

_lock = threading.RLock()
#: What `set` has set, the latest last.
_program: list[Layer] = []
#: What the files say, in a process that was told and does not read them.
_adopted: list[Layer] | None = None


def current() -> Settings:
    """The value of every setting, as of now.

    Raises
    ------
    ConfigError
        If a file or a variable has a setting that there is not, or that cannot be so.
    """
    with _lock:
        program = Layer({key: found for layer in _program for key, found in layer.found.items()})
        read = files.layers(os.environ) if _adopted is None else _adopted
    return settle(program, os.environ, read)


def get(key: str) -> Any:
    """The value of a setting, as of now.

    Parameters
    ----------
    key : str
        As in "scheduler.worker-ttl"; a section, as "worker.lifetime", gives a dict.

    Returns
    -------
    object
        Times are in seconds, sizes in bytes.

    Raises
    ------
    ConfigError
        If there is no such setting; it says which was meant.
    """
    return current().look_up(key)


class set:
    """Set settings in this process, for all that starts from now on; or for a ``with`` block.

    It goes before environment and files, not before arguments.

    Parameters
    ----------
    values : mapping, optional
        By key, ``{"scheduler.worker-ttl": "60s"}``, or nested as in a file.
    **more
        The same with two underscores for a dot, ``scheduler__worker_ttl="60s"``.

    Raises
    ------
    ConfigError
        If there is no such setting, or it cannot be so.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        spelt_out = {name.replace("__", "."): value for name, value in more.items()}
        self._layer = from_program({**(values or {}), **spelt_out})
        with _lock:
            _program.append(self._layer)

    def __enter__(self) -> set:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _lock:
            _program[:] = [layer for layer in _program if layer is not self._layer]


def refresh() -> None:
    """Read the files anew, for all that starts from now on; they are read once otherwise."""
    files.forget()


def hand_over(settings: Settings) -> dict[str, Any]:
    """What another process, which has an environment of its own, is to know; for `adopt`."""
    program, _environment, *read = settings.layers
    said = {key: found for layer in reversed(read) for key, found in layer.found.items()}
    return {"program": program.found, "files": said}


def adopt(handed_over: Mapping[str, Any]) -> None:
    """Know what another process has handed over, and read no files.

    A thousand workers that start at once would each ask a shared file system for the same.
    """
    global _adopted
    program, said = (
        Layer({key: Found(*found) for key, found in handed_over[name].items()})
        for name in ("program", "files")
    )
    with _lock:
        _program.append(program)
        _adopted = [said]
