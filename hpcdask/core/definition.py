"""What a task computes, as a checksum: to recognise it across a restart of the scheduler."""

from __future__ import annotations

from zlib import crc32

from hpcdask.messages import Blob, Frames

#: Bytes of the arguments that are looked at: of large ones the rest is data, and takes time.
_ENOUGH = 65536


def definition_of(function_id: bytes, arguments: Blob) -> int:
    """Checksum of a function's id and its pickled arguments; never 0, which is scattered data's.

    It only has to tell a key's present life from an earlier one that was not yet cleared away,
    for which 32 bits besides the key are plenty.
    """
    pickled = arguments.parts[0] if isinstance(arguments, Frames) else arguments
    return crc32(memoryview(pickled)[:_ENOUGH], crc32(function_id)) or 1
