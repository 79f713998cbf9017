"""`RLock`: a lock that its holder may acquire again."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from hpcdask.client.client import Client
from hpcdask.coordination.lock import SingleLock
from hpcdask.coordination.shared import name_or_new
from hpcdask.places import current_place


class RLock(SingleLock):
    """A lock that whoever holds it may acquire again; it is free after as many releases.

    The holder is a task of the cluster, an asyncio task, or else a thread. All `RLock` objects of
    one name, of one client, are one lock to it.

    Parameters
    ----------
    name, client
        As for `Lock`.

    Examples
    --------
    >>> def append(line):
    ...     with RLock("log-file"):
    ...         print(line)
    >>> with RLock("log-file"):
    ...     append("one")
    ...     append("two")
    one
    two
    """

    kind = "rlock"

    def __init__(self, name: str | None = None, client: Client | None = None) -> None:
        self.name = name_or_new(name, self.kind)
        super().__init__(client)

    # The owner is asked for when the method is called: what is awaited may run in another asyncio
    # task, and always runs in another thread.

    def _acquire(self, timeout: float | None) -> Any:
        return self._acquire_for(_owner(), timeout)

    async def _acquire_for(self, owner: object, timeout: float | None) -> bool:
        held = self.client._operations.reentrant
        key = self.name, owner
        if key in held:
            number, depth = held[key]
            held[key] = number, depth + 1
            return True
        lease = await self._obtain((self.name,), 1, 1, timeout)
        if lease is None:
            return False
        held[key] = lease[1], 1
        return True

    def _release(self) -> Any:
        held = self.client._operations.reentrant
        key = self.name, _owner()
        if key not in held:
            raise RuntimeError(f"{self!r} cannot be released: it is not this task that holds it")
        return self._release_for(key)

    async def _release_for(self, key: tuple[str, object]) -> bool:
        client = self.client
        held = client._operations.reentrant
        number, depth = held[key]
        if depth > 1:
            held[key] = number, depth - 1
            return True
        del held[key]
        return await self._give_back(client, number)


def _owner() -> object:
    """Who calls: a task of the cluster, an asyncio task, or a thread."""
    if asyncio._get_running_loop() is not None:
        return asyncio.current_task()
    return current_place() or threading.current_thread()
