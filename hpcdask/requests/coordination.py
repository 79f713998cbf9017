"""Requests about what clients share: locks, queues, variables, events, published datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hpcdask.core.coordination.answers import Answer, Kind, Stored, Ticket
from hpcdask.core.coordination.desk import Desk
from hpcdask.core.coordination.leases import Name
from hpcdask.messages import Blob, Failure, Message, Reply
from hpcdask.messages.shared import (
    AcquireLease,
    AskFlag,
    AwaitFlag,
    ChangeFlag,
    CloseQueue,
    CloseSemaphore,
    Confirm,
    CountLeases,
    CountValues,
    DeleteVariable,
    GetDatasets,
    GetVariable,
    GiveUp,
    ListDatasets,
    OpenQueue,
    Publish,
    PutValue,
    ReleaseLease,
    Resume,
    SetVariable,
    TakeValues,
    Unpublish,
    Values,
    Withdraw,
)
from hpcdask.requests.calls import Events
from hpcdask.tracebacks import to_task_error

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler


#: What an event takes of a message, besides the ticket.
_Fields = Callable[[Any], tuple[Any, ...]]


class CoordinationRequests:
    """Takes requests about shared things to the `Desk`, and sends what it answers.

    They are no coroutines: most wait for another client, some thousands at a time, and what one
    does must be done before the next message of its client is looked at.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.desk = desk = Desk()
        leases, queues, variables = desk.leases, desk.queues, desk.variables
        flags, datasets = desk.flags, desk.datasets
        # By the type of the request, its event, and what that takes.
        self._operations: dict[type[Any], tuple[Kind, Callable[..., None], _Fields]] = {
            AcquireLease: (leases, leases.asked, _wish),
            ReleaseLease: (leases, leases.released, lambda m: (m.lease,)),
            CountLeases: (leases, leases.counted, lambda m: ((m.kind, m.name),)),
            CloseSemaphore: (leases, leases.closed, lambda m: (("semaphore", m.name),)),
            PutValue: (queues, self._put, lambda m: (m,)),
            TakeValues: (queues, queues.taken, lambda m: (m.queue, m.number)),
            CountValues: (queues, queues.counted, lambda m: (m.queue,)),
            SetVariable: (variables, self._set, lambda m: (m,)),
            GetVariable: (variables, variables.asked, lambda m: (m.name,)),
            DeleteVariable: (variables, variables.deleted, lambda m: (m.name,)),
            ChangeFlag: (flags, flags.changed, lambda m: (m.name, m.is_set)),
            AskFlag: (flags, flags.asked, lambda m: (m.name,)),
            AwaitFlag: (flags, flags.awaited, lambda m: (m.name,)),
            Publish: (datasets, self._publish, lambda m: (m,)),
            GetDatasets: (datasets, datasets.asked, lambda m: (m.names,)),
            ListDatasets: (datasets, datasets.listed, lambda m: ()),
            Unpublish: (datasets, datasets.unpublish, lambda m: (m.names,)),
        }
        self.events: Events = {
            **dict.fromkeys(self._operations, self._operate),
            Confirm: self._confirmed,
            GiveUp: self._given_up,
            Withdraw: self._withdrawn,
            Resume: self._resumed,
            OpenQueue: self._queue_opened,
            CloseQueue: self._queue_closed,
        }

    def client_lost(self, client: str) -> None:
        """A client is gone for good."""
        self.desk.client_lost(client)
        self._follow()

    def tick(self) -> None:
        """Some time has passed: perhaps all are back who may have held a lease before."""
        if self.desk.leases.is_paused and not self._scheduler.state.awaits_returns:
            self.desk.leases.go_on()
            self._follow()

    # -- Events -----------------------------------------------------------------------------------

    def _operate(self, client: str, msg: Any) -> None:
        if type(msg) is AcquireLease and self._scheduler.state.awaits_returns:
            self.desk.leases.pause()
        kind, event, fields = self._operations[type(msg)]
        self.desk.operate(Ticket(client, msg.request), kind, event, *fields(msg))
        self._follow()

    def _confirmed(self, client: str, msg: Confirm) -> None:
        self.desk.confirmed(Ticket(client, msg.request))
        self._follow()

    def _given_up(self, client: str, msg: GiveUp) -> None:
        self.desk.given_up(Ticket(client, msg.request))
        self._follow()

    def _withdrawn(self, client: str, msg: Withdraw) -> None:
        self.desk.withdrawn(Ticket(client, msg.withdrawn))
        self._send(client, Reply(msg.request, True))
        self._follow()

    def _resumed(self, client: str, msg: Resume) -> None:
        leases = {
            held.lease: (_places(held.kind, held.names), held.needed, held.limit)
            for held in msg.leases
        }
        handles = {handle.queue: (handle.handles, handle.limit) for handle in msg.queues}
        waiting, withdrawn = set(msg.waiting), set(msg.withdrawn)
        self.desk.client_resumed(client, waiting, withdrawn, leases, handles)
        self._follow()

    def _queue_opened(self, client: str, msg: OpenQueue) -> None:
        self.desk.queues.opened(client, msg.queue, msg.limit)

    def _queue_closed(self, client: str, msg: CloseQueue) -> None:
        self.desk.queues.closed(client, msg.queue)
        self._follow()

    # -- Values -----------------------------------------------------------------------------------

    def _put(self, ticket: Ticket, msg: PutValue) -> None:
        self.desk.queues.put(ticket, msg.queue, self._store(msg.value, msg.keys), msg.limit)

    def _set(self, ticket: Ticket, msg: SetVariable) -> None:
        self.desk.variables.set(ticket, msg.name, self._store(msg.value, msg.keys))

    def _publish(self, ticket: Ticket, msg: Publish) -> None:
        values = {dataset.name: self._store(*dataset[1:]) for dataset in msg.datasets}
        outbox = self.desk.outbox
        for stored in values.values():  # those that are not published are let go of
            outbox.use(stored)
        try:
            self.desk.datasets.publish(ticket, values, msg.override)
        finally:
            for stored in values.values():
                outbox.drop(stored)

    def _store(self, value: Blob, keys: tuple[str, ...]) -> Stored:
        """Keep a value, and the futures in it alive until nobody has it any more."""
        if not keys:
            return Stored(value)
        return Stored(value, self._scheduler.state.kept_for_others(self._scheduler.now(), keys))

    # -- What follows -----------------------------------------------------------------------------

    def _follow(self) -> None:
        """Send answers, and let go of futures."""
        answers, released = self.desk.take()
        for ticket, answer in answers:
            self._send(ticket.client, _message(ticket.request, answer))
        for stored in released:
            self._scheduler.state.kept_no_more(self._scheduler.now(), stored.hold)

    def _send(self, client: str, message: Message) -> None:
        comm = self._scheduler.clients.get(client)
        if comm is not None:  # else it asks again when it comes back
            comm.send(message)


def _places(kind: str, names: tuple[str, ...]) -> tuple[Name, ...]:
    return tuple((kind, name) for name in names)


def _wish(msg: AcquireLease) -> tuple[tuple[Name, ...], int, int, bool]:
    return _places(msg.kind, msg.names), msg.needed, msg.limit, msg.declares


def _message(request: int, answer: Answer) -> Message:
    if isinstance(answer, Exception):
        return Failure(request, to_task_error(answer))
    if isinstance(answer, list):
        return Values(request, tuple(None if s is None else s.value for s in answer))
    return Reply(request, answer)
