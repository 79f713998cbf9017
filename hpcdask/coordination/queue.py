"""`Queue`: values that go from any of those who put them to any of those who take them."""

from __future__ import annotations

import contextlib
from typing import Any

from hpcdask.client.client import Client
from hpcdask.client.loop import uncarried
from hpcdask.client.operations import Delivery, operate
from hpcdask.client.packing import packed
from hpcdask.coordination.shared import Shared, name_or_new
from hpcdask.errors import CommClosedError, WaitTimeoutError
from hpcdask.messages import Blob
from hpcdask.messages.shared import CloseQueue, CountValues, OpenQueue, PutValue, TakeValues


class Queue(Shared):
    """A queue of values that clients and tasks all over the cluster share by its name.

    Values are taken in the order in which they were put, by those who wait in the order in which
    they came. Futures in them stay alive until the taker has them, whoever leaves. A value whose
    taker dies before it has arrived goes back to the front. All values lie on the scheduler: large
    ones should be scattered or computed, and their futures be put.

    Parameters
    ----------
    name : str, optional
        Any string; by default one that nothing else has.
    client : Client, optional
        By default the current one; see `get_client`.
    maxsize : int
        Values beyond which `put` waits; 0 for any number. Of several sizes for one name the first
        one above 0 counts.

    Examples
    --------
    >>> queue = Queue("results")
    >>> queue.put(client.submit(pow, 2, 4))
    >>> queue.put({"text": "and anything else"})
    >>> queue.qsize()
    2
    >>> queue.get().result()
    16
    >>> queue.get(batch=True)
    [{'text': 'and anything else'}]
    >>> queue.close()
    """

    def __init__(
        self, name: str | None = None, client: Client | None = None, maxsize: int = 0
    ) -> None:
        if maxsize < 0:
            raise ValueError(f"maxsize must be 0 or more, not {maxsize}")
        self.name = name_or_new(name, "queue")
        self.maxsize = maxsize
        super().__init__(client)
        with contextlib.suppress(ValueError):  # no client yet: when it is used
            self._open()

    def _begin(self, client: Client | None, origin: tuple[str, str]) -> None:
        super()._begin(client, origin)
        self._opened: Client | None = None  # who has told the scheduler of this object

    def _open(self) -> Client:
        """Tell the scheduler, once, that there is this object too; return the client."""
        client = self.client
        if self._opened is not client:
            with client._lock:
                client._send(OpenQueue(self.name, self.maxsize))
                handles = client._operations.handles
                count, limit = handles.get(self.name, (0, 0))
                handles[self.name] = count + 1, limit or self.maxsize
            self._opened = client
        return client

    def put(self, value: Any, timeout: Any = None) -> Any:
        """Put a value, and wait until there is room for it.

        Parameters
        ----------
        value : object
            A future, or anything that can be pickled, with futures in it or without.
        timeout : float, str or timedelta, optional
            Seconds to wait.

        Raises
        ------
        WaitTimeoutError
            If there is no room in time; then it was not put.
        """
        seconds = self._open()._seconds(timeout)
        return self._maybe_sync(self._put(value, *packed(value), seconds))

    async def _put(
        self, value: Any, blob: Blob, keys: tuple[str, ...], timeout: float | None
    ) -> None:
        # `value` is here since the futures in it must live until then.
        what = self.name, blob, keys, self.maxsize
        _, is_done = await operate(self.client, PutValue, *what, timeout=timeout)
        if not is_done:
            raise WaitTimeoutError(f"{self!r} had no room within {timeout:g} s")

    def get(self, timeout: Any = None, batch: bool | int = False) -> Any:
        """Take the next value, or several.

        Parameters
        ----------
        timeout : float, str or timedelta, optional
            Seconds to wait.
        batch : bool or int
            True: a list of all values that there are now, maybe of none. A number: a list of so
            many, for which it waits.

        Raises
        ------
        WaitTimeoutError
            If there are not as many in time; then none was taken.
        """
        client = self._open()
        seconds = client._seconds(timeout)
        count = 1 if batch is False else -1 if batch is True else int(batch)
        if not isinstance(batch, bool) and count < 0:
            raise ValueError(f"batch must be True, False or 0 and more, not {batch!r}")

        def chosen(delivery: Delivery) -> Any:
            values = delivery.unpacked()
            return values[0] if batch is False else values

        if not client.asynchronous:
            return chosen(client._sync(self._get(count, seconds)))

        async def get() -> Any:
            return chosen(await uncarried(self._get(count, seconds)))

        return get()

    async def _get(self, count: int, timeout: float | None) -> Delivery:
        _, delivery = await operate(self.client, TakeValues, self.name, count, timeout=timeout)
        if not delivery:
            what = "no value" if count <= 1 else f"fewer than {count} values"
            raise WaitTimeoutError(f"{self!r} had {what} within {timeout:g} s")
        return delivery  # type: ignore[no-any-return]

    def qsize(self) -> Any:
        """How many values are in it now."""

        async def qsize() -> int:
            return int((await operate(self.client, CountValues, self.name))[1])

        self._open()
        return self._maybe_sync(qsize())

    def close(self) -> None:
        """Say that this object is used no more.

        When all objects of the queue are closed, of all clients, it ends with all that is in it.
        While one is not it stays, also if the client of that one goes.
        """
        client, self._opened = self._opened, None
        if client is None:
            return
        with client._lock, contextlib.suppress(CommClosedError):
            handles = client._operations.handles
            count, limit = handles.pop(self.name)
            if count > 1:
                handles[self.name] = count - 1, limit
            client._send(CloseQueue(self.name))
