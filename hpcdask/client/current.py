"""The client of the moment: in a task that of its worker, else the one made last."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from hpcdask import host as hosts
from hpcdask.client.client import Client
from hpcdask.client.loop import is_in_loop
from hpcdask.client.registry import chosen, clients, latest
from hpcdask.places import current_worker

#: Whose futures those are that are unpickled just now.
_receiver: ContextVar[Client | None] = ContextVar("receiver", default=None)


def default_client(c: Client | None = None) -> Client:
    """Return the client of the context or, without one, the open client made last.

    Parameters
    ----------
    c : Client, optional
        Is returned if it is given.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> default_client() is client
    True
    """
    if c is not None:
        return c
    found: Client | None = chosen() or latest()
    if found is None:
        raise ValueError("there is no client: make one, as by Client(), or give one")
    return found


def get_client(
    address: str | None = None,
    timeout: float | str | None = None,
    resolve_address: bool = True,
) -> Client:
    """Return the current client: in a task or an actor that of its worker, else the default one.

    A task may wait for tasks that it submits, and these for theirs: while it waits another task
    runs in its place. So they all end, on a single thread too.

    Parameters
    ----------
    address : str, optional
        Of a scheduler, which it must be connected to; else a new client is made.
    timeout : float or str, optional
        Seconds to reach the scheduler.
    resolve_address : bool
        Means nothing here: names of hosts are resolved when they are dialled.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> def fan_out(n):
    ...     client = get_client()
    ...     return sum(client.gather(client.map(abs, range(n))))
    """
    worker = current_worker()
    if worker is not None and address in (None, worker.scheduler_address):
        client = _client_of(worker)
        if not is_in_loop(client.loop):
            limit = client._timeout if timeout is None else hosts.parse_timedelta(timeout)
            client._sync(client._connected(), limit)
        return client
    default: Client | None = chosen() or latest()
    if default is not None and address in (None, default.scheduler_address):
        return default
    for other in list(clients):
        if other._is_open and other.scheduler_address == address:
            return other  # type: ignore[no-any-return]
    if address is None:
        raise ValueError(
            "there is no client: get_client() works in a task, or after a Client was made"
        )
    return Client(address, timeout=timeout, set_as_default=False)


def client_of_scheduler(scheduler_id: str, address: str) -> Client:
    """The client that holds a future of that scheduler which was unpickled here."""
    receiver = _receiver.get()
    if receiver is not None and scheduler_id in receiver._scheduler_ids:
        return receiver
    worker = current_worker()
    if worker is not None and worker.scheduler_id == scheduler_id:
        return _client_of(worker)
    default = chosen() or latest()
    for client in filter(None, (default, *clients)):
        if client._is_open and scheduler_id in client._scheduler_ids:
            return client  # type: ignore[no-any-return]
    return get_client(address)


@contextlib.contextmanager
def receiving(client: Client) -> Iterator[None]:
    """Let futures that are unpickled here belong to the client that they were sent to."""
    token = _receiver.set(client)
    try:
        yield
    finally:
        _receiver.reset(token)


_of_workers = threading.Lock()


def _client_of(worker: Any) -> Client:
    """The client that all tasks of a worker share; it lives on the worker's loop."""
    with _of_workers:
        if worker._client is None or worker._client.status == "closed":
            worker._client = Client._of_worker(worker)
        return worker._client  # type: ignore[no-any-return]
