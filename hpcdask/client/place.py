"""Which scheduler a client means: one that is named or configured, or one of its own."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hpcdask.client.registry import clients, clusters
from hpcdask.comm.addresses import parse_address
from hpcdask.dialling import SchedulerPlace
from hpcdask.errors import ConfigError
from hpcdask.world import launched_world

if TYPE_CHECKING:
    from hpcdask.client.connection import Connection

#: The cluster that this very program has become, by `hpcdask.initialize` or `hpcdask.execute`.
of_program: SchedulerPlace | None = None


#: Keywords of distributed's `Client` and `LocalCluster` that are accepted and mean nothing here.
OF_CLIENTS = frozenset(
    ("connection_limit", "deserializers", "extensions", "heartbeat_interval", "serializers")
)
OF_CLUSTERS = frozenset(("blocked_handlers", "service_kwargs", "worker_dashboard_address"))


def with_meaning(options: dict[str, Any], meaningless: frozenset[str]) -> dict[str, Any]:
    """Options of a program of distributed without those that mean nothing here.

    Raises
    ------
    ConfigError
        If it wants its connections encrypted.
    """
    if options.get("security"):
        raise ConfigError(
            "this version does not encrypt connections; leave security out. Whoever connects must "
            "know the cluster's token in any case"
        )
    return {name: options[name] for name in options if name not in {*meaningless, "security"}}


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
        return _with_token_known_here(place, client._made_in)
    if of_program is not None:
        _refuse_cluster_options(client)
        return of_program
    settings = client.settings
    by_file, by_address = settings["scheduler-file"], settings["scheduler-address"]
    if by_file or by_address:
        _refuse_cluster_options(client)
        return replace(place, address=by_address, scheduler_file=by_file)
    from hpcdask.launchers.local import LocalCluster

    _warn_of_many_clusters()
    options = {"dashboard_address": None, **client._cluster_options}
    client.cluster = LocalCluster(asynchronous=client._asynchronous, loop=client.loop, **options)
    client._owns_cluster = True
    await client.cluster
    return _place_of(client.cluster)


def _warn_of_many_clusters() -> None:
    """A program that `mpirun` starts as it is runs as often as there are ranks."""
    with contextlib.suppress(ConfigError):
        world = launched_world()
        if world.size > 1 and world.rank == 0:
            warnings.warn(
                f"each of the {world.size} ranks of {world.launcher} runs this program and starts "
                "a cluster of its own; for one cluster on all ranks start them with `hpc-dask run "
                "PROGRAM`, or let the program begin with hpcdask.initialize()",
                stacklevel=2,
            )


def _with_token_known_here(place: SchedulerPlace, worker: Any) -> SchedulerPlace:
    """Add the token to a mere address, if this process is in that cluster already.

    Programs make a `LocalCluster`, whose token is its own, and then a client of its address, and
    so do tasks, whose `worker` has the token.
    """
    if not place.address or place.scheduler_file or place.token or place.token_file:
        return place
    address = str(parse_address(place.address))
    token = next((t for there, t in _tokens_known_here(worker) if there == address and t), None)
    return place if token is None or not place.auth else replace(place, token=token)


def _tokens_known_here(worker: Any) -> Iterator[tuple[str, bytes | str | None]]:
    """Addresses of schedulers and their tokens, as clusters, clients and tasks here have them."""
    for cluster in list(clusters):
        if cluster.status == "running":
            yield cluster.scheduler_address, cluster.place.token
    for client in list(clients):
        if client._is_open and client._link is not None:
            yield client.scheduler_address, client._link.options.token
    if worker is not None:
        yield worker.scheduler_address, worker.options.token


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
