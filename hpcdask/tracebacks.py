"""Exceptions across processes: as their own type, with the remote lines in their traceback."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from types import CodeType, TracebackType
from typing import Any

from hpcdask import config
from hpcdask.errors import RemoteError, TaskExitError
from hpcdask.messages import Blob, Cause, TaskError
from hpcdask.wire.serialize import dumps, loads

#: What ends programs, loops and tasks of asyncio, and is meant for those of the remote process.
_ENDS = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)
#: Exceptions that led one to another, of which a user is told.
_MOST_CAUSES = 10
_PACKAGE = os.path.dirname(__file__)
#: Files whose lines lead from our own to those of the user.
_PLUMBING = re.compile(
    r"<frozen importlib"
    r"|/(site|dist)-packages/(dask|cloudpickle|tornado)/"
    r"|/python3\.\d+/(asyncio|concurrent|importlib)/"
    r"|/python3\.\d+/(threading|contextlib|functools)\.py"
)

Frame = tuple[str, int, str]


def to_task_error(exc: BaseException, key: str = "", worker: str = "") -> TaskError:
    """Pack an exception that was raised here, and those that led to it.

    Parameters
    ----------
    key : str
        The task that raised it.
    worker : str
        Address of the worker that ran it.
    """
    causes = tuple(_causes(exc))
    return TaskError(_pickled(exc), _frames(exc), key, worker, _as_text(exc), causes)


def _frames(exc: BaseException) -> tuple[Frame, ...]:
    return tuple(
        (frame.filename, frame.lineno or 0, frame.name)
        for frame in traceback.extract_tb(exc.__traceback__)
    )


def _causes(exc: BaseException) -> Iterator[Cause]:
    known = [exc]
    while len(known) <= _MOST_CAUSES:
        is_direct = exc.__cause__ is not None
        cause = exc.__cause__ if is_direct or exc.__suppress_context__ else exc.__context__
        if cause is None or any(cause is each for each in known):
            return
        yield Cause(_pickled(cause), _frames(cause), _as_text(cause), is_direct)
        known.append(cause)
        exc = cause


def as_text(exc: BaseException) -> str:
    """The traceback of an exception that was raised here, in those lines that are not ours."""
    lines = lines_of(_frames(exc))
    return "".join([lines, *traceback.format_exception_only(type(exc), exc)]).rstrip()


def lines_of(frames: Sequence[Frame]) -> str:
    """Frames as a traceback shows them: those that are not ours."""
    summaries = [traceback.FrameSummary(*frame) for frame in shown(frames)]
    return "".join(traceback.StackSummary.from_list(summaries).format())


def _pickled(exc: BaseException) -> Blob:
    """Pickle an exception, as text if it cannot be rebuilt elsewhere, or would do harm there."""
    if isinstance(exc, _ENDS):
        return dumps(TaskExitError(f"{_as_text(exc)}, which has ended only what raised it"))
    links = exc.__cause__, exc.__context__, exc.__suppress_context__
    try:
        # They are told apart from it; where tblib pickles exceptions, it would take them along.
        exc.__cause__ = exc.__context__ = None
        exc.__suppress_context__ = False  # which the line above has set
        for candidate in (exc, _WithoutInit(exc)):
            blob = _that_loads(candidate)
            if blob is not None:
                return blob
    finally:
        exc.__cause__, exc.__context__, exc.__suppress_context__ = links
    text = f"{_as_text(exc)} (this exception cannot be pickled, so this is its text)"
    return dumps(RemoteError(text))


def _that_loads(exc: object) -> Blob | None:
    """Pickle an exception; return None if it cannot be pickled, or not be loaded again."""
    try:
        blob = dumps(exc)
        return blob if isinstance(loads(blob), BaseException) else None
    except Exception:
        return None


class _WithoutInit:
    """Loads as an exception whose ``__init__`` takes other arguments than its ``args``.

    Such classes are many: they pickle well, and fail to load, since pickle calls them with `args`.
    """

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __reduce__(self) -> Any:
        reduced = self._exc.__reduce_ex__(5)
        if reduced[0] is not type(self._exc):
            raise TypeError("it has a way of its own to be pickled, which has failed")
        return _without_init, tuple(reduced[:3])


def _without_init(
    cls: type[BaseException], args: tuple[Any, ...], state: Any = None
) -> BaseException:
    exc = cls.__new__(cls, *args)
    # What Python itself keeps in it, such as `errno`, is set by its own class.
    base: Any = next(kind for kind in cls.__mro__ if kind.__module__ == "builtins")
    base.__init__(exc, *args)
    if state:
        exc.__setstate__(state)
    return exc


def _as_text(exc: BaseException) -> str:
    return "".join(traceback.format_exception_only(type(exc), exc)).strip()


def to_exception(error: TaskError) -> BaseException:
    """Rebuild the exception of a `TaskError`.

    Returns
    -------
    BaseException
        Of its own type where that can be loaded here, else a `RemoteError`. Its traceback shows
        the remote lines; `key` and `worker` are its attributes and, from Python 3.11, in a note.
        Those that led to it are its ``__cause__`` or ``__context__``.
    """
    exc = _rebuilt(error.exception, error.text, error.key)
    where = " on ".join(filter(None, (f"task {error.key!r}" if error.key else "", error.worker)))
    if where and hasattr(exc, "add_note"):
        exc.add_note(f"hpcdask: {where}")
    try:
        exc.key, exc.worker = error.key, error.worker  # type: ignore[attr-defined]
    except (AttributeError, TypeError):  # a class with slots, say
        pass
    try:
        _add_causes(exc, error)
        return exc.with_traceback(to_traceback(error))
    finally:
        # The frames of that traceback were made in a call from this one, and so refer to it.
        del exc


def _rebuilt(blob: Blob, text: str, key: str) -> BaseException:
    try:
        exc = loads(blob)
    except Exception as problem:
        what = text or f"the exception of {key or 'the call'}"
        return RemoteError(f"{what} (its own type cannot be loaded here: {problem!r})")
    return exc if isinstance(exc, BaseException) else RemoteError(repr(exc))


def _add_causes(exc: BaseException, error: TaskError) -> None:
    cause = exc
    for packed in error.causes:
        cause = _rebuilt(packed.exception, packed.text, error.key)
        cause = cause.with_traceback(_traceback_of(packed.frames))
        if packed.is_direct:
            exc.__cause__ = cause
        else:
            exc.__context__ = cause
        exc = cause
    del exc, cause  # as in `to_exception`


def to_traceback(error: TaskError) -> TracebackType | None:
    """Build a traceback object that shows the remote files, lines and functions."""
    return _traceback_of(error.frames)


def _traceback_of(frames: Sequence[Frame]) -> TracebackType | None:
    result: TracebackType | None = None
    for filename, line, name in reversed(shown(frames)):
        result = _frame(filename, line, name, result)
    try:
        return result
    finally:
        del result  # as in `to_exception`


def shown(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The lines of a traceback that are the user's, or of what the user has called.

    All of them, if `admin.full-tracebacks` is configured.
    """
    if config.get("admin.full-tracebacks"):
        return frames
    own = [frame for frame in frames if not _is_plumbing(frame[0])]
    # One that was raised in dask, before any line of the user, has come from somewhere.
    return own or [frame for frame in frames[-1:] if not _is_of_hpcdask(frame[0])]


def _is_plumbing(filename: str) -> bool:
    return _is_of_hpcdask(filename) or _PLUMBING.search(filename) is not None


def _is_of_hpcdask(filename: str) -> bool:
    """Whether we have such a file, wherever the package may be on the host it comes from."""
    _, found, rest = filename.rpartition("/hpcdask/")
    return bool(found) and os.path.exists(os.path.join(_PACKAGE, rest))


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
