"""Events as `threading.Event` has them: flags that can be waited for."""

from __future__ import annotations

from hpcdask.core.coordination.answers import Kind, Outbox, Ticket


class Flags(Kind):
    """All flags, by name."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(outbox)
        self.raised: set[str] = set()
        self._waiting: dict[str, dict[Ticket, None]] = {}
        self._waits_for: dict[Ticket, str] = {}

    def changed(self, ticket: Ticket, name: str, is_set: bool) -> None:
        """A client sets or clears a flag."""
        if is_set:
            self.raised.add(name)
            for waiting in self._waiting.pop(name, ()):
                del self._waits_for[waiting]
                self.outbox.answer(waiting, True)
        else:
            self.raised.discard(name)
        self.outbox.answer(ticket, True)

    def asked(self, ticket: Ticket, name: str) -> None:
        """A client asks whether a flag is set."""
        self.outbox.answer(ticket, name in self.raised)

    def awaited(self, ticket: Ticket, name: str) -> None:
        """A client waits until a flag is set."""
        if name in self.raised:
            self.outbox.answer(ticket, True)
        else:
            self._waiting.setdefault(name, {})[ticket] = None
            self._waits_for[ticket] = name

    def withdrawn(self, ticket: Ticket) -> None:
        """A client waits no longer."""
        name = self._waits_for.pop(ticket, None)
        if name is not None:
            del self._waiting[name][ticket]
            if not self._waiting[name]:
                del self._waiting[name]
