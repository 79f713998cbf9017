"""The errors of tasks that the scheduler itself gives up, and not their own code."""

from __future__ import annotations

import pickle

from hpcdask.core.records import Task, WorkerRecord
from hpcdask.errors import KilledWorker, LostDataError
from hpcdask.messages import TaskError


def lost_data(task: Task) -> TaskError:
    """Scattered data is wanted of which there is no copy left."""
    text = (
        f"the data of {task.key!r} was scattered, and its last copy is gone with its worker or "
        "with its last future; scatter it again, with broadcast=True if it must survive a worker, "
        "and keep its future as long as tasks that use it may run again"
    )
    return TaskError(pickle.dumps(LostDataError(text)), (), task.key, "")


def killed_worker(task: Task, worker: WorkerRecord) -> TaskError:
    """A task was under way on worker after worker that died."""
    text = (
        f"{task.key!r} was running on {task.failures} workers when they died, the last of them "
        f"{worker.address} (pid {worker.info.pid} on {worker.info.host}); it is not tried again. "
        "Look at the worker's log, or raise allowed_failures."
    )
    return TaskError(pickle.dumps(KilledWorker(text)), (), task.key, worker.address)
