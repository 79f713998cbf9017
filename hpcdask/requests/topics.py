"""Requests about topics and metadata: what is noted on the scheduler for all to see."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hpcdask.core.coordination.metadata import Metadata
from hpcdask.core.coordination.topics import Topics
from hpcdask.messages import Blob, Reply
from hpcdask.messages.shared import (
    EventsLogged,
    GetEvents,
    GetMetadata,
    LogEvent,
    SetMetadata,
    Subscribe,
    Unsubscribe,
)
from hpcdask.requests.calls import Answers, Events
from hpcdask.wire.serialize import dumps

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler


class TopicRequests:
    """Logs events and tells subscribers; answers requests about events and metadata.

    Parameters
    ----------
    scheduler : Scheduler
        Whose connections are used.
    length : int
        Events that are kept of each topic.
    """

    def __init__(self, scheduler: Scheduler, length: int) -> None:
        self._scheduler = scheduler
        self.topics = Topics(length)
        self.metadata = Metadata()
        self.answers: Answers = {
            LogEvent: self._log,
            GetEvents: self._get_events,
            SetMetadata: self._set_metadata,
            GetMetadata: self._get_metadata,
        }
        self.events: Events = {
            Subscribe: lambda client, msg: self.topics.subscribed(client, msg.topic),
            Unsubscribe: lambda client, msg: self.topics.unsubscribed(client, msg.topic),
        }

    def log(self, topics: Iterable[str], message: Any) -> None:
        """Log an event of the scheduler itself."""
        self.logged(topics, dumps(message))

    def logged(self, topics: Iterable[str], message: Blob) -> None:
        """Somebody has logged an event."""
        topics = tuple(topics)
        self.topics.logged(time.time(), topics, message)
        self._scheduler.hooks.event_logged(topics, message)
        told, self.topics.outbox = self.topics.outbox, []
        for client, event in told:
            comm = self._scheduler.clients.get(client)
            if comm is not None:
                comm.send(event)

    async def _log(self, client: str, msg: LogEvent) -> Reply:
        self.logged(msg.topics, msg.message)
        return Reply(msg.request, None)

    async def _get_events(self, client: str, msg: GetEvents) -> EventsLogged:
        return EventsLogged(msg.request, self.topics.about(msg.topic))

    async def _set_metadata(self, client: str, msg: SetMetadata) -> Reply:
        self.metadata.set(msg.path, msg.value)
        return Reply(msg.request, None)

    async def _get_metadata(self, client: str, msg: GetMetadata) -> Reply:
        return Reply(msg.request, self.metadata.get(msg.path))
