"""Interfaces, addresses and ports of this host."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from hpcdask import network
from hpcdask.comm.addresses import DEFAULT_PORT, parse_ports
from hpcdask.doctor.facts import InterfaceFacts, Network, Place, Ports
from hpcdask.errors import InterfaceNotFoundError


def look(interface: str, port_range: str) -> Network:
    """What this host has of a network.

    Parameters
    ----------
    interface : str
        What the user wants to use, or empty.
    port_range : str
        Where listeners may be, or empty.
    """
    available = network.interfaces()
    default = "" if interface else network.default_address()
    candidates, problem = candidate_places(interface, available, default)
    chosen = candidates[0] if interface and candidates else place_of(default, candidates)
    return {
        "interfaces": _described(available),
        "candidates": candidates,
        "chosen": chosen,
        "problem": problem,
        "ports": _ports(port_range),
    }


def candidate_places(
    interface: str, available: Iterable[network.Interface], default: str = ""
) -> tuple[list[Place], str]:
    """Addresses at which others may reach this host, and why there are none.

    With `interface` that address, else one of each interface that is up, `default` if it has that;
    but for the loopback and for addresses that mean something on one link only.
    """
    available = list(available)
    if interface:
        try:
            address = network.choose_address(interface, available)
        except InterfaceNotFoundError as exc:
            return [], str(exc)
        name = next(each.name for each in available if address in each.addresses)
        return [{"interface": name, "address": address}], ""
    places: list[Place] = []
    for each in available:
        wide = tuple(address for address in each.addresses if _is_wide(address))
        if each.is_up and wide:
            alone = network.Interface(each.name, True, (default,) if default in wide else wide)
            address = network.choose_address(each.name, [alone])
            places.append({"interface": each.name, "address": address})
    return places, ""


def _is_wide(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return not (ip.is_loopback or ip.is_link_local)


def place_of(address: str, candidates: Iterable[Place]) -> Place | None:
    """The candidate with this address."""
    return next((place for place in candidates if place["address"] == address), None)


def _described(available: Iterable[network.Interface]) -> list[InterfaceFacts]:
    import psutil

    states = psutil.net_if_stats()
    return [
        {
            "name": each.name,
            "is_up": each.is_up,
            "addresses": list(each.addresses),
            "speed": states[each.name].speed if each.name in states else 0,
            "mtu": states[each.name].mtu if each.name in states else 0,
        }
        for each in available
    ]


def _ports(port_range: str) -> Ports:
    """Which ports of a range are free; all are tried, since others' are not seen otherwise."""
    ports = parse_ports(port_range) if port_range else []
    free, problem = [], ""
    for port in ports:
        reason = _why_not(port)
        if not reason:
            free.append(port)
        problem = problem or reason
    return {
        "range": port_range,
        "total": len(ports),
        "free": len(free),
        "first_free": free[0] if free else 0,
        "last_free": free[-1] if free else 0,
        "scheduler_port_is_free": not _why_not(DEFAULT_PORT),
        "problem": problem,
    }


def _why_not(port: int) -> str:
    """Why nobody can listen on a port just now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
            sock.listen(1)
        except OSError as exc:
            return f"port {port}: {exc.strerror}"
    return ""


def own_identity(hostname: str) -> str:
    """What only this host is called, within one machine's network namespaces as well."""
    parts = [hostname]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/net"):
        with suppress(OSError):
            parts.append(os.readlink(path) if path.endswith("net") else Path(path).read_text())
    return "/".join(part.strip() for part in parts)
