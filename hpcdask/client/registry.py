"""All clients of this process, and what becomes of them when it ends or is forked."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

#: Clients of this process, and those that set themselves as default, the latest last.
clients: weakref.WeakSet[Any] = weakref.WeakSet()
defaults: list[weakref.ref[Any]] = []


#: Clusters that this process has made; each has a `place`, where its scheduler is.
clusters: weakref.WeakSet[Any] = weakref.WeakSet()

#: That of the running context, within ``with client.as_current()``.
_chosen: ContextVar[Any] = ContextVar("client", default=None)


def latest() -> Any:
    """The client made last that is open and default, or None."""
    while defaults:
        client = defaults[-1]()
        if client is not None and client._is_open:
            return client
        defaults.pop()
    return None


def chosen() -> Any:
    """The client of the running context, or None."""
    return _chosen.get()


@contextlib.contextmanager
def chosen_is(client: Any) -> Iterator[Any]:
    """Let `chosen` give a client, in this context."""
    token = _chosen.set(client)
    try:
        yield client
    finally:
        _chosen.reset(token)


@atexit.register
def close_all() -> None:
    """Let no client, nor a cluster that it made, outlive the program; but for a launcher's own."""
    for client in list(clients):
        if client._is_open and not client._asynchronous and not client._is_internal:
            with contextlib.suppress(Exception):
                client.close(timeout=5)


def leave_to_parent() -> None:
    """In a forked child: clients are the parent's, whose loop and connection they use."""
    for client in list(clients):
        client._is_of_parent = True
        client._lock = threading.RLock()  # another thread of the parent may hold the old one
        client.status, client._ending = "closed", "this process is a fork of the one that made it"
        for state in list(client._futures.values()):
            if state.value is None or state.status == "pending":
                state.waiters = None  # they wait in threads that are not here
                state.status, state.reason = "cancelled", client._ending
    clients.clear()
    defaults.clear()


os.register_at_fork(after_in_child=leave_to_parent)
