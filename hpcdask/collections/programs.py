"""What tasks of dask's graphs are made of: functions of their own, and several in a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Step(NamedTuple):
    """One call within a program. Slots are counted from 0: arguments, constants, earlier steps."""

    function: Callable[..., Any]
    slots: tuple[int, ...]  # of its arguments; those given by name come last
    names: tuple[str, ...]  # of these
    spent: tuple[int, ...]  # slots that no later step needs


class Program:
    """Calls of functions, one after the other, in one task.

    dask fuses tasks into one, with a small graph of its own in each of thousands that differ by a
    few numbers. What they have in common is a program: it is sent once, to each worker, and its
    order is settled. Of a task only what is its own is sent.

    Parameters
    ----------
    name : str
        What its durations are averaged by.
    steps : tuple of Step
        The last gives the value.
    constants : tuple
        Arguments that are the same in all tasks.
    """

    def __init__(self, name: str, steps: tuple[Step, ...], constants: tuple[Any, ...]) -> None:
        self.__name__ = name
        self.steps, self.constants = steps, constants

    def __call__(self, *args: Any) -> Any:
        slots = [*args, *self.constants]
        value = None
        for function, wanted, names, spent in self.steps:
            given = [slots[slot] for slot in wanted]
            for slot in spent:
                slots[slot] = None  # or each array of a chain would live on until its end
            if names:
                named = dict(zip(names, given[-len(names) :], strict=True))
                del given[-len(names) :]
                value = function(*given, **named)
                del named
            else:
                value = function(*given)
            del given
            slots.append(value)
        return value

    def __reduce__(self) -> Any:
        return Program, (self.__name__, tuple(map(tuple, self.steps)), self.constants)


def identity(value: Any) -> Any:
    """Data in a graph, and another name for a value."""
    return value


def make_list(*items: Any) -> list[Any]:
    """A list with values that other steps give."""
    return list(items)


def make_tuple(*items: Any) -> tuple[Any, ...]:
    """The same of a tuple."""
    return items


def make_set(*items: Any) -> set[Any]:
    """The same of a set."""
    return set(items)


def make_dict(*items: Any) -> dict[Any, Any]:
    """The same of a dict: keys and values by turns."""
    return dict(zip(items[::2], items[1::2], strict=True))


def run_node(node: Any, keys: tuple[Any, ...], *values: Any) -> Any:
    """A node of a kind that only dask, or who extends it, knows how to run."""
    return node(dict(zip(keys, values, strict=True)))
