"""Metadata: small values in nested dictionaries, which all clients can read and change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Metadata:
    """A tree of dicts whose leaves are blobs."""

    def __init__(self) -> None:
        self._root: dict[Any, Any] = {}

    def set(self, path: Sequence[Any], value: Any) -> None:
        """Set a blob, or a tree of them; dicts on the way that are not there are made.

        Raises
        ------
        TypeError
            If something on the way is a value.
        """
        if not path:
            raise ValueError("set_metadata() needs at least one key")
        node = self._root
        for depth, key in enumerate(path[:-1], 1):
            # Nothing is left half-done: in a dict that is made here there is no value to meet.
            node = node.setdefault(key, {})
            if type(node) is not dict:
                raise TypeError(
                    f"the metadata at {list(path[:depth])} is a value and no dict; set it anew "
                    "before you put something below it"
                )
        node[path[-1]] = copied(value)

    def get(self, path: Sequence[Any]) -> Any:
        """Return what is there: a blob, or a copy of a tree.

        Raises
        ------
        KeyError
            If there is nothing.
        """
        node: Any = self._root
        for depth, key in enumerate(path, 1):
            if type(node) is not dict or key not in node:
                raise KeyError(f"there is no metadata at {list(path[:depth])}")
            node = node[key]
        return copied(node)


def copied(tree: Any) -> Any:
    """A tree with dicts of its own: a client in this very process would get the scheduler's."""
    if type(tree) is not dict:
        return tree
    return {key: copied(value) for key, value in tree.items()}
