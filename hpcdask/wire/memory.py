"""Memory to receive into, taken the fast way."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from functools import cache
from typing import Any

from hpcdask.errors import ProtocolError

#: From here on memory is not zeroed first, since to receive 256 MB would take a third longer.
UNZEROED = 2**20
#: From here on it is asked for in pages of 2 MB, as numpy does for its arrays: half of the time to
#: receive 256 MB went into 65,536 page faults.
_HUGE_PAGES = 4 * 2**20


def room(nbytes: int) -> bytearray:
    """Take memory. What it holds before it is written is arbitrary.

    Raises
    ------
    ProtocolError
        If there is not as much.
    """
    try:
        if nbytes < UNZEROED:
            return bytearray(nbytes)
        taken = _unzeroed()(None, nbytes)
    except MemoryError as exc:
        raise ProtocolError(f"no memory for {nbytes} bytes that were announced") from exc
    if nbytes >= _HUGE_PAGES:
        _use_huge_pages()(taken)
    return taken


def room_for_bytes(nbytes: int) -> tuple[bytes, memoryview]:
    """Take memory that is `bytes` already, and a view to fill it by.

    Nobody else may see the bytes before they are filled, nor the view afterwards.

    Raises
    ------
    ProtocolError
        If there is not as much.
    """
    import ctypes

    try:
        taken = _unfilled()(None, nbytes)
    except MemoryError as exc:
        raise ProtocolError(f"no memory for {nbytes} bytes that were announced") from exc
    start = ctypes.cast(ctypes.c_char_p(taken), ctypes.c_void_p).value
    view = (ctypes.c_char * nbytes).from_address(start or 0)
    if nbytes >= _HUGE_PAGES:
        _use_huge_pages()(view)
    return taken, memoryview(view).cast("B")


# ctypes takes 3 ms to import, and many processes never need it. The prototypes are our own:
# attributes set on `pythonapi` itself would hold for everybody.


@cache
def _unzeroed() -> Callable[[None, int], bytearray]:
    """Python's own C function; `bytearray(n)` always writes n zeros."""
    import ctypes

    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)
    return prototype(("PyByteArray_FromStringAndSize", ctypes.pythonapi))


@cache
def _unfilled() -> Callable[[None, int], bytes]:
    """Python's own C function, which leaves it to its caller to fill new bytes."""
    import ctypes

    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)
    return prototype(("PyBytes_FromStringAndSize", ctypes.pythonapi))


@cache
def _use_huge_pages() -> Callable[[Any], object]:
    """What tells the kernel, madvise(2); it may decline, and nothing depends on it."""
    import ctypes

    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    try:
        madvise, advice = prototype(("madvise", ctypes.CDLL(None))), mmap.MADV_HUGEPAGE
    except AttributeError:  # not Linux
        return len

    def advise(taken: Any) -> None:
        start = ctypes.addressof(ctypes.c_char.from_buffer(taken))
        first_page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        madvise(first_page, start + len(taken) - first_page, advice)

    return advise
