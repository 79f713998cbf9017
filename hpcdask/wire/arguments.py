"""Arguments of a task: a pickle of (args, kwargs) in which inputs are placeholders.

The worker sets the inputs and loads the pickle; each placeholder loads as its value, however
deeply it lies within lists, tuples, sets and dicts. Nothing has to be searched there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from hpcdask.messages import Blob
from hpcdask.wire.serialize import loads

#: A list of one. What is begun meanwhile, as a connection may be for a future that is rebuilt, has
#: this context for as long as it lasts, and would keep the inputs.
_inputs: ContextVar[list[Mapping[str, Any]]] = ContextVar("inputs")


class Input:
    """Stands for the value of a key."""

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        self.key = key

    def __reduce__(self) -> Any:
        return _value_of, (self.key,)


class Stored:
    """What stands in a worker's table for a value that tasks and clients get in another form."""

    __slots__ = ()

    def given(self) -> Any:
        """Return what a task or a client gets."""
        raise NotImplementedError


def _value_of(key: str) -> Any:
    return given(_inputs.get()[0][key])


def given(value: Any) -> Any:
    """Return a value in the form in which tasks and clients get it."""
    # By its type, since a value may lie about its class, and at length.
    return value.given() if issubclass(type(value), Stored) else value


def loads_value(blob: Blob) -> Any:
    """Rebuild the value of a key for who has asked for it."""
    return given(loads(blob))


def loads_arguments(blob: Blob, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """Rebuild (args, kwargs) with the values of `inputs` in their places."""
    if not inputs:
        return loads(blob)  # type: ignore[no-any-return]
    box = [inputs]
    token = _inputs.set(box)
    try:
        # The one is `_value_of`.
        return loads(blob, imported=1)  # type: ignore[no-any-return]
    finally:
        _inputs.reset(token)
        box.clear()
