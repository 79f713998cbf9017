"""`Semaphore`: so many holders at a time."""

from __future__ import annotations

import warnings
from typing import Any

from hpcdask.client.client import Client
from hpcdask.client.operations import operate
from hpcdask.coordination.leasing import Leasing
from hpcdask.coordination.shared import name_or_new
from hpcdask.messages.shared import CloseSemaphore


class Semaphore(Leasing):
    """Leases of something that only so many may use at a time, as a database or a licence.

    A lease needs no renewal by its holder: it is valid while the client that got it lives, and free
    when that has died, as a `Lock` is. Who waits gets one in the order of asking.

    Parameters
    ----------
    max_leases : int
        How many there are. All who use a name must say the same.
    name : str, optional
        Any string; by default one that nothing else has.
    scheduler_rpc, loop
        Of dask.distributed; they mean nothing here.
    client : Client, optional
        By default the current one; see `get_client`.

    Examples
    --------
    >>> def query(n, semaphore):
    ...     with semaphore:  # at most two at a time
    ...         return n * n
    >>> semaphore = Semaphore(2, name="database")
    >>> client.gather(client.map(query, range(4), semaphore=semaphore))
    [0, 1, 4, 9]
    >>> semaphore.close()
    """

    kind = "semaphore"

    def __init__(
        self,
        max_leases: int = 1,
        name: str | None = None,
        scheduler_rpc: Any = None,
        loop: Any = None,
        client: Client | None = None,
    ) -> None:
        if max_leases < 1:
            raise ValueError(f"max_leases must be at least 1, not {max_leases}")
        self.name = name_or_new(name, self.kind)
        self.max_leases = max_leases
        super().__init__(client)

    def _begin(self, client: Client | None, origin: tuple[str, str]) -> None:
        super()._begin(client, origin)
        self._declared = ""  # id of the scheduler that knows of it

    def acquire(self, timeout: Any = None) -> Any:
        """Wait for a lease.

        Parameters
        ----------
        timeout : float, str or timedelta, optional
            Seconds to wait; 0 not to wait at all.

        Returns
        -------
        bool
            Whether we have got one.

        Raises
        ------
        ValueError
            If others use the name with another number of leases.
        RuntimeError
            If it was closed.
        """
        return self._maybe_sync(self._acquire(self.client._seconds(timeout)))

    async def _acquire(self, timeout: float | None) -> bool:
        scheduler = self.client.scheduler_id
        is_new = not scheduler or scheduler != self._declared
        what = (self.name,), 1, self.max_leases
        is_mine = await self._acquired(*what, timeout, declares=is_new)
        self._declared = scheduler
        return is_mine

    def release(self) -> Any:
        """Give the oldest lease of this object back.

        Returns
        -------
        bool
            Whether it was ours to the end: not so if the client had been away for too long, or
            somebody has closed the semaphore.

        Raises
        ------
        RuntimeError
            If this object has none.
        """
        return self._maybe_sync(self._release())

    def _release(self) -> Any:
        if not self._leases:
            raise RuntimeError(f"{self!r} cannot be released: this object has no lease of it")
        return self._give_back(*self._leases.popleft())

    def get_value(self) -> Any:
        """How many leases are held now."""
        return self._maybe_sync(self._count(self.name))

    def close(self) -> Any:
        """Let nobody use it any more: who waits gets a RuntimeError, leases end with a warning."""

        async def close() -> None:
            _, held = await operate(self.client, CloseSemaphore, self.name)
            if held:
                text = f"{self!r} was closed while {held} of its leases were held"
                warnings.warn(text, RuntimeWarning, stacklevel=2)

        return self._maybe_sync(close())

    def __enter__(self) -> Semaphore:
        self._check_sync()
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    async def __aenter__(self) -> Semaphore:
        await self._awaited(self._acquire(None))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._awaited(self._release())
