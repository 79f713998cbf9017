"""Arguments with placeholders for inputs."""

from __future__ import annotations

import contextvars

import pytest

from hpcdask.wire.arguments import Input, Stored, loads_arguments, loads_value
from hpcdask.wire.serialize import dumps

_contexts: list[contextvars.Context] = []


class Hook:
    """Something that begins as it is rebuilt, as a connection does for a future."""

    def __reduce__(self) -> object:
        return _begin, ()


def _begin() -> str:
    _contexts.append(contextvars.copy_context())
    return "begun"


class Told(Stored):
    def __init__(self, value: int) -> None:
        self.value = value

    def given(self) -> int:
        return self.value


def test_placeholders_load_as_their_values() -> None:
    blob = dumps((([Input("x"), 2],), {"y": {"deep": Input("x")}}))
    x = object()
    assert loads_arguments(blob, {"x": x}) == (([x, 2],), {"y": {"deep": x}})
    with pytest.raises(KeyError):
        loads_arguments(blob, {"z": 1})


def test_what_is_stored_in_another_form_is_given_in_its_own() -> None:
    blob = dumps(((Input("x"),), {}))
    assert loads_arguments(blob, {"x": Told(3)}) == ((3,), {})
    assert loads_value(dumps(Told(4))) == 4
    assert loads_value(dumps([1])) == [1]


def test_what_begins_meanwhile_does_not_keep_the_inputs() -> None:
    blob = dumps(((Input("x"), Hook()), {}))
    assert loads_arguments(blob, {"x": 1}) == ((1, "begun"), {})
    kept = [value for value in _contexts.pop().values() if type(value) is list]
    assert kept == [[]]
