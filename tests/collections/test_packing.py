"""Nodes of dask's graphs as functions and arguments: what is sent, and that it gives the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from operator import add, getitem, mul
from typing import Any

import pytest

from hpcdask.client.annotations import Annotations
from hpcdask.client.streaming import conditions
from hpcdask.wire.arguments import loads_arguments
from hpcdask.wire.serialize import loads

spec = pytest.importorskip("dask._task_spec")
from dask.core import flatten  # noqa: E402

from hpcdask.collections.graph import CollectionGraph  # noqa: E402

Alias, DataNode, Dict, List, Task, TaskRef = (
    getattr(spec, name) for name in ("Alias", "DataNode", "Dict", "List", "Task", "TaskRef")
)


UNSAID = Annotations({}, conditions(0, 0, None, False, None))


class Sent:
    """What a graph is on the wire, run here as a worker would."""

    def __init__(self, dsk: Any, keys: Any, known: dict[str, Any] | None = None) -> None:
        graph = CollectionGraph(dsk, keys)
        self.wanted, self.name = graph.wanted, graph.name
        self.chunks = list(graph.packed(UNSAID))
        self.values = dict(known or {})
        self.functions: dict[str, Any] = {}  # by key of a task
        self.ids: list[bytes] = []
        self.names: list[str] = []
        self.priorities: dict[str, float] = {}
        for functions, specs, _, own in self.chunks:
            for key, index, arguments, dependencies in specs:
                function = self.functions[key] = loads(functions[index].code)
                inputs = {name: self.values[name] for name in dependencies}  # all came before
                args, kwargs = loads_arguments(arguments, inputs)
                self.values[key] = function(*args, **kwargs)
                self.ids.append(functions[index].function_id)
                self.names.append(functions[index].name)
                self.priorities[key] = own.priority

    def __getitem__(self, key: Any) -> Any:
        return self.values[self.name(key)]


def listed(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def graph_of(*nodes: Any) -> dict[Any, Any]:
    return {node.key: node for node in nodes}


def test_a_plain_task_is_its_function_and_arguments() -> None:
    sent = Sent(graph_of(Task("x", add, 1, 2), Task("y", mul, TaskRef("x"), TaskRef("x"))), "y")
    assert sent["y"] == 9
    assert [sent.functions["x"], sent.functions["y"]] == [add, mul]


def test_keywords_and_containers_reach_the_function() -> None:
    nodes = graph_of(
        DataNode("d", [1, 2]),
        Task("x", listed, List(TaskRef("d"), 5), a=Dict({"k": TaskRef("d")}), b=(3, None)),
        Task("s", listed, spec.Set(TaskRef("d0"), 7), spec.Tuple(TaskRef("d0"))),
        DataNode("d0", 8),
    )
    sent = Sent(nodes, ["x", "s"])
    assert sent["x"] == (([[1, 2], 5],), {"a": {"k": [1, 2]}, "b": (3, None)})
    assert sent["s"] == (({8, 7}, (8,)), {})


def test_a_task_within_a_task_runs_with_it() -> None:
    inner = Task(None, add, TaskRef("x"), 10)
    nodes = graph_of(
        DataNode("x", 1), Task("y", listed, inner, [0], List(inner, 2), k=Dict({"a": inner}))
    )
    sent = Sent(nodes, "y")
    assert sent["y"] == ((11, [0], [11, 2]), {"k": {"a": 11}})
    assert set(sent.values) == {"x", "y"}


def fused(i: int) -> list[Any]:
    a = Task(("a", i), add, TaskRef(("x", i)), i)
    b = Task(("b", i), mul, TaskRef(("a", i)), TaskRef(("a", i)))
    c = Task(("c", i), listed, TaskRef(("b", i)), TaskRef(("y", i)), k=TaskRef(("a", i)))
    return [DataNode(("x", i), i), DataNode(("y", i), -i), Task.fuse(a, b, c)]


def test_fused_tasks_that_differ_by_numbers_share_one_function() -> None:
    nodes = [node for i in range(40) for node in fused(i)]
    sent = Sent(graph_of(*nodes), [("c", i) for i in range(40)])
    assert all(sent[("c", i)] == (((2 * i) ** 2, -i), {"k": 2 * i}) for i in range(40))
    functions = {sent.functions[sent.name(("c", i))].__name__ for i in range(40)}
    assert functions == {"c"}
    assert len(set(sent.ids)) == 2  # that of data, and this one


def test_a_value_within_a_fused_task_is_dropped_once_it_is_used() -> None:
    class Value:
        alive = 0

        def __init__(self) -> None:
            Value.alive += 1

        def __del__(self) -> None:
            Value.alive -= 1

    def following(before: Any) -> Any:
        assert Value.alive <= 1
        return Value()

    chain = [Task(i, following, TaskRef(i - 1) if i else None) for i in range(5)]
    packed = Sent({4: Task.fuse(*chain)}, 4)
    assert packed[4] is not None


def test_a_long_chain_within_a_task_is_not_a_deep_one() -> None:
    chain = [Task(i, add, TaskRef(i - 1) if i else 0, 1) for i in range(3000)]
    assert Sent({2999: Task.fuse(*chain)}, 2999)[2999] == 3000


def test_a_cycle_within_a_task_is_an_error() -> None:
    graph = {"a": Task("a", abs, TaskRef("b")), "b": Task("b", abs, TaskRef("a"))}
    with pytest.raises(ValueError, match="cycle"):
        Sent({"x": Task("x", spec._execute_subgraph, graph, "a", ())}, "x")


def test_a_partial_is_its_function() -> None:
    nodes = [Task(i, partial(listed, i, a=1), 2, b=3) for i in range(20)]
    sent = Sent(graph_of(*nodes), list(range(20)))
    assert [sent[i] for i in range(20)] == [((i, 2), {"a": 1, "b": 3}) for i in range(20)]
    assert len(set(sent.ids)) == 1


def test_what_many_tasks_share_is_sent_with_their_function() -> None:
    def described(number: int, function: Callable[[int], int], kind: Any) -> Any:
        return function(number), kind

    numpy = pytest.importorskip("numpy")
    dtype = numpy.dtype([("a", "i4")])
    double = lambda n: 2 * n  # noqa: E731
    nodes = [Task(i, described, i, double, dtype) for i in range(30)]
    sent = Sent(graph_of(*nodes), list(range(30)))
    assert [sent[i] for i in range(30)] == [(2 * i, dtype) for i in range(30)]
    assert len(set(sent.ids)) == 1
    sizes = [len(spec.arguments) for _, specs, _, _ in sent.chunks for spec in specs]
    assert max(sizes) < 60  # the lambda is not in them


def test_what_a_task_may_change_is_its_own() -> None:
    def changed(number: int, items: list[int]) -> list[int]:
        items.append(number)
        return items

    shared = [0]
    nodes = [Task(i, changed, i, shared) for i in range(20)]
    sent = Sent(graph_of(*nodes), list(range(20)))
    assert [sent[i] for i in range(20)] == [[0, i] for i in range(20)]


def test_a_large_array_of_many_tasks_is_sent_once() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(250_000)
    nodes = [Task(i, getitem, array, i) for i in range(1500)]
    sent = Sent(graph_of(*nodes), list(range(1500)))
    assert [sent[i] for i in range(1500)] == list(range(1500))
    assert len(sent.values) == 1501


def test_data_that_two_fused_tasks_share_may_be_all_that_they_give() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(3)
    nodes = [Task.fuse(DataNode(("d", i), array), Alias(("a", i), ("d", i))) for i in range(2)]
    sent = Sent(graph_of(*nodes), [("a", 0), ("a", 1)])
    assert [sent[("a", i)].tolist() for i in range(2)] == [[0, 1, 2]] * 2


def test_aliases_are_names_and_no_tasks() -> None:
    nodes = graph_of(
        Task("x", add, 1, 2),
        Alias("a", "x"),
        Alias("b", "a"),
        Task("y", add, TaskRef("b"), TaskRef("a")),
        Alias("out", "y"),
    )
    sent = Sent(nodes, ["out"])
    assert sent["out"] == 6
    assert set(sent.values) == {"x", "out"}


def test_two_wanted_names_of_one_value_are_two_keys() -> None:
    sent = Sent(graph_of(Task("x", add, 1, 2), Alias("a", "x"), Alias("b", "x")), ["a", "b", "x"])
    assert sent.wanted == ("a", "b", "x")
    assert [sent["a"], sent["b"], sent["x"]] == [3, 3, 3]
    sent = Sent(graph_of(Task("x", add, 1, 2), Alias("a", "x"), Alias("b", "x")), ["a", "b"])
    assert [sent["a"], sent["b"]] == [3, 3]
    assert set(sent.values) == {"a", "b"}


class FutureOf:
    """As a future looks to dask."""

    __dask_future__ = True

    def __init__(self, key: str) -> None:
        self.key = key


def test_the_key_of_a_future_is_known_to_the_scheduler() -> None:
    key = ("x", 0)
    graph = {key: FutureOf("('x', 0)"), "y": Task("y", add, TaskRef(key), 1)}
    sent = Sent(graph, ["y"], {"('x', 0)": 41})
    assert sent["y"] == 42
    # Wanted itself it needs no task, but under another name it does.
    assert Sent(graph, [key], {"('x', 0)": 41}).chunks == [((), (), True, UNSAID.general)]
    sent = Sent({"z": FutureOf("('x', 0)")}, ["z"], {"('x', 0)": 41})
    assert sent["z"] == 41


def test_legacy_tuples_among_the_nodes_are_understood() -> None:
    sent = Sent({"x": (add, 1, 2), "y": Task("y", add, TaskRef("x"), 1), "z": "y"}, ["z"])
    assert sent["z"] == 4


def test_a_key_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no key 'q'"):
        Sent(graph_of(Task("x", add, 1, 2)), ["x", "q"])


def test_a_cycle_is_named() -> None:
    with pytest.raises(ValueError, match="cycle"):
        Sent(graph_of(Task("x", abs, TaskRef("y")), Task("y", abs, TaskRef("x"))), "x")


def random_graph(rng: random.Random) -> dict[Any, Any]:
    """Tasks, data, aliases and fused tasks on top of each other."""
    graph: dict[Any, Any] = {("n", 0): DataNode(("n", 0), 1)}
    for i in range(1, 60):
        key = ("n", i)
        before = [TaskRef(("n", rng.randrange(i))) for _ in range(rng.randrange(4))]
        kind = rng.randrange(5)
        if kind == 0:
            graph[key] = DataNode(key, i)
        elif kind == 1:
            graph[key] = Alias(key, ("n", rng.randrange(i)))
        elif kind == 2:
            first = Task(("f", i), total, *before, i)
            graph[key] = Task.fuse(first, Task(key, total, first.ref(), *before, first.ref()))
        else:
            graph[key] = Task(key, total, List(*before, Task(None, total, *before)), i)
    return graph


def total(*args: Any) -> int:
    return sum(sum(arg) if isinstance(arg, list) else arg for arg in args) % 1009


@pytest.mark.parametrize("seed", range(25))
def test_any_graph_gives_what_dask_gives_for_it(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng)
    keys = [[("n", rng.randrange(60)) for _ in range(3)], ("n", 59)]
    expected = spec.execute_graph(dict(graph), keys=set(flatten(keys)))
    sent = Sent(graph, keys)
    for key in flatten(keys):
        assert sent[key] == expected[key]


def test_the_first_chunk_is_short_and_those_of_a_large_graph_are_packed_one_by_one() -> None:
    nodes = [Task(i, add, i, 1) for i in range(6000)]
    graph = CollectionGraph(graph_of(*nodes), list(range(6000)))
    chunks = graph.packed(UNSAID)
    assert len(next(chunks)[1]) == 50
    sizes = [len(specs) for _, specs, _, _ in chunks]
    assert sum(sizes) == 5950
    assert max(sizes) == 1000
