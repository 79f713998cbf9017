"""What has to be true of a simulated cluster that has come to rest."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from recipes import DATA

from hpcdask.errors import KilledWorker, LostActorError, LostDataError
from hpcdask.messages import TaskError, Version

if TYPE_CHECKING:
    from simulator import Simulation


def check_outcomes(simulation: Simulation) -> None:
    """Every wanted key has its value, or the error it should have."""
    state = simulation.scheduler.state
    assert not state.leaving, "workers that are to leave cannot"
    for client in simulation.clients.values():
        assert not client.unsent.messages
        wanted = {task.key for task in state.clients[client.name].wants}
        for key, future in client.futures.items():
            if future.status == "cancelled" or future.is_orphan:
                continue
            assert key in wanted, (client.name, key, future.status)
            assert future.status in ("finished", "error"), ("never ends", client.name, key)
            if future.status == "finished":
                _check_value(simulation, key)
            else:
                task = state.tasks[key]
                assert task.state == "erred", (task, future.error)
                assert future.error is not None
                _check_error(simulation, future.error, key, future.may_be_cancelled)
        unknown = wanted - client.futures.keys()
        assert not unknown, (client.name, "does not know that it wants", unknown)


def _check_value(simulation: Simulation, key: str) -> None:
    task = simulation.scheduler.state.tasks[key]
    assert task.state == "memory", (task, "is done, the client thinks")
    for holder in task.who_has:
        worker = simulation.workers[holder.address]
        held = worker.state.value_of(Version(key, task.attempt))
        assert held is not None, (holder, key)
        assert held.value == simulation.recipes.value(key), (holder, key)


def _check_error(
    simulation: Simulation, error: TaskError, key: str, may_be_cancelled: bool
) -> None:
    recipes = simulation.recipes
    assert error.key in recipes.ancestors(key), (error.key, key)
    if error.exception == b"boom":
        assert recipes.may_raise(error.key), (error.key, recipes.by_key[error.key])
        return
    exception = pickle.loads(error.exception)  # type: ignore[arg-type]
    if isinstance(exception, LostDataError):
        # Of the data itself, or of a task that could not reach it, or an actor.
        inputs = recipes.ancestors(error.key)
        is_data = any(recipes.by_key[k].function == DATA for k in inputs)
        is_data = is_data or recipes.has_actor(error.key)
        # A client that cancels a key and loses its connection relies on it once more when it is
        # back, if it has not been told.
        assert is_data or inputs & simulation.uncovered or may_be_cancelled, error.key
    elif isinstance(exception, LostActorError):
        assert recipes.has_actor(error.key), (error.key, exception)
    else:
        assert isinstance(exception, KilledWorker), exception
        assert simulation.allowed_failures < simulation.scheduler.n_lost, exception


def check_nothing_is_left(simulation: Simulation) -> None:
    """All was released: nobody holds or does anything."""
    state = simulation.scheduler.state
    assert not state.tasks, state.tasks
    assert not state.lanes.open.n_queued
    assert not state.lanes.open.stranded
    assert not any(list(lane.queued) for lane in state.lanes)
    assert not state.leaving
    assert not state.held
    assert not state.resting
    assert not any([state._values, state._runs, state._held_wants, state._former])
    planned = {p.key for plans in state._scattering.values() for p in plans.values()}
    for record in state.workers.values():
        assert not record.processing
        assert not record.has_what
        assert (record.nbytes, record.occupancy) == (0, 0.0)
    assert state.workers.keys() == simulation.workers.keys(), (
        state.workers.keys() ^ simulation.workers.keys()
    )
    for name, process in simulation.workers.items():
        worker = process.state
        assert worker.tasks.keys() <= planned, (name, worker.tasks)
        assert not worker.abandoned, (name, worker.abandoned)
        assert {version.key for version in worker._spare} <= planned, (name, worker._spare)
        assert not worker._in_flight, (name, worker._in_flight)
        assert not worker._to_fetch, (name, worker._to_fetch)
        assert worker.resources == process.resources, (name, worker.resources)
        assert (worker.executing, worker._executing_cost) == (0, 0.0), name
        assert not process.runs, name


def check_no_trace_is_left(simulation: Simulation) -> None:
    """All clients have left: of them nothing is remembered, and no value is left anywhere."""
    state = simulation.scheduler.state
    check_nothing_is_left(simulation)
    assert not state.clients
    assert not state._scattering
    for name, process in simulation.workers.items():
        assert not process.state.tasks, (name, process.state.tasks)
        assert not process.state._spare, (name, process.state._spare)
        assert process.state.nbytes == 0, name
