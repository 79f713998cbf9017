"""Functions that a client has called on a worker, a nanny or the scheduler (`Client.run`)."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from hpcdask.errors import SerializationError
from hpcdask.messages import Blob, TaskError
from hpcdask.places import coroutine_is_of, on_behalf_of
from hpcdask.threads import in_thread
from hpcdask.tracebacks import to_task_error
from hpcdask.wire.serialize import dumps, function_name, loads


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
            target, args, kwargs = _loaded(function, address)
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
        return _pickled(value, target)
    except asyncio.CancelledError:
        raise
    except BaseException as exc:  # sys.exit() in it must not end the service
        return to_task_error(exc, worker=address)


def _loaded(function: Blob, address: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    try:
        return loads(function)  # type: ignore[no-any-return]
    except Exception as exc:
        from hpcdask.unreadable import unreadable  # not before something goes wrong

        raise unreadable(exc, "a function that was to be called", function, address) from None


def _pickled(value: Any, function: Any) -> Blob:
    try:
        return dumps(value)
    except SerializationError as exc:
        from hpcdask.wire import unpicklable  # not before something goes wrong

        what = f"what {function_name(function)} returned"
        raise unpicklable.about(exc, what, cure="Return what can be") from exc.__cause__


def accepted(function: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the offered keyword arguments that a function has a parameter for."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins tell nothing
        return {}
    return {name: value for name, value in offered.items() if name in parameters}
