"""Finds who answers a client's request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from hpcdask.messages import Failure, Message
from hpcdask.peers import RequestFailedError
from hpcdask.requests.actors import ActorRequests
from hpcdask.requests.calls import Answers, Calls, Events
from hpcdask.requests.cluster import ClusterRequests
from hpcdask.requests.coordination import CoordinationRequests
from hpcdask.requests.data import DataRequests
from hpcdask.requests.diagnostics import DiagnosticRequests
from hpcdask.requests.plugins import PluginRequests
from hpcdask.requests.topics import TopicRequests
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
    events : dict
        Each type of message that is no request, or is one that is not answered at once, and the
        function that deals with a client's.
    coordination : CoordinationRequests
        What clients share.
    topics : TopicRequests
        What is logged, and who is told.
    plugins : PluginRequests
        Which plugins there are.
    """

    def __init__(
        self, scheduler: Scheduler, spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
    ) -> None:
        self.calls = Calls(spawn)
        self.coordination = CoordinationRequests(scheduler)
        length = scheduler.settings["scheduler.events-log-length"]
        self.topics = TopicRequests(scheduler, length)
        self.plugins = PluginRequests(scheduler, self.calls, spawn)
        families = (
            ClusterRequests(scheduler, self.calls, spawn),
            ActorRequests(scheduler),
            self.topics,
            self.plugins,
            DataRequests(scheduler),
            DiagnosticRequests(scheduler),
        )
        self.answers: Answers = {}
        for family in families:
            self.answers |= family.answers
        self.events: Events = {}
        for of_events in (self.coordination, self.topics, self.plugins):
            self.events |= of_events.events

    def client_lost(self, client: str) -> None:
        """A client is gone for good."""
        self.coordination.client_lost(client)
        self.topics.topics.client_lost(client)

    async def answer(self, name: str, message: Any) -> Message:
        """Answer a request; whatever goes wrong is the answer, too."""
        try:
            return await self.answers[type(message)](name, message)
        except RequestFailedError as exc:
            return Failure(message.request, exc.error)
        except Exception as exc:
            return Failure(message.request, to_task_error(exc))
