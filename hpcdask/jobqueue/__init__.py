"""Batch systems: what each one calls things, and submitting jobs to any of them.

Names are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcdask.jobqueue.runner import MPIRunner, PBSRunner, SGERunner, SLURMRunner

_WHERE = {
    **dict.fromkeys(["MPIRunner", "PBSRunner", "SGERunner", "SLURMRunner"], "runner"),
}

__all__ = [
    "MPIRunner",
    "PBSRunner",
    "SGERunner",
    "SLURMRunner",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
