"""The code of tasks: sent once, forgotten when it is long unused."""

from __future__ import annotations

from core_helpers import DEFINE, A, B, F, release, sent, started, submit

from hpcdask.core.functions import KEPT_FUNCTIONS
from hpcdask.messages import DefineFunction, ForgetFunctions, Function


def test_a_function_goes_once_to_each_worker() -> None:
    state = started(A, B)
    submit(state, {"x": [], "y": [], "z": []})
    found = sent(state)
    for address in (A, B):
        assert [m for m in found[address] if type(m) is DefineFunction] == [DEFINE]
    release(state, "x", "y", "z")
    submit(state, {"x": []}, submission=2)
    found = sent(state)
    assert DEFINE not in found[A] + found[B]


def test_functions_long_unused_are_forgotten() -> None:
    state = started(A)
    for number in range(KEPT_FUNCTIONS + 1):
        function = Function(number.to_bytes(16, "big"), "f", b"")
        submit(state, {"x": []}, submission=number, function=function)
        release(state, "x")
    messages = sent(state)[A]
    forgotten = [m for m in messages if type(m) is ForgetFunctions]
    assert forgotten == [ForgetFunctions(((0).to_bytes(16, "big"),))]
    assert len(state.functions.records) == KEPT_FUNCTIONS
    submit(state, {"x": []}, function=Function((0).to_bytes(16, "big"), "f", b""))
    assert type(sent(state)[A][0]) is DefineFunction


def test_a_function_in_use_is_not_forgotten() -> None:
    state = started(A)
    submit(state, {"keep": []})
    for number in range(KEPT_FUNCTIONS + 5):
        function = Function(number.to_bytes(16, "big"), "f", b"")
        submit(state, {"x": []}, submission=2 + number, function=function)
        release(state, "x")
    assert F.function_id in state.functions.records
