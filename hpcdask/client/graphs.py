"""Graphs as dicts: found, ordered and packed for `Client.get`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hpcdask.client.submission import pack_function, pack_replaced, replace_futures
from hpcdask.messages import Function, SubmitTasks, TaskSpec
from hpcdask.wire.arguments import Input


class Graph:
    """Packed tasks, dependencies before dependants, and the keys that were asked for."""

    def __init__(self, wanted: list[str]) -> None:
        self.wanted = wanted
        self.tasks: list[tuple[str, Function, Any, tuple[str, ...]]] = []

    def messages(
        self, submission: int, chunk: int, priority: float, retries: int, want: int
    ) -> Iterator[SubmitTasks]:
        """Messages that submit it, in order."""
        for first in range(0, max(len(self.tasks), 1), chunk):
            part = self.tasks[first : first + chunk]
            functions: dict[bytes, int] = {}
            table: list[Function] = []
            specs = []
            for key, function, arguments, dependencies in part:
                index = functions.setdefault(function.function_id, len(table))
                if index == len(table):
                    table.append(function)
                specs.append(TaskSpec(key, index, arguments, dependencies))
            final = first + chunk >= len(self.tasks)
            wanted = tuple(self.wanted) if final else ()
            how = (first, priority, retries, final, want if final else 0)
            yield SubmitTasks(submission, tuple(table), tuple(specs), wanted, *how)


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


def pack(dsk: Any, keys: Any) -> Graph:
    """Pack what is needed of a graph to compute `keys`.

    Raises
    ------
    ValueError
        If there is a cycle, or a key is not in the graph.
    """
    dsk = dict(dsk)
    outputs = list(_flat(keys, dsk))
    graph = Graph(list(dict.fromkeys(map(key_name, outputs))))
    for key in _ordered(dsk, outputs):
        function, arguments, found = _task(dsk[key], dsk)
        record = pack_function(function)
        blob, dependencies = pack_replaced(arguments, found)
        graph.tasks.append((key_name(key), record, blob, dependencies))
    return graph


def rename(keys: Any, dsk: Any, futures: dict[str, Any]) -> Any:
    """Return `keys` with futures in their places."""
    if isinstance(keys, list):
        return [rename(key, dsk, futures) for key in keys]
    return futures[key_name(keys)]


def _flat(keys: Any, dsk: dict[Any, Any]) -> Iterator[Any]:
    if isinstance(keys, list):
        for key in keys:
            yield from _flat(key, dsk)
    elif keys in dsk:
        yield keys
    else:
        raise ValueError(f"the graph has no key {keys!r}")


def _ordered(dsk: dict[Any, Any], outputs: list[Any]) -> list[Any]:
    """Keys that `outputs` need, depth first, so that few values are held at a time."""
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
                for needed in reversed(_needed(dsk[key], dsk)):
                    if needed not in state:
                        stack.append((needed, False))
                    elif state[needed] is False:
                        raise ValueError(f"the graph has a cycle through {needed!r}")
    return order


def _is_key(value: Any, dsk: dict[Any, Any]) -> bool:
    if type(value) not in (str, tuple, int, float, bytes):
        return False
    try:
        return value in dsk
    except TypeError:  # a tuple with a list in it
        return False


def _is_task(value: Any) -> bool:
    return type(value) is tuple and bool(value) and callable(value[0])


def _is_spec(value: Any) -> bool:
    """Whether it is an object of dask._task_spec, without importing dask."""
    return hasattr(value, "dependencies") and hasattr(value, "key") and callable(value)


def _needed(value: Any, dsk: dict[Any, Any]) -> list[Any]:
    """Keys that a graph's value refers to."""
    if _is_spec(value):
        return list(value.dependencies)
    if _is_task(value):
        return [key for item in value[1:] for key in _needed(item, dsk)]
    if _is_key(value, dsk):
        return [value]
    if isinstance(value, list):
        return [key for item in value for key in _needed(item, dsk)]
    if isinstance(value, dict):
        return [key for item in value.values() for key in _needed(item, dsk)]
    return []


def _task(value: Any, dsk: dict[Any, Any]) -> tuple[Callable[..., Any], Any, dict[str, None]]:
    """Return the callable, (args, kwargs) and keys of inputs of one value of the graph."""
    found: dict[str, None] = {}
    if _is_spec(value):
        inputs = {key: Input(key_name(key)) for key in value.dependencies}
        found.update(dict.fromkeys(map(key_name, value.dependencies)))
        return _run_spec, ((value, inputs), {}), found
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


def _run_spec(node: Any, inputs: dict[Any, Any]) -> Any:
    return node(inputs)
