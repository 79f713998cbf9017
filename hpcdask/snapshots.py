"""What the scheduler tells about itself: plain data, made when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hpcdask.core.records import WorkerRecord
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


def no_worker(state: SchedulerState, keys: Iterable[str]) -> dict[str, str]:
    """Tasks that no worker may run, with the reason."""
    return state.why_not_running(keys)


INSPECTIONS: dict[str, Callable[[SchedulerState, Iterable[str]], dict[str, Any]]] = {
    "who_has": who_has,
    "has_what": has_what,
    "nthreads": nthreads,
    "processing": processing,
    "no-worker": no_worker,
}


def identity(
    state: SchedulerState, scheduler_id: str, name: str, address: str, started: float
) -> dict[str, Any]:
    """What ``Client.scheduler_info()`` returns; `started` is in seconds since the epoch."""
    workers = {address: worker_identity(worker) for address, worker in state.workers.items()}
    return {
        "type": "Scheduler",
        "id": scheduler_id,
        "name": name,
        "address": address,
        "services": {},
        "started": started,
        "workers": workers,
    }


def worker_identity(worker: WorkerRecord) -> dict[str, Any]:
    """What is known of one worker."""
    info, metrics = worker.info, worker.metrics
    return {
        "type": "Worker",
        "id": info.name,
        "name": info.name,
        "host": info.host,
        "pid": info.pid,
        "nthreads": info.nthreads,
        "memory_limit": info.memory_limit,
        "local_directory": info.local_directory,
        "nanny": info.nanny or None,
        "last_seen": worker.last_seen,
        "metrics": {} if metrics is None else metrics._asdict(),
    }
