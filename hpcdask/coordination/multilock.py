"""`MultiLock`: several locks at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcdask.client.client import Client
from hpcdask.coordination.leasing import Leasing, wait_limit


class MultiLock(Leasing):
    """Several locks, or some of them, that are acquired at once.

    Two that ask for the same locks in different orders never wait for each other. The names are
    those of `MultiLock` objects only: a `Lock` of the same name is another one. If the holder dies
    they are free, as a `Lock` is.

    Parameters
    ----------
    names : list of str
        Of the locks.
    client : Client, optional
        By default the current one; see `get_client`.

    Examples
    --------
    >>> with MultiLock(["disk", "network"]):
    ...     pass
    >>> lock = MultiLock(["gpu-0", "gpu-1", "gpu-2"])
    >>> lock.acquire(num_locks=2, timeout=1)
    True
    >>> lock.release()
    True
    """

    kind = "multilock"

    def __init__(self, names: Iterable[str] | None = None, client: Client | None = None) -> None:
        self.names = list(map(str, names or ()))
        super().__init__(client)

    def acquire(
        self, blocking: bool = True, timeout: Any = None, num_locks: int | None = None
    ) -> Any:
        """Wait until they are ours.

        Parameters
        ----------
        blocking, timeout
            As for `Lock.acquire`.
        num_locks : int, optional
            How many of them are needed; by default all.

        Returns
        -------
        bool
            Whether they are ours now.

        Raises
        ------
        ValueError
            If `num_locks` is more than there are names.
        """
        limit = wait_limit(blocking, self.client._seconds(timeout))
        return self._maybe_sync(self._acquire(limit, num_locks))

    def release(self) -> Any:
        """Let the next ones have them.

        Raises
        ------
        ValueError
            If they are not ours.
        """
        return self._maybe_sync(self._release())

    def locked(self) -> bool:
        """Whether this object holds them."""
        return bool(self._leases)

    def _acquire(self, timeout: float | None, num_locks: int | None = None) -> Any:
        names = tuple(dict.fromkeys(self.names))
        count = len(names) if num_locks is None else num_locks
        return self._acquired(names, count, 1, timeout)

    def _release(self) -> Any:
        if not self._leases:
            raise ValueError(f"{self!r} cannot be released: this object has not acquired it")
        return self._give_back(*self._leases.popleft())

    def __enter__(self) -> MultiLock:
        self._check_sync()
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    async def __aenter__(self) -> MultiLock:
        await self._awaited(self._acquire(None))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._awaited(self._release())

    def __repr__(self) -> str:
        return f"<MultiLock: {', '.join(self.names)}>"
