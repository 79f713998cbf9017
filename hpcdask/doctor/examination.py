"""What rank 0 has the hosts try with each other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hpcdask.doctor.facts import Carried, Clock, Reached, Seen
from hpcdask.doctor.meeting import with_patience
from hpcdask.doctor.planning import Target, dialling_orders, ring_rounds
from hpcdask.doctor.station import Station
from hpcdask.errors import CommClosedError, HpcdaskError
from hpcdask.messages import Blob
from hpcdask.rendezvous import Contact, remove_scheduler_file, write_scheduler_file

T = TypeVar("T")
log = logging.getLogger("hpcdask.doctor")

#: Hosts that are asked at the same time where the answer's time matters.
_AT_ONCE = 32
#: Questions about the time, of which the one that is answered fastest counts.
_CLOCK_QUESTIONS = 5
#: Seconds to dial one address, to send, to see a file, and for an answer to come back.
_ONE_DIAL, _SENDING, _SEEING, _ANSWER = 3.0, 0.3, 15.0, 10.0
#: Seconds in which nothing can be done any more.
_TOO_LITTLE = 0.5
#: Part of the time that is left which dialling may take.
_DIALLING = 0.7


class Host(Protocol):
    """A host that does what it is asked to: by a `Line`, or this one."""

    async def ask(
        self, what: str, arguments: Any = None, load: Blob = b"", *, timeout: float
    ) -> Any:
        """Return what it has found."""


class OwnHost:
    """This host, asked as any other."""

    def __init__(self, station: Station) -> None:
        self._station = station

    async def ask(
        self, what: str, arguments: Any = None, load: Blob = b"", *, timeout: float
    ) -> Any:
        """Do it here."""
        found = self._station.answer(what, arguments, load)
        if not asyncio.iscoroutine(found):
            return found
        try:
            return await asyncio.wait_for(found, timeout)
        except asyncio.TimeoutError:
            raise CommClosedError(f"no answer within {timeout:.2g} s") from None


class TimeLeft:
    """The time until a deadline."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    @property
    def all_of_it(self) -> float:
        """Seconds that are left; a few thousandths when there are none."""
        return max(self._ends - time.monotonic(), 0.01)

    def for_an_answer(self) -> float:
        """How long a host may take to answer a simple question; others have to be asked, too."""
        return min(_ANSWER, self.all_of_it / 4)

    @property
    def is_over(self) -> bool:
        """Whether there is none to speak of."""
        return time.monotonic() >= self._ends - _TOO_LITTLE


class Hosts:
    """The hosts that take part, by name; one that does not answer takes part no longer.

    Parameters
    ----------
    hosts : mapping
        All of them.
    left : TimeLeft
        Until when they may answer. Who has not by then is not to blame.

    Attributes
    ----------
    silent : list of str
        Those that did not answer.
    """

    def __init__(self, hosts: Mapping[str, Host], left: TimeLeft) -> None:
        self._hosts, self.left = dict(hosts), left
        self.silent: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._hosts))

    def __len__(self) -> int:
        return len(self._hosts)

    async def each(
        self, names: Iterable[str], ask: Callable[[str, Host], Awaitable[T]], room: int = 0
    ) -> dict[str, T]:
        """Ask several hosts at the same time; return the answers of those that answer.

        Parameters
        ----------
        names : iterable of str
            Whom; who is not there is not asked.
        ask : callable
            Asks one, given its name and itself.
        room : int
            How many at most at a time, 0 for all.
        """
        places = asyncio.Semaphore(room or max(len(self), 1))
        answers: dict[str, T] = {}

        async def one(name: str, host: Host) -> None:
            async with places:
                try:
                    answers[name] = await ask(name, host)
                except (HpcdaskError, OSError) as exc:
                    log.warning("%s does not answer: %s", name, exc)
                    if self._hosts.pop(name, None) is not None and not self.left.is_over:
                        self.silent.append(name)

        asked = [(name, self._hosts[name]) for name in names if name in self._hosts]
        await asyncio.gather(*(one(name, host) for name, host in asked))
        return {name: answers[name] for name, _ in asked if name in answers}


# -- Clocks ---------------------------------------------------------------------------------------


async def compare_clocks(hosts: Hosts) -> dict[str, Clock]:
    """How far the clock of each host is ahead of ours."""

    async def compare(name: str, host: Host) -> Clock:
        return await _clock(host, hosts.left)

    return await hosts.each(hosts, compare, _AT_ONCE)


async def _clock(host: Host, left: TimeLeft) -> Clock:
    """As NTP does it: their time belongs to the middle of the way there and back."""
    best: Clock | None = None
    for _ in range(_CLOCK_QUESTIONS):
        before, start = time.time(), time.perf_counter()
        answer = await host.ask("echo", timeout=left.for_an_answer())
        round_trip = time.perf_counter() - start
        if best is None or round_trip / 2 < best["uncertainty"]:
            ahead = answer["time"] - (before + round_trip / 2)
            best = {"ahead": ahead, "uncertainty": round_trip / 2}
    assert best is not None
    return best


# -- Connections ----------------------------------------------------------------------------------


async def try_connections(hosts: Hosts, targets: Mapping[str, Sequence[Target]]) -> list[Reached]:
    """Let every host dial every address of every host.

    Parameters
    ----------
    targets : mapping
        Addresses by host, also of those that cannot be asked.
    """
    orders = dialling_orders(list(hosts), targets)
    seconds = hosts.left.all_of_it * _DIALLING
    one_dial = min(_ONE_DIAL, seconds / 3)

    async def dial(name: str, host: Host) -> Any:
        order = tuple((target.address, target.identity) for target in orders[name])
        return await host.ask("dial", (order, one_dial, seconds - 2 * one_dial), timeout=seconds)

    outcomes = await hosts.each(orders, dial)
    return [
        reached
        for source, found in outcomes.items()
        for reached in _reached(source, orders[source], found)
    ]


def _reached(source: str, targets: Sequence[Target], outcomes: Any) -> list[Reached]:
    return [
        {
            "source": source,
            "target": target.host,
            "interface": target.interface,
            "address": target.address.partition("//")[2],
            "seconds": seconds,
            "reason": reason,
        }
        for target, (seconds, reason) in zip(targets, outcomes, strict=True)
    ]


# -- Bandwidth ------------------------------------------------------------------------------------


async def measure_bandwidth(hosts: Hosts, reached: Sequence[Reached]) -> list[Carried]:
    """Let hosts send along a ring, on one interface after the other, no two on one cable."""
    ways = {
        (each["source"], each["target"], each["interface"]): each["address"]
        for each in reached
        if each["seconds"] is not None
    }
    carried: list[Carried] = []
    for interface in dict.fromkeys(interface for _, _, interface in ways):
        for pairs in ring_rounds(list(hosts)):
            if hosts.left.is_over:
                return carried
            addresses = {
                (source, target): ways[source, target, interface]
                for source, target in pairs
                if (source, target, interface) in ways
            }
            carried += await _send(hosts, interface, addresses)
    return carried


async def _send(
    hosts: Hosts, interface: str, addresses: Mapping[tuple[str, str], str]
) -> list[Carried]:
    """One round: each pair (from, to) at the same time."""
    targets = {source: (target, address) for (source, target), address in addresses.items()}

    async def send(name: str, host: Host) -> Any:
        _, address = targets[name]
        timeout = _SENDING + 2 * hosts.left.for_an_answer()
        return await host.ask("send", (f"tcp://{address}", _SENDING), timeout=timeout)

    outcomes = await hosts.each(targets, send)
    return [
        {
            "source": source,
            "target": targets[source][0],
            "interface": interface,
            "bytes_per_second": speed,
            "reason": reason,
        }
        for source, (speed, reason) in outcomes.items()
    ]


# -- The scheduler file ---------------------------------------------------------------------------


async def try_scheduler_file(
    path: Path,
    writer: str,
    hosts: Hosts,
    contact: Contact,
    clocks: Mapping[str, Clock],
) -> Seen:
    """Write a scheduler file while all other hosts wait for it, and see when each has it.

    Parameters
    ----------
    path : Path
        The file, which does not exist yet.
    writer : str
        This host.
    contact : Contact
        Of the examination; no token of it is written.
    clocks : mapping
        What `compare_clocks` has found, since the others tell when they saw it by their own.
    """
    seen: Seen = {
        "path": str(path.parent),
        "writer": writer,
        "problem": "",
        "seconds": {},
        "problems": {},
    }
    others = [name for name in hosts if name != writer and name in clocks]
    patience = min(_SEEING, hosts.left.all_of_it / 2)

    async def wait(name: str, host: Host) -> Any:
        timeout = patience + hosts.left.for_an_answer()
        return await host.ask("await-file", (str(path), patience), timeout=timeout)

    async def echo(name: str, host: Host) -> Any:
        return await host.ask("echo", timeout=hosts.left.for_an_answer())

    waiting = asyncio.ensure_future(hosts.each(others, wait))
    try:
        await asyncio.sleep(0)  # so that they are asked to wait first
        # Whoever answers this has begun to wait: a host that has once seen that a file is not
        # there may take longer to see that it is.
        await hosts.each(others, echo)
        file = replace(contact, id=f"{contact.id}-file", token=b"")
        try:
            await with_patience(write_scheduler_file, path, file)
        except (HpcdaskError, OSError) as exc:
            seen["problem"] = str(exc)
            return seen
        written = time.time()
        for name, (at, reason) in (await waiting).items():
            delay = None if at is None else max(at - clocks[name]["ahead"] - written, 0.0)
            seen["seconds"][name] = delay
            if reason:
                seen["problems"][name] = reason
        with suppress(OSError):
            await with_patience(remove_scheduler_file, path, file.id)
    finally:
        waiting.cancel()
    return seen
