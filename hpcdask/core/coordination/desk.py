"""Where requests about shared things come in: each is carried out once, however often it is sent.

A client that loses its connection cannot know whether a request has arrived. So it sends it again
under the same number, and what it was answered is kept here until the client confirms that it has
the answer. What a client did not get before it died, or gave up, is undone: a value goes back into
its queue, a lease to the next in line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from hpcdask.core.coordination.answers import Answer, Kind, Outbox, Stored, Ticket
from hpcdask.core.coordination.datasets import Datasets
from hpcdask.core.coordination.flags import Flags
from hpcdask.core.coordination.leases import Leases, Name
from hpcdask.core.coordination.queues import Queues
from hpcdask.core.coordination.variables import Variables


class Operation:
    """A request that its client has not confirmed."""

    __slots__ = ("answer", "kind")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.answer: Answer | None = None  # until there is one


class Desk:
    """All that clients share by name, and what they have asked of it.

    Attributes
    ----------
    leases, queues, variables, flags, datasets : Kind
        What is shared.
    """

    def __init__(self) -> None:
        self.outbox = outbox = Outbox()
        self.leases, self.queues = Leases(outbox), Queues(outbox)
        self.variables, self.flags, self.datasets = (
            Variables(outbox),
            Flags(outbox),
            Datasets(outbox),
        )
        self._open: dict[str, dict[int, Operation]] = {}  # client -> request
        self._answers: list[tuple[Ticket, Answer]] = []

    def take(self) -> tuple[list[tuple[Ticket, Answer]], list[Stored]]:
        """Return the answers to send and the values that nobody has any more, and forget them."""
        self._note_answers()
        answers, self._answers = self._answers, []
        released, self.outbox.released = self.outbox.released, []
        return answers, released

    def operate(self, ticket: Ticket, kind: Kind, event: Callable[..., None], *what: Any) -> None:
        """Carry out ``event(ticket, *what)``, one of `kind`, unless that was done before.

        What it raises is the answer.
        """
        mine = self._open.setdefault(ticket.client, {})
        operation = mine.get(ticket.request)
        if operation is not None:
            if operation.answer is not None:
                self._answers.append((ticket, operation.answer))
            return
        mine[ticket.request] = Operation(kind)
        try:
            event(ticket, *what)
        except Exception as exc:
            self.outbox.answer(ticket, exc)
        self._note_answers()

    def confirmed(self, ticket: Ticket) -> None:
        """A client has its answer."""
        operation = self._pop(ticket)
        if operation is not None:
            operation.kind.confirmed(ticket)

    def given_up(self, ticket: Ticket) -> None:
        """A client's time is over: if there is no answer yet it is False."""
        operation = self._open.get(ticket.client, {}).get(ticket.request)
        if operation is not None and operation.answer is None:
            operation.kind.withdrawn(ticket)
            self.outbox.answer(ticket, False)
            self._note_answers()

    def withdrawn(self, ticket: Ticket) -> None:
        """A client has stopped waiting, and will not look at the answer."""
        operation = self._pop(ticket)
        if operation is not None:
            operation.kind.withdrawn(ticket)
            self._note_answers()

    def client_lost(self, client: str) -> None:
        """A client is gone for good: what it held is free, what it did not get is undone."""
        # The latest first: values go back to the front of their queues.
        for request in reversed(list(self._open.get(client, {}))):
            self.withdrawn(Ticket(client, request))
        self.leases.client_lost(client)
        self.queues.client_lost(client)
        self._note_answers()

    def client_resumed(
        self,
        client: str,
        waiting: Collection[int],
        withdrawn: Collection[int],
        leases: Mapping[int, tuple[tuple[Name, ...], int, int]],
        handles: dict[str, tuple[int, int]],
    ) -> None:
        """A client is back after a loss, in which its last words may have been lost.

        Parameters
        ----------
        waiting : collection of int
            Requests that it waits for, and will send again.
        withdrawn : collection of int
            Those that it does not wait for any more. All others it has the answers of.
        leases, handles : dict
            As for `Leases.held_before` and `Queues.kept`.
        """
        for request in reversed(list(self._open.get(client, {}))):
            if request in withdrawn:
                self.withdrawn(Ticket(client, request))
            elif request not in waiting:
                self.confirmed(Ticket(client, request))
        self.leases.kept(client, {*waiting, *leases})
        self.leases.held_before(client, leases)
        self.queues.kept(client, handles)
        self._note_answers()

    def _pop(self, ticket: Ticket) -> Operation | None:
        mine = self._open.get(ticket.client, {})
        operation = mine.pop(ticket.request, None)
        if not mine:
            self._open.pop(ticket.client, None)
        return operation

    def _note_answers(self) -> None:
        """Keep the answers of requests that are open; nobody looks at others."""
        answers, self.outbox.answers = self.outbox.answers, []
        for ticket, answer in answers:
            operation = self._open.get(ticket.client, {}).get(ticket.request)
            if operation is not None:
                operation.answer = answer
                self._answers.append((ticket, answer))
