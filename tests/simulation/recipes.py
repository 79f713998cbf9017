"""What keys stand for in a simulated cluster: what each has to be worth, and how long it takes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from hpcdask.messages import Function, Restriction, TaskSpec

#: Seconds that a task of each function takes, about.
DURATIONS = {
    "tick": 2e-5,
    "short": 2e-3,
    "medium": 0.2,
    "long": 20.0,
    "raise": 1e-3,
    "flaky": 0.01,
    "moody": 0.01,
}
FUNCTIONS = tuple(DURATIONS)
#: Where workers are.
HOSTS = ("h1", "h2")
#: What workers are named; several may have one name.
LABELS = ("n1", "n2")
RESTRICTIONS = (
    Restriction((), False, (("gpu", 1.0),)),
    Restriction((), False, (("gpu", 2.0),)),
    Restriction(("h1",), False, ()),
    Restriction(("h2",), False, (("gpu", 1.0),)),
    Restriction(("n1",), False, ()),
    Restriction(("w1", "w3"), True, ()),
    Restriction(("n2", "w2"), True, (("gpu", 1.0),)),
    Restriction((), False, (), True),
    Restriction(("h1",), False, (("gpu", 1.0),), True),
)
#: What `Recipe.function` says of scattered data.
DATA = "data"


@dataclass
class Recipe:
    """What a key stands for: a number plus the sum of its dependencies."""

    function: str  # one of FUNCTIONS, or DATA
    number: int
    dependencies: tuple[str, ...] = ()
    n_failures: int = 0  # runs of a flaky one that raise before one returns
    min_retries: int = 1000  # of all its submissions
    restriction: Restriction | None = None
    private: str = ""  # name of the graph, if it is one client's and will change its meaning


class Recipes:
    """All keys that were ever used."""

    def __init__(self, random: Random) -> None:
        self.by_key: dict[str, Recipe] = {}
        self._random = random
        self._ancestors: dict[str, frozenset[str]] = {}

    def add(self, key: str, dependencies: Iterable[str]) -> None:
        """Invent what a new key stands for."""
        kinds = ["tick"] * 6 + ["short"] * 5 + ["medium"] * 3 + ["long", "raise", "flaky", "moody"]
        function = self._random.choice(kinds)
        number = self._random.randrange(1000)
        failures = self._random.randint(1, 3)
        self.by_key[key] = Recipe(function, number, tuple(dependencies), failures)

    def value(self, key: str) -> int:
        """Return what a key has to be worth."""
        return sum([self.by_key[k].number * n for k, n in self._paths(key).items()])

    def _paths(self, key: str) -> dict[str, int]:
        """How often each ancestor's number goes into the value of a key."""
        count = {key: 1}
        for ancestor in sorted(self.ancestors(key), key=self._depth, reverse=True):
            for dependency in self.by_key[ancestor].dependencies:
                count[dependency] = count.get(dependency, 0) + count[ancestor]
        return count

    def _depth(self, key: str) -> int:
        return len(self.ancestors(key))

    def ancestors(self, key: str) -> frozenset[str]:
        """Return the key and all that it depends on."""
        found = self._ancestors.get(key)
        if found is None:
            found = frozenset({key}).union(*map(self.ancestors, self.by_key[key].dependencies))
            self._ancestors[key] = found
        return found

    def spec(self, key: str) -> TaskSpec:
        recipe = self.by_key[key]
        inputs = {k: self.value(k) for k in recipe.dependencies}
        arguments = pickle.dumps((recipe.number, recipe.n_failures, inputs))
        return TaskSpec(key, FUNCTIONS.index(recipe.function), arguments, recipe.dependencies)

    def in_order(self, keys: Iterable[str]) -> list[str]:
        """Keys with dependencies before their dependants."""
        return sorted(keys, key=lambda key: (self._depth(key), key))

    def has_actor(self, key: str) -> bool:
        """Whether its value, or one that it needs, ends with the worker that made it."""
        restrictions = [self.by_key[k].restriction for k in self.ancestors(key)]
        return any(r is not None and r.actor for r in restrictions)

    def may_raise(self, key: str) -> bool:
        recipe = self.by_key[key]
        too_often = recipe.function == "flaky" and recipe.n_failures > recipe.min_retries
        return recipe.function == "raise" or too_often


def functions() -> tuple[Function, ...]:
    return tuple(Function(name.encode(), name, b"code") for name in FUNCTIONS)


# -- Shapes of graphs: for each task, which earlier ones and which inputs it takes -----------------

Shape = Callable[[Random, int], list[tuple[int, ...]]]


def chain(random: Random, size: int) -> list[tuple[int, ...]]:
    return [(i - 1,) if i else () for i in range(size)]


def tree(random: Random, size: int) -> list[tuple[int, ...]]:
    """A reduction by twos: leaves, then sums of neighbours."""
    n_leaves = (size + 1) // 2
    pairs = [(2 * i, 2 * i + 1) for i in range(n_leaves - 1)]
    return [()] * n_leaves + pairs


def all_to_all(random: Random, size: int) -> list[tuple[int, ...]]:
    """A shuffle: every task of the second layer takes every one of the first."""
    half = max(size // 2, 1)
    return [()] * half + [tuple(range(half))] * half


def diamonds(random: Random, size: int) -> list[tuple[int, ...]]:
    """One, two that take it, one that takes both, and so on."""
    graph: list[tuple[int, ...]] = [()]
    while len(graph) < size:
        top = len(graph) - 1
        graph += [(top,), (top,), (top + 1, top + 2)]
    return graph


def fan_in(random: Random, size: int) -> list[tuple[int, ...]]:
    return [()] * (size - 1) + [tuple(range(size - 1))]


def fan_out(random: Random, size: int) -> list[tuple[int, ...]]:
    return [()] + [(0,)] * (size - 1)


def bag(random: Random, size: int) -> list[tuple[int, ...]]:
    return [()] * size


def tangle(random: Random, size: int) -> list[tuple[int, ...]]:
    """Any graph without cycles."""
    graph: list[tuple[int, ...]] = []
    for i in range(size):
        count = min(i, random.choice([0, 1, 1, 2, 3]))
        graph.append(tuple(sorted(random.sample(range(i), count))))
    return graph


SHAPES: tuple[Shape, ...] = (chain, tree, all_to_all, diamonds, fan_in, fan_out, bag, tangle)


def random_graph(
    random: Random, recipes: Recipes, prefix: str, inputs: list[str], private: str = ""
) -> list[str]:
    """Invent tasks, some of which take `inputs`; return their keys, dependencies first."""
    shape = random.choice(SHAPES)
    keys: list[str] = []
    restriction = random.choice([None, None, random.choice(RESTRICTIONS)])
    for number, needs in enumerate(shape(random, random.randint(1, 14))):
        dependencies = {keys[i]: None for i in needs}
        if inputs and random.random() < (0.3 if needs else 0.5):
            dependencies[random.choice(inputs)] = None
        key = f"{prefix}-{number}"
        recipes.add(key, dependencies)
        recipes.by_key[key].private = private
        recipes.by_key[key].restriction = restriction
        keys.append(key)
    return keys
