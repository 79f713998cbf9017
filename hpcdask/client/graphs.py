"""Graphs as dicts: found, ordered and packed for `Client.get`."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from hpcdask.client.annotations import Annotations
from hpcdask.client.streaming import CHUNK, Conditions, chunked
from hpcdask.client.submission import of_task, pack_function, pack_replaced, replace_futures
from hpcdask.errors import SerializationError
from hpcdask.messages import Blob, Function, TaskSpec
from hpcdask.wire.arguments import Input
from hpcdask.wire.serialize import OUT_OF_BAND

#: Tasks of the first chunk, so that workers have something to do while the others are packed.
FIRST_CHUNK = 50
#: Types that stand for themselves if they are no keys.
_SCALARS = frozenset({int, float, str, bool, type(None)})
_KEYS = frozenset({str, tuple, int, float, bytes})

#: Functions, tasks, whether these are the last, and their conditions.
Chunk = tuple[tuple[Function, ...], tuple[TaskSpec, ...], bool, Conditions]


class Graph:
    """What is needed of a graph to compute some keys.

    Parameters
    ----------
    dsk : dict
        As for `Client.get`.
    keys : key or nested lists of keys

    Attributes
    ----------
    wanted : tuple of str
        The keys, each once.
    annotations : dict
        What is said of single keys, by kind: nothing.

    Raises
    ------
    ValueError
        If there is a cycle, or a key is not in the graph.
    """

    def __init__(self, dsk: Any, keys: Any) -> None:
        self._dsk = dict(dsk)
        self.annotations: dict[str, dict[Any, Any]] = {}
        outputs = list(_flat(keys, self._dsk))
        self.wanted = tuple(dict.fromkeys(map(key_name, outputs)))
        self._order = depth_first(outputs, self._needed, self._dsk)
        refuse_namesakes(self._order)
        # By their ids; `_dsk` keeps them alive.
        self._functions: dict[int, Function] = {}

    def name(self, key: Any) -> str:
        """The name of a key on the cluster."""
        return key_name(key)

    def _needed(self, key: Any) -> list[Any]:
        return _needed(self._dsk[key], self._dsk)

    def packed(self, annotations: Annotations) -> Iterator[Chunk]:
        """Pack the tasks chunk by chunk, dependencies before dependants."""
        for keys, is_final in chunked(self._order, CHUNK, FIRST_CHUNK):
            for alike, is_last, conditions in annotations.runs(keys):
                yield *self._chunk(alike), is_final and is_last, conditions

    def _chunk(self, keys: Iterable[Any]) -> tuple[tuple[Function, ...], tuple[TaskSpec, ...]]:
        indices: dict[bytes, int] = {}
        table: list[Function] = []
        specs = []
        for key in keys:
            try:
                call, arguments, dependencies = self._task(self._dsk[key])
                function = self._functions.get(id(call))
                if function is None:
                    function = self._functions[id(call)] = pack_function(call)
            except SerializationError as exc:
                raise of_task(exc, key) from exc.__cause__
            index = indices.setdefault(function.function_id, len(table))
            if index == len(table):
                table.append(function)
            specs.append(TaskSpec(key_name(key), index, arguments, dependencies))
        return tuple(table), tuple(specs)

    def _task(self, value: Any) -> tuple[Callable[..., Any], Blob, tuple[str, ...]]:
        """Return the callable, its pickled arguments and the inputs of one value of the graph."""
        if _is_task(value):
            packed = _plain_arguments(value, self._dsk)
            if packed is not None:
                return value[0], *packed
        call, arguments, found = _task(value, self._dsk)
        return call, *pack_replaced(arguments, found)


def _plain_arguments(
    task: tuple[Any, ...], dsk: dict[Any, Any]
) -> tuple[bytes, tuple[str, ...]] | None:
    """Arguments that are only keys, plain scalars and lists of these, as most are; else None."""
    found: dict[str, None] = {}
    args = _plain(task[1:], dsk, found)
    if args is None:
        return None
    pickled = pickle.dumps((tuple(args), {}), 5)
    return (pickled, tuple(found)) if len(pickled) < OUT_OF_BAND else None


def _plain(values: Iterable[Any], dsk: dict[Any, Any], found: dict[str, None]) -> list[Any] | None:
    args: list[Any] = []
    for item in values:
        kind = type(item)
        if kind is list:
            nested = _plain(item, dsk, found)
            if nested is None:
                return None
            args.append(nested)
        elif _is_key(item, dsk) and not _is_task(item):
            name = key_name(item)
            found[name] = None
            args.append(Input(name))
        elif kind in _SCALARS:
            args.append(item)
        else:
            return None
    return args


class Nested:
    """A task within a task's arguments: loads as what it returns."""

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def key_name(key: Any) -> str:
    """Graph keys may be strings, numbers and tuples; on the cluster they are strings."""
    return key if isinstance(key, str) else str(key)


def refuse_namesakes(order: list[Any]) -> None:
    """Raise ValueError if two keys, such as 1 and "1", would be the same on the cluster."""
    if all([type(key) is str for key in order]):
        return
    names: dict[str, Any] = {}
    for key in order:
        other = names.setdefault(key_name(key), key)
        if other is not key:
            raise ValueError(
                f"keys {other!r} and {key!r} are both named {key_name(key)!r} on the cluster; "
                "give one of them another name"
            )


def rename(keys: Any, name: Callable[[Any], str], futures: dict[str, Any]) -> Any:
    """Return `keys` with futures in their places."""
    if isinstance(keys, list):
        return [rename(key, name, futures) for key in keys]
    return futures[name(keys)]


def _flat(keys: Any, dsk: dict[Any, Any]) -> Iterator[Any]:
    if isinstance(keys, list):
        for key in keys:
            yield from _flat(key, dsk)
    elif keys in dsk:
        yield keys
    else:
        raise ValueError(f"the graph has no key {keys!r}")


def depth_first(
    outputs: list[Any], needed: Callable[[Any], Iterable[Any]], graph: Container[Any]
) -> list[Any]:
    """Keys that `outputs` need, depth first, so that few values are held at a time.

    Raises
    ------
    ValueError
        If there is a cycle.
    """
    order: list[Any] = []
    state: dict[Any, bool] = {}  # key -> whether it is in `order`; False while on the path
    for output in outputs:
        stack = [(output, False)]
        while stack:
            key, is_leaving = stack.pop()
            if is_leaving:
                state[key] = True
                order.append(key)
            elif key not in state:
                state[key] = False
                stack.append((key, True))
                for other in reversed([*needed(key)]):
                    if other not in state:
                        if other in graph:
                            stack.append((other, False))
                    elif state[other] is False:
                        raise ValueError(f"the graph has a cycle through {other!r}")
    return order


def _is_key(value: Any, dsk: dict[Any, Any]) -> bool:
    if type(value) not in _KEYS:
        return False
    try:
        return value in dsk
    except TypeError:  # a tuple with a list in it
        return False


def _is_task(value: Any) -> bool:
    return type(value) is tuple and bool(value) and callable(value[0])


def _needed(value: Any, dsk: dict[Any, Any]) -> list[Any]:
    """Keys that a graph's value refers to."""
    found: list[Any] = []
    if _is_task(value):
        for item in value[1:]:
            _add_needed(item, dsk, found)
    else:
        _add_needed(value, dsk, found)
    return found


def _add_needed(value: Any, dsk: dict[Any, Any], found: list[Any]) -> None:
    if _is_task(value):
        found.extend(_needed(value, dsk))
    elif _is_key(value, dsk):
        found.append(value)
    elif type(value) in _SCALARS:
        return
    elif isinstance(value, list):
        for item in value:
            _add_needed(item, dsk, found)
    elif isinstance(value, dict):
        for item in value.values():
            _add_needed(item, dsk, found)


def _task(value: Any, dsk: dict[Any, Any]) -> tuple[Callable[..., Any], Any, dict[str, None]]:
    """Return the callable, (args, kwargs) and keys of inputs of one value of the graph."""
    found: dict[str, None] = {}
    if _is_task(value):
        args = tuple(_argument(item, dsk, found) for item in value[1:])
        return value[0], (args, {}), found
    return _identity, ((_argument(value, dsk, found),), {}), found


def _argument(value: Any, dsk: dict[Any, Any], found: dict[str, None]) -> Any:
    if _is_task(value):
        return Nested(value[0], tuple(_argument(item, dsk, found) for item in value[1:]))
    if _is_key(value, dsk):
        found[key_name(value)] = None
        return Input(key_name(value))
    if type(value) is list:
        return [_argument(item, dsk, found) for item in value]
    if type(value) is dict:
        return {key: _argument(item, dsk, found) for key, item in value.items()}
    return replace_futures(value, found)


def _identity(value: Any) -> Any:
    return value
