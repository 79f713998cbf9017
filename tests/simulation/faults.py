"""What may be done to a simulated cluster at any time: the users' deeds, and faults.

Each is one small function; its weight says how often it comes up, its odds in how many clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from recipes import DATA, Recipe, random_graph
from virtual_client import VirtualClient
from virtual_network import SCHEDULER
from virtual_worker import VirtualWorker

if TYPE_CHECKING:
    from simulator import Simulation


class Deed:
    """Something to do to a cluster."""

    def __init__(self, act: Callable[[Simulation], None], weight: int, odds: float) -> None:
        self.act, self.weight, self.odds = act, weight, odds
        self.name = act.__name__

    def __call__(self, simulation: Simulation) -> None:
        self.act(simulation)


DEEDS: list[Deed] = []


def deed(weight: int, odds: float = 1.0) -> Callable[[Callable[[Simulation], None]], Deed]:
    """Add a function to the list of deeds."""

    def add(act: Callable[[Simulation], None]) -> Deed:
        DEEDS.append(Deed(act, weight, odds))
        return DEEDS[-1]

    return add


def deeds() -> list[Deed]:
    """Return all that may be done to a cluster."""
    return list(DEEDS)


def _some_client(simulation: Simulation) -> VirtualClient | None:
    clients = list(simulation.clients.values())
    return simulation.random.choice(clients) if clients else None


def _free_client(simulation: Simulation) -> VirtualClient | None:
    """A client that may submit: one that is not in the middle of a graph."""
    client = _some_client(simulation)
    return client if client is not None and not client.unsent.messages else None


def _some_worker(simulation: Simulation) -> VirtualWorker | None:
    workers = list(simulation.workers.values())
    return simulation.random.choice(workers) if workers else None


def _later(simulation: Simulation, act: Callable[..., None], *args: object) -> None:
    """End a fault after a while, short or long."""
    delay = 10 ** simulation.random.uniform(-3, 1.5)
    simulation.clock.after(delay, act, *args)


# -- What users do ------------------------------------------------------------------------------


@deed(weight=8)
def submit_a_graph(simulation: Simulation) -> None:
    client = _free_client(simulation)
    if client is None:
        return
    random, recipes = simulation.random, simulation.recipes
    prefix = f"{client.name}{len(recipes.by_key)}"
    keys = random_graph(random, recipes, prefix, client.live_keys())
    wanted = [key for key in keys if random.random() < 0.4] or keys[-1:]
    client.submit(keys, wanted)


@deed(weight=2)
def submit_a_private_graph(simulation: Simulation) -> None:
    """Tasks whose keys are used again for something else, soon and several times."""
    client = _free_client(simulation)
    if client is not None:
        random, recipes = simulation.random, simulation.recipes
        name = f"{client.name}own{len(recipes.by_key)}"
        inputs = client.live_keys()[:2] if random.random() < 0.3 else []
        keys = random_graph(random, recipes, name, inputs, private=name)
        client.submit(keys, keys[-1:])
        for _ in range(random.randint(1, 4)):
            delay = 10 ** random.uniform(-4, 0.5)
            client.later(delay, _use_keys_again, simulation, client, keys)


def _use_keys_again(simulation: Simulation, client: VirtualClient, keys: list[str]) -> None:
    recipes = simulation.recipes.by_key
    inputs = {d for key in keys for d in recipes[key].dependencies} - set(keys)
    # They must be there still.
    if inputs.issubset(client.live_keys()) and not client.unsent.messages:
        client.reuse(keys)


@deed(weight=2)
def submit_old_tasks_again(simulation: Simulation) -> None:
    """One's own or another client's, with all that they depend on; some may be running."""
    client = _free_client(simulation)
    recipes = simulation.recipes
    keys = [key for key, recipe in recipes.by_key.items() if not recipe.private]
    if client is None or not keys:
        return
    key = simulation.random.choice(keys)
    graph = recipes.in_order(recipes.ancestors(key))
    if all(recipes.by_key[k].function != DATA for k in graph):
        client.submit(graph, [key])


@deed(weight=3)
def release_futures(simulation: Simulation) -> None:
    client = _some_client(simulation)
    if client is not None:
        keys = sorted(client.futures.keys() - client.needed_keys())
        client.release(simulation.random.sample(keys, simulation.random.randint(0, len(keys))))


@deed(weight=1)
def lend_a_future(simulation: Simulation) -> None:
    """Hand a future from one client to another."""
    if len(simulation.clients) < 2:
        return
    giver, taker = simulation.random.sample(list(simulation.clients.values()), 2)
    record = simulation.scheduler.state.clients.get(giver.name)
    if record is None or simulation.scheduler.is_dead or not giver.is_connected:
        return
    # The scheduler must know the giver's want, of this life of the key, before the taker's.
    known = {task.key for task in record.wants}
    keys = [
        key
        for key in giver.live_keys()
        if key in known - taker.futures.keys() and giver.futures[key].since <= record.wants_read
    ]
    if keys:
        key = simulation.random.choice(keys)
        giver.lent[key] = giver.lent.get(key, 0) + 1
        taker.want(key, doomed=giver.futures[key].may_be_cancelled)
        simulation.lendings[taker.name, taker.wants] = (giver.name, key)


@deed(weight=1)
def cancel_a_key(simulation: Simulation) -> None:
    client = _some_client(simulation)
    if client is not None and client.futures:
        force = simulation.random.random() < 0.3
        client.cancel(simulation.random.choice(list(client.futures)), force)


@deed(weight=1)
def fire_and_forget(simulation: Simulation) -> None:
    client = _some_client(simulation)
    if client is not None and client.live_keys():
        client.keep_until_done(simulation.random.choice(client.live_keys()))


@deed(weight=1)
def retry_what_failed(simulation: Simulation) -> None:
    client = _some_client(simulation)
    if client is not None:
        failed = [key for key, future in client.futures.items() if future.status == "error"]
        if failed:
            client.retry(simulation.random.choice(failed))


@deed(weight=1, odds=0.6)
def copy_values(simulation: Simulation) -> None:
    """Client.replicate()."""
    values = simulation.scheduler.values()
    if values and not simulation.scheduler.is_paused:
        n = simulation.random.randint(0, 3)
        some = simulation.random.sample(values, min(len(values), 5))
        simulation.note(f"are to be on {n or 'all'} workers:", *(task.key for task in some))
        simulation.scheduler.copy(some, n, simulation.random.randint(1, 2))


@deed(weight=1, odds=0.6)
def spread_values(simulation: Simulation) -> None:
    """Client.rebalance()."""
    if not simulation.scheduler.is_paused and simulation.scheduler.values():
        simulation.note("values are spread")
        simulation.scheduler.spread()


@deed(weight=2)
def scatter_data(simulation: Simulation) -> None:
    client, random = _some_client(simulation), simulation.random
    if client is None:
        return
    recipes = simulation.recipes.by_key
    old = [key for key, recipe in recipes.items() if recipe.function == DATA]
    keys: dict[str, None] = {}
    for _ in range(random.randint(1, 3)):
        if old and random.random() < 0.4:
            key = random.choice(old)
        else:
            key = f"data-{len(recipes)}"
            recipes[key] = Recipe(DATA, len(recipes))
        future = client.futures.get(key)
        if future is None or future.status != "cancelled":
            keys[key] = None
    client.scatter(keys, broadcast=random.random() < 0.3)


@deed(weight=1, odds=0.2)
def forget_all_tasks(simulation: Simulation) -> None:
    """Client.restart()."""
    simulation.note("all tasks are forgotten")
    for client in simulation.clients.values():
        client.note_cancelled(simulation.recipes.by_key)
        # One whose connection ends just now does not hear of it, and will rely on what is gone.
        simulation.uncovered |= client.futures.keys()
    simulation.scheduler.do(simulation.scheduler.restart, "restart")


@deed(weight=1, odds=0.3)
def lose_a_client(simulation: Simulation) -> None:
    client = _some_client(simulation)
    if client is None:
        return
    simulation.note("vanishes:", client.name)
    simulation.lose_client(client.name, with_goodbye=simulation.random.random() < 0.5)


# -- What befalls machines and links ------------------------------------------------------------


@deed(weight=1)
def join_a_worker(simulation: Simulation) -> None:
    if len(simulation.workers) < 6:
        simulation.note("joins:", simulation.join_worker().name)


@deed(weight=2, odds=0.8)
def lose_a_worker(simulation: Simulation) -> None:
    worker = _some_worker(simulation)
    if worker is not None:
        simulation.note("dies:", worker.name)
        simulation.network.remove(worker.name, worker.connection)


@deed(weight=1, odds=0.5)
def retire_a_worker(simulation: Simulation) -> None:
    worker = _some_worker(simulation)
    if worker is not None and worker.is_connected:
        simulation.note("is to leave:", worker.name)
        worker.leave()


@deed(weight=1, odds=0.5)
def drop_a_value(simulation: Simulation) -> None:
    worker = _some_worker(simulation)
    if worker is not None and not worker.is_paused:
        simulation.note("loses a value:", worker.name)
        worker.drop_a_value()


@deed(weight=2, odds=0.5)
def break_the_connection_to_the_scheduler(simulation: Simulation) -> None:
    worker = _some_worker(simulation)
    if worker is not None and worker.is_connected:
        simulation.note("loses its connection:", worker.name)
        simulation.network.end_connection(worker.name, SCHEDULER, worker.connection)
        simulation.network.end_connection(SCHEDULER, worker.name, worker.connection)


@deed(weight=1, odds=0.5)
def break_the_connection_of_a_client(simulation: Simulation) -> None:
    client = _some_client(simulation)
    if client is not None and client.is_connected:
        simulation.note("loses its connection:", client.name)
        simulation.network.end_connection(client.name, SCHEDULER, client.connection)
        simulation.network.end_connection(SCHEDULER, client.name, client.connection)


@deed(weight=1, odds=0.4)
def replace_the_scheduler(simulation: Simulation) -> None:
    """It dies, and another takes its place: workers and clients find that one by themselves."""
    if SCHEDULER in simulation.network.processes:
        simulation.note("the scheduler dies")
        simulation.kill_scheduler(10 ** simulation.random.uniform(-3, 0.7))


@deed(weight=1, odds=0.5)
def slow_a_worker(simulation: Simulation) -> None:
    worker = _some_worker(simulation)
    if worker is not None:
        worker.slowness = simulation.random.choice([0.3, 1.0, 3.0, 10.0])
        simulation.note("slows down:", worker.name, f"by {worker.slowness}")


@deed(weight=2, odds=0.7)
def pause_a_process(simulation: Simulation) -> None:
    """SIGSTOP, and SIGCONT after a while."""
    name = simulation.random.choice([SCHEDULER, *simulation.workers, *simulation.clients])
    if name not in simulation.network.processes:
        return
    process = simulation.network.processes[name]
    if not process.is_paused:
        simulation.note("stops:", name)
        process.pause()
        _later(simulation, _resume, simulation, name)


def _resume(simulation: Simulation, name: str) -> None:
    process = simulation.network.processes.get(name)
    if process is not None and process.is_paused:
        simulation.note("goes on:", name)
        process.resume()


@deed(weight=2, odds=0.7)
def cut_a_link(simulation: Simulation) -> None:
    """Between workers mostly, which talk to each other less; or towards the scheduler."""
    one = simulation.random.choice([SCHEDULER, *simulation.workers, *simulation.clients])
    other = simulation.random.choice([*simulation.workers, *simulation.workers, SCHEDULER])
    if one != other:
        simulation.note("is cut:", one, other)
        simulation.network.cut(one, other)
        _later(simulation, simulation.network.heal, one, other)


@deed(weight=2, odds=0.5)
def break_connections(simulation: Simulation) -> None:
    """Some requests for data fail, from now on."""
    worker = _some_worker(simulation)
    if worker is not None:
        worker.refusals = simulation.random.choice([0.0, 0.3, 0.8])
        simulation.note("breaks connections of its peers:", worker.name, f"{worker.refusals:.0%}")


@deed(weight=1, odds=0.7)
def slow_a_link(simulation: Simulation) -> None:
    """One direction only: messages on it are late, those on others are not."""
    names = list(simulation.network.processes)
    if len(names) < 2:
        return
    one, other = simulation.random.sample(names, 2)
    link = simulation.network.link(one, other)
    link.latency = 10 ** simulation.random.uniform(-5, 0.5)
    simulation.note("has a latency of", f"{link.latency:.6f} s:", one, other)


@deed(weight=1, odds=0.3)
def stick_threads(simulation: Simulation) -> None:
    """Runs that were given up go on, so that their worker runs fewer than it has threads."""
    worker = _some_worker(simulation)
    if worker is not None and not worker.is_paused:
        worker.stick_threads(simulation.random.randint(0, worker.nthreads))


@deed(weight=1, odds=0.3)
def lend_threads(simulation: Simulation) -> None:
    """Tasks wait for tasks, so that their worker runs more than it has threads."""
    worker = _some_worker(simulation)
    if worker is not None and not worker.is_paused:
        worker.lend_threads(simulation.random.randint(0, 2))
