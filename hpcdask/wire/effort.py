"""What is pickled or unpickled at once, and what takes so long that it belongs into a thread.

A thread costs 50 to 100 us, and more where tasks compete for the interpreter, so most values are
better off without. But a dict of a million strings takes a second, and an object of a class that we
do not know any time at all, while a gigabyte of numbers in an array only goes along by reference.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from hpcdask.messages import Blob, Frames
from hpcdask.wire.first_imports import is_imported
from hpcdask.wire.serialize import WITH_LARGE_BYTES, LargeBytesUnpickler

#: Bytes that may be copied into or out of pickles in one go: about a millisecond.
QUICK_NBYTES = 2**20
#: Objects that may lie within a value that is pickled at once: some hundred microseconds.
QUICK_OBJECTS = 1000
#: Bytes of pickle that may be read at once; full of small objects, a millisecond or two.
QUICK_PICKLE = 128 * 1024

_NUMBERS = frozenset({type(None), bool, int, float, complex})
_STRINGS = frozenset({str, bytes, bytearray})
_CONTAINERS = frozenset({tuple, list, set, frozenset, dict})
#: Packages whose objects rebuild quickly, given what their pickle takes.
_PLAIN = frozenset({"builtins", "_codecs", "collections", "datetime", "decimal", "numpy", "uuid"})


def is_quickly_pickled(value: Any) -> bool:
    """Whether `value` surely is pickled within about a millisecond."""
    return _Allowance().covers(value)


class _Allowance:
    """What may still be pickled."""

    def __init__(self) -> None:
        self.objects, self.nbytes = QUICK_OBJECTS, QUICK_NBYTES

    def covers(self, value: Any) -> bool:
        # Not by recursion: a value may lie deeper than that reaches.
        items = [value]
        self.objects -= 1
        while items:
            item = items.pop()
            kind = type(item)
            if kind in _CONTAINERS:
                self.objects -= 2 * len(item) if kind is dict else len(item)
                if self.objects >= 0:
                    items += (*item, *item.values()) if kind is dict else item
            elif kind in _STRINGS:
                self.nbytes -= len(item) if kind is str else min(len(item), QUICK_NBYTES // 4)
            elif kind not in _NUMBERS and not self._covers_array(item):
                return False
            if self.objects < 0 or self.nbytes < 0:
                return False
        return True

    def _covers_array(self, value: Any) -> bool:
        """Arrays of numbers go by reference, unless they are views with gaps."""
        numpy = sys.modules.get("numpy")
        if numpy is None or type(value).__module__ != "numpy":
            return False
        if not isinstance(value, (numpy.ndarray, numpy.generic)) or value.dtype.hasobject:
            return False
        if not (value.flags.c_contiguous or value.flags.f_contiguous):
            self.nbytes -= value.nbytes
        return True


class _NotPlainError(Exception):
    """It takes some code to rebuild this object, and who knows how long."""


def loads_if_quick(blob: Blob) -> tuple[bool, Any]:
    """Rebuild an object if that surely is done within about a millisecond.

    Returns
    -------
    done : bool
    value : object
        None if not done.

    Raises
    ------
    Exception
        Whatever rebuilding raises.
    """
    pickled, *buffers = blob.parts if isinstance(blob, Frames) else [blob]
    if len(pickled) > QUICK_PICKLE:
        return False, None
    start = 1 if pickled[:1] == WITH_LARGE_BYTES else 0
    stream = io.BytesIO(memoryview(pickled)[start:])
    try:
        return True, _PlainUnpickler(stream, buffers=buffers).load()
    except _NotPlainError:
        return False, None


class _PlainUnpickler(LargeBytesUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        # A package that is not loaded yet would be imported now, and for one that another thread
        # is just importing we would have to wait.
        if module.partition(".")[0] in _PLAIN and is_imported(module):
            return super().find_class(module, name)
        raise _NotPlainError
