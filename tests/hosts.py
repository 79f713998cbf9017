"""Several hosts on one machine: network namespaces with interfaces eth0 and ib0, on two switches.

Files and processes are shared by all of them, the network and the host name are not. Nothing is
added to the machine's own network, so what is to reach a host has to run on one of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping

import pytest
from janitor import clean, find, ip, janitor
from waiting import wait_until

_numbers = itertools.count()
_NAME = re.compile(r"hpcdask-(\d+)-")
#: Switches, and what addresses on them begin with.
_NETWORKS = {"eth": ("10.78.60.", "fd78:60::"), "ib": ("10.78.61.", "fd78:61::")}
#: Becomes a command on a host of the name that is its first argument.
_BECOME = 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"'


class Hosts:
    """Hosts by name, each with eth0 and ib0; and the namespace with the switches that join them.

    Parameters
    ----------
    names : tuple of str
        Of the hosts.
    ipv6 : bool
        Whether IPv6 is all they have.
    fast : mapping of str to str
        Hosts whose ib0 is called something else.

    Attributes
    ----------
    addresses, ethernet : dict of str to str
        Their addresses on ib0 and on eth0.
    """

    def __init__(
        self, names: tuple[str, ...], ipv6: bool = False, fast: Mapping[str, str] | None = None
    ) -> None:
        self.names, self.ipv6 = names, ipv6
        self._fast = {name: (fast or {}).get(name, "ib0") for name in names}
        self.ethernet, self.addresses = (
            {name: f"{prefixes[ipv6]}{n}" for n, name in enumerate(names, 1)}
            for prefixes in _NETWORKS.values()
        )
        self._number = next(_numbers)
        self.switch = self.namespace("switch")
        self.is_up = False

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All that it takes, as `ip netns` calls them."""
        return (self.switch, *map(self.namespace, self.names))

    def namespace(self, name: str) -> str:
        """What `ip netns` calls a host."""
        return _namespace(f"{self._number}-{name}")

    def on(self, name: str, *command: str) -> tuple[str, ...]:
        """The command that runs a command on a host; the process is that of the command itself."""
        enter = (find("ip") or "ip", "netns", "exec", self.namespace(name), "unshare", "--uts")
        return (*enter, "sh", "-c", _BECOME, name, *command)

    def python(self, name: str, *arguments: str) -> tuple[str, ...]:
        """The command that runs this interpreter on a host."""
        return self.on(name, sys.executable, *arguments)

    def cut(self, name: str, is_seen: bool = True, switch: str = "ib") -> None:
        """Pull a host's cable to a switch: its connections stay open, and hear nothing any more.

        Where that `is_seen` the host's interface is down (no carrier); else the network is silent.
        """
        how = ("down",) if is_seen else ("nomaster",)
        ip("-n", self.switch, "link", "set", "dev", f"{name}.{switch}", *how)

    def mend(self, name: str) -> None:
        """Put the cable to ib0 back."""
        ip("-n", self.switch, "link", "set", "dev", f"{name}.ib", "master", "ib", "up")

    def wall_off(self, name: str, *sources: str, how: str = "drop") -> None:
        """Let a host take no new connections of these others on ib0; those that stand stay.

        The `how` is nft's: "drop" gives no answer, "reject" one at once.
        """
        family = "ip6" if self.ipv6 else "ip"
        refused = ", ".join(self.addresses[source] for source in sources)
        rules = (
            "add table inet wall",
            "add chain inet wall gate { type filter hook input priority 0; }",
            f"add rule inet wall gate {family} saddr {{ {refused} }} "
            f"tcp flags & (syn | ack) == syn {how}",
        )
        ip("netns", "exec", self.namespace(name), find("nft") or "nft", "; ".join(rules))

    def open_up(self, name: str) -> None:
        """Take a host's wall down."""
        command = (find("nft") or "nft", "delete table inet wall")
        ip("netns", "exec", self.namespace(name), *command)

    def traffic(self, name: str, interface: str) -> int:
        """Bytes that have come and gone by an interface of a host."""
        shown = ip("-n", self.namespace(name), "-s", "-j", "link", "show", "dev", interface).stdout
        counters = json.loads(shown)[0]["stats64"]
        return int(counters["rx"]["bytes"] + counters["tx"]["bytes"])

    def set_up(self) -> None:
        """Make namespaces, cables and switches."""
        for namespace in self.namespaces:
            ip("netns", "add", namespace)
        for switch in _NETWORKS:
            ip("-n", self.switch, "link", "add", switch, "type", "bridge")
            ip("-n", self.switch, "link", "set", switch, "up")
        ports = []
        for name in self.names:
            ip("-n", self.namespace(name), "link", "set", "lo", "up")
            ports.append(self._plug_in(name, "eth0", "eth", self.ethernet[name]))
            ports.append(self._plug_in(name, self._fast[name], "ib", self.addresses[name]))
        for port in ports:  # the kernel takes a moment to see that the cable is in
            wait_until(lambda port=port: self._forwards(port), what=f"{port} is on the network")
        self.is_up = True

    def _plug_in(self, name: str, interface: str, switch: str, address: str) -> str:
        """Give a host an interface, and a cable from there to a port of a switch."""
        host, port = self.namespace(name), f"{name}.{switch}"
        end = ("peer", "name", port, "netns", self.switch)
        ip("link", "add", interface, "netns", host, "type", "veth", *end)
        # Else the kernel would chat there about addresses of its own making.
        ip("-n", host, "link", "set", interface, "addrgenmode", "none")
        how = ("/64", "nodad") if self.ipv6 else ("/24",)
        ip("-n", host, "address", "add", f"{address}{how[0]}", "dev", interface, *how[1:])
        ip("-n", host, "link", "set", interface, "up")
        ip("-n", self.switch, "link", "set", "dev", port, "master", switch, "up")
        return port

    def _forwards(self, port: str) -> bool:
        shown = ip("-n", self.switch, "-d", "link", "show", "dev", port).stdout
        return "state UP" in shown and "state forwarding" in shown


@contextlib.contextmanager
def hosts(
    *names: str, ipv6: bool = False, fast: Mapping[str, str] | None = None
) -> Iterator[Hosts]:
    """Hosts of these names, for a block; all that runs on them ends with it."""
    sweep()
    made = Hosts(names, ipv6, fast)
    with janitor(namespaces=made.namespaces):
        made.set_up()
        yield made


def sweep() -> None:
    """Remove what is left of runs whose janitor was killed as well."""
    stale = [name for name, owner in _ours() if not os.path.exists(f"/proc/{owner}")]
    if stale:
        clean("", stale)


def left() -> list[str]:
    """Namespaces of this process that are still there."""
    return [name for name, owner in _ours() if owner == os.getpid()]


def _ours() -> list[tuple[str, int]]:
    """Namespaces of this kind, each with the process that made it."""
    names = [line.split()[0] for line in ip("netns", "list", check=False).stdout.splitlines()]
    return [(name, int(match[1])) for name in names if (match := _NAME.match(name))]


def _namespace(name: str) -> str:
    return f"hpcdask-{os.getpid()}-{name}"


def _why_not() -> str:
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    try:
        made = ip("netns", "add", _namespace("try"), check=False)
        ip("netns", "del", _namespace("try"), check=False)
    except OSError:
        return "there is no 'ip' command: apt-get install iproute2"
    return "" if made.returncode == 0 else f"no network namespaces here: {made.stderr.strip()}"


#: Why there can be no hosts here; empty if there can.
WHY_NOT = _why_not()

#: Marks of a test, or `pytestmark` of a module, that needs hosts.
needs_hosts = [
    pytest.mark.system,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]

#: Marks of a test that needs a firewall between hosts.
needs_walls = [
    *needs_hosts,
    pytest.mark.skipif(find("nft") is None, reason="no 'nft' command: apt-get install nftables"),
]
