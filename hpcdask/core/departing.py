"""Wants that end together, as those of a client that is gone: a million take seconds to drop."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

from hpcdask.core.records import ClientRecord, Task
from hpcdask.core.transitions import Transitions


class Departing(Transitions):
    """The part of the scheduler that lets go of what somebody does not want any more."""

    def __init__(self, first_attempt: int) -> None:
        super().__init__(first_attempt)
        #: Those whose wants are dropped little by little; they are told nothing.
        self.departed: list[ClientRecord] = []

    @property
    def has_more_to_drop(self) -> bool:
        """Whether something is only there for want of time, and `drop_more` is due."""
        return bool(self.departed or self.doomed)

    def drop_more(self, now: float) -> None:
        """Others have had their turn: drop some more of what nobody is there to want."""
        doomed = list(islice(self.doomed, self.drop_at_once))
        for task in doomed:
            del self.doomed[task]
        self._release_unneeded(doomed)
        self._drop_some()
        self._settle()

    def _depart(self, client: ClientRecord) -> None:
        """Drop, in several events if it is much, all that somebody wanted who is gone for good."""
        for holder in holders(client):
            holder.is_told, holder.has_departed = False, True
            if holder.wants:
                self.departed.append(holder)
        self._drop_some()

    def _drop_some(self) -> None:
        """Drop the latest wants first, which are the least likely to run already."""
        released: list[Task] = []
        while self.departed and len(released) < self.drop_at_once:
            holder = self.departed[-1]
            while holder.wants and len(released) < self.drop_at_once:
                task = holder.wants.take_latest()
                task.drop_client(holder)
                released.append(task)
            if not holder.wants:
                self.departed.pop()
        self._release_unneeded(released)

    def _make_way(self, keys: Iterable[str]) -> None:
        """Forget those of the keys, which are to begin anew, that are only there for want of time.

        That is if nobody but those who have departed wants them, or what builds on them.
        """
        if not self.has_more_to_drop:
            return
        for key in keys:
            task = self.tasks.get(key)
            doomed = None if task is None else _without_living(task)
            if doomed is not None:
                for each in doomed:
                    for holder in list(each.wanted_by):
                        each.drop_client(holder)
                self._release_unneeded(doomed, math.inf)
        self.departed = [holder for holder in self.departed if holder.wants]

    def _drop_wants(self, client: ClientRecord) -> None:
        """Drop now all that somebody wanted."""
        released = []
        for holder in holders(client):
            for task in list(holder.wants):
                task.drop_client(holder)
                released.append(task)
        self._release_unneeded(released)


def _without_living(task: Task) -> dict[Task, None] | None:
    """A task and all that builds on it, unless somebody wants any of it who has not departed."""
    found: dict[Task, None] = {}
    stack = [task]
    while stack:
        task = stack.pop()
        if task not in found:
            if not all([client.has_departed for client in task.wanted_by]):
                return None
            found[task] = None
            stack.extend(task.dependents)
    return found


def holders(client: ClientRecord) -> list[ClientRecord]:
    """A client, and what holds the graphs that it is still sending."""
    return [client, *(hold for _, hold in client.generations.values())]
