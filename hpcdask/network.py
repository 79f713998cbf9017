"""The network as this host sees it: interfaces, addresses, and which of them to use."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hpcdask.errors import ConfigError, InterfaceNotFoundError

Family = Literal["any", "ipv4", "ipv6"]
_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Interface:
    """A network interface of this host."""

    name: str
    is_up: bool
    addresses: tuple[str, ...]  # IPv4 and IPv6; a link-local one has its %scope

    def __str__(self) -> str:
        remarks = [*self.addresses] or ["no address"]
        return f"{self.name} ({', '.join(remarks + ([] if self.is_up else ['down']))})"


def interfaces() -> list[Interface]:
    """The network interfaces of this host with their IP addresses, in the kernel's order."""
    import psutil

    states = psutil.net_if_stats()
    return [
        Interface(
            name,
            is_up=name not in states or states[name].isup,
            addresses=tuple(
                each.address
                for each in addresses
                if each.family in (socket.AF_INET, socket.AF_INET6)
            ),
        )
        for name, addresses in psutil.net_if_addrs().items()
    ]


def interface_address(spec: str, family: Family = "any") -> str:
    """The address of this host on the network that `spec` names.

    Parameters
    ----------
    spec : str
        An interface ("ib0"), a glob ("ib*"), a subnet ("10.1.0.0/16") or a list of these
        ("ib*,hsn0"). The first of a list that has an address on this host decides.
    family : {"any", "ipv4", "ipv6"}
        "any" prefers IPv4 to IPv6, and either to a link-local address of its kind. A link-local
        IPv6 address has its "%scope".

    Raises
    ------
    InterfaceNotFoundError
        If no interface fits, or those that do are down or have no address.
    ConfigError
        If `spec` is empty or holds a malformed subnet.
    """
    return choose_address(spec, interfaces(), family)


def choose_address(spec: str, available: Iterable[Interface], family: Family = "any") -> str:
    """The policy of `interface_address`, for given interfaces."""
    available = sorted(available, key=lambda interface: _natural(interface.name))
    entries = [entry.strip() for entry in spec.split(",") if entry.strip()]
    if not entries:
        raise ConfigError(f"no network interface in {spec!r}. Give a name, a glob or a subnet.")
    for entry in entries:
        addresses = _usable_addresses(entry, available, family)
        if addresses:
            return min(addresses, key=_preference)
    raise InterfaceNotFoundError(_no_interface(entries, available, family))


def _usable_addresses(entry: str, available: Iterable[Interface], family: Family) -> list[str]:
    subnet = _subnet(entry)
    return [
        address
        for interface in available
        if interface.is_up and (subnet or fnmatch.fnmatchcase(interface.name, entry))
        for address in interface.addresses
        if family in ("any", f"ipv{_ip(address).version}")
        and (subnet is None or _unscoped(address) in subnet)
    ]


def _subnet(entry: str) -> _IPNetwork | None:
    """`entry` as a subnet, a lone address being the smallest; None if it is a name or a glob."""
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        if "/" not in entry:  # which no interface name may hold
            return None
    raise ConfigError(f"{entry!r} is not a subnet. Write it as 10.1.0.0/16 or fd00:1::/32.")


def _preference(address: str) -> tuple[int, bool]:
    ip = _ip(address)
    return ip.version, ip.is_link_local


def _natural(name: str) -> list[tuple[str, int]]:
    """Sort key that puts ib2 before ib10, so a glob means the same on every host."""
    return [(rest, int(digits or 0)) for rest, digits in re.findall(r"(\D*)(\d*)", name)]


def _no_interface(entries: list[str], available: list[Interface], family: Family) -> str:
    listing = ", ".join(map(str, available)) or "none at all"
    return (
        f"{'; '.join(_why_not(entry, available, family) for entry in entries)}; "
        f"it has {listing}. "
        "Name one of these with --interface, or leave it out to use the default route."
    )


def _why_not(entry: str, available: Iterable[Interface], family: Family) -> str:
    if _subnet(entry):
        return f"no network interface that is up has an address in {entry!r} on {hostname()}"
    for interface in available:
        if fnmatch.fnmatchcase(interface.name, entry):
            kind = "" if family == "any" else f"{family} "
            fault = f"has no {kind}address" if interface.is_up else "is down"
            return f"network interface {interface.name!r} on {hostname()} {fault}"
    return f"no network interface {entry!r} on {hostname()}"


def _ip(address: str) -> _IPAddress:
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if ip.version == 6 else None  # of a socket that speaks both
    return mapped or ip


def _unscoped(address: str) -> _IPAddress:
    return _ip(address.partition("%")[0])


def name_of(address: str) -> str:
    """The name of this host's interface with that address; empty if there is none."""
    return next((each.name for each in interfaces() if address in each.addresses), "")


def address_towards(host: str, port: int) -> str:
    """The local address from which this host reaches `host`. Nothing is sent to find out.

    Raises
    ------
    InterfaceNotFoundError
        If `host` has no address, or no route leads to it.
    """
    reason: object = "it has no address"
    try:
        # UDP, since connecting such a socket only asks the routing table.
        for family, kind, _, _, target in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            try:
                return _source_address(family, kind, target)
            except OSError as exc:
                reason = exc
    except OSError as exc:  # among them socket.gaierror: the name is unknown
        reason = exc
    raise InterfaceNotFoundError(
        f"{hostname()} cannot reach host {host!r}: {reason}. Check the name and the network, or "
        "name the interface to use with --interface."
    )


def default_address() -> str:
    """An address at which other hosts most likely reach this one, found without any traffic.

    That of the host's own name if it is not a loopback one, else that of the first interface that
    is up and no loopback, else 127.0.0.1.
    """
    available = interfaces()
    usable = [a for i in available if i.is_up for a in i.addresses if not _ip(a).is_loopback]
    usable.sort(key=_preference)
    try:
        named = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        named = set()
    of_name = [address for address in usable if address in named]
    return (of_name or usable or ["127.0.0.1"])[0]


def _source_address(family: int, kind: int, target: tuple[str | int | bytes, ...]) -> str:
    with socket.socket(family, kind) as sock:
        sock.connect(target)
        name = sock.getsockname()
    address, scope = str(name[0]), name[3] if len(name) > 3 else 0
    if scope and "%" not in address:  # Python leaves it out, yet the address is useless without
        address += "%" + socket.if_indextoname(scope)
    return address


def hostname() -> str:
    """The name of this host, as the batch system knows it."""
    return socket.gethostname()


def is_loopback(address: str) -> bool:
    """Whether an address leads back to the host where it is used; False for what is no address."""
    try:
        return _unscoped(address).is_loopback
    except ValueError:
        return False


def is_link_local(address: str) -> bool:
    """Whether an address means nothing without the interface; False for what is no address."""
    try:
        return _unscoped(address).is_link_local
    except ValueError:
        return False


def is_local(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine. May ask the name service."""
    if host in ("localhost", hostname()):
        return True
    try:
        found = {_unscoped(str(each[4][0])) for each in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):  # unknown, or no possible name at all
        return False
    if any(ip.is_loopback or ip.is_unspecified for ip in found):
        return True
    return not found.isdisjoint(_unscoped(a) for each in interfaces() for a in each.addresses)
