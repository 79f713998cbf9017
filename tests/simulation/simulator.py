"""A whole cluster in one thread and in virtual time, from a seed: `live_through(seed)`.

The states are the real ones. What is simulated is what a state cannot see: links, threads, clients,
time, and faults. All that happens is drawn from the seed, so a seed that fails fails again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import outcome_checks
from event_trace import EventTrace
from faults import DEEDS, Deed
from recipes import DATA, DURATIONS, HOSTS, LABELS, Recipes
from virtual_client import KnownFuture, VirtualClient
from virtual_clock import VirtualClock
from virtual_network import SCHEDULER, Closed, VirtualNetwork
from virtual_scheduler import TICK, VirtualScheduler
from virtual_worker import Ledger, VirtualWorker

from hpcdask.core.returning import LONGEST_HOLD, UNCLAIMED
from hpcdask.messages import RegisterClient
from hpcdask.messages.client import CancelKeys, WantKeys

#: Things that are done to a cluster, some of them faults, before it may come to rest.
N_DEEDS = 60
#: Events within which any of them comes to rest.
_MAX_EVENTS = 200_000


class SeedFailed(AssertionError):
    """What went wrong, how to see it again, and what happened shortly before."""


class Simulation:
    """A scheduler, workers, clients, and what befalls them."""

    def __init__(
        self, seed: int, deeds: Sequence[Callable[[Simulation], None]] | None = None
    ) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.clock = VirtualClock()
        self.trace = EventTrace()
        self.network = VirtualNetwork(self.clock, random, self.trace)
        self.recipes = Recipes(random)
        self.ledger = Ledger(self.recipes)
        self.allowed_failures = random.choice([0, 1, 1000, 1000])
        self.n_joined = 0
        #: Keys of which only surviving copies could be had after a restart.
        self.uncovered: set[str] = set()
        #: Wants of futures that another client has lent: (taker, number) -> (giver, key).
        self.lendings: dict[tuple[str, int], tuple[str, str]] = {}
        if deeds is None:
            deeds = [d for d in DEEDS for _ in range(d.weight) if random.random() < d.odds]
        self.deeds = list(deeds)
        self.scheduler = self._new_scheduler(None)
        for _ in range(random.randint(1, 4)):
            self.join_worker()
        self.clients: dict[str, VirtualClient] = {}
        for name in ("alice", "bob"):
            self.join_client(name)
        self._tick()

    @property
    def workers(self) -> dict[str, VirtualWorker]:
        processes = self.network.processes.items()
        return {name: p for name, p in processes if isinstance(p, VirtualWorker)}

    def note(self, text: str, *details: Any) -> None:
        """Note a fault in the trace."""
        self.trace.note(self.clock.now, "!!", text, *details)

    # -- Processes --------------------------------------------------------------------------------

    def _new_scheduler(self, before: VirtualScheduler | None) -> VirtualScheduler:
        parts = self.clock, self.network, self.random, self.allowed_failures, self._on_message
        scheduler = VirtualScheduler(*parts, before)
        self.network.processes[SCHEDULER] = scheduler
        return scheduler

    def kill_scheduler(self, pause: float) -> None:
        """Let the scheduler be gone, and another take its place after some seconds."""
        self.scheduler.die()
        self.network.end_all_connections(SCHEDULER)
        del self.network.processes[SCHEDULER]
        self.clock.after(pause, self._start_scheduler)

    def _start_scheduler(self) -> None:
        self.note("a new scheduler")
        self.scheduler = self._new_scheduler(self.scheduler)

    def join_worker(self, host: str = "", n_gpus: float = 0.0, label: str = "") -> VirtualWorker:
        self.n_joined += 1
        nthreads = self.random.choice([1, 1, 2, 3])
        host = host or self.random.choice(HOSTS)
        n_gpus = n_gpus or self.random.choice([0.0, 1.0, 2.0])
        worker = VirtualWorker(
            f"w{self.n_joined}",
            self.clock,
            self.network,
            self.random,
            self.ledger,
            nthreads,
            host,
            {"gpu": n_gpus} if n_gpus else {},
            label or self.random.choice(LABELS),
        )
        self.network.processes[worker.name] = worker
        worker.start()
        return worker

    def join_client(self, name: str) -> None:
        client = VirtualClient(name, self.clock, self.network, self.random, self.recipes)
        self.clients[name] = self.network.processes[name] = client
        client.start()

    def lose_client(self, name: str, with_goodbye: bool) -> None:
        """Let a client be gone."""
        client = self.clients.pop(name)
        if with_goodbye and client.is_connected:
            client.say_goodbye()
        for (taker, want), (giver, key) in list(self.lendings.items()):
            if taker == name:
                self._lending_ends(taker, want)
            elif giver == name and key in self.clients[taker].futures:
                self.clients[taker].note_cancelled([key])
        self.network.remove(name, client.connection)

    def _on_message(self, source: str, message: Any) -> None:
        """The scheduler is about to handle a message: note what follows for the clients."""
        client = self.clients.get(source)
        if isinstance(message, WantKeys):
            for taker, want in list(self.lendings):
                if taker == source and want <= message.want:
                    self._lending_ends(taker, want)
        elif isinstance(message, RegisterClient) and message.returns and client is not None:
            if source not in self.scheduler.state.clients:
                self._depends_on_survivors(client)
        elif isinstance(message, Closed):
            self._client_forgotten(source)
        elif isinstance(message, CancelKeys):
            self.trace.note(self.clock.now, "!!", "is cancelled", message.keys)
            # Also by those to whom the canceller has lent it, if it hears of that afterwards.
            takers = {taker for (taker, _), (giver, _) in self.lendings.items() if giver == source}
            for client in self.clients.values():
                if message.force or client.name == source or client.name in takers:
                    client.note_cancelled(message.keys)

    def _depends_on_survivors(self, client: VirtualClient) -> None:
        """A client has come back to a scheduler that does not know it."""
        self.uncovered |= client.uncovered
        client.note_cancelled(client.uncovered)
        self._client_forgotten(client.name)

    def _client_forgotten(self, name: str) -> None:
        """What a client has lent may be gone before the taker's want of it arrives."""
        for (taker, _), (giver, key) in list(self.lendings.items()):
            if giver == name and taker in self.clients:
                self.clients[taker].note_cancelled([key])

    def _lending_ends(self, taker: str, want: int) -> None:
        giver, key = self.lendings.pop((taker, want), ("", ""))
        if giver in self.clients:
            lent = self.clients[giver].lent
            lent[key] -= 1
            if not lent[key]:
                del lent[key]

    def _tick(self) -> None:
        scheduler = self.scheduler
        if not scheduler.is_paused:
            scheduler.do(scheduler.tick)
        self.clock.after(TICK, self._tick, idle=True)

    # -- From the start to the end ----------------------------------------------------------------

    def live(self, n_deeds: int) -> None:
        """Live through troubled times."""
        for _ in range(n_deeds):
            self.random.choice(self.deeds)(self)
            # Between what a link takes and what a long task does.
            until = self.clock.now + 10 ** self.random.uniform(-5, 0.7)
            while self.clock.n_busy and self.clock.now < until:
                self.clock.step()

    def recover(self) -> None:
        """End all faults."""
        self.note("all faults end")
        self.network.heal_all()
        for process in list(self.network.processes.values()):
            if process.is_paused:
                process.resume()
            if isinstance(process, VirtualWorker):
                process.refusals = 0.0
                process.stick_threads(0)
        for host, label in zip(HOSTS, LABELS, strict=True):  # for whatever is restricted
            self.join_worker(host, n_gpus=2.0, label=label)

    def drain(self) -> None:
        """Let all that is under way come to its end, in a bounded time."""
        recipes = self.recipes.by_key.values()
        work = sum([DURATIONS[r.function] for r in recipes if r.function != DATA])
        # A run takes up to 3.2 times as long as usual, ten times on a slow worker, and may be
        # repeated.
        limit = self.clock.busy_until + LONGEST_HOLD + UNCLAIMED + 4 * 10 * 4 * work
        last = self.clock.n_events + _MAX_EVENTS
        while self._is_busy():
            self.clock.step()
            assert self.clock.now < limit, "it does not end in a reasonable time"
            assert self.clock.n_events < last, "it never comes to rest"

    def _is_busy(self) -> bool:
        """Whether something is under way, or will be after a few ticks of the scheduler."""
        state = self.scheduler.state
        if self.clock.n_busy or state._hold_until or state._values or state._runs:
            return True
        until = self.clock.now + 5 * TICK
        while self.clock.now < until and not self.clock.n_busy:
            self.clock.step()
        return bool(self.clock.n_busy)

    def release_all(self) -> None:
        for client in self.clients.values():
            wanted = self.scheduler.state.clients[client.name].wants
            keys = dict.fromkeys([*client.futures, *(task.key for task in wanted)])
            for key in keys:
                client.futures.setdefault(key, KnownFuture(key, 0))
            client.release(keys)

    def run(self, n_deeds: int = N_DEEDS) -> None:
        """Run until nobody wants anything any more, checking it all the way."""
        self.live(n_deeds)
        self.recover()
        self.drain()
        outcome_checks.check_outcomes(self)
        self.release_all()
        self.drain()
        outcome_checks.check_nothing_is_left(self)
        for name in list(self.clients):
            self.lose_client(name, with_goodbye=True)
        self.drain()
        outcome_checks.check_no_trace_is_left(self)


def live_through(seed: int, n_deeds: int = N_DEEDS) -> Simulation:
    """Run a cluster with faults from a seed.

    Raises
    ------
    SeedFailed
        If it contradicted itself, or did not end as it has to.
    """
    simulation = Simulation(seed)
    with failing_as_reported(simulation, how_to_replay(seed, n_deeds)):
        simulation.run(n_deeds)
    return simulation


def how_to_replay(seed: int, n_deeds: int) -> str:
    option = "" if n_deeds == N_DEEDS else f" --deeds {n_deeds}"
    return f"python tests/simulation/replay.py {seed}{option} --trace"


@contextmanager
def failing_as_reported(simulation: Simulation, replay: str) -> Iterator[None]:
    """Tell of any failure how it is seen again."""
    try:
        yield
    except Exception as exc:
        raise SeedFailed(report(simulation, replay, exc)) from exc


def report(simulation: Simulation, replay: str, exc: BaseException) -> str:
    """Say what failed, how to replay it, and what happened to whatever the error names."""
    names = set(re.findall(r"[a-z]+\d*-\d+", repr(exc)))
    lines = simulation.trace.relevant(names, 40)
    return "\n".join(
        [
            f"seed {simulation.seed}, at {simulation.clock.now:.6f} s: {exc!r:.2000}",
            f"replay: {replay}",
            f"the last of what concerns {', '.join(sorted(names)) or 'everybody'}:",
            *lines,
        ]
    )


__all__ = ["N_DEEDS", "Deed", "SeedFailed", "Simulation", "live_through"]
