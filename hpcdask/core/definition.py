"""What a task computes, as a checksum: to recognise it across a restart of the scheduler."""

from __future__ import annotations

from zlib import crc32

from hpcdask.messages import Blob, Frames

#: Bytes of the pickled arguments, and at both ends of each large buffer, that are looked at: all of
#: them would take time.
_ENOUGH, _OF_EACH = 65536, 4096


def definition_of(function_id: bytes, arguments: Blob) -> int:
    """Checksum of a function's id and its pickled arguments; never 0, which is scattered data's.

    It only has to tell a key's present life from an earlier one that was not yet cleared away,
    for which 32 bits besides the key are plenty.
    """
    checksum = crc32(function_id)
    if not isinstance(arguments, Frames):
        return crc32(memoryview(arguments)[:_ENOUGH], checksum) or 1
    checksum = crc32(memoryview(arguments.parts[0])[:_ENOUGH], checksum)
    for part in arguments.parts[1:]:
        view = memoryview(part)
        checksum = crc32(len(view).to_bytes(8, "little"), checksum)
        checksum = crc32(view[-_OF_EACH:], crc32(view[:_OF_EACH], checksum))
    return checksum or 1
