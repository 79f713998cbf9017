"""Several hosts on one machine: network namespaces with an interface called ib0, on one switch.

Files and processes are shared by all of them, the network is not. Nothing is added to the
machine's own network, so what is to reach a host has to run on one of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator

import pytest
from janitor import clean, find, ip, janitor
from waiting import wait_until

_NAME = re.compile(r"hpcdask-(\d+)-")


class Hosts:
    """Hosts by name, each with ib0 and an address on it; and the switch that joins them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.addresses = {name: f"10.78.61.{n}" for n, name in enumerate(names, 1)}
        self.switch = _namespace("switch")
        self.is_up = False

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All that it takes, as `ip netns` calls them."""
        return (self.switch, *map(_namespace, self.names))

    def on(self, name: str, *command: str) -> tuple[str, ...]:
        """The command that runs a command on a host; the process is that of the command itself."""
        return (find("ip") or "ip", "netns", "exec", _namespace(name), *command)

    def python(self, name: str, *arguments: str) -> tuple[str, ...]:
        """The command that runs this interpreter on a host."""
        return self.on(name, sys.executable, *arguments)

    def namespace(self, name: str) -> str:
        """What `ip netns` calls a host."""
        return _namespace(name)

    def cut(self, name: str, is_seen: bool = True) -> None:
        """Pull a host's cable: its connections stay open, and hear nothing any more.

        Where that `is_seen` the host's interface is down (no carrier); else the network is silent.
        """
        how = ("down",) if is_seen else ("nomaster",)
        ip("-n", self.switch, "link", "set", "dev", name, *how)

    def mend(self, name: str) -> None:
        """Put the cable back."""
        ip("-n", self.switch, "link", "set", "dev", name, "master", "ib", "up")

    def set_up(self) -> None:
        """Make namespaces, cables and switch."""
        for namespace in self.namespaces:
            ip("netns", "add", namespace)
        ip("-n", self.switch, "link", "add", "ib", "type", "bridge")
        ip("-n", self.switch, "link", "set", "ib", "up")
        for name, address in self.addresses.items():
            host = _namespace(name)
            end = ("peer", "name", name, "netns", self.switch)
            ip("link", "add", "ib0", "netns", host, "type", "veth", *end)
            ip("-n", host, "address", "add", f"{address}/24", "dev", "ib0")
            for device in ("ib0", "lo"):
                ip("-n", host, "link", "set", device, "up")
            ip("-n", self.switch, "link", "set", "dev", name, "master", "ib", "up")
        for name in self.names:  # the kernel takes a moment to see that the cable is in
            wait_until(lambda name=name: self._hears(name), what=f"{name} is on the network")
        self.is_up = True

    def _hears(self, name: str) -> bool:
        port = ip("-n", self.switch, "-d", "link", "show", "dev", name).stdout
        return "state UP" in port and "state forwarding" in port


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[Hosts]:
    """Hosts of these names, for a block; all that runs on them ends with it."""
    sweep()
    made = Hosts(names)
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
