"""Handlers of topics: each gets its events in their order, and what it raises is reported."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hpcdask.messages import Message
from hpcdask.messages.shared import EventLogged, Subscribe
from hpcdask.wire.serialize import loads

if TYPE_CHECKING:
    from hpcdask.client.connection import Connection

log = logging.getLogger("hpcdask.client")

#: Takes a pair: seconds since the epoch by the scheduler's clock, and what was logged.
Handler = Callable[[tuple[float, Any]], Any]


class Subscription:
    """One topic's handler, and the events that it has not seen yet."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.waiting: deque[EventLogged] = deque()
        self.running: asyncio.Task[None] | None = None
        self.is_over = False


class Subscriptions:
    """The handlers of one client.

    Handlers are called in the thread that the callbacks of futures share, so that they may block;
    those of an asynchronous client, and coroutine functions, run on its loop.
    """

    def __init__(self, client: Connection) -> None:
        self._client = client
        self._of_topic: dict[str, Subscription] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._of_topic

    def add(self, topic: str, handler: Handler) -> None:
        """Use a handler from now on, in place of the one before."""
        before = self._of_topic.get(topic)
        self._of_topic[topic] = Subscription(handler)
        if before is not None:
            _end(before)

    def drop(self, topic: str) -> None:
        """Call no handler any more."""
        _end(self._of_topic.pop(topic))

    def to_tell(self) -> list[Message]:
        """What the scheduler has to know after a return."""
        return [Subscribe(topic) for topic in self._of_topic]

    def happened(self, event: EventLogged) -> None:
        """The scheduler tells of an event; called on the client's loop."""
        subscription = self._of_topic.get(event.topic)
        if subscription is None:  # it was on its way when the handler was dropped
            return
        if not self._client._asynchronous and not inspect.iscoroutinefunction(subscription.handler):
            call = partial(_call, subscription.handler, event, self._client.loop)
            self._client._callbacks.put(call)
            return
        subscription.waiting.append(event)
        if subscription.running is None:
            subscription.running = self._client.loop.create_task(_handle(subscription))

    def close(self) -> None:
        """The client has ended."""
        for subscription in self._of_topic.values():
            _end(subscription)
            if subscription.running is not None:
                subscription.running.cancel()
        self._of_topic.clear()


def _end(subscription: Subscription) -> None:
    """Begin with no further event."""
    subscription.is_over = True
    subscription.waiting.clear()


async def _handle(subscription: Subscription) -> None:
    """Handle what waits, one after the other."""
    try:
        while subscription.waiting:
            event = subscription.waiting.popleft()
            try:
                outcome = subscription.handler((event.time, loads(event.message)))
                if inspect.isawaitable(outcome):
                    await outcome
            except asyncio.CancelledError:
                if subscription.is_over:
                    raise
                _report(event)  # it is the handler's own
            except BaseException:  # a SystemExit would end the loop
                _report(event)
    finally:
        subscription.running = None


def _call(handler: Handler, event: EventLogged, loop: asyncio.AbstractEventLoop) -> None:
    try:
        outcome = handler((event.time, loads(event.message)))
        if inspect.isawaitable(outcome):  # of what does not look like a coroutine function
            asyncio.run_coroutine_threadsafe(_awaited(outcome, event), loop)
    except BaseException:  # sys.exit() in one must not keep the next from being called
        _report(event)


async def _awaited(outcome: Any, event: EventLogged) -> None:
    try:
        await outcome
    except BaseException:  # as in `_handle`
        _report(event)


def _report(event: EventLogged) -> None:
    log.exception("the handler of topic %r failed", event.topic)
