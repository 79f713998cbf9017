"""Graphs of every shape, of pure functions, that can be computed here as well as on a cluster."""

from __future__ import annotations

import random
import time
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy

_PRIME = 2**61 - 1


class Out(NamedTuple):
    """Stands for what an earlier step of a graph returns."""

    step: int


class Step(NamedTuple):
    """One task: a function, its arguments with `Out` in place of results, and how long it lasts."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    seconds: float = 0.0


Graph = list[Step]


# -- Functions of tasks ---------------------------------------------------------------------------


def mix(*values: int) -> int:
    """A number that shows if any value, or their order, is wrong."""
    total = 17
    for value in values:
        total = (total * 1_000_003 + value) % _PRIME
    return total


def block(seed: int, nbytes: int) -> Any:
    """An array of random bytes."""
    return numpy.random.default_rng(seed).integers(0, 256, nbytes, dtype=numpy.uint8)


def text(seed: int, nbytes: int) -> bytes:
    """The same as bytes, which do not travel as a buffer of their own."""
    return block(seed, nbytes).tobytes()


def checksum(value: Any) -> int:
    """CRC of a block or text."""
    return zlib.crc32(value)


def cut(value: Any, part: int, parts: int) -> Any:
    """One part of a block."""
    return value[len(value) * part // parts : len(value) * (part + 1) // parts]


def join(*parts: Any) -> Any:
    """Parts of blocks, as one."""
    return numpy.concatenate(parts)


def slowly(seconds: float, function: Callable[..., Any], *args: Any) -> Any:
    """Take some time over a call."""
    time.sleep(seconds)
    return function(*args)


def flaky(folder: str, failures: int, value: int) -> int:
    """Fail so many times, over all processes that try, and then never again."""
    for number in range(failures):
        mark = Path(folder) / f"{value}-{number}"
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            continue
        raise RuntimeError(f"failed on purpose: {mark}")
    return mix(value)


def leave_file(folder: str, value: int) -> int:
    """Take a moment, and tell by a file of one's own that this has been computed."""
    (Path(folder) / f"{value}-{uuid.uuid4()}").touch()
    time.sleep(0.05)
    return value


# -- Shapes ---------------------------------------------------------------------------------------


def chain(rng: random.Random) -> Graph:
    steps = [Step(mix, (rng.randrange(1000),))]
    for _ in range(rng.randint(10, 60)):
        steps.append(Step(mix, (Out(len(steps) - 1), len(steps)), rng.choice((0, 0, 0, 0.01))))
    return steps


def tree(rng: random.Random) -> Graph:
    steps = [Step(mix, (n,), rng.choice((0, 0.02))) for n in range(2 ** rng.randint(4, 7))]
    level = list(range(len(steps)))
    while len(level) > 1:
        above = []
        for left, right in zip(level[::2], level[1::2], strict=True):
            above.append(len(steps))
            steps.append(Step(mix, (Out(left), Out(right))))
        level = above
    return steps


def all_to_all(rng: random.Random) -> Graph:
    """A shuffle: each of n blocks is cut into n parts, and each of n results gets one of each."""
    n = rng.randint(3, 8)
    steps = [Step(block, (rng.randrange(1000), rng.randrange(1000, 500_000))) for _ in range(n)]
    parts = {}
    for source in range(n):
        for part in range(n):
            parts[source, part] = len(steps)
            steps.append(Step(cut, (Out(source), part, n)))
    for part in range(n):
        steps.append(Step(join, tuple(Out(parts[source, part]) for source in range(n))))
        steps.append(Step(checksum, (Out(len(steps) - 1),)))
    return steps


def diamonds(rng: random.Random) -> Graph:
    steps = [Step(mix, (rng.randrange(1000),))]
    for _ in range(rng.randint(3, 12)):
        top, sides = len(steps) - 1, range(rng.randint(2, 5))
        steps += [Step(mix, (Out(top), side), rng.choice((0, 0.01, 0.05))) for side in sides]
        steps.append(Step(mix, tuple(Out(top + 1 + side) for side in sides)))
    return steps


def fan_in(rng: random.Random) -> Graph:
    n = rng.randint(50, 400)
    steps = [Step(mix, (value,), rng.choice((0, 0, 0, 0.005))) for value in range(n)]
    return [*steps, Step(mix, tuple(map(Out, range(n))))]


def fan_out(rng: random.Random) -> Graph:
    size = rng.randrange(10, 100_000)
    steps = [Step(text, (rng.randrange(1000), size)), Step(checksum, (Out(0),))]
    return steps + [Step(mix, (Out(1), n)) for n in range(rng.randint(50, 400))]


def slow(rng: random.Random) -> Graph:
    return [Step(mix, (n,), rng.uniform(0.01, 1.0)) for n in range(rng.randint(3, 10))]


def large(rng: random.Random) -> Graph:
    sizes = [rng.randint(1, 20) * 1_000_000 for _ in range(rng.randint(2, 4))]
    steps: Graph = []
    for size in sizes:
        steps.append(Step(rng.choice((block, text)), (rng.randrange(1000), size)))
        steps.append(Step(checksum, (Out(len(steps) - 1),)))
    blocks = [Out(n) for n, step in enumerate(steps) if step.function is block]
    if blocks:
        steps.append(Step(join, tuple(blocks), rng.choice((0, 0.2))))
        steps.append(Step(checksum, (Out(len(steps) - 1),)))
    return steps


SHAPES = (chain, tree, all_to_all, diamonds, fan_in, fan_out, slow, large)


def results(graph: Graph) -> list[int]:
    """The steps whose values are looked at: all that no other step uses, and are not large."""
    used = {arg.step for step in graph for arg in step.args if isinstance(arg, Out)}
    return [n for n, step in enumerate(graph) if n not in used and step.function is not join]


def computed_here(graph: Graph) -> list[Any]:
    """The right values, of all steps, without the waiting."""
    values: list[Any] = []
    for step in graph:
        values.append(step.function(*_with(step.args, values)))
    return values


def submitted(client: Any, graph: Graph, name: str) -> list[Any]:
    """Futures of all steps."""
    futures: list[Any] = []
    for n, step in enumerate(graph):
        args = _with(step.args, futures)
        if step.seconds:
            args = (step.seconds, step.function, *args)
        function = slowly if step.seconds else step.function
        futures.append(client.submit(function, *args, key=f"{name}-{n}"))
    return futures


def as_dask(graph: Graph, name: str) -> dict[str, Any]:
    """The same as a graph of keys and tuples, as dask's collections have it."""
    names = [f"{name}-{n}" for n in range(len(graph))]
    return {
        names[n]: (slowly, step.seconds, step.function, *_with(step.args, names))
        for n, step in enumerate(graph)
    }


def _with(args: tuple[Any, ...], values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(values[arg.step] if isinstance(arg, Out) else arg for arg in args)
