"""Which hosts there are and what their ranks have said, put together from plain facts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from hpcdask._version import __version__
from hpcdask.comm.addresses import Address, parse_address
from hpcdask.doctor.facts import Examination, HostFacts, RankFacts, RankOfHost, Reached
from hpcdask.doctor.options import DoctorOptions
from hpcdask.doctor.planning import Target
from hpcdask.doctor.probes.network import place_of
from hpcdask.world import World


class Roll(NamedTuple):
    """Who is there.

    Parameters
    ----------
    ranks : dict
        What ranks have said, rank 0 included.
    by_letter : set of int
        Those of them that could not come.
    labels : dict
        Names of hosts by identity; two hosts with one name are told apart.
    facts : dict
        By name of the host, that of rank 0 first.
    """

    ranks: Mapping[int, RankFacts]
    by_letter: Collection[int]
    labels: dict[str, str]
    facts: dict[str, HostFacts]

    def host_of(self, rank: int) -> str:
        """Name of the host of a rank."""
        return self.labels[self.ranks[rank]["identity"]]


def call_roll(
    ranks: Mapping[int, RankFacts], by_letter: Collection[int], interface: str = ""
) -> Roll:
    """Hosts by name, with what is known of them.

    Without an `interface` that all are to use, each uses that by which it reaches rank 0.
    """
    roll = Roll(dict(sorted(ranks.items())), by_letter, {}, {})
    number: dict[str, int] = {}
    for found in roll.ranks.values():
        name = found["hostname"]
        if found["identity"] not in roll.labels:
            number[name] = number.get(name, 0) + 1
            # Containers of one machine may have its name, all of them.
            suffix = f"#{number[name]}" if number[name] > 1 else ""
            roll.labels[found["identity"]] = name + suffix
        label = roll.labels[found["identity"]]
        if label in roll.facts and not found["is_leader"]:
            continue
        if "software" not in roll.facts.get(label, {}):
            facts = _readable(found["facts"])
            roll.facts[label] = facts if interface else _towards_rank_0(facts, found["towards"])
    return roll


def _towards_rank_0(facts: HostFacts, address: str) -> HostFacts:
    """The same facts with the place of `address` as the chosen one, if it is a candidate."""
    network = facts.get("network")
    place = place_of(address, network["candidates"]) if network else None
    return {**facts, "network": {**network, "chosen": place}} if network and place else facts


def _readable(facts: HostFacts) -> HostFacts:
    """Those facts that this version of hpcdask understands, if another one has found them."""
    software = facts.get("software")
    if software is None or software["packages"]["hpcdask"] == __version__:
        return facts
    return {"software": software, "errors": {}}


def targets_of(roll: Roll) -> dict[str, list[Target]]:
    """All addresses at which a host says that it listens."""
    targets: dict[str, list[Target]] = {}
    for rank, found in roll.ranks.items():
        label = roll.host_of(rank)
        if label in targets or not found["ports"] or "network" not in roll.facts[label]:
            continue
        targets[label] = [
            Target(
                label,
                found["identity"],
                place["interface"],
                str(Address("tcp", place["address"], port)),
            )
            for place in roll.facts[label]["network"]["candidates"]
            for port in found["ports"]
        ]
    return targets


def beginning(
    roll: Roll, options: DoctorOptions, world: World, unwritten: list[str]
) -> Examination:
    """What is known before hosts have tried each other."""
    own = roll.ranks[0]["facts"]
    missing = [rank for rank in range(world.size) if rank not in roll.ranks]
    cpus = own["grants"]["cpus"] if "grants" in own else 1
    return {
        "version": __version__,
        "seconds": 0.0,
        "size": world.size,
        "nworkers": options.nworkers or (world.size - 1 if world.size > 1 else cpus),
        "launcher": world.launcher,
        "hosts": roll.facts,
        "ranks": [_rank(found, roll.host_of(rank)) for rank, found in roll.ranks.items()],
        "missing_ranks": missing,
        "missing_hosts": missing_hosts(roll) if missing else [],
        "by_letter": sorted({roll.host_of(rank) for rank in roll.by_letter}),
        "silent": [],
        "unwritten": unwritten,
        "interface": options.interface,
        "reached": tried_in_vain(roll),
        "carried": [],
        "scheduler_file": None,
        "clocks": {},
        "unfinished": [],
    }


def _rank(found: RankFacts, host: str) -> RankOfHost:
    grants = found["facts"].get("grants")
    return {
        "rank": found["rank"],
        "host": host,
        "pid": found["pid"],
        "cpus": grants["cpus"] if grants else 0,
        "affinity": grants["affinity"] if grants else [],
        "python": found["python"],
    }


def missing_hosts(roll: Roll) -> list[str]:
    """Hosts of the batch job from which nothing was heard."""
    own = roll.ranks[0]["facts"]
    nodes = own["launch"]["nodes"] if "launch" in own else []
    heard = {label.partition(".")[0].partition("#")[0] for label in roll.facts}
    return [node for node in nodes if node.partition(".")[0] not in heard]


def tried_in_vain(roll: Roll) -> list[Reached]:
    """Ways to rank 0 that hosts have tried before they wrote a letter."""
    target = roll.host_of(0)
    network = roll.facts[target].get("network")
    names = {p["address"]: p["interface"] for p in network["candidates"]} if network else {}
    found: dict[str, list[Reached]] = {}
    for rank in sorted(roll.by_letter):
        source = roll.host_of(rank)
        if source in found:
            continue
        found[source] = [
            {
                "source": source,
                "target": target,
                "interface": names[host],
                "address": attempt["address"].partition("//")[2],
                "seconds": None,
                "reason": attempt["reason"],
            }
            for attempt in roll.ranks[rank]["attempts"]
            if (host := parse_address(attempt["address"]).host) in names
        ]
    return [reached for ways in found.values() for reached in ways]
