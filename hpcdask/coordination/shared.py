"""What all shared things have in common: a client, and a way to be used with and without await."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

from hpcdask.client.client import Client
from hpcdask.client.current import client_of_scheduler, get_client
from hpcdask.client.loop import is_in_loop, uncarried

T = TypeVar("T")
S = TypeVar("S", bound="Shared")


class Shared:
    """Something on the scheduler that is used by its name.

    Objects may be pickled: in a task the copy uses the client of the task's worker.

    Parameters
    ----------
    client : Client, optional
        By default that of the moment when it is first used; see `get_client`.
    """

    def __init__(self, client: Client | None) -> None:
        self._begin(client, ("", ""))

    def _begin(self, client: Client | None, origin: tuple[str, str]) -> None:
        """Set what is not pickled."""
        self._given = client
        self._found: Client | None = None
        self._origin = origin  # of a pickle: id and address of the scheduler

    @property
    def client(self) -> Client:
        """The client that is used.

        Raises
        ------
        ValueError
            If there is none.
        """
        if self._given is not None:
            return self._given
        if self._found is None or self._found.status == "closed":
            self._found = client_of_scheduler(*self._origin) if self._origin[1] else get_client()
        return self._found

    def _maybe_sync(self, work: Coroutine[Any, Any, T]) -> Any:
        """An awaitable for asynchronous clients, else what it gives."""
        return self.client._maybe_sync(work)

    async def _awaited(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` on any loop, while it runs on the client's."""
        loop = self.client.loop
        if is_in_loop(loop):
            return await uncarried(work)
        return await uncarried(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop)))

    def _check_sync(self) -> None:
        if self.client.asynchronous:
            raise TypeError(f"with an asynchronous client {type(self).__name__} needs 'async with'")

    def __await__(self: S) -> Generator[Any, Any, S]:
        async def itself() -> S:
            return self

        return itself().__await__()

    def __getstate__(self) -> Any:
        client = self._given or self._found
        origin = self._origin
        if client is not None:
            origin = client.scheduler_id, client.scheduler_address
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}, origin

    def __setstate__(self, state: Any) -> None:
        public, origin = state
        vars(self).update(public)
        self._begin(None, origin)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {getattr(self, 'name', '')}>"


def name_or_new(name: object, kind: str) -> str:
    """The name that was given, or one that nothing else has."""
    return f"{kind}-{uuid.uuid4().hex}" if name is None else str(name)
