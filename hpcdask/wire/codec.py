"""Messages to msgpack and back; what arrives is checked field by field.

One batch of messages packs into one array: opcode, fields, opcode, fields, and so on. Checks are
compiled once per message type from its annotations, since they run for every message that arrives.
"""

from __future__ import annotations

import importlib
import struct
import types
from collections.abc import Callable, Sequence
from functools import partial
from reprlib import Repr
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

import msgpack

from hpcdask.errors import ProtocolError
from hpcdask.messages import FAMILIES, Blob, Frames, Message

Buffer = bytes | bytearray | memoryview

_FRAMES_EXTENSION = 1
_RANGE = struct.Struct("<II")  # first buffer, number of buffers
#: The number of each type of message in the families that have been met, and how to read it.
_NUMBERS: dict[type[Any], int] = {}
_DECODERS: dict[int, Callable[[Any], Message]] = {}
#: A path or a line of output that is not UTF-8 has lone surrogates; it must not end a connection.
_SURROGATES = "surrogatepass"
# For complaints: the whole repr of what a peer sent may take gigabytes, or nest too deeply.
_short = Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 60, 60


def encode(messages: Sequence[Message]) -> tuple[bytes, list[Buffer]]:
    """Pack messages.

    Returns
    -------
    control : bytes
        The msgpack array.
    buffers : list of buffers
        Parts of all `Frames` among the fields, not copied.

    Raises
    ------
    ProtocolError
        If something is no message, or a field holds what msgpack cannot pack or an integer of
        more than 64 bits.
    """
    buffers: list[Buffer] = []

    def frames_by_reference(value: object) -> msgpack.ExtType:
        if type(value) is not Frames:
            raise TypeError(f"cannot send a {type(value).__name__} in a message")
        reference = _RANGE.pack(len(buffers), len(value.parts))
        buffers.extend(value.parts)
        return msgpack.ExtType(_FRAMES_EXTENSION, reference)

    flat: list[object] = []
    for message in messages:
        number = _NUMBERS.get(type(message))
        if number is None:
            number = _learned_number(type(message))
        flat.append(number)
        flat.append(message)
    try:
        control = msgpack.packb(flat, default=frames_by_reference, unicode_errors=_SURROGATES)
    except (TypeError, ValueError, OverflowError) as exc:
        raise ProtocolError(f"a message cannot be packed: {exc}") from exc
    return cast(bytes, control), buffers


def decode(control: Buffer, buffers: Sequence[Buffer]) -> list[Message]:
    """Unpack what `encode` packed.

    Raises
    ------
    ProtocolError
        On anything but known messages with fields of the declared number and types.
    """

    def frames_from_reference(code: int, reference: bytes) -> Frames:
        if code != _FRAMES_EXTENSION or len(reference) != _RANGE.size:
            raise ProtocolError(f"unknown msgpack extension {code}")
        first, count = _RANGE.unpack(reference)
        parts = buffers[first : first + count]
        if not count or len(parts) != count:
            raise ProtocolError("a message refers to buffers that did not come with it")
        return Frames(list(parts))

    try:
        flat = msgpack.unpackb(
            control,
            use_list=False,
            strict_map_key=False,
            ext_hook=frames_from_reference,
            unicode_errors=_SURROGATES,
        )
    except ProtocolError:
        raise
    except Exception as exc:  # msgpack raises half a dozen unrelated types
        raise ProtocolError(f"not a batch of messages: {type(exc).__name__}: {exc}") from exc
    if type(flat) is not tuple or len(flat) % 2:
        raise ProtocolError("not a batch of messages: expected opcodes and fields in turn")
    messages = []
    decoders = _DECODERS
    pairs = iter(flat)
    for number in pairs:
        # True would find what is at 1.
        decoder = decoders.get(number) if type(number) is int else None
        if decoder is None:
            decoder = _learned_decoder(number)
        messages.append(decoder(next(pairs)))
    return messages


def _decoder(message_type: type[Any]) -> Callable[[Any], Message]:
    valid = _compiled_check(message_type)
    nested = _nested_records(message_type)
    build = partial(tuple.__new__, message_type)

    def decoder(fields: Any) -> Message:
        if not valid(fields):
            raise _complaint(message_type, fields)
        return build(_with_records(fields, nested) if nested else fields)

    return decoder


def _complaint(message_type: type[Any], fields: Any) -> ProtocolError:
    """Say what is wrong with fields that were found not to be valid."""
    name, expected = message_type.__name__, message_type._fields
    if type(fields) is not tuple or len(fields) != len(expected):
        return ProtocolError(f"{name} has {len(expected)} fields, not {_short.repr(fields)}")
    hints = get_type_hints(message_type)
    for field, value in zip(expected, fields, strict=True):
        if not _compiled_check(hints[field])(value):
            return ProtocolError(f"{name}.{field} cannot be {_short.repr(value)}")
    raise AssertionError("called for valid fields")


def _compiled_check(hint: Any) -> Callable[[Any], bool]:
    """Compile a function of one value that says whether `hint` allows it.

    One expression without calls takes 0.4 us for a usual message; a tree of closures took 2 us,
    more than all else that the scheduler does to receive it.
    """
    source = f"lambda value: {_expression(hint, 'value')}"
    # Compiled first: to evaluate a string makes CPython forget that a program is ending by Ctrl-C,
    # and then its exit code does not say so.
    code = compile(source, "<record>", "eval")
    return cast(Callable[[Any], bool], eval(code, {"Frames": Frames, "NoneType": type(None)}))


def _expression(hint: Any, value: str) -> str:
    """Python source of a test that the variable or item `value` is what `hint` declares."""
    if hint is Any:
        return "True"
    if hint is float:  # an int that stands for a float is no error
        return f"(type({value}) is float or type({value}) is int)"
    if hint in (str, int, bool, bytes, Frames, type(None)):
        return f"type({value}) is {hint.__name__}"
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return f"({' or '.join(_expression(choice, value) for choice in arguments)})"
    if origin is tuple and arguments[-1] is Ellipsis:
        item = f"item{value.count('item')}"
        inner = _expression(arguments[0], item)
        return f"(type({value}) is tuple and all([{inner} for {item} in {value}]))"
    if origin is tuple:
        fields = arguments
    elif hasattr(hint, "_fields"):
        hints = get_type_hints(hint)
        fields = tuple(hints[name] for name in hint._fields)
    else:
        raise TypeError(f"a message cannot have a field of type {hint}")
    tests = [f"type({value}) is tuple and len({value}) == {len(fields)}"]
    tests += [_expression(field, f"{value}[{i}]") for i, field in enumerate(fields)]
    return f"({' and '.join(tests)})"


Build = Callable[[Any], Any]


def _nested_records(record_type: type[Any]) -> list[tuple[int, Build]]:
    """Return positions of the fields that hold records, with what rebuilds each such field."""
    hints = get_type_hints(record_type)
    found = []
    for position, name in enumerate(record_type._fields):
        build = _rebuild(hints[name])
        if build is not None:
            found.append((position, build))
    return found


def _rebuild(hint: Any) -> Build | None:
    """Return what turns checked plain tuples into the records that `hint` declares."""
    arguments = get_args(hint)
    if hasattr(hint, "_fields"):
        nested, make = _nested_records(hint), hint._make
        if not nested:
            return cast(Build, make)
        return lambda fields: make(_with_records(fields, nested))
    if get_origin(hint) in (Union, types.UnionType):  # of a record with None, or of none
        records = [build for choice in arguments if (build := _rebuild(choice))]
        return (lambda value: None if value is None else records[0](value)) if records else None
    if get_origin(hint) is not tuple:
        return None
    if arguments[-1] is Ellipsis:
        each = _rebuild(arguments[0])
        return (lambda values: tuple(map(each, values))) if each else None
    builds = [(i, build) for i, a in enumerate(arguments) if (build := _rebuild(a))]
    return (lambda values: tuple(_with_records(values, builds))) if builds else None


def _with_records(fields: tuple[Any, ...], nested: list[tuple[int, Build]]) -> list[Any]:
    rebuilt = list(fields)
    for position, build in nested:
        rebuilt[position] = build(rebuilt[position])
    return rebuilt


def _learn(first: int) -> None:
    """Know the messages of a family, by the number of its first."""
    for number, message_type in enumerate(importlib.import_module(FAMILIES[first]).OPCODES, first):
        _NUMBERS[message_type] = number
        _DECODERS[number] = _compiled_when_used(number, message_type)


def _compiled_when_used(number: int, message_type: type[Any]) -> Callable[[Any], Message]:
    """Stand in for a decoder until the first such message comes.

    To compile all of them takes 10 ms, of which a worker's start would feel each.
    """

    def decode_first(fields: Any) -> Message:
        _DECODERS[number] = _decoder(message_type)
        return _DECODERS[number](fields)

    return decode_first


def _learned_number(message_type: type[Any]) -> int:
    for first, module in FAMILIES.items():
        if message_type.__module__ == module and first not in _DECODERS:
            _learn(first)
    if message_type not in _NUMBERS:
        raise ProtocolError(f"a {message_type.__name__} is no message")
    return _NUMBERS[message_type]


def _learned_decoder(number: Any) -> Callable[[Any], Message]:
    if type(number) is int:
        family = max((first for first in FAMILIES if first <= number), default=0)
        if family not in _DECODERS:
            _learn(family)
        if number in _DECODERS:
            return _DECODERS[number]
    raise ProtocolError(f"unknown message number {_short.repr(number)}")


_learn(0)


def blob_nbytes(blob: Blob) -> int:
    """Size of a blob on the wire, in bytes."""
    return blob.nbytes if type(blob) is Frames else len(cast(bytes, blob))
