"""The errors of tasks that the scheduler itself gives up, and not their own code."""

from __future__ import annotations

import pickle

from hpcdask.core.records import Task, WorkerRecord
from hpcdask.errors import KilledWorker, LostActorError, LostDataError
from hpcdask.messages import TaskError


def lost_actor(task: Task, worker: WorkerRecord, how: str) -> TaskError:
    """An actor's worker is gone."""
    text = (
        f"the actor {task.key!r} has ended with its worker, {worker.address} (pid "
        f"{worker.info.pid} on {worker.info.host}): {how}. What it knew is lost; submit another one"
    )
    return TaskError(pickle.dumps(LostActorError(text)), (), task.key, worker.address)


def lost_data(task: Task) -> TaskError:
    """Data is wanted of which there is no copy left, and no recipe."""
    if task.lane.is_actor:
        text = f"the actor {task.key!r} is not there any more, and is not made a second time"
        return TaskError(pickle.dumps(LostActorError(text)), (), task.key, "")
    text = (
        f"the data of {task.key!r} was scattered, or outlived its scheduler, and its last copy is "
        "gone with its worker or with its last future; scatter it again, with broadcast=True if it "
        "must survive a worker, and keep its future as long as tasks that use it may run again"
    )
    return TaskError(pickle.dumps(LostDataError(text)), (), task.key, "")


def out_of_reach(task: Task, value: Task, worker: WorkerRecord, source: WorkerRecord) -> TaskError:
    """The input of a task is where no worker that may run it can fetch it from."""
    text = (
        f"{task.key!r} needs the data of {value.key!r}, which is on {source.address} "
        f"({source.info.host}); {worker.address} ({worker.info.host}) could not fetch it from "
        "there. Look for a firewall or another network between the two, or scatter it with "
        "broadcast=True."
    )
    return TaskError(pickle.dumps(LostDataError(text)), (), task.key, worker.address)


def killed_worker(task: Task, worker: WorkerRecord, how: str) -> TaskError:
    """A task was under way on worker after worker that died."""
    text = (
        f"{task.key!r} was running on {task.failures} workers when they died. It is not tried "
        "again; if it is not to blame, raise allowed_failures, by Scheduler(allowed_failures=), "
        "--allowed-failures or LocalCluster(scheduler_kwargs={'allowed_failures': ...}). The last "
        f"of them, {worker.address} (pid {worker.info.pid} on {worker.info.host}): {how}"
    )
    return TaskError(pickle.dumps(KilledWorker(text)), (), task.key, worker.address)
