"""Leases of locks and semaphores, as a client acquires and gives them back."""

from __future__ import annotations

import logging
from collections import deque

from hpcdask.client.client import Client
from hpcdask.client.operations import operate
from hpcdask.coordination.shared import Shared
from hpcdask.messages.shared import AcquireLease, CountLeases, HeldLease, ReleaseLease

log = logging.getLogger("hpcdask.client")


class Leasing(Shared):
    """Something that is held by so many at a time.

    A lease is its client's as long as that is connected; if the connection ends without a word,
    for as long as the scheduler waits for a client to come back (``scheduler.client-grace``).
    """

    kind = ""

    def _begin(self, client: Client | None, origin: tuple[str, str]) -> None:
        super()._begin(client, origin)
        self._leases: deque[tuple[Client, int]] = deque()  # by this object, the oldest first

    async def _obtain(
        self,
        names: tuple[str, ...],
        count: int,
        limit: int,
        timeout: float | None,
        declares: bool = True,
    ) -> tuple[Client, int] | None:
        """Get a lease; None if not in time."""
        client = self.client
        what = self.kind, names, count, limit
        number, is_mine = await operate(client, AcquireLease, *what, declares, timeout=timeout)
        if not is_mine:
            return None
        client._operations.leases[number] = HeldLease(number, *what)
        return client, number

    async def _acquired(
        self,
        names: tuple[str, ...],
        count: int,
        limit: int,
        timeout: float | None,
        declares: bool = True,
    ) -> bool:
        """Get a lease, and keep it until `release`."""
        lease = await self._obtain(names, count, limit, timeout, declares)
        if lease is not None:
            self._leases.append(lease)
        return lease is not None

    async def _give_back(self, client: Client, number: int) -> bool:
        """End a lease; False if it had ended before."""
        _, was_mine = await operate(client, ReleaseLease, number)
        client._operations.leases.pop(number, None)
        if not was_mine:
            text = "%r was held no longer when it was released: others may have had it meanwhile"
            log.warning(text, self)
        return bool(was_mine)

    async def _count(self, name: str) -> int:
        _, count = await operate(self.client, CountLeases, self.kind, name)
        return int(count)


def wait_limit(blocking: bool, timeout: float | None) -> float | None:
    """Seconds to wait for a lock.

    Raises
    ------
    ValueError
        If there is a timeout although it is not to be waited for.
    """
    if blocking:
        return timeout
    if timeout is not None:
        raise ValueError("a timeout makes no sense with blocking=False")
    return 0.0
