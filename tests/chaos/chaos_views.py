"""What scheduler and workers tell of themselves: functions that run in their processes."""

from __future__ import annotations

import collections
from typing import Any

#: Unfinished tasks that are told in full.
_EXAMPLES = 20


def of_scheduler(dask_scheduler: Any) -> dict[str, Any]:
    """Tasks by state, the first of those that have not ended, and who works on what."""
    state = dask_scheduler.state
    tasks = state.tasks
    unfinished = [t for t in tasks.values() if t.state not in ("memory", "erred")]
    # Those that should be on their way, before those that wait for them.
    unfinished.sort(key=lambda task: task.state in ("waiting", "released"))
    return {
        "states": dict(collections.Counter(task.state for task in tasks.values())),
        "keys": list(tasks),
        "unfinished": [_describe(task) for task in unfinished[:_EXAMPLES]],
        # Kept for clients of an earlier scheduler, for as long as they may come back.
        "unclaimed": [*state._values, *state._runs],
        "processing": {
            worker.address: [task.key for task in worker.processing][:_EXAMPLES]
            for worker in dask_scheduler.state.workers.values()
        },
        "clients": sorted(dask_scheduler.clients),
        "nannies": sorted(dask_scheduler.nannies),
    }


def _describe(task: Any) -> dict[str, Any]:
    slots = [name for kind in type(task).__mro__ for name in getattr(kind, "__slots__", ())]
    shown = {name: getattr(task, name, None) for name in slots}
    # References to other tasks and workers print whole graphs: their names are enough.
    return {name: _short(value) for name, value in shown.items()}


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return f"{len(value)}: {[_short(item) for item in list(value)[:5]]}"
    name = getattr(value, "key", None) or getattr(value, "address", None)
    return str(name) if name else f"{value!r:.60}"


def held_keys(dask_worker: Any) -> list[str]:
    """Keys of the values that a worker holds."""
    return list(dask_worker.data)
