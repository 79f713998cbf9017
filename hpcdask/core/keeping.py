"""Futures that nobody holds, but that lie where somebody will take them: in queues, for example."""

from __future__ import annotations

from collections.abc import Iterable

from hpcdask.core.records import ClientRecord
from hpcdask.core.returning import Returning


class Keeping(Returning):
    """The part of the scheduler that wants values on behalf of those who are yet to come."""

    def kept_for_others(self, now: float, keys: Iterable[str]) -> ClientRecord:
        """Keep values, or have them computed, until `kept_no_more` for what this returns."""
        keeper = ClientRecord("", is_told=False)
        for key in keys:
            task = self.tasks.get(key)
            if task is not None:
                task.add_client(keeper)
                self._demand_or_hold(task)
            elif self._has_predecessor:  # it may be submitted again
                self._held_wants.setdefault(key, {})[keeper] = None
        self._settle()
        return keeper

    def kept_no_more(self, now: float, keeper: ClientRecord) -> None:
        """What was kept has been taken, or is not to be."""
        self._drop_held_wants(keeper)
        self._depart(keeper)
        self._settle()
