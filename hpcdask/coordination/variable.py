"""`Variable`: the last value that anybody has set."""

from __future__ import annotations

from typing import Any

from hpcdask.client.client import Client
from hpcdask.client.loop import uncarried
from hpcdask.client.operations import Delivery, operate
from hpcdask.client.packing import packed
from hpcdask.coordination.shared import Shared, name_or_new
from hpcdask.errors import WaitTimeoutError
from hpcdask.messages import Blob
from hpcdask.messages.shared import DeleteVariable, GetVariable, SetVariable


class Variable(Shared):
    """A value that clients and tasks all over the cluster can set and read.

    Futures in it stay alive until another value is set, whoever leaves. All values lie on the
    scheduler: large ones should be scattered or computed, and their futures be set.

    Parameters
    ----------
    name : str, optional
        Any string; by default one that nothing else has.
    client : Client, optional
        By default the current one; see `get_client`.

    Examples
    --------
    >>> best = Variable("best")
    >>> best.set({"loss": 0.25, "model": client.submit(pow, 2, 3)})
    >>> best.get()["model"].result()
    8
    >>> best.delete()
    """

    def __init__(self, name: str | None = None, client: Client | None = None) -> None:
        self.name = name_or_new(name, "variable")
        super().__init__(client)

    def set(self, value: Any, timeout: Any = "30 s") -> Any:
        """Set the value.

        Parameters
        ----------
        value : object
            A future, or anything that can be pickled, with futures in it or without.
        timeout : float, str or timedelta
            Seconds that the scheduler has to take it.
        """
        return self._maybe_sync(self._set(value, *packed(value), self.client._seconds(timeout)))

    async def _set(
        self, value: Any, blob: Blob, keys: tuple[str, ...], timeout: float | None
    ) -> None:
        # `value` is here since the futures in it must live until then.
        _, is_done = await operate(self.client, SetVariable, self.name, blob, keys, timeout=timeout)
        if not is_done:
            raise WaitTimeoutError(f"{self!r} could not be set within {timeout:g} s")

    def get(self, timeout: Any = None) -> Any:
        """The value; where none has been set, the next one that is.

        Parameters
        ----------
        timeout : float, str or timedelta, optional
            Seconds to wait for one.

        Raises
        ------
        WaitTimeoutError
            If none is set in time.
        """
        client = self.client
        seconds = client._seconds(timeout)
        if not client.asynchronous:
            return client._sync(self._get(seconds)).unpacked()[0]

        async def get() -> Any:
            return (await uncarried(self._get(seconds))).unpacked()[0]

        return get()

    async def _get(self, timeout: float | None) -> Delivery:
        _, delivery = await operate(self.client, GetVariable, self.name, timeout=timeout)
        if not delivery:
            raise WaitTimeoutError(f"{self!r} was not set within {timeout:g} s")
        return delivery  # type: ignore[no-any-return]

    def delete(self) -> Any:
        """Forget the value, for all; who asks for it waits until another one is set."""

        async def delete() -> None:
            await operate(self.client, DeleteVariable, self.name)

        return self._maybe_sync(delete())
