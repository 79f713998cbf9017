"""A worker as the tasks that run in it see it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hpcdask.core.worker_state import WorkerState
from hpcdask.dialling import Link
from hpcdask.messages import Message
from hpcdask.places import current_place, current_worker
from hpcdask.service import Service
from hpcdask.wire.arguments import Stored
from hpcdask.wire.serialize import dumps

if TYPE_CHECKING:
    from hpcdask.worker import Worker


class WorkerView(Service):
    """What tasks may ask of their worker, and tell it."""

    address: str
    state: WorkerState
    _link: Link | None

    @property
    def scheduler_id(self) -> str:
        """Id of the scheduler, which has several addresses."""
        return "" if self._link is None else self._link.registered.scheduler_id

    @property
    def data(self) -> dict[str, Any]:
        """The values held here, by key, but for actors."""
        held = self._held()
        return {key: value for key, value in held if not issubclass(type(value), Stored)}

    @property
    def actors(self) -> dict[str, Any]:
        """The actors that live here, by key: the objects themselves."""
        held = [(key, value) for key, value in self._held() if issubclass(type(value), Stored)]
        return {key: value.instance for key, value in held if hasattr(value, "instance")}

    def _held(self) -> list[tuple[str, Any]]:
        tasks = list(self.state.tasks.values())  # at once: a task may ask in its thread
        return [(task.key, task.value) for task in tasks if task.state == "memory"]

    def get_current_task(self) -> str:
        """Return the key of the task that calls this.

        Raises
        ------
        ValueError
            If the calling code runs in no task.
        """
        place = current_place()
        if place is None:
            raise ValueError("get_current_task() works within a task only")
        return place.key

    def log_event(self, topic: str | Iterable[str], msg: Any) -> None:
        """Log an event, from a task for example; see `Client.log_event`.

        Parameters
        ----------
        topic : str or iterable of str
            One or several.
        msg : object
            What has happened: anything that can be pickled. A dict arrives with the address of
            this worker under "worker". While the worker has lost its scheduler, it is lost too.
        """
        from hpcdask.messages.shared import LogEvent  # few programs log any

        topics = (topic,) if isinstance(topic, str) else tuple(topic)
        if isinstance(msg, dict):
            msg = {**msg, "worker": self.address}
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._say, LogEvent(0, topics, dumps(msg)))

    @abstractmethod
    def _say(self, message: Message) -> None:
        """Tell the scheduler something."""


def get_worker() -> Worker:
    """Return the worker that runs the calling task.

    Raises
    ------
    ValueError
        If the calling thread runs no task.

    Examples
    --------
    >>> def where():
    ...     return get_worker().address
    """
    worker = current_worker()
    if worker is None:
        raise ValueError("get_worker() works within a task only; no task runs in this thread")
    return worker  # type: ignore[no-any-return]
