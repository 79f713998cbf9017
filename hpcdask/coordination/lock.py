"""`Lock`: one holder at a time."""

from __future__ import annotations

from typing import Any, TypeVar

from hpcdask.client.client import Client
from hpcdask.coordination.leasing import Leasing, wait_limit
from hpcdask.coordination.shared import name_or_new

L = TypeVar("L", bound="SingleLock")


class SingleLock(Leasing):
    """What `Lock` and `RLock` have in common."""

    name: str

    def acquire(self, blocking: bool = True, timeout: Any = None) -> Any:
        """Wait until it is ours.

        Parameters
        ----------
        blocking : bool
            Whether to wait at all.
        timeout : float, str or timedelta, optional
            Seconds to wait.

        Returns
        -------
        bool
            Whether it is ours now.

        Raises
        ------
        ValueError
            If there is a timeout although ``blocking=False``.
        """
        return self._maybe_sync(self._acquire(wait_limit(blocking, self.client._seconds(timeout))))

    def release(self) -> Any:
        """Let the next one have it.

        Returns
        -------
        bool
            Whether it was ours to the end: not so if the client had been away for too long.

        Raises
        ------
        RuntimeError
            If it is not ours.
        """
        return self._maybe_sync(self._release())

    def locked(self) -> Any:
        """Whether anybody holds it now."""

        async def locked() -> bool:
            return bool(await self._count(self.name))

        return self._maybe_sync(locked())

    def _acquire(self, timeout: float | None) -> Any:
        raise NotImplementedError

    def _release(self) -> Any:
        raise NotImplementedError

    def __enter__(self: L) -> L:
        self._check_sync()
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    async def __aenter__(self: L) -> L:
        await self._awaited(self._acquire(None))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._awaited(self._release())


class Lock(SingleLock):
    """A lock that clients and tasks all over the cluster share by its name.

    Who waits for it gets it in the order of asking. If its holder dies it goes to the next: at once
    when the death is known, as that of a program that closes its client or of a worker with a
    nanny, else after ``scheduler.client-grace``, within which a client may come back.

    Parameters
    ----------
    name : str, optional
        Any string; by default one that nothing else has.
    client : Client, optional
        By default the current one; see `get_client`.
    scheduler_rpc, loop
        Of dask.distributed; they mean nothing here.

    Examples
    --------
    >>> with Lock("log-file"):
    ...     pass
    >>> lock = Lock("log-file")
    >>> lock.acquire(timeout="2s")
    True
    >>> Lock("log-file").acquire(blocking=False)
    False
    >>> lock.release()
    True
    """

    kind = "lock"

    def __init__(
        self,
        name: str | None = None,
        client: Client | None = None,
        scheduler_rpc: Any = None,
        loop: Any = None,
    ) -> None:
        self.name = name_or_new(name, self.kind)
        super().__init__(client)

    async def _acquire(self, timeout: float | None) -> bool:
        return await self._acquired((self.name,), 1, 1, timeout)

    def _release(self) -> Any:
        if not self._leases:
            raise RuntimeError(f"{self!r} cannot be released: this object has not acquired it")
        return self._give_back(*self._leases.popleft())
