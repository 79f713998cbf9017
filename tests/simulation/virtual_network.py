"""Processes and the links between them.

A link keeps its order, as a TCP connection does, and has a latency of its own; none keeps any order
with another. It can be slow, or cut: then what is on its way waits until it is healed, unless the
connection ends meanwhile. A process can be stopped (SIGSTOP): it handles and sends nothing.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, NamedTuple

from event_trace import EventTrace
from virtual_clock import VirtualClock

from hpcdask.messages import Message
from hpcdask.wire.codec import decode, encode

SCHEDULER = "scheduler"


class Closed(NamedTuple):
    """The connection has ended; nothing of it follows."""


class Batch(NamedTuple):
    """Messages that left together."""

    messages: list[Any]
    connection: int  # number of the connection between a process and the scheduler; 0 of others


class Process(abc.ABC):
    """Somebody with an address, who can be stopped and go on, or die."""

    def __init__(self, name: str, clock: VirtualClock) -> None:
        self.name = name
        self.clock = clock
        self.is_paused = self.is_dead = False
        self._held: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def do(self, action: Callable[..., None], *args: Any) -> None:
        """Act now, or when it goes on, or never."""
        if self.is_dead:
            return
        if self.is_paused or self._held:
            self._held.append((action, args))
        else:
            action(*args)

    def later(self, delay: float, action: Callable[..., None], *args: Any) -> Any:
        return self.clock.after(delay, self.do, action, *args)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self.clock.after(0.0, self._go_on)

    def _go_on(self) -> None:
        """Do one thing that waits, so that each is an event of its own."""
        if self._held and not self.is_paused and not self.is_dead:
            action, args = self._held.popleft()
            action(*args)
            self.clock.after(0.0, self._go_on)

    def die(self) -> None:
        """Do nothing any more."""
        self.is_dead = True

    @abc.abstractmethod
    def receive(self, source: str, batch: Batch) -> None:
        """Messages have come."""

    @abc.abstractmethod
    def refused(self, target: str) -> None:
        """Nobody listens at `target`."""


class Link:
    """One direction between two processes."""

    def __init__(self, latency: float) -> None:
        self.latency = latency  # seconds
        self.is_cut = False
        self.on_its_way: deque[Batch] = deque()
        self.last_arrival = 0.0
        self.n_stuck = 0  # batches that would have arrived if it were not cut


class VirtualNetwork:
    """All links, made when first used."""

    def __init__(self, clock: VirtualClock, random: Random, trace: EventTrace) -> None:
        self.processes: dict[str, Process] = {}
        self._clock = clock
        self._random = random
        self._trace = trace
        self._links: dict[tuple[str, str], Link] = {}

    def link(self, source: str, target: str) -> Link:
        link = self._links.get((source, target))
        if link is None:
            # From shared memory to another site: 10 us to 50 ms.
            latency = 10 ** self._random.uniform(-5, -1.3)
            link = self._links[source, target] = Link(latency)
        return link

    def send(
        self,
        source: str,
        target: str,
        messages: Iterable[Message],
        connection: int = 0,
        idle: bool = False,
    ) -> None:
        """Put messages of the catalogue on their way, in their bytes and out of them again."""
        messages = list(messages)
        if messages:
            self.send_plain(source, target, decode(*encode(messages)), connection, idle)

    def send_plain(
        self,
        source: str,
        target: str,
        messages: list[Any],
        connection: int = 0,
        idle: bool = False,
    ) -> None:
        """Put anything on its way; `idle` as for the clock."""
        link = self.link(source, target)
        link.on_its_way.append(Batch(messages, connection))
        jitter = self._random.random() * link.latency
        # Never earlier than what was sent before.
        link.last_arrival = max(link.last_arrival, self._clock.now + link.latency + jitter)
        delay = link.last_arrival - self._clock.now
        self._clock.after(delay, self._arrive, source, target, link, idle=idle)

    def _arrive(self, source: str, target: str, link: Link) -> None:
        if not link.on_its_way:
            return  # lost meanwhile
        if link.is_cut:
            link.n_stuck += 1
            return
        batch = link.on_its_way.popleft()
        process = self.processes.get(target)
        if process is not None:
            process.do(self._hand_over, process, source, batch)
        elif source in self.processes:
            sender = self.processes[source]
            sender.do(sender.refused, target)

    def _hand_over(self, process: Process, source: str, batch: Batch) -> None:
        for message in batch.messages:
            self._trace.message(self._clock.now, source, process.name, message)
        process.receive(source, batch)

    # -- Faults -----------------------------------------------------------------------------------

    def cut(self, one: str, other: str) -> None:
        """Deliver nothing between two processes."""
        for ends in ((one, other), (other, one)):
            self.link(*ends).is_cut = True

    def heal(self, one: str, other: str) -> None:
        """Deliver what waited, and all that follows."""
        for source, target in ((one, other), (other, one)):
            link = self.link(source, target)
            link.is_cut = False
            for _ in range(link.n_stuck):
                self._clock.after(link.latency, self._arrive, source, target, link)
            link.n_stuck = 0

    def heal_all(self) -> None:
        for source, target in list(self._links):
            self.heal(source, target)

    def end_connection(self, source: str, target: str, connection: int = 0) -> None:
        """Lose some of what is on its way, always the last; then the target hears of the end."""
        link = self.link(source, target)
        kept = self._random.randint(0, len(link.on_its_way))
        way = link.on_its_way
        while len(way) > kept and way[-1].connection == connection:
            way.pop()
        self.send_plain(source, target, [Closed()], connection)

    def end_all_connections(self, target: str) -> None:
        """Let each process with a numbered connection to `target` hear that it has ended."""
        for name, process in self.processes.items():
            if hasattr(process, "connection"):
                self.link(name, target).on_its_way.clear()
                self.end_connection(target, name, process.connection)

    def remove(self, name: str, connection: int = 0) -> None:
        """Let a process be gone: everybody who has a link from it hears of its end."""
        self.processes.pop(name).die()
        peers = dict.fromkeys(
            source if target == name else target
            for source, target in self._links
            if name in (source, target)
        )
        for peer in peers:
            self.link(peer, name).on_its_way.clear()
            if peer in self.processes:
                self.end_connection(name, peer, connection if peer == SCHEDULER else 0)
            else:  # nor should it reach who may take the peer's place
                self.link(name, peer).on_its_way.clear()
