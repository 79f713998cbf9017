"""Imports that reading a pickle causes, in one thread while others import the same package.

Python locks each module while it is imported, and ``import a.b`` locks ``a.b`` before it waits
for ``a``. Who imports ``a``, and for that ``a.b``, would then wait in a circle; so Python lets one
of the two go on with half a module, and its import fails. Packages that name their inner modules
in their pickles, as numpy does, run into that.
"""

from __future__ import annotations

import contextlib
import importlib
import sys


def is_imported(module: str) -> bool:
    """Whether a module, and the package that it is of, can be used without waiting."""
    package = module.partition(".")[0]
    return module in sys.modules and not (_is_under_way(module) or _is_under_way(package))


def is_half_an_import(exc: Exception) -> bool:
    """Whether an error may come from a module that another thread was just importing."""
    if isinstance(exc, ModuleNotFoundError):
        return bool(_under_way())
    # The import may be over by now. An AttributeError is the unpickler's, about a name in a module.
    text = str(exc)
    return (
        "partially initialized" in text
        or (isinstance(exc, AttributeError) and text.startswith("Can't get attribute"))
        or type(exc).__name__ == "_DeadlockError"
        or (isinstance(exc, ImportError) and bool(_under_way()))
    )


def wait_for_imports() -> None:
    """Wait until other threads have imported what they are importing.

    Who calls this holds the lock of no module, so it is Python itself that waits, in no circle.
    """
    for module in _under_way():
        with contextlib.suppress(Exception):  # that is for the other thread to tell
            importlib.import_module(module.partition(".")[0])


def _under_way() -> list[str]:
    return [module for module in list(sys.modules) if _is_under_way(module)]


def _is_under_way(module: str) -> bool:
    with contextlib.suppress(Exception):  # some put odd things among their modules
        spec = getattr(sys.modules.get(module), "__spec__", None)
        return bool(getattr(spec, "_initializing", False))
    return False
