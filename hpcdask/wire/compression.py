"""Optional compression of large buffers, chosen by trying it on a sample."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

from hpcdask.errors import ProtocolError

Buffer = bytes | bytearray | memoryview

#: Buffers below this are sent as they are: the gain would not pay for the call.
MIN_SIZE = 64 * 1024
#: Larger ones too: lz4 takes no more than 2 GB, and the event loop waits for either library.
MAX_SIZE = 2**30
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


def maybe_compress(buffer: Buffer, codec: Codec | None) -> tuple[int, Buffer]:
    """Return a codec's number and the bytes to send; 0 and `buffer` itself if not worth it."""
    size = len(buffer)
    if codec is None or not MIN_SIZE <= size <= MAX_SIZE:
        return 0, buffer
    view = memoryview(buffer)
    piece = SAMPLE_SIZE // 5
    starts = [i * (size - piece) // 4 for i in range(5)]
    sample = b"".join(view[start : start + piece] for start in starts)
    if len(codec.compress(sample)) > WORTHWHILE * len(sample):
        return 0, buffer
    compressed = codec.compress(view)
    return (codec.number, compressed) if len(compressed) < WORTHWHILE * size else (0, buffer)


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
    try:
        data = codec.decompress(buffer, size)
    except Exception as exc:  # each library has errors of its own
        raise ProtocolError(f"a buffer cannot be decompressed with {codec.name}: {exc}") from exc
    if len(data) != size:
        raise ProtocolError(f"a buffer has {len(data)} bytes, {size} were announced")
    return data
