"""Topics: the last events of each, and who wants to hear of new ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from hpcdask.messages import Blob
from hpcdask.messages.shared import EventLogged


class Topics:
    """All topics, by name.

    Parameters
    ----------
    length : int
        Events of a topic that are kept at most: the latest.

    Attributes
    ----------
    events : dict of str to deque of EventLogged
    outbox : list of (str, EventLogged)
        What is to be sent to which client.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self.events: dict[str, deque[EventLogged]] = {}
        self.outbox: list[tuple[str, EventLogged]] = []
        self._subscribers: dict[str, dict[str, None]] = {}  # topic -> clients

    def logged(self, now: float, topics: Iterable[str], message: Blob) -> None:
        """Something has happened that belongs to these topics; `now` is seconds of the epoch."""
        for topic in dict.fromkeys(topics):
            event = EventLogged(topic, now, message)
            events = self.events.get(topic)
            if events is None:
                events = self.events[topic] = deque(maxlen=self._length)
            events.append(event)
            for client in self._subscribers.get(topic, ()):
                self.outbox.append((client, event))

    def about(self, topic: str | None) -> tuple[EventLogged, ...]:
        """Events of a topic, or of all, each topic's in their order."""
        if topic is not None:
            return tuple(self.events.get(topic, ()))
        return tuple(event for events in self.events.values() for event in events)

    def subscribed(self, client: str, topic: str) -> None:
        """A client wants to hear of new events."""
        self._subscribers.setdefault(topic, {})[client] = None

    def unsubscribed(self, client: str, topic: str) -> None:
        """A client has heard enough."""
        clients = self._subscribers.get(topic, {})
        clients.pop(client, None)
        if not clients:
            self._subscribers.pop(topic, None)

    def client_lost(self, client: str) -> None:
        """A client is gone for good."""
        for topic in list(self._subscribers):
            self.unsubscribed(client, topic)
