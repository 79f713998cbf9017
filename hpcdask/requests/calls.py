"""Calls of functions on workers and nannies, and their outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from hpcdask.comm import Comm
from hpcdask.errors import CommClosedError
from hpcdask.messages import Blob, CallFunction, Message, TaskError
from hpcdask.messages.client import CallOutcomes
from hpcdask.peers import RequestFailedError, Requests
from hpcdask.tracebacks import to_task_error

#: Each type of request, and the coroutine function that answers a client's, by the client's id.
Answers = dict[type[Any], Callable[[str, Any], Coroutine[Any, Any, Message]]]
#: Each type of message that is dealt with at once, and who does so, by the client's id.
Events = dict[type[Any], Callable[[str, Any], None]]


class Calls:
    """Calls functions in other processes of the cluster, over their connections.

    Parameters
    ----------
    spawn : callable
        Runs a coroutine that ends with the scheduler at the latest.
    """

    def __init__(self, spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]) -> None:
        self._spawn = spawn
        self._requests = Requests()

    def answered(self, message: Message) -> None:
        """A worker or a nanny has returned from a call."""
        self._requests.answered(message)

    async def call_all(
        self, comms: Iterable[tuple[str, Comm]], function: Blob, wait: bool = True
    ) -> list[tuple[str, Blob | TaskError]]:
        """Call it in several processes at the same time; without `wait` return nothing."""

        def make(request: int) -> CallFunction:
            return CallFunction(request, function)

        begun = [(address, self.ask(comm, make)) for address, comm in comms]
        if not wait:
            for _, future in begun:
                future.cancel()
            return []
        return [(address, await self.outcome(address, future)) for address, future in begun]

    def ask(self, comm: Comm, make: Callable[[int], Message]) -> asyncio.Future[Any]:
        """Send the request ``make(number)``, which is answered as calls of functions are.

        Its future fails if the connection ends before the answer.
        """
        number, future = self._requests.new()
        comm.send(make(number))

        async def watch() -> None:
            await comm.wait_closed()
            if not future.done():
                future.set_exception(CommClosedError(f"{comm.peer} ended before it answered"))

        watcher = self._spawn(watch())
        future.add_done_callback(lambda _: watcher.cancel())
        return future

    async def outcome(self, address: str, future: asyncio.Future[Any]) -> Blob | TaskError:
        """Wait for the answer to what was asked."""
        try:
            value: Blob = (await future).value
            return value
        except RequestFailedError as exc:
            return exc.error
        except Exception as exc:
            return to_task_error(exc, worker=address)


def outcomes(request: int, answers: Iterable[tuple[str, Blob | TaskError]]) -> CallOutcomes:
    """What a client is told of calls."""
    answers = list(answers)
    returned = tuple((a, value) for a, value in answers if not isinstance(value, TaskError))
    raised = tuple((a, value) for a, value in answers if isinstance(value, TaskError))
    return CallOutcomes(request, returned, raised)
