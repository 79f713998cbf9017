"""Telling dask of clients and workers, if the program uses dask, and without importing it.

Who has a client makes a collection's ``.compute()`` run on its cluster. dask may be imported before
or after the client is made, or never, and takes half a second.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from typing import Any

#: Clients and workers of this process.
users: weakref.WeakSet[Any] = weakref.WeakSet()

#: The module after whose import dask has all that is changed in it.
_DASK = "dask.base"


def enter(user: object) -> None:
    """There is a client, or a worker whose tasks may use dask."""
    users.add(user)
    if _DASK in sys.modules:
        _tell()
    elif not any([type(finder) is _Finder for finder in sys.meta_path]):
        sys.meta_path.insert(0, _Finder())


def leave(user: object) -> None:
    """It has ended."""
    if user in users:
        users.discard(user)
        if _DASK in sys.modules:
            _tell()
        elif not users:
            _look_no_more()


def _look_no_more() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder) is not _Finder]


def _tell() -> None:
    importlib.import_module(_DASK)  # another thread may be at it still
    from hpcdask.collections import adoption

    adoption.settle()


class _Finder:
    """Finds `_DASK` once, as others would, and has it loaded by a `_Loader`."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _DASK:
            return None
        for finder in [finder for finder in sys.meta_path if type(finder) is not _Finder]:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Loads a module as its own loader does, and then tells it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        # From now on nothing is different from any other import.
        _look_no_more()
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if users:
            _tell()
