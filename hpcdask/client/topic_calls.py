"""Events, topics and metadata: what a client notes on the scheduler for others to see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcdask.client.connection import Connection
from hpcdask.client.subscriptions import Handler
from hpcdask.messages.shared import (
    GetEvents,
    GetMetadata,
    LogEvent,
    SetMetadata,
    Subscribe,
    Unsubscribe,
)
from hpcdask.wire.serialize import dumps, loads

_NOTHING: Any = object()
_KEYS = (str, int, float, bool, type(None))


class TopicCalls(Connection):
    """The part of `hpcdask.Client` that is about events and metadata."""

    # -- Events -----------------------------------------------------------------------------------

    def log_event(self, topic: str | Iterable[str], msg: Any) -> Any:
        """Log an event: the scheduler keeps it, and tells all who have subscribed to the topic.

        Of each topic the last ones are kept, as many as ``scheduler.events-log-length`` says. The
        scheduler itself logs under "all" which workers and clients come and go.

        Parameters
        ----------
        topic : str or iterable of str
            One or several.
        msg : object
            What has happened: anything that can be pickled, and is small.

        See Also
        --------
        Worker.log_event : the same within a task: ``get_worker().log_event(topic, msg)``.

        Examples
        --------
        >>> client.log_event("temperature", {"node": 3, "celsius": 41.5})
        >>> [msg for _, msg in client.get_events("temperature")]
        [{'node': 3, 'celsius': 41.5}]
        """
        topics = (topic,) if isinstance(topic, str) else tuple(topic)
        blob = dumps(msg)

        async def work() -> None:
            await self._ask(LogEvent, topics, blob)

        return self._maybe_sync(work())

    def get_events(self, topic: str | None = None) -> Any:
        """Events that were logged, the oldest first.

        Parameters
        ----------
        topic : str, optional
            By default those of all topics.

        Returns
        -------
        tuple of (float, object), or dict
            Seconds since the epoch by the scheduler's clock, and what was logged. Without `topic`
            a dict of topic -> tuple.
        """

        async def work() -> Any:
            events = (await self._ask(GetEvents, topic)).events
            found: dict[str, list[tuple[float, Any]]] = {}
            for event in events:
                found.setdefault(event.topic, []).append((event.time, loads(event.message)))
            if topic is not None:
                return tuple(found.get(topic, ()))
            return {name: tuple(of_topic) for name, of_topic in found.items()}

        return self._maybe_sync(work())

    def subscribe_topic(self, topic: str, handler: Handler) -> None:
        """Have a function called for each event of a topic that is logged from now on.

        Events come one after the other, in their order. What the handler raises is logged, and the
        next event is handled all the same. Those that are logged while the client has lost the
        scheduler are not heard of; `get_events` may have them.

        Parameters
        ----------
        topic : str
            Its name. A second handler takes the place of the first.
        handler : callable
            It is given ``(time, msg)``, as by `get_events`. A coroutine function runs on the
            client's event loop, and so does every handler of an asynchronous client; others share
            a thread with the callbacks of futures.

        Examples
        --------
        >>> seen = []
        >>> client.subscribe_topic("progress", seen.append)
        >>> client.unsubscribe_topic("progress")
        """
        if not callable(handler):
            raise TypeError(f"a handler must be callable, not {handler!r:.80}")
        with self._lock:
            self._send(Subscribe(topic))
            self._subscriptions.add(topic, handler)

    def unsubscribe_topic(self, topic: str) -> None:
        """Call the handler of a topic no more.

        Raises
        ------
        ValueError
            If there is none.
        """
        with self._lock:
            if topic not in self._subscriptions:
                raise ValueError(f"this client has not subscribed to a topic {topic!r}")
            self._send(Unsubscribe(topic))
            self._subscriptions.drop(topic)

    # -- Metadata ---------------------------------------------------------------------------------

    def set_metadata(self, key: Any, value: Any) -> Any:
        """Keep a small value on the scheduler, for all clients.

        Parameters
        ----------
        key : str or list
            Of a list each key but the last names a dict, which is made if it is not there.
        value : object
            Anything that can be pickled. Of a dict whose keys are strings and numbers each value
            can be read and changed by itself.

        Raises
        ------
        TypeError
            If one of the keys before the last stands for a value that is no dict.

        Examples
        --------
        >>> client.set_metadata("run", {"name": "July", "steps": 3})
        >>> client.set_metadata(["run", "steps"], 4)
        >>> client.get_metadata("run")
        {'name': 'July', 'steps': 4}
        >>> client.get_metadata(["run", "stop"], default=None)
        """
        path, tree = _path(key), _packed(value)

        async def work() -> None:
            await self._ask(SetMetadata, path, tree)

        return self._maybe_sync(work())

    def get_metadata(self, keys: Any, default: Any = _NOTHING) -> Any:
        """What was kept by `set_metadata`.

        Parameters
        ----------
        keys : str or list
            As for `set_metadata`.
        default : object, optional
            What to return if there is nothing.

        Raises
        ------
        KeyError
            If there is nothing, and no `default`.
        """
        path = _path(keys)

        async def work() -> Any:
            return (await self._ask(GetMetadata, path)).value

        def missing(exc: KeyError) -> Any:
            if default is _NOTHING:
                raise exc
            return default

        if self.asynchronous:

            async def found() -> Any:
                try:
                    return _unpacked(await self._maybe_sync(work()))
                except KeyError as exc:
                    return missing(exc)

            return found()
        try:
            return _unpacked(self._sync(work()))
        except KeyError as exc:
            return missing(exc)


def _path(keys: Any) -> tuple[Any, ...]:
    path = tuple(keys) if isinstance(keys, (list, tuple)) else (keys,)
    for key in path:
        if not isinstance(key, _KEYS):
            raise TypeError(f"keys of metadata are strings and numbers, not {key!r:.80}")
    return path


def _packed(value: Any) -> Any:
    """A tree of dicts with pickles as leaves."""
    if type(value) is dict and all(isinstance(key, _KEYS) for key in value):
        return {key: _packed(each) for key, each in value.items()}
    return dumps(value)


def _unpacked(tree: Any) -> Any:
    if type(tree) is dict:
        return {key: _unpacked(each) for key, each in tree.items()}
    return loads(tree)
