"""Finds who answers a client's request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from hpcdask.messages import Failure, Message
from hpcdask.peers import RequestFailedError
from hpcdask.requests.actors import ActorRequests
from hpcdask.requests.calls import Answers, Calls
from hpcdask.requests.cluster import ClusterRequests
from hpcdask.tracebacks import to_task_error

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler


class ClientRequests:
    """Answers requests of a scheduler's clients.

    Parameters
    ----------
    scheduler : Scheduler
        Whose state and connections are used.
    spawn : callable
        Runs a coroutine that ends with the scheduler at the latest.

    Attributes
    ----------
    answers : dict
        Each type of request, and the coroutine function that answers a client's.
    """

    def __init__(
        self, scheduler: Scheduler, spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
    ) -> None:
        self.calls = Calls(spawn)
        families = (
            ClusterRequests(scheduler, self.calls, spawn),
            ActorRequests(scheduler),
        )
        self.answers: Answers = {}
        for family in families:
            self.answers |= family.answers

    async def answer(self, name: str, message: Any) -> Message:
        """Answer a request; whatever goes wrong is the answer, too."""
        try:
            return await self.answers[type(message)](name, message)
        except RequestFailedError as exc:
            return Failure(message.request, exc.error)
        except Exception as exc:
            return Failure(message.request, to_task_error(exc))
