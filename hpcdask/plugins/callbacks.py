"""Functions that are called on each worker, for `Client.register_worker_callbacks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hpcdask.calls import accepted
from hpcdask.plugins.base import WorkerPlugin

if TYPE_CHECKING:
    from hpcdask.worker import Worker


class SetupCallback(WorkerPlugin):
    """Calls a function on each worker, with the worker if it has a parameter ``dask_worker``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def setup(self, worker: Worker) -> Any:
        """Call it."""
        return self._function(**accepted(self._function, {"dask_worker": worker}))
