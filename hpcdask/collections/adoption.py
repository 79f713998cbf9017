"""dask, told that there are clients of this package: each place where it looks for `distributed`.

- ``.compute()``, ``dask.compute`` and ``dask.persist`` take ``scheduler`` of dask's configuration:
  the client of the moment.
- The schedulers "distributed" and "dask.distributed" are looked for in `named_schedulers` first:
  the same; it is also "hpcdask".
- Dataframes and bags are shuffled as ``dataframe.shuffle.method`` says; without it, and without
  distributed, on the "disk" of one machine. Here it is "tasks".
- Arrays are rechunked as ``array.rechunk.method`` says: "tasks" too.
- ``await collection`` and `dask.base.wait` are distributed's alone: ours are in their places, for
  collections that hold our futures.
- `dask.array.store` and others get a lock for their file of `get_scheduler_lock`: one that all of
  the cluster has in common.

What a program has configured is left as it is, but for ``scheduler``, as distributed does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

# `dask` has no attributes yet where this is a part of its import.
from dask import base, config, utils

from hpcdask import with_dask
from hpcdask.places import current_worker

# The rest is imported where it is used: a worker needs it only for tasks that compute collections.


class CurrentClient:
    """The scheduler in dask's configuration: the client of the moment, if there is one.

    In a task that is its worker's; elsewhere the default one.
    """

    def __bool__(self) -> bool:  # dask goes on looking where it is false
        if current_worker() is not None:
            return True
        from hpcdask.client.registry import chosen, latest

        return (chosen() or latest()) is not None

    def __call__(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        # Refuses asynchronous clients, or takes what is configured in their place.
        return base.get_scheduler(scheduler=self._client())(dsk, keys, **kwargs)

    def persist(self, collections: Any, **kwargs: Any) -> Any:
        """`dask.persist` asks for this."""
        return self._client().persist(collections, **kwargs)

    def _client(self) -> Any:
        from hpcdask.client.current import get_client

        return get_client()

    def __repr__(self) -> str:
        return "<the current client of hpcdask>"


class NamedClient(CurrentClient):
    """The same for who names distributed: if the program has a client of that, it is meant."""

    def _client(self) -> Any:
        theirs = sys.modules.get("distributed")
        if theirs is not None:
            with contextlib.suppress(ValueError):
                return theirs.default_client()
        return super()._client()


_scheduler = CurrentClient()
_METHODS = {"dataframe.shuffle.method": "tasks", "array.rechunk.method": "tasks"}
_NAMED = {
    "hpcdask": _scheduler,
    **dict.fromkeys(("distributed", "dask.distributed"), NamedClient()),
}

_original_wait = base.wait
_original_await = base.DaskMethodsMixin.__await__
_original_lock = utils.get_scheduler_lock


def _wait(x: Any, timeout: Any = None, return_when: str = "ALL_COMPLETED") -> Any:
    """`dask.base.wait` for collections that hold futures of ours."""
    from hpcdask.client.waiting import futures_of, wait

    if futures_of(x):
        return wait(x, timeout=timeout, return_when=return_when)
    return _original_wait(x, timeout=timeout, return_when=return_when)


def _await(self: Any) -> Generator[Any, Any, Any]:
    """``await collection``: wait for its futures, and give it back."""
    from hpcdask.client.loop import is_in_loop
    from hpcdask.client.waiting import futures_of

    futures = futures_of(self)
    if not futures:
        return _original_await(self)  # type: ignore[no-any-return]

    client = futures[0].client

    async def settled() -> Any:
        done = client._all_done([future._state for future in futures], None)
        if is_in_loop(client.loop):
            await done
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(done, client.loop))
        return self

    return settled().__await__()


def _lock(collection: Any = None, scheduler: Any = None) -> Any:
    """`get_scheduler_lock`: tasks that write to one file run in several processes."""
    get = base.get_scheduler(collections=[collection], scheduler=scheduler)
    from hpcdask import Client, Lock

    if isinstance(get, CurrentClient) or isinstance(getattr(get, "__self__", None), Client):
        return Lock()
    return _original_lock(collection, scheduler)


#: Functions that modules of dask import from each other: name -> (theirs, ours).
_FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "wait": (_original_wait, _wait),
    "get_scheduler_lock": (_original_lock, _lock),
}


class _Adoption:
    """What has been changed in dask, to be undone."""

    def __init__(self) -> None:
        self._settings: list[tuple[str, Any, Any]] = [
            ("scheduler", _scheduler, config.set({"scheduler": _scheduler}))
        ]
        for name, value in _METHODS.items():
            if config.get(name, None) is None:
                self._settings.append((name, value, config.set({name: value})))
        base.named_schedulers.update(_NAMED)
        base.DaskMethodsMixin.__await__ = _await
        _replace({name: ours for name, (_, ours) in _FUNCTIONS.items()})

    def undo(self) -> None:
        """Leave dask as it was, but for what the program has set since."""
        for name, value, setting in self._settings:
            if config.get(name, None) is value:
                setting.__exit__(None, None, None)
        for name in _NAMED:
            base.named_schedulers.pop(name, None)
        base.DaskMethodsMixin.__await__ = _original_await
        _replace({name: theirs for name, (theirs, _) in _FUNCTIONS.items()})


def _replace(functions: dict[str, Callable[..., Any]]) -> None:
    """Let all modules of dask that have these functions have the ones given."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "dask" and module is not None:
            for name, function in functions.items():
                if vars(module).get(name) in _FUNCTIONS[name]:
                    setattr(module, name, function)


_settling = threading.Lock()
_adoption: _Adoption | None = None


def settle() -> None:
    """Let dask know of us while there is a client or a worker, and no longer."""
    global _adoption
    with _settling:
        if with_dask.users and _adoption is None:
            _adoption = _Adoption()
        elif not with_dask.users and _adoption is not None:
            _adoption.undo()
            _adoption = None
