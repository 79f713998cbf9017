"""Which hosts cannot talk with each other: found out early, and told once, in one sentence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from hpcdask import network
from hpcdask.errors import HpcdaskError
from hpcdask.messages import DataMissing, RegisterWorker

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler

log = logging.getLogger("hpcdask.scheduler")

#: Seconds in which a worker must be reached that wants to join: the kernel asks three times.
_DIAL_BACK = 5.0
#: Workers that are dialled at a time, so that a thousand at once do not need a thousand more
#: connections for it.
_AT_A_TIME = 128
#: Seconds after which one that could not be reached counts as out of reach, if it is still there:
#: of one that has died others hear sooner than the scheduler.
_STILL_THERE = 2.0
#: Pairs of hosts that are told of. With a firewall between two halves of a cluster there are many.
_MOST_TOLD = 20

_CURE = "look for a firewall between the two hosts, or name another network with --interface"


class Reachability:
    """What a scheduler knows of who can reach whom.

    Parameters
    ----------
    scheduler : Scheduler
        Whose workers these are.
    spawn : callable
        Runs a coroutine that ends with the scheduler at the latest.
    """

    def __init__(
        self, scheduler: Scheduler, spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
    ) -> None:
        self._scheduler, self._spawn = scheduler, spawn
        self._dials = asyncio.Semaphore(_AT_A_TIME)
        self._told: set[tuple[str, str]] = set()  # pairs of hosts

    async def why_not(self, worker: RegisterWorker) -> str:
        """Dial a worker that wants to join; say in a sentence why it cannot be reached, or ""."""
        is_local = worker.address.startswith("inproc://")
        if is_local or self._scheduler.members.is_crowded:  # connections are for those who join
            return ""
        try:
            async with self._dials:
                await self._scheduler.peers.prove(worker.address, _DIAL_BACK)
        except (HpcdaskError, OSError) as exc:
            return (
                f"the scheduler on {network.hostname()} cannot reach worker {worker.name} on "
                f"{worker.host} at {worker.address}: {_reason(exc)}; {_CURE} "
                "(or let it join all the same, with --no-dial-back of the scheduler)"
            )
        return ""

    def tell(self, worker: RegisterWorker, sentence: str) -> None:
        """Log why a worker cannot be reached, unless that was said of its host before."""
        if self._is_news(network.hostname(), worker.host):
            log.warning("%s", sentence)

    async def look_again(self, worker: RegisterWorker) -> None:
        """Dial a worker that has joined already."""
        sentence = await self.why_not(worker)
        if sentence:
            self.tell(worker, sentence)

    def data_missing(self, address: str, message: DataMissing) -> None:
        """A worker has not got a value of another; if that is out of its reach, say so."""
        if message.unreachable:
            self._spawn(self._two_workers(address, message))

    async def _two_workers(self, address: str, message: DataMissing) -> None:
        await asyncio.sleep(_STILL_THERE)
        workers = self._scheduler.state.workers
        if address not in workers or message.address not in workers:
            return
        here, there = workers[address].info, workers[message.address].info
        if self._is_news(here.host, there.host):
            log.warning(
                "worker %s on %s could not fetch data from worker %s on %s at %s: %s; %s (until "
                "then tasks run where their inputs are, or these are computed again)",
                here.name,
                here.host,
                there.name,
                there.host,
                there.address,
                _reason(message.unreachable),
                _CURE,
            )

    def _is_news(self, here: str, there: str) -> bool:
        if (here, there) in self._told or len(self._told) >= _MOST_TOLD:
            return False
        self._told.add((here, there))
        if len(self._told) == _MOST_TOLD:
            log.warning("of further hosts that cannot reach each other nothing will be said")
        return True


def _reason(problem: Exception | str) -> str:
    """What went wrong, without the address, which the sentence has already."""
    text = str(problem) or repr(problem)
    before, colon, after = text.partition(": ")
    if not colon or not before.startswith("cannot "):
        return text
    if " within " in before:  # "cannot reach tcp://10.1.0.3:9000 within 5 s: no answer"
        return f"{after} within {before.rpartition(' within ')[2]}"
    return after
