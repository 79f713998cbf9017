"""Of what cannot be pickled it is said which part that is, and what to do about it."""

from __future__ import annotations

import functools
import pickle
import threading
from collections import namedtuple
from typing import Any

import pytest

from hpcdask.errors import SerializationError
from hpcdask.wire.serialize import dumps
from hpcdask.wire.unpicklable import about, about_call

LOCK = threading.Lock()


class Database:
    def __init__(self) -> None:
        self._lock = LOCK


class Model:
    def __init__(self) -> None:
        self.layers = [1, {"db": Database()}]


class Slotted:
    __slots__ = ("first", "second")

    def __init__(self) -> None:
        self.first, self.second = 1, LOCK


class OwnState:
    def __getstate__(self) -> list[object]:
        return [1, LOCK]


class Rebuilt:
    def __reduce__(self) -> tuple[object, ...]:
        return Rebuilt, (1, LOCK)


class Refusing:
    def __reduce__(self) -> tuple[object, ...]:
        raise ValueError("not this one")


class Shy:
    """Raises whenever it is looked at."""

    lock = LOCK

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Circle:
    def __init__(self) -> None:
        self.this = self
        self.other = LOCK


Pair = namedtuple("Pair", "left right")


def closure() -> Any:
    kept = Database()
    return lambda: kept


def complaint(obj: object) -> str:
    with pytest.raises(SerializationError) as caught:
        dumps(obj)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.part == caught.value.part
    return str(again)


@pytest.mark.parametrize(
    ("obj", "where"),
    [
        (LOCK, "it is a _thread.lock (TypeError: cannot pickle"),
        (Model(), "it.layers[1]['db']._lock is a _thread.lock"),
        ({"a": [0, Model()]}, "it['a'][1].layers[1]['db']._lock is"),
        ({LOCK: 1}, "its key <unlocked _thread.lock object"),
        ({LOCK}, "its item is a _thread.lock"),
        (Slotted(), "it.second is"),
        (OwnState(), "it.__getstate__()[1] is"),
        (Rebuilt(), "its content is a _thread.lock"),
        (Refusing(), "Refusing (ValueError: not this one)"),
        (Pair(1, LOCK), "it.right is"),
        (Circle(), "it.other is"),
        (closure(), "its variable kept._lock is"),
        (lambda: LOCK, "its global variable LOCK is"),
        (lambda: [LOCK for _ in range(3)], "its global variable LOCK is"),
        (lambda db=LOCK: db, "its default is"),
        (functools.partial(max, key=closure()), "its argument key's variable kept._lock is"),
        (functools.partial(max, LOCK), "its argument 0 is"),
        (Database().__init__, "it.__self__._lock is"),
        (type("Local", (), {"lock": LOCK}), "it.lock is"),
    ],
)
def test_the_part_is_named_as_a_reader_would_write_it(obj: object, where: str) -> None:
    assert where in complaint(obj)


def test_an_object_that_raises_when_it_is_looked_at_does_not_end_the_search() -> None:
    assert "it[0] is a" in complaint([Shy()])


def test_a_generator_comes_with_a_cure_of_its_own() -> None:
    assert complaint({"x": (i for i in range(3))}).endswith("Make a list of what it yields.")


def test_of_what_is_nested_too_deeply_no_part_is_to_blame() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    said = complaint(deep)
    assert ": it is a list (" in said
    assert said.endswith("Send it in smaller pieces.")


def test_the_search_ends_however_much_there_is_to_look_at() -> None:
    assert "it" in complaint([*range(200_000), [object()] * 200_000, LOCK])


def fit(model: object, *more: object, alpha: object = 1, **options: object) -> None:
    pass


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((Model(),), {}, "argument 'model' of fit: model.layers[1]['db']._lock is a _thread.lock"),
        ((1, 2, [LOCK]), {}, "argument 2 of fit: args[2][0] is a"),
        ((1,), {"alpha": LOCK}, "argument 'alpha' of fit: it is a _thread.lock"),
        ((1,), {"beta": Database()}, "argument 'beta' of fit: beta._lock is"),
    ],
)
def test_an_argument_is_told_by_its_name_or_position(args: Any, kwargs: Any, said: str) -> None:
    for pickled, what in (((args, kwargs), "arguments"), ((fit, args, kwargs), "call")):
        with pytest.raises(SerializationError) as caught:
            dumps(pickled)
        assert f"cannot pickle {said}" in str(about_call(caught.value, fit, what))  # type: ignore


def test_a_builtin_that_does_not_tell_its_parameters_has_numbers() -> None:
    with pytest.raises(SerializationError) as caught:
        dumps(((1, LOCK), {}))
    assert "argument 1 of max: " in str(about_call(caught.value, max, "arguments"))


def test_a_function_is_told_by_its_name() -> None:
    function = closure()
    function.__name__ = "train"
    for pickled, what in ((function, "function"), ((function, (), {}), "call")):
        with pytest.raises(SerializationError) as caught:
            dumps(pickled)
        said = str(about_call(caught.value, function, what))  # type: ignore[arg-type]
        assert "the function train: train's variable kept._lock is" in said


def test_an_error_that_knows_of_no_part_keeps_its_words() -> None:
    told = about(SerializationError("the disk is full"), "argument 'x' of f")
    assert str(told) == "argument 'x' of f: the disk is full"
