"""Wants that end together, as those of a client that is gone: a million take seconds to drop."""

from __future__ import annotations

from hpcdask.core.records import ClientRecord, Task
from hpcdask.core.transitions import Transitions
from hpcdask.messages import SubmitTasks

#: Wants that are dropped within one event; the rest follows when others have had their turn.
AT_ONCE = 2000


class Departing(Transitions):
    """The part of the scheduler that lets go of what somebody does not want any more."""

    def __init__(self, first_attempt: int) -> None:
        super().__init__(first_attempt)
        #: Those whose wants are dropped little by little; they are told nothing.
        self.departed: list[ClientRecord] = []
        self.drop_at_once = AT_ONCE

    def had_time(self, now: float) -> None:
        """Nothing else is due: drop some more of the wants of those who have departed."""
        self._drop_some()
        self._settle()

    def _depart(self, client: ClientRecord) -> None:
        """Drop, as there is time, all that somebody wanted who will not want anything again."""
        for holder in _holders(client):
            holder.is_told = False
            if holder.wants:
                self.departed.append(holder)
        self._drop_some()

    def _drop_some(self) -> None:
        """Drop the latest wants first: these tasks are the least likely to run already."""
        released: list[Task] = []
        while self.departed and len(released) < self.drop_at_once:
            holder = self.departed[-1]
            while holder.wants and len(released) < self.drop_at_once:
                task = holder.wants.latest()
                task.drop_client(holder)
                released.append(task)
            if not holder.wants:
                self.departed.pop()
        self._release_unneeded(released)

    def _make_way(self, msg: SubmitTasks) -> None:
        """Forget what is only there for want of time, if a key is to begin anew."""
        if self.departed and any(spec.key in self.tasks for spec in msg.tasks):
            departed, self.departed = self.departed, []
            for holder in departed:
                self._drop_wants(holder)

    def _drop_wants(self, client: ClientRecord) -> None:
        """Drop now all that somebody wanted."""
        released = []
        for holder in _holders(client):
            for task in list(holder.wants):
                task.drop_client(holder)
                released.append(task)
        self._release_unneeded(released)


def _holders(client: ClientRecord) -> list[ClientRecord]:
    """A client, and what holds the graphs that it is still sending."""
    return [client, *(hold for _, hold in client.generations.values())]
