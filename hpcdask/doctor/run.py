"""``hpc-dask doctor`` as a whole, on each of its ranks."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from hpcdask.comm.addresses import Address
from hpcdask.doctor.examination import (
    Hosts,
    OwnHost,
    TimeLeft,
    compare_clocks,
    measure_bandwidth,
    try_connections,
    try_scheduler_file,
)
from hpcdask.doctor.facts import Clock, Examination, Place, RankFacts
from hpcdask.doctor.meeting import Guest, Reception, contact_paths, new_contact, plain
from hpcdask.doctor.options import DoctorOptions
from hpcdask.doctor.probes.gathering import look_at_host, look_at_rank
from hpcdask.doctor.probes.network import candidate_places, own_identity
from hpcdask.doctor.roll import beginning, call_roll, targets_of
from hpcdask.doctor.station import Station
from hpcdask.errors import HpcdaskError
from hpcdask.network import Interface, hostname
from hpcdask.rendezvous import Contact, new_token
from hpcdask.world import World

T = TypeVar("T")

#: Parts of the time: for either half of the probes, until when ranks may come, and until when all
#: is tried.
_PROBES, _MEETING, _TRIES = 0.15, 0.5, 0.85
#: Seconds that probes have at least.
_SHORTEST_PROBES = 3.0
#: Times the timeout after which a process ends whatever it is busy with.
_AT_LAST = 2.5


async def be_examined(options: DoctorOptions, world: World) -> str:
    """Take the part of a rank other than 0; return what went wrong, if rank 0 cannot know it."""
    found = await _own_facts(options, world)
    paths = contact_paths(options, world)
    try:
        return await Guest(paths, world, found, _ports(found)).take_part(options.timeout)
    except HpcdaskError as exc:
        return str(exc)


async def examine(options: DoctorOptions, world: World) -> Examination:
    """Take the part of rank 0: examine this host, all others, and what is between them."""
    start = time.monotonic()
    found = await _own_facts(options, world)
    reception = Reception(_safe_paths(options, world, found), world)
    reception.ranks[0] = found
    token = new_token()
    station = Station(found["identity"], token, reception.on_register)
    try:
        found["ports"] = await station.listen(_ports(found))
        contact = new_contact(_addresses(found), token)
        if world.size > 1:
            await reception.open(contact)
            await reception.all_there(options.timeout * _MEETING - (time.monotonic() - start))
        left = TimeLeft(options.timeout * _TRIES - (time.monotonic() - start))
        result = await _try_all(options, world, station, reception, contact, left)
    finally:
        # Files first: a launcher that ends us may leave no time for more.
        await reception.close()
        await station.close()
    result["seconds"] = round(time.monotonic() - start, 3)
    return result


async def _try_all(
    options: DoctorOptions,
    world: World,
    station: Station,
    reception: Reception,
    contact: Contact,
    left: TimeLeft,
) -> Examination:
    roll = call_roll(reception.ranks, reception.by_letter, options.interface)
    here = roll.host_of(0)
    others = {roll.host_of(rank): line for rank, line in sorted(reception.lines.items())}
    hosts = Hosts({here: OwnHost(station), **others}, left)
    result = beginning(roll, options, world, reception.problems)
    path = Path(options.folder) / f"hpc-dask-doctor-{contact.id}.json"

    async def in_time(what: str, work: Callable[[], Awaitable[T]], otherwise: T) -> T:
        found = otherwise if left.is_over else await work()
        if left.is_over:
            result["unfinished"].append(what)
        return found

    clocks: dict[str, Clock] = await in_time("the clocks", lambda: compare_clocks(hosts), {})
    result["clocks"] = clocks
    result["reached"] += await in_time(
        "all connections", lambda: try_connections(hosts, targets_of(roll)), []
    )
    result["scheduler_file"] = await in_time(
        "the scheduler file", lambda: try_scheduler_file(path, here, hosts, contact, clocks), None
    )
    if not options.is_fast:
        result["carried"] = await in_time(
            "the bandwidth", lambda: measure_bandwidth(hosts, result["reached"]), []
        )
    result["silent"] = hosts.silent
    return result


# -- What ranks say of themselves -----------------------------------------------------------------


async def _own_facts(options: DoctorOptions, world: World) -> RankFacts:
    is_leader = world.local_rank == 0 or world.rank == 0
    patience = max(options.timeout * _PROBES, _SHORTEST_PROBES)
    looking = look_at_host(options, patience, not world.rank) if is_leader else look_at_rank()
    name = hostname()
    return {
        "rank": world.rank,
        "hostname": name,
        "identity": own_identity(name),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "is_leader": is_leader,
        "ports": [],
        "towards": "",
        "facts": plain(await looking),
        "attempts": [],
    }


def _ports(found: RankFacts) -> list[int]:
    """Where to listen: at both ends of the range of ports, if one was given."""
    if not found["is_leader"]:
        return []
    network = found["facts"].get("network")
    if network is None or not network["ports"]["free"]:
        return [0]
    ports = network["ports"]
    return sorted({ports["first_free"], ports["last_free"]})


def _safe_paths(options: DoctorOptions, world: World, found: RankFacts) -> list[Path]:
    """Where a token can be written; not into a folder that shows it to others."""
    folder = found["facts"].get("folder")
    paths = contact_paths(options, world)
    if folder is not None and not folder["keeps_modes"]:
        paths = [path for path in paths if path.parent != Path(options.folder)]
    return paths


def _addresses(found: RankFacts) -> list[str]:
    """Where rank 0 can be reached, the address that it would advertise first.

    Others follow even if the user has named an interface: where that is broken, ranks can still
    come, and say what is.
    """
    network, port = found["facts"].get("network"), found["ports"][0]
    places: list[Place] = []
    if network is not None:
        available = [
            Interface(each["name"], each["is_up"], tuple(each["addresses"]))
            for each in network["interfaces"]
        ]
        places = sorted(network["candidates"], key=lambda place: place != network["chosen"])
        places += candidate_places("", available)[0]
    addresses = dict.fromkeys(place["address"] for place in places) or ["127.0.0.1"]
    return [str(Address("tcp", address, port)) for address in addresses]


# -- The end --------------------------------------------------------------------------------------


@contextlib.contextmanager
def certain_end(world: World, timeout: float) -> Iterator[None]:
    """End this process by force if the block has not ended long after it should have."""
    seconds = timeout * _AT_LAST

    def end() -> None:
        print(
            f"hpc-dask doctor: {world} on {hostname()} did not end within {seconds:g} s and is "
            "ended by force; some call of the system does not return",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
