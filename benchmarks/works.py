"""Graphs of many small tasks, as functions of a client and a size; `WORKS` is all of them."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .measuring import expect
from .tasks import add, earliest, increment, make_rows, noop, pick, started, total_nbytes


@dataclass(frozen=True)
class Work:
    """`run(client, size)` computes a graph of ``count(size)`` tasks and checks its result."""

    run: Callable[[Any, int], object]
    count: Callable[[int], int]
    size: int
    warm_up: int  # a size

    @property
    def ntasks(self) -> int:
        return self.count(self.size)


def run_noops(client: Any, count: int) -> None:
    expect(len(client.gather(client.map(noop, range(count), pure=False))), count)


def run_chain(client: Any, length: int) -> None:
    future = client.submit(increment, 0, pure=False)
    for _ in range(length - 1):
        future = client.submit(increment, future, pure=False)
    expect(future.result(), length)


def run_tree(client: Any, leaves: int) -> None:
    level = client.map(increment, range(leaves), pure=False)
    while len(level) > 1:
        level = client.map(add, level[::2], level[1::2], pure=False)
    expect(level[0].result(), leaves * (leaves + 1) // 2)


def run_all_to_all(client: Any, n: int, nbytes: int = 16_000) -> None:
    sources = client.map(make_rows, range(n), count=n, nbytes=nbytes, pure=False)
    picked = [client.map(pick, [s] * n, range(n), pure=False) for s in sources]
    columns = [list(column) for column in zip(*picked, strict=True)]
    sinks = [client.submit(total_nbytes, column, pure=False) for column in columns]
    expect(client.gather(sinks), [n * nbytes] * n)


LAYERS = 10
_graphs = itertools.count()


def run_layers(client: Any, width: int) -> tuple[float, float]:
    """Seconds from the call to the start of the first task, and to the last result.

    Each task of a layer takes two of the layer before; a source returns when it started, and all
    others the earlier of their inputs, so the smallest result is the start of the first task.
    """
    name = f"layers-{next(_graphs)}"  # distinct, or a graph would find the last one's results
    graph: dict[str, Any] = {f"{name}-0-{i}": (started,) for i in range(width)}
    for layer in range(1, LAYERS):
        before = [f"{name}-{layer - 1}-{i}" for i in range(width)]
        for i in range(width):
            other = before[(i + 2**layer) % width]
            graph[f"{name}-{layer}-{i}"] = (earliest, before[i], other)
    ends = [f"{name}-{LAYERS - 1}-{i}" for i in range(width)]
    start = time.time()
    results = client.gather(client.get(graph, ends, sync=False))
    end = time.time()
    expect(len(results), width)
    first = min(results) - start
    expect(0 < first < end - start, True)
    return first, end - start


WORKS = {
    "noop": Work(run_noops, lambda n: n, size=10_000, warm_up=100),
    "chain": Work(run_chain, lambda n: n, size=1_000, warm_up=20),
    "tree": Work(run_tree, lambda n: 2 * n - 1, size=4_096, warm_up=32),
    "alltoall": Work(run_all_to_all, lambda n: n * n + 2 * n, size=64, warm_up=4),
    "graph20k": Work(run_layers, lambda n: LAYERS * n, size=2_000, warm_up=10),
}
