"""Answers to what clients ask of shared things, and the values that these things hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from hpcdask.messages import Blob


class Ticket(NamedTuple):
    """One request of one client; sent again after a loss it is the same."""

    client: str
    request: int


class Stored:
    """A value that somebody has left for others.

    Parameters
    ----------
    value : Blob
        The pickle.
    hold : object
        What keeps the futures in it alive; None if there are none.

    Attributes
    ----------
    uses : int
        Places that have it: a queue, a variable, an answer that is not confirmed yet.
    """

    __slots__ = ("hold", "uses", "value")

    def __init__(self, value: Blob, hold: Any = None) -> None:
        self.value, self.hold = value, hold
        self.uses = 0


#: True, False for "not in time", a number, values (None: there is none), names, or an error.
Answer: TypeAlias = bool | int | Sequence[Stored | None] | tuple[Any, ...] | Exception


class Outbox:
    """What follows from events, until somebody takes it.

    Attributes
    ----------
    answers : list of (Ticket, Answer)
    released : list of Stored
        What nobody has any more, so that the futures in it may go.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[Ticket, Answer]] = []
        self.released: list[Stored] = []

    def answer(self, ticket: Ticket, answer: Answer) -> None:
        """Answer a request."""
        self.answers.append((ticket, answer))

    def use(self, stored: Stored) -> None:
        """Count one more place that has a value."""
        stored.uses += 1

    def drop(self, stored: Stored) -> None:
        """Undo `use`."""
        stored.uses -= 1
        if not stored.uses and stored.hold is not None:
            self.released.append(stored)


class Kind:
    """What all kinds of shared things have in common.

    A value is delivered when its answer is confirmed: until then the futures in it stay alive,
    since the client that gets them has to tell that it holds them.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self._delivered: dict[Ticket, Sequence[Stored | None]] = {}

    def _deliver(self, ticket: Ticket, values: Sequence[Stored | None]) -> None:
        for stored in _present(values):
            self.outbox.use(stored)
        self._delivered[ticket] = values
        self.outbox.answer(ticket, values)

    def confirmed(self, ticket: Ticket) -> None:
        """The client has the answer."""
        for stored in _present(self._delivered.pop(ticket, ())):
            self.outbox.drop(stored)

    def withdrawn(self, ticket: Ticket) -> None:
        """The client waits no longer, or is gone: undo what the request has done and can be."""
        self.confirmed(ticket)


def _present(values: Sequence[Stored | None]) -> Iterable[Stored]:
    return [stored for stored in values if stored is not None]
