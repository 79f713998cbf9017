"""Tables that may have a million entries: a plain dict of that size holds up all else as it grows.

A dict that is full is copied into one of twice its size. For half a million entries that takes 30
ms, and a quarter of a second on a virtual machine that has to ask its host for the memory. Of many
small dicts one grows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcdask.core.records import Task

#: Parts of a table by key, less one; a power of two, less one.
_MASK = 63
#: Turns of tasks that stand in one part of a table of wants, as a power of two.
_TURNS = 12


class TaskTable(MutableMapping[str, "Task"]):
    """Tasks by key, in an order that differs from process to process."""

    __slots__ = ("_parts", "get")

    def __init__(self) -> None:
        parts: list[dict[str, Task]] = [{} for _ in range(_MASK + 1)]
        mask = _MASK
        self._parts = parts

        def get(key: str, default: Any = None) -> Any:
            """Return the task of a key, or the default."""
            return parts[hash(key) & mask].get(key, default)

        # Several times per task, and a function finds its own variables faster than a method
        # those of an object.
        self.get = get  # type: ignore[method-assign]

    def __getitem__(self, key: str) -> Task:
        return self._parts[hash(key) & _MASK][key]

    def __contains__(self, key: object) -> bool:
        return key in self._parts[hash(key) & _MASK]

    def __setitem__(self, key: str, task: Task) -> None:
        self._parts[hash(key) & _MASK][key] = task

    def __delitem__(self, key: str) -> None:
        del self._parts[hash(key) & _MASK][key]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)

    def values(self) -> Iterable[Task]:  # type: ignore[override]
        """Give the tasks, once."""
        return chain.from_iterable([part.values() for part in self._parts])

    def items(self) -> Iterable[tuple[str, Task]]:  # type: ignore[override]
        """Give keys and tasks, once."""
        return chain.from_iterable([part.items() for part in self._parts])


class Wants:
    """Tasks that somebody wants, those with neighbouring turns together."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: dict[int, dict[Task, None]] = {}  # by the turns of their tasks

    def add(self, task: Task) -> None:
        """Note a task, maybe once more."""
        number = task.priority[1] >> _TURNS
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = {}
        part[task] = None

    def discard(self, task: Task) -> None:
        """Undo `add`."""
        number = task.priority[1] >> _TURNS
        part = self._parts.get(number)
        if part is not None:
            part.pop(task, None)
            if not part:
                del self._parts[number]

    def take_latest(self) -> Task:
        """Take out one of those with the latest turns that were added."""
        number, part = next(reversed(self._parts.items()))
        task, _ = part.popitem()  # unlike a look from the end it leaves no holes to be skipped
        if not part:
            del self._parts[number]
        return task

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    def __iter__(self) -> Iterator[Task]:
        return chain.from_iterable(self._parts.values())

    def __contains__(self, task: Task) -> bool:
        return task in self._parts.get(task.priority[1] >> _TURNS, ())
