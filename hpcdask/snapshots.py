"""What the scheduler tells about itself: plain data, made when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hpcdask.core.explaining import explain
from hpcdask.core.records import Task, WorkerRecord
from hpcdask.core.scheduler_state import SchedulerState


def who_has(state: SchedulerState, keys: Iterable[str]) -> dict[str, list[str]]:
    """Addresses of the holders of each key; without keys, of all that are in memory."""
    chosen = list(keys) or [key for key, task in state.tasks.items() if task.state == "memory"]
    return {
        key: [w.address for w in state.tasks[key].who_has] if key in state.tasks else []
        for key in chosen
    }


def has_what(state: SchedulerState, workers: Iterable[str]) -> dict[str, list[str]]:
    """Keys that each worker holds."""
    return {w.address: [t.key for t in w.has_what] for w in state.find_workers(workers)}


def nthreads(state: SchedulerState, workers: Iterable[str]) -> dict[str, int]:
    """Threads of each worker."""
    return {w.address: w.info.nthreads for w in state.find_workers(workers)}


def processing(state: SchedulerState, workers: Iterable[str]) -> dict[str, list[str]]:
    """Keys of the tasks that were sent to each worker and have not ended."""
    return {w.address: [t.key for t in w.processing] for w in state.find_workers(workers)}


def nbytes(state: SchedulerState, keys: Iterable[str]) -> dict[str, int]:
    """Size of each value in memory, in bytes."""
    tasks = (state.tasks.get(key) for key in list(keys) or list(state.tasks))
    return {t.key: t.nbytes for t in tasks if t is not None and t.state == "memory"}


def nbytes_by_kind(state: SchedulerState, keys: Iterable[str]) -> dict[str, int]:
    """Size of all values of a function, or of a type of scattered data, in bytes."""
    found: dict[str, int] = {}
    for key, size in nbytes(state, keys).items():
        function = state.tasks[key].function
        kind = key.rpartition("-")[0] or key if function is None else function.prefix.name
        found[kind] = found.get(kind, 0) + size
    return found


def explanations(state: SchedulerState, keys: Iterable[str]) -> dict[str, Any]:
    """Why each task is where it is, its state, and the worker that has it."""
    found = {}
    for key in keys:
        task = state.tasks.get(key)
        worker = "" if task is None or task.worker is None else task.worker.address
        found[key] = (explain(state, key), "" if task is None else task.state, worker)
    return found


def no_worker(state: SchedulerState, keys: Iterable[str]) -> dict[str, str]:
    """Tasks that no worker may run, with the reason."""
    return state.why_not_running(keys)


INSPECTIONS: dict[str, Callable[[SchedulerState, Iterable[str]], dict[str, Any]]] = {
    "who_has": who_has,
    "has_what": has_what,
    "nthreads": nthreads,
    "processing": processing,
    "no-worker": no_worker,
    "nbytes": nbytes,
    "nbytes-by-kind": nbytes_by_kind,
    "explain": explanations,
}


def identity(state: SchedulerState, about: Mapping[str, Any], epoch: float) -> dict[str, Any]:
    """What `Scheduler.identity` returns; any thread may ask for it.

    Parameters
    ----------
    about : mapping
        What its shell knows.
    epoch : float
        What the state's clock lacks to seconds since the epoch.
    """
    records = list(state.workers.values())
    return {
        "type": "Scheduler",
        **about,
        "services": {},
        "n_workers": len(records),
        "total_threads": sum([worker.nthreads for worker in records]),
        "total_memory": sum([worker.info.memory_limit for worker in records]),
        "workers": {worker.address: worker_identity(worker, epoch) for worker in records},
    }


def worker_identity(worker: WorkerRecord, epoch: float) -> dict[str, Any]:
    """What is known of one worker."""
    info, metrics = worker.info, worker.metrics
    return {
        "type": "Worker",
        "id": info.name,
        "name": info.name,
        "host": info.host,
        "pid": info.pid,
        "status": "closing_gracefully" if worker.is_leaving else "running",
        "resources": dict(info.resources),
        "services": {},
        "nthreads": info.nthreads,
        "memory_limit": info.memory_limit,
        "local_directory": info.local_directory,
        "nanny": info.nanny or None,
        "last_seen": worker.last_seen + epoch,
        "metrics": {} if metrics is None else {**metrics._asdict(), "memory": metrics.rss},
    }


def task_record(task: Task) -> dict[str, Any]:
    """What is known of one task, but for its code, arguments and value."""
    restriction, function = task.lane.restriction, task.function
    return {
        "state": task.state,
        "function": "" if function is None else function.prefix.name,
        "priority": list(task.priority),
        "attempt": task.attempt,
        "retries": task.retries,
        "failures": task.failures,
        "nbytes": task.nbytes,
        "waiting_for": task.missing,
        "waiters": task.waiters,
        "worker": "" if task.worker is None else task.worker.address,
        "who_has": [worker.address for worker in task.who_has],
        "wanted_by": [client.name for client in task.wanted_by],
        "dependencies": [dependency.key for dependency in task.dependencies],
        "restriction": None if restriction is None else restriction._asdict(),
        "failed": "" if task.error is None else f"{task.error.key} on {task.error.worker}",
    }
