"""Frames: how a batch of messages and its buffers lie on a byte stream.

A frame is::

    u32 length of the section      u32 number of buffers          (little endian)
    section: per buffer (u64 bytes on the wire, u64 bytes in truth, u8 codec), then msgpack
    the buffers

The codec of a large buffer that is `bytes` has `_AS_BYTES` added: received into `bytes` at once, it
need not be copied into them later, which took half as long as to receive it.

Every length is checked against a limit before memory is taken for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from hpcdask.errors import ProtocolError
from hpcdask.wire.compression import MAX_SIZE, MIN_SIZE, Buffer, Codec, decompress, maybe_compress
from hpcdask.wire.memory import UNZEROED, room, room_for_bytes

_HEAD = struct.Struct("<II")
_BUFFER = struct.Struct("<QQB")
_AS_BYTES = 0x80


class Limits(NamedTuple):
    """Most that one frame may hold; a peer that announces more is disconnected."""

    section: int = 512 * 2**20  # bytes of messages
    buffers: int = 64 * 2**30  # bytes of all buffers of a frame


class Frame(NamedTuple):
    """One batch of messages, still packed, and the buffers that it refers to."""

    control: Buffer
    buffers: list[Buffer]
    compressed: tuple[tuple[int, int, int], ...] = ()  # index of buffer, size in bytes, codec

    @property
    def nbytes_to_unpack(self) -> int:
        """Bytes that `unpacked` has to write."""
        return sum(size for _, size, _ in self.compressed)


def unpacked(frame: Frame) -> Frame:
    """Undo the compression of a frame's buffers.

    Raises
    ------
    ProtocolError
        If they are not what was announced.
    """
    for index, size, codec in frame.compressed:
        frame.buffers[index] = decompress(codec, frame.buffers[index], size)
    return Frame(frame.control, frame.buffers)


def compressible(buffers: list[Buffer]) -> int:
    """Bytes of `buffers` at which `frame_parts` looks more closely if it has a codec."""
    return sum(len(buffer) for buffer in buffers if len(buffer) >= MIN_SIZE)


def frame_parts(
    control: bytes, buffers: list[Buffer], limits: Limits, codec: Codec | None = None
) -> list[Buffer]:
    """Lay out one frame as buffers to send in order; large ones are not copied.

    Raises
    ------
    ProtocolError
        If the frame is larger than `limits` allow: the peer would hang up.
    """
    total = 0
    descriptors: list[bytes] = []
    payload: list[Buffer] = []
    for buffer in buffers:
        size = len(buffer)
        total += size
        number, wire = maybe_compress(buffer, codec if total <= MAX_SIZE else None)
        length = sum(map(len, wire)) if number else size
        if not number and size >= UNZEROED and _is_bytes(buffer):
            number = _AS_BYTES
        descriptors.append(_BUFFER.pack(length, size, number))
        payload += wire
    section = len(control) + len(descriptors) * _BUFFER.size
    if section > limits.section or total > limits.buffers:
        raise ProtocolError(
            f"a frame of {section} + {total} bytes is over the limit of {limits.section} + "
            f"{limits.buffers}; send less at once, or raise the limit on all sides"
        )
    return [b"".join((_HEAD.pack(section, len(buffers)), *descriptors, control)), *payload]


def _is_bytes(buffer: Buffer) -> bool:
    return type(buffer.obj if type(buffer) is memoryview else buffer) is bytes


class FrameReader:
    """Cut a byte stream into frames.

    Small frames are cut out of whatever was read. What does not fit into one read is received
    straight into its final memory: ask `target` where the next bytes should go, and say
    `filled` when some are there.

    Parameters
    ----------
    limits : Limits
        What a frame may hold.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._head = b""  # an incomplete head
        self._n_buffers = 0
        self._section: bytearray | None = None  # being filled
        self._control: Buffer = b""
        self._descriptors: list[tuple[int, int, int]] = []
        self._buffers: list[Buffer] = []
        self._target: memoryview | None = None  # unfilled rest of the section or buffer

    @property
    def target(self) -> memoryview | None:
        """Where the next bytes belong, if they have a place already; of at least one byte."""
        return self._target

    def filled(self, nbytes: int) -> Iterator[Frame]:
        """Take note of `nbytes` bytes written to the start of `target`."""
        assert self._target is not None
        self._target = self._target[nbytes:]
        if not len(self._target):
            yield from self._advance()

    def feed(self, data: memoryview) -> Iterator[Frame]:
        """Cut frames out of `data`, which the caller may overwrite afterwards."""
        while len(data):
            if self._target is not None:
                taken = min(len(data), len(self._target))
                self._target[:taken] = data[:taken]
                yield from self.filled(taken)
                data = data[taken:]
                continue
            if self._head or len(data) < _HEAD.size:
                missing = _HEAD.size - len(self._head)
                self._head += bytes(data[:missing])
                data = data[missing:]
                if len(self._head) < _HEAD.size:
                    return
                length, self._n_buffers = _HEAD.unpack(self._head)
                self._head = b""
            else:
                length, self._n_buffers = _HEAD.unpack_from(data)
                data = data[_HEAD.size :]
            self._check(length)
            if len(data) >= length:
                yield from self._section_is(data[:length])
                data = data[length:]
            else:
                self._section = room(length)
                self._target = memoryview(self._section)

    def _check(self, length: int) -> None:
        if length > self.limits.section or self._n_buffers * _BUFFER.size >= length:
            raise ProtocolError(
                f"a frame announces {length} bytes with {self._n_buffers} buffers; "
                f"at most {self.limits.section} are allowed"
            )

    def _advance(self) -> Iterator[Frame]:
        """Go on after the target was filled."""
        self._target = None
        if self._section is not None:
            section, self._section = self._section, None
            yield from self._section_is(memoryview(section))
        else:
            yield from self._next_buffer()

    def _section_is(self, section: memoryview) -> Iterator[Frame]:
        if not self._n_buffers:
            yield Frame(section, [])
            return
        end = self._n_buffers * _BUFFER.size
        self._descriptors = list(_BUFFER.iter_unpack(section[:end]))
        self._control = bytes(section[end:])
        self._buffers = []
        total = 0
        for wire, size, codec in self._descriptors:
            total += max(wire, size)
            if wire != size if codec in (0, _AS_BYTES) else not 0 < wire < size:
                raise ProtocolError(
                    f"a buffer of {size} bytes cannot be {wire} bytes with codec {codec}"
                )
        if total > self.limits.buffers:
            raise ProtocolError(
                f"a frame announces {total} bytes of buffers; "
                f"at most {self.limits.buffers} are allowed"
            )
        yield from self._next_buffer()

    def _next_buffer(self) -> Iterator[Frame]:
        """Make room for the next buffer; after the last one the frame is complete."""
        while len(self._buffers) < self._n_buffers:
            wire, _, codec = self._descriptors[len(self._buffers)]
            buffer: Buffer
            if codec == _AS_BYTES and wire:
                buffer, target = room_for_bytes(wire)
            else:
                buffer = room(wire)
                target = memoryview(buffer)
            self._buffers.append(buffer)
            if wire:
                self._target = target
                return
        compressed = tuple(
            (index, size, codec)
            for index, (_, size, codec) in enumerate(self._descriptors)
            if codec not in (0, _AS_BYTES)
        )
        frame = Frame(self._control, self._buffers, compressed)
        self._control, self._buffers, self._descriptors = b"", [], []
        yield frame
