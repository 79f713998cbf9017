"""Which class of worker or nanny is meant, as ``--worker-class`` and ``worker_class=`` give it."""

from __future__ import annotations

import importlib
from typing import Any

from hpcdask.errors import ConfigError

#: Names as programs for dask.distributed give them.
_OURS = {
    f"{module}{name}": f"hpcdask.{name}"
    for name in ("Nanny", "Worker")
    for module in ("", "distributed.", "dask.distributed.")
} | {"distributed.cli.dask_worker": "hpcdask.Nanny"}  # as dask-ssh names it


def find_class(name: str | type) -> type[Any]:
    """Return the class that is called so.

    Parameters
    ----------
    name : str or type
        ``"module.Class"``, or a class itself. "distributed.Nanny" and "Nanny" are ours, and so are
        the workers' names.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if isinstance(name, type):
        return name
    module, _, attribute = _OURS.get(name, name).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigError(
            f"there is no worker class {name!r}: {exc}. Name one as in 'hpcdask.Nanny', in a "
            "module that this Python can import"
        ) from exc
    if not isinstance(found, type):
        raise ConfigError(f"{name!r} is no class, but {found!r:.80}")
    return found


def is_ours(name: str) -> bool:
    """Whether a class of this package is called so."""
    return _OURS.get(name, name) in ("hpcdask.Nanny", "hpcdask.Worker")


def path_of(cls: str | type) -> str:
    """The name by which another process finds a class.

    Raises
    ------
    ConfigError
        If it has none.
    """
    if isinstance(cls, str):
        return cls
    path = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "__main__" or "<locals>" in path:
        raise ConfigError(
            f"a worker process cannot import {path}: put the class into a module of its own"
        )
    return path
