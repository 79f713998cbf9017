"""Whether a buffer is worth compressing, and what comes back."""

from __future__ import annotations

import random
import struct

import pytest

from hpcdask.errors import ProtocolError
from hpcdask.wire import compression
from hpcdask.wire.compression import MAX_SIZE, MIN_SIZE, PIECE, Codec, decompress, maybe_compress

RANDOM = random.Random(1).randbytes(2**20)
ZEROS = bytes(2**20)
every_codec = pytest.mark.parametrize("name", ["lz4", "zstd"])


def codec_named(name: str) -> Codec:
    pytest.importorskip({"lz4": "lz4.block", "zstd": "zstandard"}[name])
    return compression.available()[name]


def as_one_block(block: bytes) -> bytes:
    """What a buffer of at most `PIECE` bytes looks like on the wire."""
    return struct.pack("<I", len(block)) + block


@every_codec
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_zeros_are_compressed_and_come_back(name: str, kind: type) -> None:
    codec = codec_named(name)
    number, wire = maybe_compress(kind(ZEROS), codec)
    assert number == codec.number
    assert sum(map(len, wire)) < len(ZEROS) // 100
    assert decompress(number, b"".join(wire), len(ZEROS)) == ZEROS


@every_codec
@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 12345])
def test_a_large_buffer_is_compressed_piece_by_piece(name: str, size: int) -> None:
    codec = codec_named(name)
    buffer = bytes(range(251)) * (size // 251 + 1)
    buffer = buffer[:size]
    seen: list[int] = []

    def counted(data: compression.Buffer) -> bytes:
        seen.append(len(data))
        return codec.compress(data)

    number, wire = maybe_compress(buffer, codec._replace(compress=counted))
    assert max(seen) <= PIECE
    assert sum(seen[1:]) == size  # the first is the sample
    back = decompress(number, b"".join(wire), size)
    assert back == buffer
    assert type(back) is bytearray  # arrays in it can be written to, as where nothing is compressed


@every_codec
@pytest.mark.parametrize("cut", [1, 3, 100, -1])
def test_blocks_that_do_not_add_up_are_refused(name: str, cut: int) -> None:
    number, wire = maybe_compress(bytes(3 * PIECE), codec_named(name))
    whole = b"".join(wire)
    spoilt = whole[:-cut] if cut > 0 else whole + b"x"
    with pytest.raises(ProtocolError, match="not made of"):
        decompress(number, spoilt, 3 * PIECE)


@every_codec
def test_random_bytes_stay_as_they_are_and_are_only_sampled(name: str) -> None:
    codec = codec_named(name)
    seen: list[int] = []

    def counted(data: compression.Buffer) -> bytes:
        seen.append(len(data))
        return codec.compress(data)

    number, wire = maybe_compress(RANDOM, codec._replace(compress=counted))
    assert number == 0
    assert wire[0] is RANDOM
    assert seen == [compression.SAMPLE_SIZE]


@every_codec
def test_a_sample_that_misleads_does_not_make_a_buffer_larger(name: str) -> None:
    buffer = bytearray(RANDOM)
    piece = compression.SAMPLE_SIZE // 5
    for i in range(5):
        start = i * (len(buffer) - piece) // 4
        buffer[start : start + piece] = bytes(piece)
    number, wire = maybe_compress(buffer, codec_named(name))
    assert number == 0
    assert wire[0] is buffer


@every_codec
def test_small_buffers_are_not_compressed(name: str) -> None:
    codec = codec_named(name)
    assert maybe_compress(bytes(MIN_SIZE - 1), codec)[0] == 0
    assert maybe_compress(bytes(MIN_SIZE), codec)[0] == codec.number


def test_buffers_that_would_take_too_long_are_not_compressed() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_SIZE + 1

    huge = Huge()
    codec = Codec(1, "none", lambda _: pytest.fail("tried"), lambda *_: b"")
    assert maybe_compress(huge, codec) == (0, [huge])


def test_without_a_codec_nothing_is_compressed() -> None:
    assert maybe_compress(ZEROS, None) == (0, [ZEROS])


@every_codec
def test_a_codec_takes_no_more_memory_than_is_allowed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = codec_named(name)
    wire = as_one_block(codec.compress(ZEROS))
    assert decompress(codec.number, wire, len(ZEROS)) == ZEROS
    for size in (len(ZEROS) - 1, len(ZEROS) + 1, 1, MAX_SIZE + 1, 2**63):
        with pytest.raises(ProtocolError):
            decompress(codec.number, wire, size)


def test_a_zstd_frame_that_does_not_tell_its_size_is_refused() -> None:
    zstd = pytest.importorskip("zstandard")
    wire = as_one_block(zstd.ZstdCompressor(write_content_size=False).compress(ZEROS))
    with pytest.raises(ProtocolError, match="header"):
        decompress(codec_named("zstd").number, wire, len(ZEROS))


def test_the_fastest_installed_codec_comes_first() -> None:
    pytest.importorskip("lz4.block")
    pytest.importorskip("zstandard")
    assert list(compression.available()) == ["lz4", "zstd"]
