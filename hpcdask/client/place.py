"""Which scheduler a client means: one that is named or configured, or one of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError

if TYPE_CHECKING:
    from hpcdask.client.connection import Connection

#: The cluster that this very program has become, by `hpcdask.initialize` or `hpcdask.execute`.
of_program: SchedulerPlace | None = None


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


#: Keywords of distributed's `Client` for what there is nothing to set of here: all is pickled, and
#: connections notice by themselves when the other side is gone.
_WITHOUT_MEANING = {"heartbeat_interval", "connection_limit", "serializers", "deserializers"}
#: Those that a program relies on, and what to do; None asks for nothing.
_NOT_HERE = {
    "security": "connections are authenticated by a token (token=, token_file=), and not encrypted",
    "extensions": "Client.subscribe_topic tells a client what others log",
}


def without_theirs(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a new cluster, of keywords among which are such as only distributed knows.

    Raises
    ------
    TypeError
        For what a program may rely on.
    """
    for name, instead in _NOT_HERE.items():
        if options.get(name):
            raise TypeError(f"Client() has no {name}=: {instead}")
    return {
        name: value
        for name, value in options.items()
        if name not in _WITHOUT_MEANING and name not in _NOT_HERE
    }


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
