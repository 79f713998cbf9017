"""Other ways to a client: as the one of the moment, and as an executor of the standard library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from hpcdask.client.connection import Connection
from hpcdask.client.registry import chosen, chosen_is, latest

if TYPE_CHECKING:
    from hpcdask.client.executor import ClientExecutor
    from hpcdask.client.future import Future

C = TypeVar("C", bound="FrontDoors")


class FrontDoors(Connection):
    """The part of `hpcdask.Client` by which others find and use it."""

    @classmethod
    def current(cls: type[C], allow_global: bool = True) -> C:
        """Return the client of the running context, or else the open one made last.

        Parameters
        ----------
        allow_global : bool
            Whether the one made last will do outside of ``with client.as_current()``.

        Raises
        ------
        ValueError
            If there is none.

        Examples
        --------
        >>> with client.as_current():
        ...     Client.current(allow_global=False) is client
        True
        """
        found = chosen()
        if found is None and allow_global:
            found = latest()
        if found is None:
            where = "" if allow_global else " outside of a 'with client.as_current()' block"
            raise ValueError(f"there is no current client{where}")
        return found  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def as_current(self: C) -> Iterator[C]:
        """Be the current client within a ``with`` block, in this thread or asyncio task.

        For functions that find their client by `get_client`, `default_client` or
        `Client.current`, where there are several clients. Within a task `get_client` still gives
        the client of the task's worker.

        Examples
        --------
        >>> with client.as_current():
        ...     get_client() is client
        True
        """
        with chosen_is(self):
            yield self

    def futures_of(self, futures: Any) -> list[Future]:
        """All futures in containers and collections; see `hpcdask.futures_of`.

        Raises
        ------
        FutureCancelledError
            If some were cancelled.
        """
        from hpcdask.client.waiting import futures_of

        return futures_of(futures, self)  # type: ignore[arg-type]

    def get_executor(self, **conditions: Any) -> ClientExecutor:
        """Return an executor, as those of `concurrent.futures`, that runs calls on the cluster.

        Parameters
        ----------
        **conditions
            Keywords of `submit` that hold for all its calls: `workers`, `resources`, `retries`,
            `priority`, `allow_other_workers`, `fifo_timeout` and `pure`, which is False here.

        Returns
        -------
        hpcdask.client.executor.ClientExecutor

        Raises
        ------
        TypeError
            If one of the keywords is none of these.

        Examples
        --------
        >>> with client.get_executor(retries=2) as executor:
        ...     list(executor.map(pow, [2, 3], [10, 2]))
        [1024, 9]
        """
        from hpcdask.client.executor import ClientExecutor

        return ClientExecutor(self, **conditions)
