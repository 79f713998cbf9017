"""From calls to task descriptions: functions and arguments pickled, keys made, futures found."""

from __future__ import annotations

import itertools
import pickle
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any, Literal

from hpcdask.client.future import Future
from hpcdask.errors import SerializationError
from hpcdask.messages import Blob, Frames, Function
from hpcdask.wire.arguments import Input
from hpcdask.wire.serialize import dumps, dumps_function, function_name

_PLAIN = frozenset({int, float, bool, str, type(None), complex})

#: Futures that are met while an object is pickled: a task must not lose what is inside it.
_pickled: ContextVar[list[Future] | None] = ContextVar("pickled", default=None)

_random = secrets.token_hex(8)
_numbers = itertools.count(1)


def note_pickled(future: Future) -> None:
    """Remember a future that is being pickled within a task's arguments."""
    found = _pickled.get()
    if found is not None:
        found.append(future)


def pack_function(function: Callable[..., Any]) -> Function:
    """Pickle a callable; its id is a 128-bit hash of the pickle."""
    if not callable(function):
        raise TypeError(f"the first argument must be callable, not {function!r:.80}")
    try:
        code = dumps_function(function)
    except SerializationError as exc:
        raise _told(exc, function, "function") from exc.__cause__
    return Function(_digest(code).digest(), function_name(function), code)


def pack_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], function: object = None
) -> tuple[Blob, tuple[str, ...]]:
    """Pickle arguments, of a function that an error is to name.

    Returns
    -------
    arguments : Blob
        Pickle of (args, kwargs) with futures in lists, tuples, sets and dicts as placeholders for
        their values. Futures anywhere else arrive as futures.
    dependencies : tuple of str
        Keys of all of these.
    """
    if not kwargs and all([type(arg) in _PLAIN for arg in args]):
        return pickle.dumps((args, kwargs), 5), ()
    found: dict[str, None] = {}
    replaced = replace_futures(args, found), replace_futures(kwargs, found)
    try:
        return pack_replaced(replaced, found)
    except SerializationError as exc:
        raise _told(exc, function, "arguments") from exc.__cause__


def pack_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Blob:
    """Pickle a function together with its arguments, to be called elsewhere."""
    try:
        return dumps((function, args, kwargs))
    except SerializationError as exc:
        raise _told(exc, function, "call") from exc.__cause__


def _told(
    exc: SerializationError, function: object, pickled: Literal["function", "arguments", "call"]
) -> SerializationError:
    """An error of pickling, told in the user's words."""
    from hpcdask.wire import unpicklable  # not before something goes wrong

    return unpicklable.about_call(exc, function, pickled)


def of_task(exc: SerializationError, key: object) -> SerializationError:
    """An error of pickling a task of a graph, with its key."""
    from hpcdask.wire import unpicklable

    return unpicklable.about(exc, f"the task {key!r}")


def pack_replaced(arguments: Any, found: dict[str, None]) -> tuple[Blob, tuple[str, ...]]:
    """Pickle arguments whose inputs are placeholders already."""
    blob, pickled = pack_with_futures(arguments)
    found.update(dict.fromkeys([future.key for future in pickled]))
    return blob, tuple(found)


def pack_with_futures(value: Any) -> tuple[Blob, list[Future]]:
    """Pickle anything; return also the futures within, which arrive as futures."""
    pickled: list[Future] = []
    token = _pickled.set(pickled)
    try:
        return dumps(value), pickled
    finally:
        _pickled.reset(token)


def replace_futures(value: Any, found: dict[str, None]) -> Any:
    """Return `value` with an `Input` for each future in it, and note their keys in `found`."""
    try:
        return _replaced(value, found)
    except RecursionError:  # it cannot be pickled either, which says what and where
        return value


def _replaced(value: Any, found: dict[str, None]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, Future):
        found[value.key] = None
        return Input(value.key)
    if kind in (list, tuple, set, frozenset):
        replaced = [_replaced(item, found) for item in value]
        if all(new is old for new, old in zip(replaced, value, strict=True)):
            return value
        return kind(replaced)
    if kind is dict:
        values = {key: _replaced(item, found) for key, item in value.items()}
        return value if all(values[key] is value[key] for key in value) else values
    return value


def pure_key(function: Function, arguments: Blob, prefix: str | None = None) -> str:
    """The same function with the same arguments has the same key, whoever asks, for as long."""
    digest = _digest(arguments)
    digest.update(function.function_id)
    return f"{prefix or function.name}-{digest.hexdigest()}"


def fresh_key(name: str) -> str:
    """A key that no other task has."""
    return f"{name}-{_random}{next(_numbers):016x}"


def data_key(kind: str, blob: Blob) -> str:
    """Key of scattered data by its content."""
    return f"{kind}-{_digest(blob).hexdigest()}"


def _digest(blob: Blob) -> Any:
    if type(blob) is Frames:
        digest = blake2b(digest_size=16)
        for part in blob.parts:
            digest.update(part)
        return digest
    return blake2b(blob, digest_size=16)  # type: ignore[arg-type]
