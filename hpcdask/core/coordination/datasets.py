"""Published datasets: values by name that outlive the client that has published them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hpcdask.core.coordination.answers import Kind, Outbox, Stored, Ticket


class Datasets(Kind):
    """All published datasets, by name: a string, a number, or a tuple of these."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(outbox)
        self.published: dict[Any, Stored] = {}

    def publish(self, ticket: Ticket, values: Mapping[Any, Stored], override: bool) -> None:
        """A client publishes values: all of them, or none.

        Raises
        ------
        KeyError
            If there is one of the name already, unless it may `override` it.
        """
        taken = [name for name in values if name in self.published]
        if taken and not override:
            raise KeyError(
                f"a dataset {taken[0]!r} is published already; unpublish it first, choose another "
                "name, or replace it by override=True"
            )
        for name, stored in values.items():
            self.outbox.use(stored)
            before = self.published.get(name)
            self.published[name] = stored
            if before is not None:
                self.outbox.drop(before)
        self.outbox.answer(ticket, True)

    def asked(self, ticket: Ticket, names: Iterable[Any]) -> None:
        """A client wants some of them."""
        self._deliver(ticket, [self.published.get(name) for name in names])

    def listed(self, ticket: Ticket) -> None:
        """A client asks which there are."""
        self.outbox.answer(ticket, tuple(self.published))

    def unpublish(self, ticket: Ticket, names: Iterable[Any]) -> None:
        """A client forgets some, for all; the answer is how many there were."""
        gone = [stored for name in names if (stored := self.published.pop(name, None)) is not None]
        for stored in gone:
            self.outbox.drop(stored)
        self.outbox.answer(ticket, len(gone))
