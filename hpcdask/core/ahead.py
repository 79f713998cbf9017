"""Whether a task may be sent to a worker before its inputs are done, because they will be there."""

from __future__ import annotations

from hpcdask.core.records import Task, WorkerRecord

#: Inputs that a task sent ahead may have: looking at each costs time whenever one of them comes.
MAX_INPUTS = 8
#: Tasks per thread that may wait on a worker for inputs computed there.
MAX_AHEAD = 1000
#: Bytes of its inputs, in memory elsewhere, that a task sent ahead may have to fetch.
MAX_ELSEWHERE = 100_000
#: A task that is not the only one to use an input goes ahead only if it is expected to take fewer
#: seconds: longer ones are better spread over workers when the input is there.
SHORT = 5e-3
#: Tasks that may use an input of one sent ahead.
MAX_FAN_OUT = 4


def may_go_ahead(task: Task, worker: WorkerRecord) -> bool:
    """Whether all inputs of a waiting task will be on the worker, and it would stay there."""
    dependencies, lane = task.dependencies, task.lane
    if (
        len(dependencies) > MAX_INPUTS
        or worker.n_ahead >= MAX_AHEAD * worker.nthreads
        or worker not in lane.workers
        or lane.resources
    ):
        return False
    elsewhere = 0
    for dependency in dependencies:
        if dependency.state == "memory":
            if worker not in dependency.who_has:
                elsewhere += dependency.nbytes
            continue
        if dependency.worker is not worker:
            return False
        if len(dependency.dependents) > 1 and not _may_share(task, dependency):
            return False
    return elsewhere <= MAX_ELSEWHERE


def _may_share(task: Task, dependency: Task) -> bool:
    assert task.function is not None
    return len(dependency.dependents) <= MAX_FAN_OUT and task.function.prefix.cost < SHORT


def inputs_come_from(task: Task) -> WorkerRecord | None:
    """Return a worker that computes an input of the task now."""
    if len(task.dependencies) <= MAX_INPUTS:
        for dependency in task.dependencies:
            if dependency.worker is not None:
                return dependency.worker
    return None
