"""Functions that a client has called on a worker, a nanny or the scheduler (`Client.run`)."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from hpcdask.messages import Blob, TaskError
from hpcdask.tracebacks import to_task_error
from hpcdask.wire.serialize import dumps, loads


async def call(
    function: Blob, address: str, service: dict[str, Any], in_thread: bool
) -> Blob | TaskError:
    """Call a pickled (function, args, kwargs) and pickle what it returns.

    Parameters
    ----------
    service : dict
        Keyword arguments given to functions that have a parameter of that name, such as
        ``dask_worker``.
    in_thread : bool
        Keep the event loop free meanwhile. Not for functions that touch the loop's own state.
    """
    try:
        target, args, kwargs = loads(function)
        kwargs = {**kwargs, **_accepted(target, service)}
        if inspect.iscoroutinefunction(target) or not in_thread:
            value = target(*args, **kwargs)
        else:
            value = await asyncio.to_thread(target, *args, **kwargs)
        if inspect.isawaitable(value):
            value = await value
        return dumps(value)
    except asyncio.CancelledError:
        raise
    except BaseException as exc:  # sys.exit() in it must not end the service
        return to_task_error(exc, worker=address)


def _accepted(function: Any, offered: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins tell nothing
        return {}
    return {name: value for name, value in offered.items() if name in parameters}
