"""Which scheduler a client means: one that is named or configured, or one of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError

if TYPE_CHECKING:
    from hpcdask.client.connection import Connection

#: Keywords of dask.distributed's client that tune what works by other means here.
_MEANINGLESS = ("heartbeat_interval", "connection_limit")
#: Others of its keywords, for what is not here; None of them is a wish for nothing.
_ABSENT = ("security", "serializers", "deserializers", "extensions")

#: The cluster that this very program has become, by `hpcdask.initialize` or `hpcdask.execute`.
of_program: SchedulerPlace | None = None


def cluster_options(others: dict[str, Any]) -> dict[str, Any]:
    """Of a client's other keywords those that a new cluster may take.

    Raises
    ------
    TypeError
        If there is one of dask.distributed for something that is not here.
    """
    for name in _ABSENT:
        if others.get(name) is not None:
            raise TypeError(
                f"Client() cannot serve {name}=: connections are authenticated by a "
                "token, and objects are pickled; see the page 'From dask.distributed'"
            )
    return {k: v for k, v in others.items() if k not in (*_MEANINGLESS, *_ABSENT)}


async def find_place(client: Connection) -> SchedulerPlace:
    """Decide which scheduler is meant; without any a `LocalCluster` is started."""
    place, given = client._place, client._given
    if given is not None and not isinstance(given, str):
        _refuse_cluster_options(client)
        client.cluster = given
        if hasattr(given, "_started"):
            await given._started()
        return _place_of(given)
    if place.address or place.scheduler_file:
        _refuse_cluster_options(client)
        return place
    if of_program is not None:
        _refuse_cluster_options(client)
        return of_program
    settings = client.settings
    by_file, by_address = settings["scheduler-file"], settings["scheduler-address"]
    if by_file or by_address:
        _refuse_cluster_options(client)
        return replace(place, address=by_address, scheduler_file=by_file)
    from hpcdask.launchers.local import LocalCluster

    options = {"dashboard_address": None, **client._cluster_options}
    client.cluster = LocalCluster(asynchronous=client._asynchronous, loop=client.loop, **options)
    client._owns_cluster = True
    await client.cluster
    return _place_of(client.cluster)


def _refuse_cluster_options(client: Connection) -> None:
    if client._cluster_options:
        raise TypeError(
            f"Client() got {sorted(client._cluster_options)}, which are options of a new "
            "LocalCluster; here it connects to an existing cluster"
        )


def _place_of(cluster: Any) -> SchedulerPlace:
    """How a client reaches a cluster object: what it says itself, or its address."""
    if hasattr(cluster, "place"):
        return cluster.place  # type: ignore[no-any-return]
    address = getattr(cluster, "scheduler_address", None)
    if not isinstance(address, str):
        raise ConfigError(
            f"Client() takes an address or a cluster with a scheduler_address, not {cluster!r:.80}"
        )
    return SchedulerPlace(address)
