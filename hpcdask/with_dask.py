"""Telling dask and joblib of clients and workers, if the program uses them; without importing them.

Who has a client makes a collection's ``.compute()`` run on its cluster, and joblib know a backend
"hpcdask". Both may be imported before or after the client is made, or never; dask takes half a
second.
"""

from __future__ import annotations

import importlib
import logging
import sys
import weakref
from typing import Any

log = logging.getLogger("hpcdask.with_dask")

#: Clients and workers of this process.
users: weakref.WeakSet[Any] = weakref.WeakSet()

#: The module after whose import dask has all that is changed in it.
_DASK = "dask.base"
#: The module that has what joblib knows backends by.
_JOBLIB = "joblib.parallel"


def enter(user: object) -> None:
    """There is a client, or a worker whose tasks may use dask or joblib."""
    users.add(user)
    for name, tell in _TELL.items():
        if name in sys.modules:
            tell()
    if not _all_are_there() and not any([type(finder) is _Finder for finder in sys.meta_path]):
        sys.meta_path.insert(0, _Finder())


def leave(user: object) -> None:
    """It has ended."""
    if user in users:
        users.discard(user)
        if _DASK in sys.modules:
            _tell_dask()
        if not users:
            _look_no_more()


def _all_are_there() -> bool:
    return all([name in sys.modules for name in _TELL])


def _look_no_more() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder) is not _Finder]


def _tell_dask() -> None:
    dask = importlib.import_module(_DASK)  # another thread may be at it still
    try:
        from hpcdask.collections import adoption

        adoption.settle()
    except Exception as exc:  # which must not end the import of a dask that is another inside
        version = getattr(sys.modules.get("dask"), "__version__", None) or dask.__file__
        log.warning(
            "dask %s cannot be told of hpcdask's clients (%s: %s), so its collections will not run "
            "on their clusters; for the version that can, pip install 'hpcdask[dask]'",
            version,
            type(exc).__name__,
            exc,
        )


def _tell_joblib() -> None:
    importlib.import_module(_JOBLIB).register_parallel_backend("hpcdask", _backend)


def _backend(**parameters: Any) -> Any:
    # Most programs with joblib need none: scikit-learn imports it.
    from hpcdask.joblib import HpcdaskBackend

    return HpcdaskBackend(**parameters)


#: What to do once a module is imported.
_TELL = {_DASK: _tell_dask, _JOBLIB: _tell_joblib}


class _Finder:
    """Finds the modules of `_TELL` as others would, and has them loaded by a `_Loader`."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in _TELL:
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
        if _all_are_there():
            _look_no_more()
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if users:
            _TELL[module.__name__]()
