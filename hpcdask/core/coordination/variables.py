"""Variables: the last value that anybody has set."""

from __future__ import annotations

from hpcdask.core.coordination.answers import Kind, Outbox, Stored, Ticket


class Variables(Kind):
    """All variables, by name."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(outbox)
        self.values: dict[str, Stored] = {}
        self._waiting: dict[str, dict[Ticket, None]] = {}  # for a first value
        self._waits_for: dict[Ticket, str] = {}

    def set(self, ticket: Ticket, name: str, stored: Stored) -> None:
        """A client sets a value, which all who wait for one get."""
        self.outbox.use(stored)
        before = self.values.get(name)
        self.values[name] = stored
        if before is not None:
            self.outbox.drop(before)
        self.outbox.answer(ticket, True)
        for waiting in self._waiting.pop(name, ()):
            del self._waits_for[waiting]
            self._deliver(waiting, [stored])

    def asked(self, ticket: Ticket, name: str) -> None:
        """A client wants the value, and waits while there is none."""
        stored = self.values.get(name)
        if stored is not None:
            self._deliver(ticket, [stored])
        else:
            self._waiting.setdefault(name, {})[ticket] = None
            self._waits_for[ticket] = name

    def deleted(self, ticket: Ticket, name: str) -> None:
        """A client forgets the value, for all."""
        stored = self.values.pop(name, None)
        if stored is not None:
            self.outbox.drop(stored)
        self.outbox.answer(ticket, True)

    def withdrawn(self, ticket: Ticket) -> None:
        """A client waits no longer."""
        super().withdrawn(ticket)
        name = self._waits_for.pop(ticket, None)
        if name is not None:
            del self._waiting[name][ticket]
            if not self._waiting[name]:
                del self._waiting[name]
