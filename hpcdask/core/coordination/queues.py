"""Queues: values go out in the order in which they came, to whoever asked first."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from hpcdask.core.coordination.answers import Kind, Outbox, Stored, Ticket


class Taker:
    """Somebody who waits for `count` values, and has some of them already."""

    __slots__ = ("count", "got")

    def __init__(self, count: int) -> None:
        self.count = count
        self.got: list[Stored] = []


class NamedQueue:
    """One queue.

    Attributes
    ----------
    limit : int
        Values beyond which putting waits; 0: none. The first that anybody gives counts.
    handles : int
        Objects by which clients use it and that they have not closed.
    putting, taking : OrderedDict
        Requests that wait, in their order.
    delivered : dict
        What was taken, and is not confirmed.
    """

    __slots__ = (
        "delivered",
        "handles",
        "is_closed",
        "items",
        "limit",
        "name",
        "putting",
        "taking",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.limit = self.handles = 0
        self.is_closed = False
        self.delivered: dict[Ticket, list[Stored]] = {}
        self.items: deque[Stored] = deque()
        self.putting: OrderedDict[Ticket, Stored] = OrderedDict()
        self.taking: OrderedDict[Ticket, Taker] = OrderedDict()

    @property
    def has_room(self) -> bool:
        return not self.limit or len(self.items) < self.limit

    @property
    def is_used(self) -> bool:
        return bool(self.handles or self.items or self.putting or self.taking or self.delivered)


class Queues(Kind):
    """All queues, by name.

    What was taken and is not confirmed goes back to the front if its taker dies.
    """

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(outbox)
        self.queues: dict[str, NamedQueue] = {}
        self._where: dict[Ticket, NamedQueue] = {}  # of what waits or is not confirmed
        self._handles: dict[str, dict[str, int]] = {}  # client -> queue -> number

    # -- Events -----------------------------------------------------------------------------------

    def opened(self, client: str, name: str, limit: int, count: int = 1) -> None:
        """A client has made so many objects for a queue."""
        mine = self._handles.setdefault(client, {})
        mine[name] = mine.get(name, 0) + count
        queue = self._queue(name, limit)
        queue.handles += count

    def closed(self, client: str, name: str) -> None:
        """A client has closed one: with the last of all clients the queue ends."""
        mine = self._handles.get(client, {})
        queue = self.queues.get(name)
        if queue is None or not mine.get(name):
            return
        self._drop_handles(client, name, 1)
        if not queue.handles:
            self._end(queue)

    def put(self, ticket: Ticket, name: str, stored: Stored, limit: int) -> None:
        """A client puts a value, and waits while there is no room."""
        queue = self._queue(name, limit)
        self.outbox.use(stored)
        queue.putting[ticket] = stored
        self._where[ticket] = queue
        self._match(queue)

    def taken(self, ticket: Ticket, name: str, count: int) -> None:
        """A client wants so many values; -1: all that there are now."""
        queue = self._queue(name)
        if count < 0:  # nobody waits before it, or there would be none
            count = len(queue.items)
        queue.taking[ticket] = Taker(count)
        if not count:
            queue.taking.move_to_end(ticket, last=False)  # it waits for nothing
        self._where[ticket] = queue
        self._match(queue)

    def counted(self, ticket: Ticket, name: str) -> None:
        """A client asks how many values there are."""
        queue = self.queues.get(name)
        self.outbox.answer(ticket, 0 if queue is None else len(queue.items))

    def confirmed(self, ticket: Ticket) -> None:
        """What was taken is in the client's hands."""
        queue = self._where.pop(ticket, None)
        if queue is not None:
            self._drop(queue.delivered.pop(ticket, ()))
            self._forget_unused(queue)

    def withdrawn(self, ticket: Ticket) -> None:
        """A client waits no longer, or did not get what it took."""
        queue = self._where.pop(ticket, None)
        if queue is None:
            return
        putting = queue.putting.pop(ticket, None)
        if putting is not None:
            self.outbox.drop(putting)
        taker = queue.taking.pop(ticket, None)
        back = queue.delivered.pop(ticket, []) if taker is None else taker.got
        if queue.is_closed:
            self._drop(back)
        else:
            queue.items.extendleft(reversed(back))
            self._match(queue)

    def client_lost(self, client: str) -> None:
        """A client is gone for good; what it has put stays."""
        for name, count in list(self._handles.get(client, {}).items()):
            self._forget_unused(self._drop_handles(client, name, count))

    def kept(self, client: str, handles: dict[str, tuple[int, int]]) -> None:
        """A client is back, and has these objects: number and limit, by the name of the queue."""
        for name, (count, limit) in handles.items():
            known = self._handles.get(client, {}).get(name, 0)
            if count > known:
                self.opened(client, name, limit, count - known)
        for name, known in list(self._handles.get(client, {}).items()):
            for _ in range(known - handles.get(name, (0, 0))[0]):
                self.closed(client, name)

    # -- Queues -----------------------------------------------------------------------------------

    def _queue(self, name: str, limit: int = 0) -> NamedQueue:
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = NamedQueue(name)
        queue.limit = queue.limit or limit
        return queue

    def _match(self, queue: NamedQueue) -> None:
        """Let in what there is room for, and give to those who wait."""
        is_changing = True
        while is_changing:
            is_changing = False
            while queue.putting and queue.has_room:
                ticket, stored = queue.putting.popitem(last=False)
                queue.items.append(stored)
                del self._where[ticket]
                self.outbox.answer(ticket, True)
            while queue.taking:
                ticket, taker = next(iter(queue.taking.items()))
                while queue.items and len(taker.got) < taker.count:
                    taker.got.append(queue.items.popleft())
                    is_changing = True
                if len(taker.got) < taker.count:
                    break
                del queue.taking[ticket]
                queue.delivered[ticket] = taker.got
                self.outbox.answer(ticket, taker.got)
        self._forget_unused(queue)

    def _end(self, queue: NamedQueue) -> None:
        """Everybody has closed it."""
        del self.queues[queue.name]
        queue.is_closed = True
        self._drop((*queue.items, *queue.putting.values()))
        for taker in queue.taking.values():
            self._drop(taker.got)
        for ticket in (*queue.putting, *queue.taking):
            del self._where[ticket]
            text = f"queue {queue.name!r} was closed by all who use it"
            self.outbox.answer(ticket, RuntimeError(text))

    def _drop(self, values: Iterable[Stored]) -> None:
        for stored in values:
            self.outbox.drop(stored)

    def _drop_handles(self, client: str, name: str, count: int) -> NamedQueue:
        mine = self._handles[client]
        mine[name] -= count
        if not mine[name]:
            del mine[name]
        if not mine:
            del self._handles[client]
        queue = self.queues[name]
        queue.handles -= count
        return queue

    def _forget_unused(self, queue: NamedQueue) -> None:
        if not queue.is_used and not queue.is_closed:
            del self.queues[queue.name]
