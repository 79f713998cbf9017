"""Objects to blobs and back: what is equal, what is shared, and what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any
from unittest import mock

import numpy as np
import pytest

from hpcdask.errors import SerializationError
from hpcdask.messages import Blob, Frames
from hpcdask.wire import serialize
from hpcdask.wire.serialize import OUT_OF_BAND, dumps, dumps_function, function_name, loads

LARGE = 4 * OUT_OF_BAND


def received(blob: Blob) -> Blob:
    """The blob as it comes from the network: every part is a bytearray of its own."""
    if isinstance(blob, Frames):
        return Frames([bytearray(part) for part in blob.parts])
    return blob


def round_trip(obj: Any) -> Any:
    return loads(received(dumps(obj)))


def parts_of(blob: Blob) -> list[Any]:
    assert isinstance(blob, Frames)
    return list(blob.parts)


def test_a_function_that_goes_by_value_keeps_the_name_of_its_file() -> None:
    def outer() -> Callable[[], None]:
        return lambda: None

    back = round_trip(outer)
    assert back.__code__.co_filename == __file__
    assert back().__code__.co_filename == __file__


# -- Arrays ----------------------------------------------------------------------------------------

ARRAYS = {
    "small": np.arange(5),
    "large": np.arange(LARGE, dtype="f8"),
    "Fortran order": np.asfortranarray(np.arange(LARGE, dtype="f4").reshape(64, -1)),
    "strided": np.arange(LARGE, dtype="i4")[::2],
    "reversed": np.arange(LARGE)[::-1],
    "transposed slice": np.arange(LARGE, dtype="i2").reshape(64, -1)[3:50, 5:900].T,
    "zero size": np.zeros((0, 7)),
    "no dimension": np.array(3.5),
    "big-endian": np.arange(LARGE, dtype=">i4"),
    "complex": np.full(LARGE, 1 + 2j),
    "booleans": np.ones(LARGE, dtype=bool),
    "records": np.zeros(LARGE, dtype=[("a", "i4"), ("b", "f8")]),
    "text": np.array(["a", "bc"] * LARGE),
    "dates": np.arange(LARGE).astype("M8[s]"),
    "objects": np.array([1, "a", None], dtype=object),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_an_array_comes_back_equal(array: np.ndarray) -> None:
    back = round_trip(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    assert back.flags.f_contiguous == array.flags.f_contiguous or not array.flags.f_contiguous


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_sent_and_received_without_a_copy(order: Any) -> None:
    array = np.ones((200, LARGE // 100), order=order)
    _, buffer = parts_of(dumps(array))
    assert np.shares_memory(np.frombuffer(buffer, "u1"), array)
    blob = received(dumps(array))
    back = loads(blob)
    assert np.shares_memory(np.frombuffer(parts_of(blob)[1], "u1"), back)
    back[0, 0] = 5.0


@pytest.mark.parametrize("size", [8, LARGE])
def test_a_read_only_array_comes_back_read_only(size: int) -> None:
    array = np.zeros(size, "u1")
    array.flags.writeable = False
    back = round_trip(array)
    assert np.array_equal(back, array)
    assert not back.flags.writeable
    assert round_trip(np.zeros(size, "u1")).flags.writeable


def test_arrays_deep_within_an_object_are_not_copied_either() -> None:
    array = np.zeros(LARGE)
    _, buffer = parts_of(dumps({"a": [({"b": {"c": [array]}},)] * 300}))
    assert np.shares_memory(np.frombuffer(buffer, "u1"), array)


def test_small_buffers_stay_within_the_pickle_and_small_pickles_are_bytes() -> None:
    assert type(dumps(np.zeros(OUT_OF_BAND // 8 - 100))) is bytes
    assert type(dumps([1, "a"])) is bytes
    assert len(parts_of(dumps(np.zeros(OUT_OF_BAND // 8)))) == 2
    assert len(parts_of(dumps("x" * OUT_OF_BAND))) == 1


# -- Bytes, bytearray, memoryview ------------------------------------------------------------------

WRAPPED: dict[str, Callable[[Any], Any]] = {
    "alone": lambda obj: obj,
    "in a list": lambda obj: [1, obj],
    "in a tuple": lambda obj: (obj, "x"),
    "in a dict": lambda obj: {"k": obj},
    "in args and kwargs": lambda obj: (([obj], 2), {"k": 3}),
}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 10, OUT_OF_BAND - 1, OUT_OF_BAND, LARGE])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_bytes_come_back_equal_and_of_their_type(wrap: Any, size: int, kind: Any) -> None:
    obj = wrap(kind(b"x" * size))
    back = round_trip(obj)
    assert back == obj
    assert repr(type(next(leaves(back)))) == repr(kind)


def leaves(obj: Any) -> Any:
    if isinstance(obj, dict):
        obj = list(obj.values())
    if isinstance(obj, (list, tuple)):
        for item in obj:
            yield from leaves(item)
    elif isinstance(obj, (bytes, bytearray, memoryview)):
        yield obj


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_large_bytes_are_sent_without_a_copy(wrap: Any, kind: Any) -> None:
    obj = kind(bytearray(LARGE))
    _, buffer = parts_of(dumps(wrap(obj)))
    assert np.shares_memory(np.frombuffer(buffer, "u1"), np.frombuffer(obj, "u1"))


def test_a_large_bytearray_is_the_very_memory_it_was_received_in() -> None:
    blob = received(dumps([bytearray(LARGE)]))
    (back,) = loads(blob)
    assert back is parts_of(blob)[1]
    back.append(1)


def test_large_bytes_in_one_process_are_the_very_object() -> None:
    obj = bytes(LARGE)
    assert loads(dumps([obj]))[0] is obj


VIEWS = {
    "floats in a matrix": memoryview(np.arange(LARGE, dtype="f8").reshape(64, -1)),
    "small": memoryview(np.arange(12, dtype="i2").reshape(3, 4)),
    "Fortran order": memoryview(np.asfortranarray(np.arange(LARGE, dtype="f8").reshape(64, -1))),
    "small, in Fortran order": memoryview(np.asfortranarray(np.arange(12.0).reshape(3, 4))),
    "strided": memoryview(np.arange(LARGE, dtype="i8")[::3]),
    "read-only": memoryview(bytes(LARGE)),
    "a slice": memoryview(bytearray(range(256)) * 1000)[1000:200_000],
    "empty, of floats": memoryview(np.zeros(0)),
    "no dimension": memoryview(np.array(2.5)),
    "of characters": memoryview(b"abc").cast("c"),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("depth", [1, 9])
def test_a_memoryview_keeps_values_shape_and_format_at_any_depth(
    view: memoryview, depth: int
) -> None:
    obj: Any = view
    for _ in range(depth):
        obj = [obj]
    back = round_trip(obj)
    for _ in range(depth):
        (back,) = back
    assert type(back) is memoryview
    assert (back.format, back.shape) == (view.format, view.shape)
    assert back.tolist() == view.tolist()
    assert back.readonly == view.readonly


def test_a_memoryview_that_python_cannot_rebuild_is_refused_when_sent() -> None:
    with pytest.raises(SerializationError, match="memoryview"):
        dumps(memoryview(np.zeros(3, complex)))


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize(
    "make", [bytearray, lambda n: bytes(bytearray(n)), np.zeros, lambda n: memoryview(bytearray(n))]
)
def test_the_same_object_twice_is_the_same_object_twice(make: Any, size: int) -> None:
    obj = make(size)
    blob = dumps({"a": obj, "b": [obj, obj]})
    if isinstance(blob, Frames):
        assert len(blob.parts) <= 2
    back = loads(received(blob))
    assert back["a"] is back["b"][0] is back["b"][1]
    two = round_trip([make(size), make(size)])
    assert two[0] is not two[1]


def test_passing_objects_of_reduce_are_not_taken_for_each_other() -> None:
    back = round_trip([bytes(LARGE), *[Fleeting(n) for n in range(50)]])
    assert [fleeting.value[:1] for fleeting in back[1:]] == [bytes([n]) for n in range(50)]


class Fleeting:
    """Its state is made while it is pickled, so the next one may lie at the same address."""

    def __init__(self, n: int) -> None:
        self.value = b""
        self.n = n

    def __reduce__(self) -> Any:
        return _fleeting, (bytes([self.n]) * LARGE,)


def _fleeting(value: bytes) -> Fleeting:
    made = Fleeting(0)
    made.value = value
    return made


# -- By value --------------------------------------------------------------------------------------


def test_lambdas_closures_and_local_classes_go_by_value() -> None:
    offset = 5

    class Local:
        def method(self) -> int:
            return offset

    assert round_trip(lambda x: x + offset)(1) == 6
    assert round_trip(Local)().method() == 5
    assert round_trip([Local()])[0].method() == 5


def test_what_goes_by_value_shares_its_large_buffers_too() -> None:
    array, text = np.ones(LARGE), bytes(LARGE)
    blob = dumps([lambda: 3, array, text])
    _, first, second = parts_of(blob)
    assert np.shares_memory(np.frombuffer(first, "u1"), array)
    assert second.obj is text
    function, back, back_text = loads(received(blob))
    assert function() == 3
    assert np.array_equal(back, array)
    assert back_text == text


def test_functions_and_classes_of_main_can_be_used_where_main_is_another() -> None:
    script = """
        import sys
        from hpcdask.wire.serialize import dumps
        class Pair:
            def __init__(self, a): self.a = a
        def double(x): return twice * x
        twice = 2
        blob = dumps((double, Pair(7), [bytes(10)]))
        assert type(blob) is bytes
        sys.stdout.buffer.write(blob)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=60, check=True
    )
    double, pair, _ = loads(run.stdout)
    assert double(21) == 42
    assert pair.a == 7


def test_functions_of_main_go_by_value_beside_large_bytes() -> None:
    script = """
        import pickle, sys
        from hpcdask.wire.serialize import dumps
        def double(x): return 2 * x
        sys.stdout.buffer.write(pickle.dumps(list(map(bytes, dumps((double, bytes(10**6))).parts))))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=60, check=True
    )
    double, zeros = loads(received(Frames(pickle.loads(run.stdout))))
    assert double(21) == 42
    assert zeros == bytes(10**6)


def test_an_importable_function_goes_by_name() -> None:
    assert round_trip(textwrap.dedent) is textwrap.dedent
    assert b"textwrap" in dumps(textwrap.dedent)


class Stubborn:
    def __reduce__(self) -> Any:
        raise RuntimeError("will not")


class Endless:
    def __reduce__(self) -> Any:
        return list, ([Endless()],)


@pytest.mark.parametrize(
    ("obj", "named"),
    [
        (threading.Lock(), "lock"),
        ([threading.Lock()], "list.*lock"),
        ([threading.Lock(), bytes(LARGE)], "list.*lock"),
        ((i for i in range(3)), "generator"),
        (Stubborn(), "Stubborn.*RuntimeError: will not"),
        (Endless(), "Endless"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_pickled_is_named(obj: Any, named: str) -> None:
    with pytest.raises(SerializationError, match=named):
        dumps(obj)


def test_an_error_of_rebuilding_keeps_its_type() -> None:
    with pytest.raises(ModuleNotFoundError):
        loads(b"cno_such_module\nfunction\n.")


# -- Functions -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_function_is_known() -> None:
    serialize._functions.clear()


def made(source: str, **names: Any) -> Any:
    """The function `f` of a module that cannot be imported."""
    namespace: dict[str, Any] = {"__name__": "not_importable", **names}
    exec(textwrap.dedent(source), namespace)
    return namespace["f"]


def called(function: Any) -> Any:
    return loads(dumps_function(function))()


def test_a_self_contained_function_is_pickled_once() -> None:
    f = made("def f(): return len('abc')")
    assert dumps_function(f) is dumps_function(f)
    assert called(f) == 3


def test_a_changed_global_is_seen() -> None:
    f = made("def f(): return g", g=1)
    assert called(f) == 1
    f.__globals__["g"] = 2
    assert called(f) == 2


def test_a_global_that_appears_later_is_seen() -> None:
    f = made("def f(): return len('abc')")
    assert called(f) == 3
    f.__globals__["len"] = lambda text: "mine"
    assert called(f) == "mine"


def test_a_changed_global_of_a_nested_function_is_seen() -> None:
    f = made("def f(): return [(lambda: g)() for _ in 'a']", g=1)
    assert called(f) == [1]
    f.__globals__["g"] = 2
    assert called(f) == [2]


def test_a_changed_closure_is_seen() -> None:
    x = 1

    def f() -> int:
        return x

    assert called(f) == 1
    x = 2
    assert called(f) == 2


def test_changed_defaults_are_seen() -> None:
    f = made("def f(x=[1], *, y=1): return x, y")
    assert called(f) == ([1], 1)
    f.__defaults__[0].append(2)
    f.__kwdefaults__["y"] = 3
    assert called(f) == ([1, 2], 3)
    g = made("def f(*x): return x")
    assert called(g) == ()
    g.__defaults__ = None
    g.__kwdefaults__ = {"z": 1}
    assert loads(dumps_function(g)).__kwdefaults__ == {"z": 1}


def test_changed_attributes_are_seen() -> None:
    f = made("def f(): return 1")
    dumps_function(f)
    f.note = "new"
    assert loads(dumps_function(f)).note == "new"
    f.note = "newer"
    assert loads(dumps_function(f)).note == "newer"
    del f.note
    for name, value in {
        "__doc__": "new",
        "__name__": "new",
        "__qualname__": "new.new",
        "__annotations__": {"x": int},
        "__module__": "also_not_importable",
    }.items():
        dumps_function(f)
        setattr(f, name, value)
        assert getattr(loads(dumps_function(f)), name) == value
    f.__annotations__["y"] = str
    assert loads(dumps_function(f)).__annotations__ == {"x": int, "y": str}


def test_changed_code_is_seen() -> None:
    f = made("def f(): return 1")
    assert called(f) == 1
    f.__code__ = made("def f(): return 2").__code__
    assert called(f) == 2


def module_function() -> int:
    return 1


def test_a_function_whose_name_is_given_to_another_stays_itself() -> None:
    original = module_function
    assert called(original) == 1
    with mock.patch.object(sys.modules[__name__], "module_function", made("def f(): return 2")):
        assert called(original) == 1
    assert round_trip(module_function) is original


def test_the_memory_for_functions_is_bounded() -> None:
    for _ in range(1200):
        dumps_function(made("def f(): return 1"))
    assert len(serialize._functions) <= 500


def test_any_callable_is_pickled() -> None:
    assert loads(dumps_function(len)) is len
    assert loads(dumps_function(partial(int, base=2)))("11") == 3
    assert loads(dumps_function("abc".upper))() == "ABC"
    assert type(loads(dumps_function(made("f = lambda: 1")))) is FunctionType


def test_a_function_has_a_short_name() -> None:
    class Call:
        def __call__(self) -> None: ...

    assert function_name(textwrap.dedent) == "dedent"
    assert function_name(lambda: 1) == "lambda"
    assert function_name(partial(partial(textwrap.dedent), 1)) == "dedent"
    assert function_name(Call()) == "Call"
    assert function_name(mock.MagicMock()) == "MagicMock"
    assert function_name(made("def f(): ...")) == "f"
    assert len(function_name(made(f"def f{'x' * 100}(): ...\nf = f{'x' * 100}"))) == 60
