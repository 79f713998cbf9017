"""Messages to bytes and back, and everything that is not a message."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdask.errors import ProtocolError
from hpcdask.messages import (
    FAMILIES,
    OPCODES,
    ComputeTask,
    Frames,
    Reply,
    StoreKeys,
    TaskFinished,
    WorkerDied,
)
from hpcdask.messages.client import KeyLost
from hpcdask.messages.shared import GiveUp
from hpcdask.wire.codec import blob_nbytes, decode, encode

FRAMES = 1  # number of the msgpack extension


def same(a: Any, b: Any) -> bool:
    """Equality of values and types, all the way down: NamedTuples compare as plain tuples."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def is_record(hint: Any) -> bool:
    return hasattr(hint, "_fields")


def field_hints(record: Any) -> list[Any]:
    hints = get_type_hints(record)
    return [hints[name] for name in record._fields]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)
LEAVES = {
    str: st.text(),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(),
    type(None): st.none(),
    Frames: st.lists(st.binary(max_size=9), min_size=1, max_size=3).map(Frames),
    Any: PLAIN,
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """All that a field declared as `hint` may hold."""
    if hint in LEAVES:
        return LEAVES[hint]
    arguments = get_args(hint)
    if is_record(hint):
        return st.tuples(*map(values, field_hints(hint))).map(hint._make)
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(*map(values, arguments))
    if arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    return st.tuples(*map(values, arguments))


SAMPLES = {str: "a", int: 1, float: 0.5, bool: True, bytes: b"b", type(None): None, Any: "any"}
WRONG: dict[Any, list[Any]] = {
    str: [b"a", 1, None],
    int: [True, 1.0, "1", None],
    float: [True, "1.0", None],
    bool: [1, 0, None, "true"],
    bytes: ["b", 1, None],
}


def sample(hint: Any) -> Any:
    """One value of `hint`, with an item in every tuple."""
    if hint in SAMPLES:
        return SAMPLES[hint]
    arguments = get_args(hint)
    if is_record(hint):
        return hint._make(map(sample, field_hints(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return sample(arguments[0])
    if arguments[-1] is Ellipsis:
        return (sample(arguments[0]),)
    return tuple(map(sample, arguments))


def spoiled(hint: Any, value: Any) -> Iterator[Any]:
    """Every way to spoil one place within a sample of `hint`."""
    arguments = get_args(hint)
    if hint is Any:
        return
    if hint in WRONG:
        yield from WRONG[hint]
    elif get_origin(hint) in (Union, types.UnionType):
        yield from (1.5, (1.5,), {})
        if get_origin(arguments[0]) is tuple:
            yield from (wrong for wrong in spoiled(arguments[0], value) if wrong is not None)
    else:
        yield from ("text", None, {}, 1)
        if is_record(hint):
            places = field_hints(hint)
        elif arguments[-1] is Ellipsis:
            places = [arguments[0]]
        else:
            places = list(arguments)
        if is_record(hint) or arguments[-1] is not Ellipsis:
            plain = tuple(value)
            yield from ((*plain, "one too many"), plain[:-1]) if plain else ((1,),)
        for i, place in enumerate(places):
            for wrong in spoiled(place, value[i]):
                yield (*value[:i], wrong, *value[i + 1 :])


#: All types of messages, by their number.
MESSAGES: dict[int, Any] = {
    number: message_type
    for first, module in FAMILIES.items()
    for number, message_type in enumerate(importlib.import_module(module).OPCODES, first)
}
NUMBERS = {message_type: number for number, message_type in MESSAGES.items()}

every_type = pytest.mark.parametrize("message_type", NUMBERS, ids=lambda t: t.__name__)


@every_type
@settings(max_examples=20)
@given(data=st.data())
def test_a_message_arrives_as_it_left_in_value_and_type(message_type: Any, data: Any) -> None:
    message = data.draw(values(message_type))
    (arrived,) = decode(*encode([message]))
    assert same(arrived, message)


@given(st.data())
def test_a_batch_keeps_its_order_and_each_message_its_own_frames(data: Any) -> None:
    types_ = data.draw(st.lists(st.sampled_from(list(NUMBERS)), max_size=6))
    batch = [data.draw(values(message_type)) for message_type in types_]
    arrived = decode(*encode(batch))
    assert len(arrived) == len(batch)
    assert all(map(same, arrived, batch))


@every_type
def test_a_wrong_type_or_arity_anywhere_in_a_message_is_refused(message_type: Any) -> None:
    right = sample(message_type)
    assert same(decode(*encode([right])), [right])
    number = NUMBERS[message_type]
    n_wrong = 0
    for wrong in spoiled(message_type, right):
        control = msgpack.packb([number, wrong])
        with pytest.raises(ProtocolError, match=message_type.__name__):
            decode(control, [])
        n_wrong += 1
    assert n_wrong >= 4


def test_an_integer_may_stand_for_a_float() -> None:
    finished = TaskFinished("x", 1, 8, 2, None)
    assert decode(*encode([finished])) == [finished]


def test_a_refusal_names_the_message_and_the_field() -> None:
    control = msgpack.packb([OPCODES.index(TaskFinished), ("x", 1, "many", 0.1, None)])
    with pytest.raises(ProtocolError, match=r"TaskFinished\.nbytes cannot be 'many'"):
        decode(control, [])


def test_a_refusal_of_something_huge_or_deep_is_short() -> None:
    number = NUMBERS[KeyLost]
    deep: Any = ()
    for _ in range(400):
        deep = (deep,)
    for value in ("x" * 10**6, tuple(range(10**5)), deep):
        for fields in ((value, 1), (value,)):
            if value.__class__ is str and len(fields) == 1:
                continue  # that one is right
            with pytest.raises(ProtocolError) as refusal:
                decode(msgpack.packb([number, fields]), [])
            assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    "number", [len(OPCODES), max(MESSAGES) + 1, -1, 2**40, True, None, "3", 1.0, (1, 2)]
)
def test_an_unknown_message_number_is_refused(number: Any) -> None:
    with pytest.raises(ProtocolError, match="unknown message number"):
        decode(msgpack.packb([number, ("x",)]), [])


@pytest.mark.parametrize(
    "control",
    [
        b"",
        b"\xc1",
        msgpack.packb(None),
        msgpack.packb({"a": 1}),
        msgpack.packb([13]),
        msgpack.packb([13, ("x",), 13]),
        msgpack.packb([13, ("x",)]) + b"\x00",
        b"\xdd\xff\xff\xff\xff",  # an array of 2**32 - 1 items, none of which is there
        b"\xc6\xff\xff\xff\xffabc",
        b"\x91" * 100_000 + b"\xc0",
        b"\x93\x0d\x91\xa1\xff",
    ],
    ids=lambda control: control[:8].hex() or "nothing",
)
def test_what_is_no_batch_of_messages_is_refused(control: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(control, [])


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_a_batch_but_never_anything_else(garbage: bytes) -> None:
    try:
        batch = decode(garbage, [])
    except ProtocolError:
        return
    assert all(type(message) in NUMBERS for message in batch)


@given(st.integers(0, 200))
def test_a_truncated_batch_is_refused(length: int) -> None:
    control, buffers = encode([sample(message_type) for message_type in NUMBERS])
    with pytest.raises(ProtocolError):
        decode(control[: length * len(control) // 201], buffers)


@pytest.mark.parametrize(
    ("code", "reference"),
    [
        (FRAMES, (0).to_bytes(4, "little") + (2).to_bytes(4, "little")),
        (FRAMES, (1).to_bytes(4, "little") + (1).to_bytes(4, "little")),
        (FRAMES, (0).to_bytes(4, "little") + (0).to_bytes(4, "little")),
        (FRAMES, b"\xff" * 8),
        (FRAMES, b"\x00" * 7),
        (FRAMES, b""),
        (2, bytes(8)),
    ],
)
def test_frames_that_did_not_come_along_are_refused(code: int, reference: bytes) -> None:
    value = msgpack.ExtType(code, reference)
    with pytest.raises(ProtocolError):
        decode(msgpack.packb([OPCODES.index(Reply), (1, value)]), [b"the only buffer"])


def test_frames_as_the_key_of_a_dict_are_refused() -> None:
    reference = msgpack.ExtType(FRAMES, (0).to_bytes(4, "little") + (1).to_bytes(4, "little"))
    packer = msgpack.Packer()
    value = packer.pack_map_header(1) + packer.pack(reference) + packer.pack(1)
    control = b"\x92" + packer.pack(OPCODES.index(Reply)) + b"\x92\x01" + value
    with pytest.raises(ProtocolError):
        decode(control, [b"buffer"])


def test_the_parts_of_frames_are_passed_on_and_not_copied() -> None:
    parts = [b"pickle", bytearray(10), memoryview(bytearray(20))]
    control, buffers = encode([StoreKeys(1, (("x", 1, Frames(parts)),))])
    assert all(buffer is part for buffer, part in zip(buffers, parts, strict=True))
    (arrived,) = decode(control, buffers)
    assert all(a is b for a, b in zip(arrived.values[0].value.parts, parts, strict=True))


@pytest.mark.parametrize(
    "message",
    [
        Reply(1, object()),
        Reply(1, {1, 2}),
        Reply(2**64, None),
        KeyLost(-(2**63) - 1),
        ("not", "a", "message"),
        None,
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_leaves(message: Any) -> None:
    with pytest.raises(ProtocolError):
        encode([message])


def test_text_that_is_not_utf8_arrives_as_it_left() -> None:
    died = WorkerDied("w", 1, -9, b"no such file: \xff\xfe".decode(errors="surrogateescape"))
    assert decode(*encode([died])) == [died]


def test_a_usual_message_takes_few_bytes() -> None:
    control, _ = encode([TaskFinished("inc-12345", 7, 28, 0.001, None)])
    assert len(control) < 30


def test_the_size_of_a_blob_is_that_of_its_parts() -> None:
    assert blob_nbytes(b"abc") == 3
    assert blob_nbytes(Frames([b"ab", memoryview(b"cde")])) == 5


#: As of version 5 of the protocol, each family by the number of its first.
NUMBERED = {
    0: """
        RegisterClient RegisterWorker RegisterNanny RegisterPeer Registered Refused Reply Failure
        DefineFunction ForgetFunctions ComputeTask FreeKeys TaskFinished TaskErred KeysAdded
        DataMissing Heartbeat CloseWorker WorkerClosing CallFunction CallReturned RestartWorker
        CloseNanny WorkerDied FetchKeys KeyValues StoreKeys
    """,
    64: """
        SubmitTasks WantKeys ReleaseKeys CancelKeys KeepUntilDone TaskDone TaskFailed KeyLost
        KeyCancelled LocateKeys Locations GatherKeys PlanScatter ScatterPlan DataScattered
        StoreForClient Inspect RunOnWorkers RunOnScheduler CallOutcomes RestartWorkers Shutdown
    """,
}


@pytest.mark.parametrize("first", NUMBERED)
def test_numbers_of_messages_never_change(first: int) -> None:
    names = NUMBERED[first].split()
    family = importlib.import_module(FAMILIES[first]).OPCODES
    assert [message_type.__name__ for message_type in family[: len(names)]] == names


def test_no_two_messages_have_a_number() -> None:
    n_types = sum(len(importlib.import_module(module).OPCODES) for module in FAMILIES.values())
    assert len(NUMBERS) == len(MESSAGES) == n_types


def test_a_process_learns_of_a_family_when_its_first_message_comes_or_goes():
    program = """
        import sys
        from hpcdask.wire.codec import decode, encode
        assert "hpcdask.messages.shared" not in sys.modules
        control = bytes.fromhex(sys.argv[1])
        [message] = decode(control, [])
        print(message, encode([message])[0] == control)
    """
    control, _ = encode([GiveUp(7)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), control.hex()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "GiveUp(request=7) True\n"


def test_a_record_within_a_message_arrives_as_that_record() -> None:
    task = sample(ComputeTask)
    (arrived,) = decode(*encode([task]))
    assert type(arrived.dependencies[0]).__name__ == "Dependency"
