"""Clusters without troubles, but for one: what has to hold then that cannot be asked of any other.

A scheduler is replaced while all else is well, and nothing that survived is done again; or one
client has sent a lot, and others do not wait for all of that.
"""

from __future__ import annotations

import faults
import outcome_checks
from simulator import Simulation, failing_as_reported
from virtual_network import SCHEDULER

from hpcdask.messages import FreeKeys, Version

#: What users do, with no change of mind that a restart might forget.
DEEDS = [
    faults.submit_a_graph,
    faults.submit_a_graph,
    faults.submit_old_tasks_again,
    faults.release_futures,
    faults.lend_a_future,
    faults.fire_and_forget,
    faults.scatter_data,
    faults.join_a_worker,
]
#: Exponent of the seconds within which all come back, which a scheduler waits for.
_SOON = -0.3


def replace_the_scheduler(seed: int, n_deeds: int = 15) -> Simulation:
    """Let a busy cluster have a new scheduler: what survived is neither lost nor done again.

    Raises
    ------
    SeedFailed
        If something was.
    """
    simulation = Simulation(seed, DEEDS)
    with failing_as_reported(simulation, f"calm.replace_the_scheduler({seed})"):
        simulation.live(n_deeds)
        for process in (*simulation.workers.values(), *simulation.clients.values()):
            process.slowest = _SOON
        simulation.note("the scheduler dies")
        simulation.kill_scheduler(0.01)
        survived = _survivors(simulation)
        before = dict(simulation.ledger.n_runs)
        held, failed = _held_or_failed(simulation)
        simulation.recover()
        simulation.drain()
        outcome_checks.check_outcomes(simulation)
        again = [key for key in survived if simulation.ledger.n_runs[key] != before[key]]
        assert not again, ("run again", again)
        told = {key for client in simulation.clients.values() for key in client.told}
        gone = simulation.recipes.by_key.keys() - held - told | failed
        for client in simulation.clients.values():
            for key, future in client.futures.items():
                error = future.error
                if future.status == "cancelled" or (error and error.exception != b"boom"):
                    inputs = simulation.recipes.ancestors(key)
                    assert inputs & gone, (client.name, key, future.status, error)
                assert future.status == "error" or not future.is_orphan, (client.name, key, "lost")
    return simulation


def _held_or_failed(simulation: Simulation) -> tuple[set[str], set[str]]:
    """Keys with a value on a worker, and keys that have failed."""
    held = {
        task.key
        for worker in simulation.workers.values()
        for task in worker.state.tasks.values()
        if task.state == "memory"
    }
    failed = {
        key
        for client in simulation.clients.values()
        for key, future in client.futures.items()
        if future.status == "error"
    }
    return held, failed


def _survivors(simulation: Simulation) -> list[str]:
    """Keys of which a value, or a run that can only end well, is on a worker."""
    found: dict[Version, None] = {}
    freed: set[Version] = set()  # by what the scheduler has said last
    recipes = simulation.recipes.by_key
    for worker in simulation.workers.values():
        for batch in simulation.network.link(SCHEDULER, worker.name).on_its_way:
            for message in batch.messages:
                if isinstance(message, FreeKeys):
                    freed.update(message.versions)
        for task in worker.state.tasks.values():
            if task.state == "memory" and task.definition:
                found[Version(task.key, task.attempt)] = None
        for run in worker.busy:
            recipe = recipes[run.key]
            is_abandoned = (run.key, run.attempt) in worker.state.abandoned
            takes = recipe.restriction is not None and recipe.restriction.resources
            if (
                recipe.function not in ("raise", "flaky", "moody")
                and not is_abandoned
                and not takes
            ):
                found[Version(run.key, run.attempt)] = None
    return list({version.key: None for version in found if version not in freed})


def take_turns(seed: int) -> Simulation:
    """Let one client send much and another little: the little does not come last.

    Raises
    ------
    SeedFailed
        If it does.
    """
    simulation = Simulation(seed, [])
    with failing_as_reported(simulation, f"calm.take_turns({seed})"):
        random, recipes = simulation.random, simulation.recipes
        alice, bob = simulation.clients.values()
        n_threads = sum(worker.nthreads for worker in simulation.workers.values())
        much, little = 12 * n_threads, random.randint(1, 4)
        for client, count in ((alice, much), (bob, little)):
            keys = [f"{client.name}-{i}" for i in range(count)]
            for key in keys:
                recipes.add(key, ())
                recipes.by_key[key].function = "long"
            client.submit(keys, keys, priority=0.0)
            while simulation.clock.n_busy and not _has_begun(simulation):
                simulation.clock.step()
        while any(future.status == "pending" for future in bob.futures.values()):
            simulation.clock.step()
        n_done = sum(future.status != "pending" for future in alice.futures.values())
        assert n_done < 3 / 4 * much, f"{n_done} of {much} came before {little}"
    return simulation


def _has_begun(simulation: Simulation) -> bool:
    return any(worker.busy for worker in simulation.workers.values())
