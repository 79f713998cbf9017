"""Nodes of dask's graphs as functions and arguments: what many have in common is pickled once."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from dask._task_spec import (
    Alias,
    DataNode,
    GraphNode,
    NestedContainer,
    Task,
    TaskRef,
    _execute_subgraph,
)

from hpcdask.client.graphs import key_name
from hpcdask.client.submission import fresh_key, pack_function, pack_replaced, replace_futures
from hpcdask.collections.programs import (
    Program,
    Step,
    identity,
    make_dict,
    make_list,
    make_set,
    make_tuple,
    run_node,
)
from hpcdask.messages import Blob, Function
from hpcdask.sizes import sizeof
from hpcdask.wire.arguments import Input
from hpcdask.wire.serialize import OUT_OF_BAND

#: Arguments that are quicker to pickle again than to recognise.
_PLAIN = frozenset({int, float, bool, str, bytes, complex, type(None), slice})
#: Packages whose objects no task changes: also threads of dask's own share them.
_CONSTANT_IN = frozenset({"numpy", "pandas", "pyarrow"})
#: Bytes from which an argument of several tasks is a task of its own, and so sent once.
_LARGE = 1_000_000
#: What a pickle of plain arguments may hold.
_QUICK = frozenset({int, float, bool, str, type(None), Input})

_MAKERS: dict[type, Callable[..., Any]] = {
    list: make_list,
    tuple: make_tuple,
    set: make_set,
    dict: make_dict,
}
#: Stands for a position in a partial of Python 3.14.
_PLACEHOLDER = getattr(functools, "Placeholder", object())

#: Where the argument of a step comes from: an argument of the task from 0 on; ``~i`` is the value
#: of step i; the digits of a str number a constant of the packer.
_Slot = int | str
_Steps = list[tuple[int, tuple[_Slot, ...], tuple[str, ...]]]


class Packer:
    """Packs the nodes of one graph.

    Parameters
    ----------
    names : dict
        Key of the graph -> key on the cluster. Keys that are not in it are added.
    """

    def __init__(self, names: dict[Any, str]) -> None:
        self.names = names
        # By ids: the graph keeps alive what they are of.
        self._seen: set[int] = set()
        self._repeated: set[int] = set()
        self._constants: dict[int, str | Input] = {}
        #: Data that the last nodes need, as names and nodes that are to come before these.
        self.pending: list[tuple[str, DataNode]] = []
        self._constant_values: list[Any] = []
        self._indices: dict[int, int] = {}
        self._callables: list[Callable[..., Any]] = []
        self._functions: dict[int, Function] = {}
        self._programs: dict[Any, Function] = {}

    def look_at(self, nodes: Iterable[Any]) -> None:
        """Note what several nodes share, before they are packed."""
        seen, repeated = self._seen, self._repeated
        for value in _literals(nodes):
            number = id(value)
            if number in seen:
                repeated.add(number)
            else:
                seen.add(number)

    def pack(self, node: Any) -> tuple[Function, Blob, tuple[str, ...]]:
        """Return the function, the pickled arguments and the inputs of a task."""
        call = _Call(self)
        if isinstance(node, DataNode):  # nothing that others share
            found = replace_futures(node.value, call.found)
            return self.function(identity), *pack_replaced(((found,), {}), call.found)
        slot = call.slot(node, _Scope())
        if not call.steps:
            assert type(slot) is int
            return self.function(identity), *call.packed((call.args[slot],), {})
        if len(call.steps) == 1:
            ((index, slots, names),) = call.steps
            args = [call.args[s] for s in slots if type(s) is int]
            if len(args) == len(slots):
                n = len(args) - len(names)
                named = dict(zip(names, args[n:], strict=True))
                return self._function_at(index), *call.packed(tuple(args[:n]), named)
        function = self._program(call, node.key)
        return function, *call.packed(tuple(call.args), {})

    def function(self, call: Callable[..., Any]) -> Function:
        """Pickle a callable, once for all nodes."""
        return self._function_at(self.index_of(call))

    def _function_at(self, index: int) -> Function:
        function = self._functions.get(index)
        if function is None:
            function = self._functions[index] = pack_function(self._callables[index])
        return function

    def index_of(self, call: Callable[..., Any]) -> int:
        """The number of a callable."""
        index = self._indices.get(id(call))
        if index is None:
            index = self._indices[id(call)] = len(self._callables)
            self._callables.append(call)
        return index

    def constant(self, value: Any) -> str | Input | None:
        """The number of an argument that several nodes have, or a placeholder; None of others."""
        number = id(value)
        if number not in self._repeated:
            return None
        known = self._constants.get(number)
        if known is None and sizeof(value) > _LARGE:
            name = fresh_key(type(value).__name__)
            self.pending.append((name, DataNode(name, value)))
            known = Input(name)
        elif known is None:
            known = str(len(self._constant_values))
            self._constant_values.append(value)
        self._constants[number] = known
        return known

    def _program(self, call: _Call, key: Any) -> Function:
        n_args = len(call.args)
        # Those that differ in their steps only by numbers share one.
        shape = n_args, tuple(call.steps), _prefix(key)
        function = self._programs.get(shape)
        if function is None:
            program = self._linked(_prefix(key), n_args, call.steps)
            function = self._programs[shape] = pack_function(program)
        return function

    def _linked(self, name: str, n_args: int, steps: _Steps) -> Program:
        """Number the slots as a program has them, and find where each is used last."""
        constants = list(dict.fromkeys(s for _, slots, _ in steps for s in slots if type(s) is str))
        place: dict[_Slot, int] = {constant: n_args + i for i, constant in enumerate(constants)}
        first = n_args + len(constants)
        place.update((~i, first + i) for i in range(len(steps)))
        last_uses = {slot: i for i, (_, slots, _) in enumerate(steps) for slot in slots}
        linked = []
        for i, (index, slots, names) in enumerate(steps):
            wanted = tuple(cast(int, place.get(slot, slot)) for slot in slots)
            used = [s for s in dict.fromkeys(slots) if type(s) is int and s < 0]
            spent = tuple(place[slot] for slot in used if last_uses[slot] == i)
            linked.append(Step(self._callables[index], wanted, names, spent))
        values = tuple(self._constant_values[int(constant)] for constant in constants)
        return Program(name, tuple(linked), values)


class _Scope:
    """Which keys a node may refer to: those of a graph within a task, and what goes into that."""

    __slots__ = ("graph", "inputs", "outer", "slots")

    def __init__(
        self,
        graph: dict[Any, Any] | None = None,
        inputs: dict[Any, Any] | None = None,
        outer: _Scope | None = None,
    ) -> None:
        self.graph, self.inputs, self.outer = graph or {}, inputs or {}, outer
        self.slots: dict[Any, _Slot] = {}

    def is_inner(self, key: Any) -> bool:
        """Whether a key is none of the whole graph's."""
        return key in self.slots or key in self.graph or key in self.inputs


class _Call:
    """One task on its way from a node to steps and arguments."""

    def __init__(self, packer: Packer) -> None:
        self.packer = packer
        self.args: list[Any] = []
        self.steps: _Steps = []
        self.found: dict[str, None] = {}  # keys of inputs
        self._inputs: dict[str, int] = {}  # slots of these

    def packed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Blob, tuple[str, ...]]:
        """Pickle arguments, with placeholders for inputs."""
        if all([type(arg) in _QUICK for arg in args]) and not kwargs:
            pickled = pickle.dumps((args, kwargs), 5)
            if len(pickled) < OUT_OF_BAND:
                return pickled, tuple(self.found)
        return pack_replaced((args, kwargs), self.found)

    def slot(self, value: Any, scope: _Scope) -> _Slot:
        """Where the value of a node, a reference or a literal will be found."""
        if type(value) in _PLAIN:
            return self._argument(value)
        if isinstance(value, TaskRef):
            return self._reference(value.key, scope)
        if isinstance(value, GraphNode):
            return self._of_node(value, scope)
        constant = self.packer.constant(value)
        if isinstance(constant, Input):
            return self._input(constant)
        if constant is not None:
            return constant
        return self._argument(replace_futures(value, self.found))

    def _of_node(self, node: Any, scope: _Scope) -> _Slot:
        if isinstance(node, Alias):
            return self._reference(node.target, scope)
        if isinstance(node, DataNode):
            return self.slot(node.value, scope)
        if isinstance(node, NestedContainer):
            filled = self._filled(node, scope)
            if filled is not _NOT_ALONE:
                return self._argument(filled)
            return self._step(_MAKERS[node.klass], node.args, {}, scope)
        if type(node) is not Task:
            keys = tuple(sorted(node.dependencies, key=str))
            return self._step(run_node, (node, keys, *map(TaskRef, keys)), {}, scope, 2)
        if node.func is _execute_subgraph:
            return self._subgraph(node, scope)
        return self._step(*_unfolded(node.func, node.args, node.kwargs), scope)

    def _step(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        scope: _Scope,
        n_opaque: int = 0,
    ) -> int:
        """Add a call; the first `n_opaque` arguments are literals, whatever they are."""
        slots: list[_Slot] = [self._argument(arg) for arg in args[:n_opaque]]
        slots += [self.slot(arg, scope) for arg in args[n_opaque:]]
        slots += [self.slot(arg, scope) for arg in kwargs.values()]
        self.steps.append((self.packer.index_of(function), tuple(slots), tuple(kwargs)))
        return ~(len(self.steps) - 1)

    def _argument(self, value: Any) -> int:
        self.args.append(value)
        return len(self.args) - 1

    def _named(self, key: Any) -> Input:
        """The placeholder of a key of the whole graph."""
        names = self.packer.names
        name = names.get(key)
        if name is None:
            name = names[key] = key_name(key)
        self.found[name] = None
        return Input(name)

    def _input(self, value: Input) -> int:
        known = self._inputs.get(value.key)
        if known is None:
            self.found[value.key] = None
            known = self._inputs[value.key] = self._argument(value)
        return known

    def _reference(self, key: Any, scope: _Scope) -> _Slot:
        slot = scope.slots.get(key)
        if slot is not None:
            return slot
        if key in scope.graph:
            self._steps_of(key, scope)
            return scope.slots[key]
        if key in scope.inputs:
            assert scope.outer is not None
            slot = scope.slots[key] = self.slot(scope.inputs[key], scope.outer)
            return slot
        return self._input(self._named(key))

    def _subgraph(self, node: Task, scope: _Scope) -> _Slot:
        """Inline the small graph of a fused task."""
        graph, output, keys, *inputs = node.args
        inner = _Scope(graph, dict(zip(keys, inputs, strict=True)), scope)
        return self._reference(output, inner)

    def _steps_of(self, output: Any, scope: _Scope) -> None:
        """Add the steps of a node of a small graph, in the order of their arguments.

        The order of sets of keys differs from task to task, and so would the programs. Chains may
        be longer than Python's stack.
        """
        stack = [output]
        opened = set()
        while stack:
            key = stack[-1]
            if key in scope.slots:
                stack.pop()
                continue
            node = scope.graph[key]
            needed = [k for k in _references(node) if k in scope.graph and k not in scope.slots]
            if needed and key in opened:
                raise ValueError(f"a task of the graph has a cycle in it, through {key!r}")
            if needed:
                opened.add(key)
                stack.extend(reversed(needed))
            else:
                stack.pop()
                scope.slots[key] = self.slot(node, scope)

    def _filled(self, node: Any, scope: _Scope) -> Any:
        """A container with placeholders in it, or `_NOT_ALONE` if it needs a step."""
        items = []
        for item in node.args:
            if isinstance(item, (TaskRef, Alias)):
                key = item.key if isinstance(item, TaskRef) else item.target
                if scope.is_inner(key):
                    return _NOT_ALONE
                items.append(self._named(key))
            elif isinstance(item, NestedContainer):
                items.append(self._filled(item, scope))
            elif isinstance(item, DataNode):
                items.append(replace_futures(item.value, self.found))
            elif isinstance(item, GraphNode):
                return _NOT_ALONE
            else:
                items.append(replace_futures(item, self.found))
            if items[-1] is _NOT_ALONE:
                return _NOT_ALONE
        return _MAKERS[node.klass](*items)


#: A container in which there is something to compute.
_NOT_ALONE = object()


def _unfolded(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Take a partial apart: dask makes one for each task, where its function is the same."""
    while type(function) is functools.partial:
        if any([arg is _PLACEHOLDER for arg in function.args]):
            break
        args = function.args + args
        kwargs = {**function.keywords, **kwargs}
        function = function.func
    return function, args, kwargs


def _references(node: Any) -> Iterator[Any]:
    """Keys that a node refers to, in the order of its arguments."""
    if isinstance(node, TaskRef):
        yield node.key
    elif isinstance(node, Alias):
        yield node.target
    elif isinstance(node, NestedContainer):
        for arg in node.args:
            yield from _references(arg)
    elif type(node) is Task:
        args = node.args[3:] if node.func is _execute_subgraph else node.args
        for arg in (*args, *node.kwargs.values()):
            if isinstance(arg, (TaskRef, GraphNode)):
                yield from _references(arg)
    elif isinstance(node, Task):
        yield from sorted(node.dependencies, key=str)


def _literals(nodes: Iterable[Any]) -> Iterator[Any]:
    """Arguments in nodes that might be constants."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        kind = type(node)
        if kind in _PLAIN or isinstance(node, (TaskRef, Alias)):
            continue
        if kind is DataNode:
            stack.append(node.value)
        elif isinstance(node, NestedContainer):
            stack.extend(node.args)
        elif kind is Task:
            args, kwargs = node.args, node.kwargs
            if node.func is _execute_subgraph:
                stack.extend(args[0].values())
                args = args[3:]
            else:
                _, args, kwargs = _unfolded(node.func, args, kwargs)
            stack.extend(args)
            if kwargs:
                stack.extend(kwargs.values())
        elif not isinstance(node, GraphNode) and _is_constant(node):
            yield node


def _is_constant(value: Any) -> bool:
    """Whether tasks in the same process may share it: what each may change for itself is not."""
    if callable(value):
        return True
    package, _, module = type(value).__module__.partition(".")
    return package in _CONSTANT_IN and not module.startswith("random")


def _prefix(key: Any) -> str:
    """The part of a key that says what is done."""
    from dask.utils import key_split

    return str(key_split(key))[:60] or "task"
