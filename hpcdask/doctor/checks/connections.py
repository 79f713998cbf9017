"""Whether hosts reach each other, see each other's files, and agree about the time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from hpcdask.comm.addresses import DEFAULT_PORT
from hpcdask.doctor.checks.ranks import numbers_of_ranks
from hpcdask.doctor.facts import Carried, Examination, Folder, Ports, Reached
from hpcdask.doctor.findings import Finding, Severity, listing, together, what_and_cure

#: Directions that are named one by one; of more than that those of a host are put together.
_NAMED = 6
#: How many times faster another interface must be to be worth a word.
_FASTER = 1.5
#: Seconds until a scheduler file is seen, and by which clocks differ: a word, and a failure.
_SLOW_FILE, _SKEW, _FATAL_SKEW = 3.0, 1.0, 300.0

_OTHER_FOLDER = "name a folder that you can write and all hosts can see, with --shared-folder"


def check(examination: Examination) -> Iterator[Finding]:
    """Findings about what is between hosts."""
    yield from _interfaces(examination)
    yield from _ports(examination)
    yield from _connections(examination)
    yield from _bandwidth(examination)
    yield from _scheduler_file(examination)
    yield from _clocks(examination)


# -- Interfaces and ports -------------------------------------------------------------------------


def _interfaces(examination: Examination) -> Iterator[Finding]:
    networks = {
        name: facts["network"] for name, facts in examination["hosts"].items() if "network" in facts
    }
    without = [name for name, network in networks.items() if network["problem"]]
    for name in without[:_NAMED]:
        what, cure = what_and_cure(networks[name]["problem"], "name one that it has")
        yield Finding("red", "network", f"{name}: {what}", cure, (name,))
    if len(without) > _NAMED:
        yield Finding(
            "red",
            "network",
            f"{len(without) - _NAMED} more hosts have no usable interface "
            f"{examination['interface']!r}: {listing(without[_NAMED:])}",
            "name one that all have with --interface; --json shows what each has",
            tuple(without[_NAMED:]),
        )
    lonely = [
        name
        for name, network in networks.items()
        if not network["candidates"] and not network["problem"]
    ]
    if lonely:
        yield Finding(
            "red" if len(networks) > 1 else "yellow",
            "network",
            f"no interface but the loopback has an address on {listing(lonely)}",
            "bring one up; without it only processes of the same host can work together",
            tuple(lonely),
        )


def _ports(examination: Examination) -> Iterator[Finding]:
    numbers = numbers_of_ranks(examination)
    yield from together(
        {
            name: list(_ports_of(facts["network"]["ports"], numbers[name]))
            for name, facts in examination["hosts"].items()
            if "network" in facts
        }
    )
    first, facts = next(iter(examination["hosts"].items()))
    ports = facts["network"]["ports"] if "network" in facts else None
    if ports and not ports["scheduler_port_is_free"] and not ports["range"]:
        yield Finding(
            "yellow",
            "ports",
            f"port {DEFAULT_PORT}, the scheduler's own, is taken on {first}",
            "give the scheduler --port 0 and a --scheduler-file, or end what listens there",
            (first,),
        )


def _ports_of(ports: Ports, nranks: int) -> Iterator[Finding]:
    if ports["range"] and not ports["free"]:
        yield Finding(
            "red",
            "ports",
            f"no port of {ports['range']} is free {{on}}: {ports['problem']}",
            "choose another range, or ask for more ports",
        )
    elif ports["range"] and ports["free"] < nranks:
        yield Finding(
            "red",
            "ports",
            f"{ports['free']} of the ports {ports['range']} are free {{on}}, and its {nranks} "
            "ranks need one each",
            "choose a wider range, or start fewer ranks",
        )


# -- Connections ----------------------------------------------------------------------------------


def used_addresses(examination: Examination) -> dict[str, str]:
    """The address of each host that hpcdask would use."""
    chosen = {
        name: facts["network"]["chosen"]
        for name, facts in examination["hosts"].items()
        if "network" in facts
    }
    return {name: place["address"] for name, place in chosen.items() if place is not None}


def is_used(reached: Reached, used: Mapping[str, str]) -> bool:
    """Whether hpcdask would connect in this way."""
    return used.get(reached["target"]) == _host(reached["address"])


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _connections(examination: Examination) -> Iterator[Finding]:
    used = used_addresses(examination)
    failed = [each for each in examination["reached"] if each["seconds"] is None]
    sound = sound_interfaces(examination)
    yield from _broken([each for each in failed if is_used(each, used)], sound)
    spare: dict[str, list[Reached]] = {}
    for each in failed:
        if not is_used(each, used):
            spare.setdefault(each["interface"], []).append(each)
    for interface, those in spare.items():
        total = sum(each["interface"] == interface for each in examination["reached"])
        yield Finding(
            "yellow",
            "connections",
            f"{len(those)} of {total} ways by {interface}, which would not be used, fail, e.g. "
            f"{_direction(those[0])}",
            f"nothing, as long as nobody gives --interface {interface}",
            tuple(dict.fromkeys(each["target"] for each in those)),
        )


def _broken(failed: Sequence[Reached], sound: Sequence[str]) -> Iterator[Finding]:
    """Directions that would be used and fail, each by itself unless there are many."""
    if len(failed) <= _NAMED:
        for each in failed:
            hosts = tuple(dict.fromkeys((each["source"], each["target"])))
            cure = _cure(sound, each["reason"])
            yield Finding("red", "connections", _direction(each), cure, hosts)
        return
    sources, targets = _counted(failed, "source"), _counted(failed, "target")
    # Whichever tells it in fewer words: hosts that reach nobody, or hosts that nobody reaches.
    groups = targets if len(targets) <= len(sources) else sources
    for name, those in groups.items():
        first = those[0]
        if groups is targets:
            who = listing([each["source"] for each in those])
            what = f"{who} cannot reach {name} at {first['address']} ({first['interface']})"
        else:
            what = f"{name} cannot reach {listing([each['target'] for each in those])}"
            what += f", e.g. at {first['address']} ({first['interface']})"
        cure = _cure(sound, first["reason"])
        yield Finding("red", "connections", f"{what}: {first['reason']}", cure, (name,))


def _counted(failed: Sequence[Reached], end: str) -> dict[str, list[Reached]]:
    groups: dict[str, list[Reached]] = {}
    for each in failed:
        groups.setdefault(each["source"] if end == "source" else each["target"], []).append(each)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _direction(reached: Reached) -> str:
    return (
        f"{reached['source']} cannot reach {reached['target']} at {reached['address']} "
        f"({reached['interface']}): {reached['reason']}"
    )


def sound_interfaces(examination: Examination) -> list[str]:
    """Interfaces by which every host reaches every other one."""
    names = dict.fromkeys(each["interface"] for each in examination["reached"])
    number = len(examination["hosts"])
    sound = []
    for name in names:
        ways = [each for each in examination["reached"] if each["interface"] == name]
        pairs = {(each["source"], each["target"]) for each in ways}
        if len(pairs) == number**2 and all(each["seconds"] is not None for each in ways):
            sound.append(name)
    return sound


def _cure(sound: Sequence[str], reason: str) -> str:
    if sound:
        return f"give --interface {sound[0]}, by which all hosts reach each other"
    if "several hosts have this address" in reason:
        return "give --interface one that is not private to each host (docker0, virbr0 are)"
    if "do not arrive" in reason or "but then" in reason:
        return "see whether MTUs agree along the way (ip link), large packets seem to be lost"
    if "refused" in reason.lower() or "prohibited" in reason.lower():
        return "a firewall forbids it: open the ports, and name those that are with --port-range"
    return (
        "see cable, routes and firewall between them (ip route get); name another network with "
        "--interface, or ports that are open with --port-range"
    )


# -- Bandwidth ------------------------------------------------------------------------------------


def typical_speed(carried: Sequence[Carried], interface: str) -> float:
    """Median of the bytes per second that an interface carries; 0 if unknown."""
    return median(
        [
            each["bytes_per_second"]
            for each in carried
            if each["interface"] == interface and each["bytes_per_second"]
        ]
        or [0.0]
    )


def used_interface(examination: Examination) -> str:
    """The interface that hpcdask would use on rank 0's host; empty if there is none."""
    first = next(iter(examination["hosts"].values()), None)
    place = first["network"]["chosen"] if first and "network" in first else None
    return place["interface"] if place else ""


def _bandwidth(examination: Examination) -> Iterator[Finding]:
    carried, used = examination["carried"], used_interface(examination)
    sound = [name for name in sound_interfaces(examination) if name != used]
    for each in carried:
        if each["bytes_per_second"] is None and each["interface"] == used:
            yield Finding(
                "red",
                "bandwidth",
                f"{each['source']} cannot send to {each['target']} by {used}: {each['reason']}",
                _cure(sound, each["reason"]),
                (each["source"], each["target"]),
            )
    speed = typical_speed(carried, used)
    best = max(sound, key=lambda name: typical_speed(carried, name), default="")
    if best and speed and typical_speed(carried, best) > _FASTER * speed:
        yield Finding(
            "yellow",
            "bandwidth",
            f"{used} would be used, and {best} is {typical_speed(carried, best) / speed:.1f} times "
            "as fast",
            f"give --interface {best}",
        )


# -- Files and clocks -----------------------------------------------------------------------------


def _scheduler_file(examination: Examination) -> Iterator[Finding]:
    folders = {
        name: facts["folder"] for name, facts in examination["hosts"].items() if "folder" in facts
    }
    yield from together({name: list(_folder(folder)) for name, folder in folders.items()})
    seen = examination["scheduler_file"]
    if seen is None:
        return
    own = folders.get(seen["writer"])
    severity = _severity(own)
    if seen["problem"] and not (own and own["problem"]):
        yield Finding(
            severity, "scheduler_file", f"{seen['writer']}: {seen['problem']}", _OTHER_FOLDER
        )
    blind = [name for name, seconds in seen["seconds"].items() if seconds is None]
    if blind:
        yield Finding(
            severity,
            "scheduler_file",
            f"a scheduler file that {seen['writer']} writes into {seen['path']} is not seen on "
            f"{listing(blind)}: {seen['problems'].get(blind[0], 'unknown why')}",
            _OTHER_FOLDER,
            tuple(blind),
        )
    slow = {name: s for name, s in seen["seconds"].items() if s is not None and s > _SLOW_FILE}
    if slow:
        yield Finding(
            "yellow",
            "scheduler_file",
            f"a scheduler file in {seen['path']} is seen after {max(slow.values()):.0f} s only on "
            f"{listing(list(slow))}",
            "give workers a --death-timeout of several times that, or use a folder on another file "
            "system",
            tuple(slow),
        )


def _severity(folder: Folder | None) -> Severity:
    """Of what is wrong with a folder: under mpirun a cluster can do without, unless it is named."""
    return "red" if folder and folder["asked"] else "yellow"


def _folder(folder: Folder) -> Iterator[Finding]:
    severity = _severity(folder)
    if folder["problem"]:
        what = f"a scheduler file cannot be written into {folder['path']} {{on}}"
        yield Finding(severity, "folder", f"{what}: {folder['problem']}", _OTHER_FOLDER)
    elif not folder["keeps_modes"]:
        what = f"{folder['path']} ({folder['filesystem']}) {{on}} does not keep the mode 0600"
        what += ", so others could read the token in a scheduler file"
        yield Finding(severity, "folder", what, _OTHER_FOLDER)


def _clocks(examination: Examination) -> Iterator[Finding]:
    first = next(iter(examination["hosts"]), "")
    skews = {
        name: clock["ahead"]
        for name, clock in examination["clocks"].items()
        if abs(clock["ahead"]) - clock["uncertainty"] > _SKEW
    }
    fatal = {name: skew for name, skew in skews.items() if abs(skew) > _FATAL_SKEW}
    harmless = {name: skew for name, skew in skews.items() if name not in fatal}
    groups: list[tuple[Severity, dict[str, float]]] = [("red", fatal), ("yellow", harmless)]
    for severity, those in groups:
        if those:
            most = max(those.values(), key=abs)
            yield Finding(
                severity,
                "clocks",
                f"the clock of {listing(list(those))} is {'up to ' * (len(those) > 1)}"
                f"{abs(most):.1f} s {'ahead of' if most > 0 else 'behind'} that of {first}",
                "have it set by NTP (chronyc tracking); certificates and logs depend on it",
                tuple(those),
            )
