"""Checks of facts that the states keep twice for speed; tests run them after every event."""

from __future__ import annotations

from hpcdask.core.departing import holders
from hpcdask.core.records import WorkerRecord
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
        is_held = task in state.held
        assert is_held or task.is_needed == (task.state != "released"), (task, task.wanted_by)
        is_known = task.is_needed or task.dependents or task in state.doomed
        assert is_held or is_known, (task, "should be forgotten")
        if task.state in TO_RUN:
            missing = [d for d in task.dependencies if d.state != "memory"]
            assert task.missing == len(missing), (task, missing)
            assert task.state in ("waiting", "processing") or not missing, task
            assert task.state != "waiting" or missing or task in state.resting, task
            # Sent ahead, of inputs that are being computed at the same worker.
            ahead = task.state == "processing" and task.missing
            assert not ahead or all(d.worker is task.worker for d in missing), (task, missing)
        for dependency in task.dependencies:
            assert task in dependency.dependents, (task, dependency)
            assert state.tasks.get(dependency.key) is dependency, (task, dependency)
        for dependent in task.dependents:
            assert state.tasks.get(dependent.key) is dependent, (task, dependent)
        for client in task.wanted_by:
            assert task in client.wants, (task, client)
    assert not (state.held or state._held_wants) or state._hold_until
    assert all(state.tasks.get(task.key) is task for task in state.doomed)
    _validate_lanes(state)
    for address, worker in state.workers.items():
        assert worker.address == address
        assert worker.nbytes == sum(task.nbytes for task in worker.has_what)
        assert all(worker in task.who_has for task in worker.has_what)
        assert all(task.lane.is_actor and task in worker.has_what for task in worker.actors)
        assert all(task.worker is worker for task in worker.processing)
        assert worker.n_ahead == sum(bool(task.missing) for task in worker.processing), worker
        assert worker.recalled.keys() <= worker.processing.keys()
        assert worker.is_loaded or worker.is_leaving or worker.n_runnable <= worker.nthreads, worker
        _validate_resources(worker)
        assert abs(worker.occupancy - sum(worker.processing.values())) < 1e-6
    for client in state.clients.values():
        for holder in holders(client):
            assert all(holder in task.wanted_by for task in holder.wants)
    assert not state._to_claim
    _validate_wants(state)
    assert state.outbox.keys() <= state.workers.keys() | state.clients.keys(), state.outbox.keys()
    for function in state.functions.records.values():
        uses = sum(task.function is function for task in state.tasks.values())
        assert function.uses == uses, function.function_id
        assert all(state.workers.get(w.address) is w for w in function.known_by), function.known_by


def _validate_wants(state: SchedulerState) -> None:
    """Whoever wants something will let go of it some time."""
    for holder in state.departed:
        assert not holder.is_told
        assert holder not in state.clients.values()
        assert all(holder in task.wanted_by for task in holder.wants)
    records = [*state.clients.values(), *state.departed, state._keeper]
    for aside in (*state._former.values(), *state._told.values()):
        records += aside
    known = {holder for record in records for holder in holders(record)}
    for task in state.tasks.values():
        assert known.issuperset(task.wanted_by), (task, task.wanted_by)


def _validate_lanes(state: SchedulerState) -> None:
    lanes = list(state.lanes)
    assert {task.lane for task in state.tasks.values()} <= set(lanes)
    for lane in lanes:
        assert lane.uses == sum(task.lane is lane for task in state.tasks.values()), (
            lane.restriction
        )
        mine = [task for task in state.tasks.values() if task.lane is lane]
        queued = {task for task in mine if task.state == "queued"}
        assert lane.n_queued == len(queued), (lane.n_queued, queued)
        assert set(lane.queued) == queued
        assert lane.stranded.keys() == {task for task in mine if task.state == "no-worker"}
        assert not (lane.stranded and lane.workers)
        assert not (queued and not lane.workers)
        assert lane.n_named == (sum(map(lane.is_named, lane.workers)) if lane.prefers else 0)
        if lane is not state.lanes.open:
            assert lane.workers.keys() == set(state.lanes._fitting(lane)), lane.restriction
        for worker in lane.workers:
            assert state.workers.get(worker.address) is worker
            assert not worker.is_leaving
            assert lane is state.lanes.open or lane in worker.lanes
            room = lane.placement.has_room(worker)
            assert not room or not lane.n_queued, (worker, "has room, and tasks wait")
            assert not room or lane.placement.knows(worker), (worker, "placement overlooks it")
    for worker in state.workers.values():
        assert worker.is_leaving == (worker not in state.lanes.open.workers)


def _validate_resources(worker: WorkerRecord) -> None:
    free = dict(worker.info.resources)
    for task in worker.processing:
        for name, amount in () if task.missing else task.lane.resources:
            free[name] -= amount
    assert free.keys() == worker.resources.keys()
    for name, amount in free.items():
        assert amount >= -1e-9, (worker, name, "is given to too many")
        assert abs(amount - worker.resources[name]) < 1e-9, (worker, name)


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
            assert task.dependents or task.is_kept, (task, "nobody here needs it")
        for dependency in task.dependencies:
            # A run has its inputs in hand, so they may be freed under it.
            assert task.state == "executing" or key in state.tasks[dependency].dependents, task
        for dependent in task.dependents:
            assert key in state.tasks[dependent].dependencies, (task, dependent)
    assert state.executing == sum(t.state == "executing" for t in state.tasks.values()) + len(
        state.abandoned
    )
    assert state.n_ready == sum(t.state == "ready" for t in state.tasks.values())
    starved = sum(task.state == "ready" for task in state._starved)
    assert state.n_ready == starved or state.executing >= state.nthreads, "a thread idles"
    held = [*state.tasks.values(), *state._spare.values()]
    assert state.nbytes == sum(task.nbytes for task in held if task.state == "memory")
