"""What a worker says of a pickle that it cannot read: what, where, and the cure."""

from __future__ import annotations

import sys
import types

import cloudpickle
import pytest

from hpcdask.errors import SerializationError
from hpcdask.messages import Frames
from hpcdask.unreadable import unreadable
from hpcdask.wire import serialize
from hpcdask.wire.serialize import dumps, loads, pickled_by, this_pickles


def test_a_missing_module_is_told_with_who_needs_it_for_what_and_the_ways_out() -> None:
    exc = ModuleNotFoundError("No module named 'mine.part'", name="mine.part")
    told = unreadable(exc, "the function f (task 'f-1')", b"", "tcp://a:1")
    assert isinstance(told, ModuleNotFoundError)
    assert told.name == "mine.part"
    assert str(told).startswith("No module named 'mine.part': tcp://a:1 on ")
    for text in (
        "needs it for the function f (task 'f-1')",
        "PYTHONPATH",
        "client.upload_file('mine.py')",
        "cloudpickle.register_pickle_by_value(mine)",
    ):
        assert text in str(told)


@pytest.mark.parametrize("kind", [ImportError, AttributeError])
def test_a_module_that_is_another_one_here_is_told(kind: type[Exception]) -> None:
    told = unreadable(kind("Can't get attribute 'g' on <module 'mine'>"), "f", b"", "tcp://a:1")
    assert type(told) is kind
    assert "for that module there is another one" in str(told)
    assert "cloudpickle" not in str(told)


def test_who_has_pickled_it_is_told_if_that_was_another_version() -> None:
    blob = b"\x94Python 3.9, cloudpickle 2.0.1\x94"
    told = unreadable(ImportError("cannot import name 'x'"), "f", blob, "tcp://a:1")
    assert f"(Python 3.9, cloudpickle 2.0.1 there, {this_pickles()} here)" in str(told)


@pytest.mark.parametrize("exc", [ValueError("mine"), AttributeError("'X' has no attribute 'y'")])
def test_what_the_users_own_code_raises_stays_as_it_is(exc: Exception) -> None:
    assert unreadable(exc, "f", b"", "tcp://a:1") is exc


def test_code_knows_who_has_pickled_it() -> None:
    assert pickled_by(dumps(lambda: None)) == this_pickles()
    assert pickled_by(Frames([dumps(lambda: None), b"x"])) == this_pickles()
    assert pickled_by(dumps([1, "Python"])) == ""


def test_code_of_another_python_is_refused_before_it_is_rebuilt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blob = dumps(lambda: None)
    monkeypatch.setattr(serialize, "_PYTHON", "3.99")
    with pytest.raises(SerializationError, match=r"pickled by Python 3\.\d+, cloudpickle .* 3\.99"):
        loads(blob)


def test_functions_and_classes_of_a_registered_module_go_by_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("only_here")
    exec("K = 3\ndef f(x):\n    return x * K\nclass C:\n    y = 4\n", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    by_name = dumps((module.f, module.C()))
    cloudpickle.register_pickle_by_value(module)
    try:
        by_value = dumps((module.f, module.C()))
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, "only_here")
    function, instance = loads(by_value)
    assert (function(2), instance.y) == (6, 4)
    with pytest.raises(ModuleNotFoundError):
        loads(by_name)
