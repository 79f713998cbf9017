"""Checks of facts that the states keep twice for speed; tests run them after every event."""

from __future__ import annotations

from hpcdask.core.placement import has_room
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.transitions import MOVES, TO_RUN
from hpcdask.core.worker_state import WorkerState


def validate_scheduler(state: SchedulerState) -> None:
    """Raise AssertionError if the scheduler contradicts itself."""
    for key, task in state.tasks.items():
        assert task.key == key
        assert task.state in MOVES.keys() - {"forgotten"}, task
        assert bool(task.who_has) == (task.state == "memory"), task
        assert (task.worker is not None) == (task.state == "processing"), task
        assert (task.error is not None) == (task.state == "erred"), task
        assert task.waiters == sum(d.state in TO_RUN for d in task.dependents), task
        assert task.is_needed == (task.state != "released"), (task, task.wanted_by, task.waiters)
        assert task.is_needed or task.dependents, (task, "should be forgotten")
        if task.state in TO_RUN:
            missing = sum(d.state != "memory" for d in task.dependencies)
            assert task.state != "waiting" or task.missing == missing > 0, (task, missing)
            assert task.state == "waiting" or missing == 0, task
        for dependency in task.dependencies:
            assert task in dependency.dependents, (task, dependency)
            assert state.tasks.get(dependency.key) is dependency, (task, dependency)
        for dependent in task.dependents:
            assert state.tasks.get(dependent.key) is dependent, (task, dependent)
        for client in task.wanted_by:
            assert task in client.wants, (task, client)
    queued = {task for task in state.tasks.values() if task.state == "queued"}
    assert state.n_queued == len(queued), (state.n_queued, queued)
    assert queued <= {entry[2] for entry in state.queue}
    assert state.no_worker == {t for t in state.tasks.values() if t.state == "no-worker"}
    assert not (state.no_worker and state.workers)
    for address, worker in state.workers.items():
        assert worker.address == address
        assert worker.nbytes == sum(task.nbytes for task in worker.has_what)
        assert all(worker in task.who_has for task in worker.has_what)
        assert all(task.worker is worker for task in worker.processing)
        assert not state.n_queued or not has_room(worker), (worker, "has room, and tasks wait")
        assert worker.in_room or not has_room(worker), (worker, "placement overlooks it")
        assert abs(worker.occupancy - sum(worker.processing.values())) < 1e-6
    for client in state.clients.values():
        for holder in (client, *(hold for _, hold in client.generations.values())):
            assert all(holder in task.wanted_by for task in holder.wants)
    assert state.outbox.keys() <= state.workers.keys() | state.clients.keys(), state.outbox.keys()
    for function in state.functions.records.values():
        uses = sum(task.function is function for task in state.tasks.values())
        assert function.uses == uses, function.function_id
        assert all(state.workers.get(w.address) is w for w in function.known_by), function.known_by


def validate_worker(state: WorkerState) -> None:
    """Raise AssertionError if a worker contradicts itself."""
    for key, task in state.tasks.items():
        assert task.key == key
        assert task.state in ("waiting", "ready", "executing", "memory", "fetch", "flight"), task
        if task.state in ("waiting", "ready"):
            missing = {d for d in task.dependencies if state.tasks[d].state != "memory"}
            assert task.missing == len(missing), task
            assert bool(missing) == (task.state == "waiting"), task
        if task.state in ("fetch", "flight"):
            assert task.dependents, (task, "nobody here needs it")
        for dependency in task.dependencies:
            # A run has its inputs in hand, so they may be freed under it.
            assert task.state == "executing" or key in state.tasks[dependency].dependents, task
        for dependent in task.dependents:
            assert key in state.tasks[dependent].dependencies, (task, dependent)
    assert state.executing == sum(t.state == "executing" for t in state.tasks.values()) + len(
        state.abandoned
    )
    assert state.n_ready == sum(t.state == "ready" for t in state.tasks.values())
    assert not state.n_ready or state.executing >= state.nthreads, "a thread idles"
    held = [*state.tasks.values(), *state._spare.values()]
    assert state.nbytes == sum(task.nbytes for task in held if task.state == "memory")
