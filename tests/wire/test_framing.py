"""Frames cut out of a stream, however it is split, and lengths that nobody may announce."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdask.errors import ProtocolError
from hpcdask.wire import compression
from hpcdask.wire.framing import Frame, FrameReader, Limits, frame_parts, unpacked

LIMITS = Limits()
MIB = 2**20
TINY = Limits(section=200, buffers=1000)

Content = tuple[bytes, list[bytes]]


def laid_out(frames: Sequence[Content], codec: compression.Codec | None = None) -> bytes:
    return b"".join(
        bytes(part)
        for control, buffers in frames
        for part in frame_parts(control, list(buffers), LIMITS, codec)
    )


def contents(frames: Iterator[Frame]) -> list[Content]:
    # At once, since the section may lie in memory that the next read overwrites.
    return [(bytes(control), list(map(bytes, buffers))) for control, buffers, _ in opened(frames)]


def opened(frames: Iterator[Frame]) -> list[Frame]:
    return list(map(unpacked, frames))


def read(reader: FrameReader, stream: bytes, sizes: Sequence[int], in_place: bool) -> list[Content]:
    """What a connection does: reads of given sizes, into `target` where there is one."""
    found: list[Content] = []
    scratch = bytearray(max(sizes))
    position, turn = 0, 0
    while position < len(stream):
        size, turn = sizes[turn % len(sizes)], turn + 1
        target = reader.target if in_place else None
        room = memoryview(scratch) if target is None else target
        piece = stream[position : position + min(size, len(room))]
        position += len(piece)
        room[: len(piece)] = piece
        if target is None:
            found += contents(reader.feed(room[: len(piece)]))
            scratch[:] = b"\xee" * len(scratch)
        else:
            found += contents(reader.filled(len(piece)))
    return found


FRAMES = st.lists(
    st.tuples(st.binary(min_size=1, max_size=40), st.lists(st.binary(max_size=60), max_size=4)),
    max_size=5,
)


@given(FRAMES, st.lists(st.integers(1, 90), min_size=1, max_size=8), st.booleans())
def test_frames_do_not_depend_on_how_the_stream_is_split(
    frames: list[Content], sizes: list[int], in_place: bool
) -> None:
    reader = FrameReader(LIMITS)
    assert read(reader, laid_out(frames), sizes, in_place) == frames
    assert reader.target is None


@given(FRAMES)
def test_a_stream_that_comes_at_once_gives_every_frame(frames: list[Content]) -> None:
    assert contents(FrameReader(LIMITS).feed(memoryview(laid_out(frames)))) == frames


def test_buffers_are_sent_as_they_are_and_not_copied() -> None:
    buffers = [bytearray(MIB), memoryview(bytes(MIB))]
    _, *sent = frame_parts(b"control", list(buffers), LIMITS)
    assert all(a is b for a, b in zip(sent, buffers, strict=True))


@pytest.mark.parametrize("size", [MIB // 2, 2 * MIB, 9 * MIB + 1])
def test_a_large_buffer_is_received_straight_into_its_final_memory(size: int) -> None:
    stream = memoryview(laid_out([(b"control", [bytearray(b"x" * size)])]))  # type: ignore[list-item]
    reader = FrameReader(LIMITS)
    head = len(stream) - size
    assert list(reader.feed(stream[:head])) == []
    assert reader.target is not None
    final = reader.target.obj
    reader.target[:] = stream[head:]
    (frame,) = reader.filled(size)
    assert frame.buffers[0] is final
    assert type(final) is bytearray
    assert final == b"x" * size
    final.append(1)  # nothing of the reader holds on to it


@pytest.mark.parametrize("size", [2 * MIB, 9 * MIB + 1])
@pytest.mark.parametrize("as_view", [False, True])
def test_large_bytes_are_received_as_bytes(size: int, as_view: bool) -> None:
    sent: Any = memoryview(b"x" * size) if as_view else b"x" * size
    stream = memoryview(laid_out([(b"control", [sent, b"small"])]))
    reader = FrameReader(LIMITS)
    head = len(stream) - size - 5
    assert list(reader.feed(stream[:head])) == []
    assert reader.target is not None
    assert len(reader.target) == size
    reader.target[:] = stream[head:-5]
    assert list(reader.filled(size)) == []
    (frame,) = reader.feed(stream[-5:])
    assert type(frame.buffers[0]) is bytes
    assert frame.buffers[0] == b"x" * size
    assert hash(frame.buffers[0]) == hash(b"x" * size)


def test_a_frame_is_compressed_up_to_a_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = codec_named("lz4")
    monkeypatch.setattr("hpcdask.wire.framing.MAX_SIZE", 3 * MIB)
    buffers = [bytes(MIB) for _ in range(5)]
    stream = laid_out([(b"control", buffers)], codec)
    assert 2 * MIB < len(stream) < 2.1 * MIB
    assert contents(FrameReader(LIMITS).feed(memoryview(stream))) == [(b"control", buffers)]


def head(length: int, n_buffers: int) -> bytes:
    return struct.pack("<II", length, n_buffers)


def section(*descriptors: tuple[int, int, int], control: bytes = b"control") -> bytes:
    described = b"".join(struct.pack("<QQB", *descriptor) for descriptor in descriptors)
    return head(len(described) + len(control), len(descriptors)) + described + control


@pytest.mark.parametrize(
    "stream",
    [
        head(2**32 - 1, 0),
        head(LIMITS.section + 1, 0),
        head(0, 0),
        head(100, 2**32 - 1),
        head(17, 1),  # a buffer, but no room for messages
        head(2**31, 2**31),
        section((2**63, 2**63, 0)),
        section((2**64 - 1, 2**64 - 1, 0)),
        section((LIMITS.buffers + 1, LIMITS.buffers + 1, 0)),
        section(*[(LIMITS.buffers // 2, LIMITS.buffers // 2, 0)] * 3),
        section((10, 2**40, 1)),  # small on the wire
        section((10, 9, 0)),
        section((9, 10, 0)),
        section((0, 10, 1)),
        section((11, 10, 1)),
        section((0, 0, 1)),
    ],
    ids=lambda stream: stream[:30].hex(),
)
def test_an_impossible_length_is_refused_before_memory_is_taken(stream: bytes) -> None:
    reader = FrameReader(LIMITS)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            list(reader.feed(memoryview(stream)))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_limits_are_those_of_the_reader() -> None:
    for frame in ((b"c" * 201, []), (b"c", [b"x" * 1001]), (b"c", [b"x" * 600] * 2)):
        assert contents(FrameReader(LIMITS).feed(memoryview(laid_out([frame])))) == [frame]
        with pytest.raises(ProtocolError):
            list(FrameReader(TINY).feed(memoryview(laid_out([frame]))))


def test_limits_are_reached_exactly() -> None:
    buffers = [b"x" * 400, b"y" * 600]
    frame = (b"c" * (200 - 2 * 17), buffers)
    assert contents(FrameReader(TINY).feed(memoryview(laid_out([frame])))) == [frame]


@pytest.mark.parametrize("frame", [(b"c" * 201, []), (b"c", [b"x" * 501, b"x" * 500])])
def test_a_frame_over_the_limits_is_refused_by_its_sender(frame: Content) -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        frame_parts(frame[0], list(frame[1]), TINY)


def test_memory_that_cannot_be_had_is_a_protocol_error() -> None:
    stream = section((2**60, 2**60, 0))
    with pytest.raises(ProtocolError, match="no memory"):
        list(FrameReader(Limits(buffers=2**62)).feed(memoryview(stream)))


# -- Compression -----------------------------------------------------------------------------------

every_codec = pytest.mark.parametrize("name", ["lz4", "zstd"])


def codec_named(name: str) -> compression.Codec:
    pytest.importorskip({"lz4": "lz4.block", "zstd": "zstandard"}[name])
    return compression.available()[name]


@every_codec
@given(sizes=st.lists(st.integers(1, 300_000), min_size=1, max_size=4))
def test_compressed_frames_do_not_depend_on_how_the_stream_is_split(
    name: str, sizes: list[int]
) -> None:
    frames: list[Content] = [
        (b"first", [bytes(200_000), b"small", b"ab" * 100_000]),
        (b"second", []),
        (b"third", [b"", bytes(100_000)]),
    ]
    stream = laid_out(frames, codec_named(name))
    assert len(stream) < 50_000
    assert read(FrameReader(LIMITS), stream, sizes, in_place=True) == frames


def one_buffer(wire: bytes, size: int, number: int) -> bytes:
    """A buffer that is compressed in one block."""
    block = struct.pack("<I", len(wire)) + wire
    return section((len(block), size, number)) + block


@every_codec
@pytest.mark.parametrize("lie", [-1, 1, 1000])
def test_a_lie_about_the_size_of_a_compressed_buffer_is_refused(name: str, lie: int) -> None:
    codec = codec_named(name)
    wire = codec.compress(bytes(100_000))
    stream = one_buffer(wire, 100_000 + lie, codec.number)
    with pytest.raises(ProtocolError):
        opened(FrameReader(LIMITS).feed(memoryview(stream)))


@every_codec
def test_a_decompression_bomb_takes_no_more_memory_than_it_announces(name: str) -> None:
    codec = codec_named(name)
    wire = codec.compress(bytes(3 * MIB))
    stream = one_buffer(wire, len(wire) + 1000, codec.number)
    peak = peak_of(lambda: opened(FrameReader(LIMITS).feed(memoryview(stream))))
    assert peak < 3 * len(wire) + MIB


def peak_of(action: Callable[[], Any]) -> int:
    """Most bytes that Python took during an action, which is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@every_codec
def test_a_decompression_bomb_over_the_limit_is_refused_unopened(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = codec_named(name)
    wire = codec.compress(bytes(8 * MIB))
    monkeypatch.setattr("hpcdask.wire.framing.decompress", lambda *_: pytest.fail("opened"))
    stream = one_buffer(wire, 8 * MIB, codec.number)
    with pytest.raises(ProtocolError, match="at most"):
        list(FrameReader(Limits(buffers=4 * MIB)).feed(memoryview(stream)))


@every_codec
def test_a_compressed_buffer_of_garbage_is_refused(name: str) -> None:
    stream = one_buffer(b"garbage" * 10, 100_000, codec_named(name).number)
    with pytest.raises(ProtocolError, match="decompress"):
        opened(FrameReader(LIMITS).feed(memoryview(stream)))


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ProtocolError, match="codec 77"):
        opened(FrameReader(LIMITS).feed(memoryview(one_buffer(b"x" * 10, 100, 77))))
