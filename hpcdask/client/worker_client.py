"""A task's client, while the task stands aside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hpcdask.client.client import Client
from hpcdask.client.current import get_client
from hpcdask.places import current_place, current_worker, rejoin, secede


@contextlib.contextmanager
def worker_client(
    timeout: float | str | None = None, separate_thread: bool = True
) -> Iterator[Client]:
    """Within a task, or an actor: give its client; another task may run in its place meanwhile.

    Waiting for futures lends the task's place anyway; so `get_client` alone is as good, unless
    the task does other slow things before it goes on.

    Parameters
    ----------
    timeout : float or str, optional
        Seconds to reach the scheduler.
    separate_thread : bool
        Whether the task leaves the worker's thread pool within the ``with`` block; see `secede`.

    Yields
    ------
    Client
        That of the task's worker.

    Raises
    ------
    ValueError
        If the calling code runs in no task, and in no actor's method.

    Examples
    --------
    >>> def total(n):
    ...     with worker_client() as client:
    ...         return sum(client.gather(client.map(abs, range(n))))
    """
    place = current_place()
    if current_worker() is None:
        raise ValueError("worker_client() works within a task only; no task runs in this thread")
    client = get_client(timeout=timeout)
    # An actor's method has no place to leave; who seceded before has a reason to stay away after.
    leaves = separate_thread and place is not None and not place.has_seceded
    if leaves:
        secede()
    try:
        yield client
    finally:
        if leaves:
            rejoin()
