"""Exceptions packed in one process and rebuilt in another: their lines, causes and text."""

from __future__ import annotations

import gc
import pickle
import threading
import traceback
import weakref

import pytest

from hpcdask import RemoteError, config, execution
from hpcdask.messages import TaskErred, TaskError
from hpcdask.tracebacks import shown, to_exception, to_task_error
from hpcdask.wire.codec import decode, encode


def inner(x: int) -> float:
    return 1 / x  # the line that a reader looks for


def middle(x: int) -> float:
    try:
        return inner(x)
    except ZeroDivisionError as exc:
        raise ValueError("no such x") from exc


def outer(x: int) -> float:
    try:
        return middle(x)
    except ValueError:
        raise KeyError("x")  # noqa: B904


def silent(x: int) -> float:
    try:
        return inner(x)
    except ZeroDivisionError:
        raise ValueError("no such x") from None


def caught(function, *args) -> BaseException:  # type: ignore[no-untyped-def]
    try:
        function(*args)
    except BaseException as exc:
        return exc
    raise AssertionError("it should have raised")


def sent(exc: BaseException) -> TaskError:
    """As it arrives."""
    error = to_task_error(exc, "k", "tcp://a:1")
    (arrived,) = decode(*encode([TaskErred("k", 1, error)]))
    assert arrived.error == error
    return arrived.error


def text_of(exc: BaseException) -> str:
    return "".join(traceback.format_exception(exc))


def test_what_led_to_an_exception_comes_along_with_its_lines() -> None:
    exc = to_exception(sent(caught(outer, 0)))
    assert isinstance(exc, KeyError)
    assert exc.__cause__ is None
    assert isinstance(exc.__context__, ValueError)
    assert isinstance(exc.__context__.__cause__, ZeroDivisionError)
    text = text_of(exc)
    assert text.count("direct cause") == text.count("During handling") == 1
    assert text.count("return 1 / x  # the line that a reader looks for") == 1
    for name in ("inner", "middle", "outer"):
        assert f"in {name}\n" in text


def test_what_was_left_out_with_from_none_stays_out() -> None:
    exc = to_exception(sent(caught(silent, 0)))
    assert exc.__cause__ is exc.__context__ is None


def test_exceptions_that_led_to_each_other_in_a_circle_come_once() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    exc = to_exception(sent(first))
    assert str(exc.__cause__) == "second"
    assert exc.__cause__.__cause__ is None  # type: ignore[union-attr]


def test_a_cause_that_cannot_be_pickled_comes_as_text() -> None:
    class LocalError(Exception):
        def __reduce__(self) -> tuple[object, ...]:
            raise TypeError("not me")

    exc = ValueError("outer")
    exc.__cause__ = LocalError("inner")
    cause = to_exception(sent(exc)).__cause__
    assert isinstance(cause, RemoteError)
    assert "inner" in str(cause)


class FileFormatError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(22, "not in our format", path)
        self.path = path


class CodeError(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint


def test_an_exception_whose_init_takes_other_arguments_keeps_type_and_attributes() -> None:
    exc = to_exception(sent(CodeError(7, hint="ask")))
    assert isinstance(exc, CodeError)
    assert (str(exc), exc.code, exc.hint) == ("code 7", 7, "ask")

    error = to_exception(sent(FileFormatError("data.bin")))
    assert isinstance(error, FileFormatError)
    assert (error.errno, error.filename, error.path) == (22, "data.bin", "data.bin")
    assert str(error) == str(FileFormatError("data.bin"))


def test_such_an_exception_with_what_cannot_be_pickled_comes_as_text() -> None:
    exc = CodeError(7, hint="ask")
    exc.lock = threading.Lock()  # type: ignore[attr-defined]
    arrived = to_exception(sent(exc))
    assert isinstance(arrived, RemoteError)
    assert "CodeError: code 7" in str(arrived)


def test_an_exception_of_a_type_that_is_not_here_keeps_its_text() -> None:
    error = to_task_error(caught(inner, 0), "k", "tcp://a:1")
    foreign = pickle.dumps(ValueError("x")).replace(b"ValueError", b"ValueErrar")
    exc = to_exception(error._replace(exception=foreign))
    assert isinstance(exc, RemoteError)
    assert str(exc).startswith("ZeroDivisionError: division by zero (its own type cannot be loaded")
    assert "in inner" in text_of(exc)


OURS = [
    execution.__file__,
    "/elsewhere/lib/python3.12/site-packages/hpcdask/wire/serialize.py",
    "/elsewhere/lib/python3.12/site-packages/dask/_task_spec.py",
    "/usr/lib/python3.11/asyncio/runners.py",
    "/usr/lib/python3.11/concurrent/futures/thread.py",
    "<frozen importlib._bootstrap>",
]
THEIRS = [
    "/home/me/hpcdask/analysis.py",
    "/home/me/dask/program.py",
    "/elsewhere/lib/python3.12/site-packages/numpy/linalg/_linalg.py",
    "/usr/lib/python3.11/json/decoder.py",
    "<ipython-input-3-9a1>",
]


@pytest.mark.parametrize("filename", OURS)
def test_lines_that_only_lead_to_the_users_are_shown_if_asked_for(filename: str) -> None:
    frames = [(filename, 1, "f"), ("program.py", 2, "g"), (filename, 3, "h")]
    assert shown(frames) == frames[1:2]
    with config.set({"admin.full-tracebacks": True}):
        assert shown(frames) == frames


@pytest.mark.parametrize("filename", THEIRS)
def test_lines_of_the_user_and_of_what_they_call_are_shown(filename: str) -> None:
    frames = [(filename, 1, "f"), ("program.py", 2, "g")]
    assert shown(frames) == frames


def test_of_an_error_before_any_line_of_the_user_the_last_line_is_shown() -> None:
    dask = "/x/site-packages/dask/utils.py"
    assert shown([(OURS[0], 1, "f"), (dask, 2, "g"), (dask, 3, "h")]) == [(dask, 3, "h")]
    assert shown([(OURS[0], 1, "f")]) == []
    assert shown([]) == []


class OwnError(Exception):
    """One that can be watched."""


def fail_twice() -> None:
    try:
        raise OwnError("first")
    except OwnError as exc:
        raise OwnError("second") from exc


def test_a_rebuilt_exception_is_in_no_circle() -> None:
    error = to_task_error(caught(fail_twice), "k")
    gc.collect()
    gc.disable()
    try:
        exc = to_exception(error)
        assert exc.__cause__ is not None
        alive = [weakref.ref(exc), weakref.ref(exc.__cause__)]
        del exc
        assert [ref() for ref in alive] == [None, None]
    finally:
        gc.enable()
