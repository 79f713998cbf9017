"""Gathering values from the workers that hold them: the next holder where one fails."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from hpcdask.messages import Dependency, KeyValues, StoredValue, TaskError, Version
from hpcdask.peers import Peers, RequestFailedError, UnreachableError

log = logging.getLogger("hpcdask.gathering")

#: Limits of one request: an answer is one piece, and what is asked next on its way waits for it.
MAX_BYTES, MAX_KEYS = 64 * 2**20, 500
#: Workers that are asked at a time.
MAX_PEERS = 64


class Gathered:
    """What came of asking for values; every key is in exactly one of these.

    Attributes
    ----------
    values : list of StoredValue
    failed : list of (str, TaskError)
        Values that cannot be pickled, with their keys.
    missing : list of str
        Keys that no worker is said to hold, or that a holder said it does not hold.
    unreached : list of str
        Keys none of whose holders could be asked.
    """

    def __init__(self) -> None:
        self.values: list[StoredValue] = []
        self.failed: list[tuple[str, TaskError]] = []
        self.missing: list[str] = []
        self.unreached: list[str] = []

    def as_answer(self, request: int) -> KeyValues:
        """As what answers a request for all of it."""
        missing = (*self.missing, *self.unreached)
        return KeyValues(request, tuple(self.values), missing, tuple(self.failed))


async def gather_values(
    peers: Peers, located: Iterable[Dependency], unreachable: set[str] | None = None
) -> Gathered:
    """Ask holders for values, each key's in turn until one gives it.

    Parameters
    ----------
    unreachable : set of str, optional
        Addresses not to try. Those that cannot be dialled are added.
    """
    gatherer = _Gatherer(peers, set() if unreachable is None else unreachable)
    await gatherer.gather([_Wanted(d, d.addresses, False) for d in located])
    return gatherer.gathered


class _Wanted(NamedTuple):
    dependency: Dependency
    holders: tuple[str, ...]  # still to be asked
    was_denied: bool  # one that should have it said that it has not


class _Gatherer:
    def __init__(self, peers: Peers, unreachable: set[str]) -> None:
        self._peers = peers
        self._unreachable = unreachable
        self._slots = asyncio.Semaphore(MAX_PEERS)
        self._load: defaultdict[str, int] = defaultdict(int)  # bytes asked for, by worker
        self.gathered = Gathered()

    async def gather(self, wanted: list[_Wanted]) -> None:
        """Ask the next holder of each key, all of them side by side."""
        by_worker: defaultdict[str, list[_Wanted]] = defaultdict(list)
        for item in wanted:
            reachable = [a for a in item.holders if a not in self._unreachable]
            if reachable:
                address = min(reachable, key=self._load.__getitem__)
                self._load[address] += item.dependency.nbytes
                reachable.remove(address)
                by_worker[address].append(item._replace(holders=tuple(reachable)))
            elif item.was_denied or not item.dependency.addresses:
                self.gathered.missing.append(item.dependency.key)
            else:
                self.gathered.unreached.append(item.dependency.key)
        await asyncio.gather(*(self._from(a, items) for a, items in by_worker.items()))

    async def _from(self, address: str, wanted: list[_Wanted]) -> None:
        """Ask one worker, request after request; what it does not give is asked of the next."""
        left = wanted
        async with self._slots:
            start = 0
            for stop in request_ends([w.dependency.nbytes for w in wanted]):
                some, start = wanted[start:stop], stop
                versions = [Version(w.dependency.key, w.dependency.attempt) for w in some]
                try:
                    answer = await self._peers.fetch(address, versions)
                except (OSError, RequestFailedError) as exc:
                    if isinstance(exc, UnreachableError):
                        self._unreachable.add(address)
                    log.info("cannot gather from %s: %s", address, exc)
                    break
                left = left[len(some) :] + self._sort(some, answer)
        if left:
            await self.gather(left)

    def _sort(self, asked: list[_Wanted], answer: KeyValues) -> list[_Wanted]:
        """Keep what came; return what did not."""
        self.gathered.values += answer.values
        self.gathered.failed += answer.failed
        came = {stored.key for stored in answer.values} | {key for key, _ in answer.failed}
        return [w._replace(was_denied=True) for w in asked if w.dependency.key not in came]


def request_ends(sizes: Iterable[int]) -> Iterator[int]:
    """Cut values of these sizes into requests: yield the position behind the last one of each."""
    count = nbytes = end = 0
    for size in sizes:
        if count and (nbytes + size > MAX_BYTES or count == MAX_KEYS):
            yield end
            count = nbytes = 0
        count, nbytes, end = count + 1, nbytes + size, end + 1
    if count:
        yield end
