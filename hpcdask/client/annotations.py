"""What `dask.annotate` says of tasks: which go into one message, since they have it in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from hpcdask.client.streaming import Conditions, checked_conditions

_KINDS = ("priority", "retries", "workers", "allow_other_workers", "resources", "actor")


class Annotations:
    """The conditions of each task of a graph.

    Parameters
    ----------
    by_kind : mapping
        Kind of annotation -> key -> value. What is said of a key goes before what is said of all.
    general : Conditions
        Of all others.
    """

    def __init__(self, by_kind: Mapping[str, Mapping[Any, Any]], general: Conditions) -> None:
        self._by_kind = {kind: by_kind[kind] for kind in _KINDS if by_kind.get(kind)}
        self.general = general
        self._known: dict[Any, Conditions] = {}

    def runs(self, keys: list[Any]) -> Iterator[tuple[list[Any], bool, Conditions]]:
        """Divide keys, whose order matters, where conditions change; say which run is the last."""
        if not self._by_kind:
            yield keys, True, self.general
            return
        n = 0
        for found, run in groupby(keys, self._of):
            alike = list(run)
            n += len(alike)
            yield alike, n == len(keys), found

    def _of(self, key: Any) -> Conditions:
        own = {kind: values[key] for kind, values in self._by_kind.items() if key in values}
        if not own:
            return self.general
        same = repr(own)
        known = self._known.get(same)
        if known is None:
            known = self._known[same] = _combined(self.general, own)
        return known


def _combined(general: Conditions, own: Mapping[str, Any]) -> Conditions:
    workers, allow_others, resources, actor = general.restriction or (None, False, (), False)
    return checked_conditions(
        own.get("priority", general.priority),
        int(own.get("retries", general.retries)),
        own.get("workers", workers or None),
        own.get("allow_other_workers", allow_others),
        own.get("resources", dict(resources)),
        own.get("actor", actor),
    )
