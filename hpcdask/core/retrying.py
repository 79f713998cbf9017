"""Tasks that have failed and are to run again, as a user asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hpcdask.core.records import Task
from hpcdask.core.transitions import Transitions
from hpcdask.messages.client import KeyLost


class Retrying(Transitions):
    """The part of the scheduler that gives failed tasks another chance."""

    def keys_retried(self, now: float, keys: Iterable[str]) -> int:
        """Run again what has failed of these, with what they failed for and what failed with that.

        Returns
        -------
        int
            How many tasks these are.
        """
        asked = [self.tasks[key] for key in keys if key in self.tasks]
        failed = _closure(asked, lambda task: task.dependencies)
        failed = _closure(failed, lambda task: task.dependents)
        # Lost data and lost actors cannot be computed again.
        failed = [task for task in failed if task.function is not None]
        for task in failed:
            self._move(task, "released")
            task.error, task.failures = None, 0
            self._unreachable.pop(task, None)
            self._tell(task, KeyLost(task.key))
        for task in failed:
            self._demand(task)
        self._settle()
        return len(failed)


def _closure(tasks: Iterable[Task], neighbours: Callable[[Task], Iterable[Task]]) -> list[Task]:
    """Those that have erred, and what has erred beside them."""
    found: dict[Task, None] = {}
    stack = list(tasks)
    while stack:
        task = stack.pop()
        if task.state == "erred" and task not in found:
            found[task] = None
            stack.extend(neighbours(task))
    return list(found)
