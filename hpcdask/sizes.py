"""How large values are, measured where that is cheap."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

from hpcdask.messages import Blob
from hpcdask.wire.serialize import dumps

#: Pickled results up to this size, in bytes, go to waiting clients with the finished message.
SMALL_RESULT = 2048
#: A size that is told to others, in bytes; what claims more, such as a view that repeats itself,
#: would not fit into a message.
_MOST = 2**60

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})
_CONTAINERS = frozenset({tuple, list, set, frozenset, dict})


def sizeof(value: Any) -> int:
    """Size of a value in bytes: measured where it is cheap, else a rough guess.

    Arrays and frames tell it themselves (``nbytes``, ``memory_usage``); of a container the first
    hundred items are looked at and the mean is taken for the rest.
    """
    kind = type(value)
    if kind in _SCALARS:
        return sys.getsizeof(value)
    try:
        if hasattr(kind, "memory_usage"):
            return _size_of_table(value)
        nbytes = getattr(value, "nbytes", None)
        if type(nbytes) is int or (nbytes is not None and hasattr(nbytes, "__index__")):
            return min(max(int(nbytes), 0) + 100, _MOST)
        container: Any = kind if kind in _CONTAINERS else _container_of(kind)
        if container is not None and value:
            items = list(islice(value.items() if container is dict else value, 100))
            mean = sum(map(sizeof, items)) / len(items)
            return int(container.__sizeof__(value)) + int(mean * len(value))
        return sys.getsizeof(value)
    except Exception:  # a value that misbehaves when looked at is still a value
        return 100


def _container_of(kind: type) -> Any:
    """The container that a class derives from; its own ``__sizeof__`` may take long.

    dask's results of splitting a table are dicts of tables which ask each of them at length.
    """
    for container in (dict, list, tuple):
        if issubclass(kind, container):
            return container
    return None


def _size_of_table(value: Any) -> int:
    """Bytes of a table, or column, of pandas, or of what has the same method."""
    blocks = getattr(getattr(value, "_mgr", None), "blocks", None)
    if blocks is not None:
        # Asked itself, pandas makes an object of each column: 100 us, and more than some tasks.
        nbytes = sum([block.values.nbytes for block in blocks])
        return int(nbytes + value.index.nbytes) + 100
    usage = value.memory_usage(deep=False)
    return int(usage.sum() if hasattr(usage, "sum") else usage)


def small(value: Any) -> Blob | None:
    """Pickle of a value that surely is small; None of all others."""
    if type(value) is object or not _is_small(value, [64]):
        return None
    try:
        pickled = dumps(value)
    except Exception:
        return None
    return pickled if type(pickled) is bytes and len(pickled) <= SMALL_RESULT else None


def _is_small(value: Any, budget: list[int]) -> bool:
    """Whether a value is made of a few builtin scalars, or is one of numpy's."""
    kind = type(value)
    budget[0] -= 1
    if kind in _SCALARS:
        return sys.getsizeof(value) <= SMALL_RESULT
    if kind in _CONTAINERS:
        if len(value) > budget[0]:
            return False
        items = (*value.keys(), *value.values()) if kind is dict else value
        return all(_is_small(item, budget) for item in items)
    return kind.__module__ == "numpy" and getattr(value, "nbytes", SMALL_RESULT) < SMALL_RESULT
