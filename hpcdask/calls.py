"""Functions that a client has called on a worker, a nanny or the scheduler (`Client.run`)."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from hpcdask.messages import Blob, TaskError
from hpcdask.places import coroutine_is_of, on_behalf_of
from hpcdask.threads import in_thread
from hpcdask.tracebacks import to_task_error
from hpcdask.wire.serialize import dumps, loads


async def call(
    function: Blob, address: str, service: dict[str, Any], *, worker: object = None, threaded: bool
) -> Blob | TaskError:
    """Call a pickled (function, args, kwargs) and pickle what it returns.

    Parameters
    ----------
    service : dict
        Keyword arguments given to functions that have a parameter of that name, such as
        ``dask_worker``.
    worker : Worker, optional
        What `get_worker` gives in the function.
    threaded : bool
        Keep the event loop free while it runs. Not for functions that touch the loop's own state.
    """
    try:
        with on_behalf_of(worker):
            target, args, kwargs = loads(function)
        kwargs = {**kwargs, **accepted(target, service)}

        def run() -> Any:
            with on_behalf_of(worker):
                return target(*args, **kwargs)

        if threaded and not inspect.iscoroutinefunction(target):
            value = await in_thread(run)
        else:
            value = run()
        if inspect.isawaitable(value):
            coroutine_is_of(worker)
            value = await value
        return dumps(value)
    except asyncio.CancelledError:
        raise
    except BaseException as exc:  # sys.exit() in it must not end the service
        return to_task_error(exc, worker=address)


def accepted(function: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the offered keyword arguments that a function has a parameter for."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins tell nothing
        return {}
    return {name: value for name, value in offered.items() if name in parameters}
