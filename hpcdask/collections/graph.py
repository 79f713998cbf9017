"""Graphs of dask's collections: found, ordered and packed for a submission."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dask import HLGExpr
from dask._task_spec import Alias, GraphNode, convert_legacy_graph
from dask.core import flatten
from dask.order import order

from hpcdask.client.annotations import Annotations
from hpcdask.client.graphs import FIRST_CHUNK, Chunk, depth_first, key_name, refuse_namesakes
from hpcdask.client.streaming import CHUNK, chunked
from hpcdask.client.submission import of_task
from hpcdask.collections.packing import Packer
from hpcdask.errors import SerializationError
from hpcdask.messages import Function, TaskSpec

#: Graphs up to this size are put in the order that dask finds for them, which takes 20 us a task;
#: larger ones are run depth first, which takes two.
_ORDERED = 10_000


class CollectionGraph:
    """What is needed of a graph to compute some keys.

    Parameters
    ----------
    dsk : dict, HighLevelGraph or dask expression
    keys : key or nested lists of keys

    Attributes
    ----------
    wanted : tuple of str
        The keys, each once, as they are named on the cluster.
    annotations : dict
        What is said of single keys: kind -> key -> value.

    Raises
    ------
    ValueError
        If there is a cycle, or a key is not in the graph.
    """

    def __init__(self, dsk: Any, keys: Any) -> None:
        graph, self.annotations = _materialized(dsk)
        self._nodes = convert_legacy_graph(graph)
        outputs = list(dict.fromkeys(flatten(keys if isinstance(keys, list) else [keys])))
        for key in outputs:
            if key not in self._nodes and key not in graph:
                raise ValueError(f"the graph has no key {key!r}")
        reached = depth_first(
            [key for key in outputs if key in self._nodes], self._needed, self._nodes
        )
        self._names, aliases = _names(self._nodes, reached, set(outputs))
        self._order = [key for key in self._in_order(reached) if key not in aliases]
        refuse_namesakes(self._order)
        self.wanted = tuple(dict.fromkeys(self.name(key) for key in outputs))

    def name(self, key: Any) -> str:
        """The name of a key on the cluster."""
        return self._names.get(key) or key_name(key)

    def _needed(self, key: Any) -> Iterable[Any]:
        return self._nodes[key].dependencies  # type: ignore[no-any-return]

    def _in_order(self, reached: list[Any]) -> list[Any]:
        if len(reached) > _ORDERED:
            return reached
        turns = order({key: self._nodes[key] for key in reached})
        return sorted(reached, key=turns.__getitem__)

    def packed(self, annotations: Annotations) -> Iterator[Chunk]:
        """Pack the tasks chunk by chunk, dependencies before dependants."""
        packer = Packer(self._names)
        if not self._order:  # all that is wanted is on the cluster already
            yield (), (), True, annotations.general
        for keys, is_final in chunked(self._order, CHUNK, FIRST_CHUNK):
            packer.look_at([self._nodes[key] for key in keys])
            for alike, is_last, conditions in annotations.runs(keys):
                yield *self._chunk(packer, alike), is_final and is_last, conditions

    def _chunk(
        self, packer: Packer, keys: Iterable[Any]
    ) -> tuple[tuple[Function, ...], tuple[TaskSpec, ...]]:
        indices: dict[bytes, int] = {}
        table: list[Function] = []
        specs: list[TaskSpec] = []

        def add(name: str, node: GraphNode) -> None:
            function, arguments, dependencies = packer.pack(node)
            while packer.pending:
                add(*packer.pending.pop())
            index = indices.setdefault(function.function_id, len(table))
            if index == len(table):
                table.append(function)
            specs.append(TaskSpec(name, index, arguments, dependencies))

        for key in keys:
            try:
                add(self._names[key], self._nodes[key])
            except SerializationError as exc:
                raise of_task(exc, key) from exc.__cause__
        return tuple(table), tuple(specs)


def _materialized(dsk: Any) -> tuple[dict[Any, Any], dict[str, dict[Any, Any]]]:
    """Return a graph as a dict, and what is annotated, by kind and key."""
    if hasattr(dsk, "layers"):
        dsk = HLGExpr(dsk)
    if hasattr(dsk, "__dask_graph__"):
        return dict(dsk.__dask_graph__()), dsk.__dask_annotations__()
    return dict(dsk), {}


def _names(
    nodes: Mapping[Any, Any], reached: list[Any], outputs: set[Any]
) -> tuple[dict[Any, str], set[Any]]:
    """Name keys as they are named on the cluster; say which aliases need no task.

    An alias has the name of what it stands for. If it is wanted itself, that is named after it,
    unless it has another name already.
    """
    names: dict[Any, str] = {}
    aliases: dict[Any, Any] = {}  # -> what it stands for in the end
    for key in reached:  # the target of an alias comes before it
        node = nodes[key]
        if type(node) is not Alias:
            names[key] = key_name(key)
            continue
        target = aliases[key] = aliases.get(node.target, node.target)
        is_future = target not in nodes
        if key not in outputs or (is_future and key_name(target) == key_name(key)):
            continue
        if is_future or target in outputs or names[target] != key_name(target):
            del aliases[key]  # both names are wanted: it is a task that copies nothing
            names[key] = key_name(key)
        else:
            names[target] = key_name(key)
    for key, target in aliases.items():
        names[key] = names.get(target) or key_name(target)
    return names, set(aliases)
