"""`Event`: something that happens once, and that all can wait for."""

from __future__ import annotations

from typing import Any

from hpcdask.client.client import Client
from hpcdask.client.operations import operate
from hpcdask.coordination.shared import Shared, name_or_new
from hpcdask.messages.shared import AskFlag, AwaitFlag, ChangeFlag


class Event(Shared):
    """A flag that clients and tasks all over the cluster can set and wait for.

    It stays as it is when the client that has set it goes.

    Parameters
    ----------
    name : str, optional
        Any string; by default one that nothing else has.
    client : Client, optional
        By default the current one; see `get_client`.

    Examples
    --------
    >>> def begin(event):
    ...     return event.wait(timeout=10)
    >>> event = Event("go")
    >>> future = client.submit(begin, event)
    >>> event.set()
    >>> future.result()
    True
    """

    def __init__(self, name: str | None = None, client: Client | None = None) -> None:
        self.name = name_or_new(name, "event")
        super().__init__(client)

    def wait(self, timeout: Any = None) -> Any:
        """Wait until it is set.

        Parameters
        ----------
        timeout : float, str or timedelta, optional
            Seconds.

        Returns
        -------
        bool
            Whether it was set in time.
        """

        async def wait() -> bool:
            _, is_set = await operate(self.client, AwaitFlag, self.name, timeout=seconds)
            return bool(is_set)

        seconds = self.client._seconds(timeout)
        return self._maybe_sync(wait())

    def set(self) -> Any:
        """Set it: all who wait go on, and who waits from now on need not."""
        return self._maybe_sync(self._change(True))

    def clear(self) -> Any:
        """Clear it: who waits from now on has to."""
        return self._maybe_sync(self._change(False))

    async def _change(self, is_set: bool) -> None:
        await operate(self.client, ChangeFlag, self.name, is_set)

    def is_set(self) -> Any:
        """Whether it is set now."""

        async def is_set() -> bool:
            return bool((await operate(self.client, AskFlag, self.name))[1])

        return self._maybe_sync(is_set())
