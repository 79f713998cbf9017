"""Optional compression of large buffers, chosen by trying it on a sample.

A compressed buffer is a table of u32 lengths and then as many blocks, each of `PIECE` bytes in
truth (the last may be shorter). In one block, 500 MB would be copied by the library in one go, with
the interpreter's lock held.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

from hpcdask.errors import ProtocolError
from hpcdask.wire.memory import room

Buffer = bytes | bytearray | memoryview

#: Buffers below this are sent as they are: the gain would not pay for the call.
MIN_SIZE = 64 * 1024
#: Most that is compressed of one frame: what follows it on its connection waits meanwhile.
MAX_SIZE = 2**30
#: Bytes of a buffer that are compressed at a time.
PIECE = 4 * 2**20
#: From here on, in bytes of a frame, it takes milliseconds, and belongs into a thread.
LONG = 2**20
#: Bytes looked at, in five places, before a whole buffer is compressed.
SAMPLE_SIZE = 50_000
#: A buffer is only sent compressed if that saves at least a tenth.
WORTHWHILE = 0.9


class Codec(NamedTuple):
    """One way to compress."""

    number: int  # on the wire; 0 is "as it is"
    name: str
    compress: Callable[[Buffer], bytes]
    decompress: Callable[[Buffer, int], bytes]  # buffer, expected size in bytes


def available() -> dict[str, Codec]:
    """Codecs whose library is installed, best first, by name."""
    found = (_load(name) for name in ("lz4", "zstd"))
    return {codec.name: codec for codec in found if codec is not None}


@cache
def _load(name: str) -> Codec | None:
    try:
        if name == "lz4":
            lz4 = importlib.import_module("lz4.block")
            return Codec(
                1,
                "lz4",
                lambda data: bytes(lz4.compress(data, store_size=False)),
                lambda data, size: bytes(lz4.decompress(data, uncompressed_size=size)),
            )
        zstd = importlib.import_module("zstandard")
        return Codec(
            2,
            "zstd",
            lambda data: bytes(zstd.ZstdCompressor(level=1).compress(data)),
            partial(_decompress_zstd, zstd),
        )
    except ImportError:
        return None


def _decompress_zstd(zstd: Any, data: Buffer, size: int) -> bytes:
    # The library takes as much memory as the frame itself announces, whatever we allow it.
    announced = zstd.frame_content_size(data)
    if announced != size:
        raise ValueError(f"its own header says {announced} bytes, not {size}")
    return bytes(zstd.ZstdDecompressor().decompress(data, size))


def maybe_compress(buffer: Buffer, codec: Codec | None) -> tuple[int, list[Buffer]]:
    """Return a codec's number and what to send in order; 0 and `buffer` itself if not worth it."""
    size = len(buffer)
    if codec is None or not MIN_SIZE <= size <= MAX_SIZE:
        return 0, [buffer]
    view = memoryview(buffer)
    piece = SAMPLE_SIZE // 5
    starts = [i * (size - piece) // 4 for i in range(5)]
    sample = b"".join(view[start : start + piece] for start in starts)
    if len(codec.compress(sample)) > WORTHWHILE * len(sample):
        return 0, [buffer]
    blocks = [codec.compress(view[start : start + PIECE]) for start in range(0, size, PIECE)]
    lengths = [len(block) for block in blocks]
    table = struct.pack(f"<{len(blocks)}I", *lengths)
    if len(table) + sum(lengths) >= WORTHWHILE * size:
        return 0, [buffer]
    return codec.number, [table, *blocks]


def decompress(number: int, buffer: Buffer, size: int) -> Buffer:
    """Undo `maybe_compress`.

    Raises
    ------
    ProtocolError
        If the codec is not known here, `size` is over `MAX_SIZE`, or the result has not `size`
        bytes.
    """
    codec = next((codec for codec in available().values() if codec.number == number), None)
    if codec is None:
        raise ProtocolError(f"a buffer is compressed with codec {number}, not installed here")
    if size > MAX_SIZE:
        raise ProtocolError(f"a compressed buffer announces {size} bytes; none has over {MAX_SIZE}")
    blocks = _blocks(memoryview(buffer), size)
    whole = room(size)
    view = memoryview(whole)
    for position, block in zip(range(0, size, PIECE), blocks, strict=True):
        expected = min(PIECE, size - position)
        try:
            piece = codec.decompress(block, expected)
        except Exception as exc:  # each library has errors of its own
            raise ProtocolError(
                f"a buffer cannot be decompressed with {codec.name}: {exc}"
            ) from exc
        if len(piece) != expected:
            raise ProtocolError(f"a block has {len(piece)} bytes, {expected} were announced")
        view[position : position + expected] = piece
    return whole


def _blocks(buffer: memoryview, size: int) -> list[memoryview]:
    """Cut the blocks of a buffer of `size` bytes out of what was sent."""
    count = -(-size // PIECE)
    end = count * 4
    lengths = struct.unpack(f"<{count}I", buffer[:end]) if len(buffer) >= end else ()
    if not lengths or end + sum(lengths) != len(buffer):
        raise ProtocolError(f"a compressed buffer of {len(buffer)} bytes is not made of {count}")
    blocks = []
    for length in lengths:
        blocks.append(buffer[end : end + length])
        end += length
    return blocks
