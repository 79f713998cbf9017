"""Exceptions across processes: as their own type, with the remote lines in their traceback."""

from __future__ import annotations

import ast
import asyncio
import traceback
from types import CodeType, TracebackType
from typing import Any

from hpcdask.errors import RemoteError, TaskExitError
from hpcdask.messages import Blob, TaskError
from hpcdask.wire.serialize import dumps, loads

#: Files that call what users wrote, of which their tracebacks say nothing.
_OWN_FILES = (
    "/hpcdask/execution.py",
    "/hpcdask/calls.py",
    "/hpcdask/hosting.py",
    "/hpcdask/client/actor.py",
    "/hpcdask/collections/programs.py",
    "/hpcdask/joblib.py",
    "/hpcdask/threads.py",
    "/hpcdask/plugin_host.py",
    "/hpcdask/plugin_hooks.py",
    "/hpcdask/scheduler_plugins.py",
)
#: What ends programs, loops and tasks of asyncio, and is meant for those of the remote process.
_ENDS = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)


def to_task_error(exc: BaseException, key: str = "", worker: str = "") -> TaskError:
    """Pack an exception that was raised here.

    Parameters
    ----------
    key : str
        The task that raised it.
    worker : str
        Address of the worker that ran it.
    """
    frames = tuple((f.filename, f.lineno or 0, f.name) for f in _lines_of_others(exc))
    return TaskError(_pickled(exc), frames, key, worker)


def as_text(exc: BaseException) -> str:
    """The traceback of an exception that was raised here, in those lines that are not ours."""
    lines = traceback.format_list(_lines_of_others(exc))
    return "".join([*lines, *traceback.format_exception_only(type(exc), exc)]).rstrip()


def _lines_of_others(exc: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(exc.__traceback__)
    return [frame for frame in frames if not frame.filename.endswith(_OWN_FILES)]


def _pickled(exc: BaseException) -> Blob:
    """Pickle an exception, as text if it cannot be rebuilt elsewhere, or would do harm there."""
    if isinstance(exc, _ENDS):
        return dumps(TaskExitError(f"{_as_text(exc)}, which has ended only what raised it"))
    try:
        blob = dumps(exc)
        # Many exception classes pickle well and then fail to load, since their __init__ takes
        # other arguments than their args; that must show here, not at the reader.
        if isinstance(loads(blob), BaseException):
            return blob
    except Exception:
        pass
    text = f"{_as_text(exc)} (this exception cannot be pickled, so this is its text)"
    return dumps(RemoteError(text))


def _as_text(exc: BaseException) -> str:
    return "".join(traceback.format_exception_only(type(exc), exc)).strip()


def to_exception(error: TaskError) -> BaseException:
    """Rebuild the exception of a `TaskError`.

    Returns
    -------
    BaseException
        Of its own type where that can be loaded here, else a `RemoteError`. Its traceback shows
        the remote lines; `key` and `worker` are its attributes and, from Python 3.11, in a note.
    """
    try:
        exc: Any = loads(error.exception)
    except Exception as problem:
        exc = RemoteError(
            f"the exception of {error.key or 'the call'} cannot be read here: {problem!r}"
        )
    if not isinstance(exc, BaseException):
        exc = RemoteError(repr(exc))
    rebuilt: BaseException = exc
    where = " on ".join(filter(None, (f"task {error.key!r}" if error.key else "", error.worker)))
    if where and hasattr(exc, "add_note"):
        exc.add_note(f"hpcdask: {where}")
    try:
        exc.key, exc.worker = error.key, error.worker
    except (AttributeError, TypeError):  # a class with slots, say
        pass
    try:
        return rebuilt.with_traceback(to_traceback(error))
    finally:
        # The frames of that traceback were made in a call from this one, and so refer to it.
        del exc, rebuilt


def to_traceback(error: TaskError) -> TracebackType | None:
    """Build a traceback object that shows the remote files, lines and functions."""
    result: TracebackType | None = None
    for filename, line, name in reversed(error.frames):
        result = _frame(filename, line, name, result)
    try:
        return result
    finally:
        del result  # as in `to_exception`


def _frame(filename: str, line: int, name: str, below: TracebackType | None) -> TracebackType:
    """One entry: a traceback needs a real frame, so run code that claims to be the remote line."""
    tree = ast.parse("raise RuntimeError")
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.expr)):
            node.lineno = node.end_lineno = max(line, 1)
            node.col_offset = node.end_col_offset = -1  # unknown, or that part would be underlined
    code: CodeType = compile(tree, filename, "exec").replace(co_name=name)
    try:
        exec(code, {"__name__": name, "__file__": filename})
    except RuntimeError as exc:
        own = exc.__traceback__ and exc.__traceback__.tb_next
    assert own is not None
    try:
        return TracebackType(below, own.tb_frame, own.tb_lasti, line)
    finally:
        del own, below
