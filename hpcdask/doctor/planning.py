"""Who tries whom, and in which order: decided from names alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Target(NamedTuple):
    """An address to dial."""

    host: str
    identity: str
    interface: str
    address: str  # tcp://host:port


def dialling_orders(
    dialled_by: Sequence[str], targets: Mapping[str, Sequence[Target]]
) -> dict[str, list[Target]]:
    """What each host dials: every address of every host, itself included.

    Each begins with the one behind it, so that no host is dialled by all others at once.

    Parameters
    ----------
    dialled_by : sequence of str
        Hosts that can be told to dial.
    targets : mapping
        Addresses by host; some hosts may be in it that cannot be told.
    """
    hosts = list(targets)
    orders = {}
    for source in dialled_by:
        start = hosts.index(source) + 1 if source in targets else 0
        order = hosts[start:] + hosts[:start]
        orders[source] = [target for host in order for target in targets[host]]
    return orders


def ring_rounds(hosts: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Pairs (from, to) along a ring, in rounds in which no host has two things to do.

    Examples
    --------
    >>> ring_rounds(["a", "b", "c"])
    [[('a', 'b')], [('b', 'c')], [('c', 'a')]]
    """
    if len(hosts) < 2:
        return []
    pairs = list(zip(hosts, [*hosts[1:], hosts[0]], strict=True))
    # The last pair of an odd ring shares a host with the first of either round.
    last = [pairs.pop()] if len(hosts) % 2 else []
    return [each for each in (pairs[::2], pairs[1::2], last) if each]
