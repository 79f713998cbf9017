"""Which hosts an SSH cluster uses, how each is reached, and which of them gets a worker."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hpcdask import network
from hpcdask.errors import ConfigError

_FORM = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[\w.-]+))"
    r"(?::(?P<port>\d{1,5}))?"
)
#: A bare IPv6 address: it has no port, since nobody could tell.
_BARE_SIX = re.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?")


@dataclass(frozen=True)
class SSHHost:
    """A host, and how it is reached.

    Parameters
    ----------
    name : str
        Name or address.
    options : mapping
        Keywords of ``asyncssh.connect``, among them `username` and `port` where these were given.
    python : str
        What starts Python there, as one writes it in a shell.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may have a password
    python: str = "python3"

    def __str__(self) -> str:
        return self.name

    @property
    def ssh(self) -> str:
        """What ``ssh`` and its like are given for it."""
        user = f"{self.options['username']}@" if self.options.get("username") else ""
        return f"{self.port_option('-p')}{user}{self.name}"

    def port_option(self, option: str) -> str:
        """The option that names the port, and a space; empty for the usual one."""
        port = self.options.get("port")
        return f"{option} {port} " if port and int(port) != 22 else ""


def parse_host(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``[user@]host[:port]``; an IPv6 address with a port stands in brackets.

    Returns
    -------
    str, dict
        The host, and `username` and `port` if they are there.

    Raises
    ------
    ConfigError
        If it has another form.
    """
    text = text.strip()
    if _BARE_SIX.fullmatch(text):
        return text, {}
    match = _FORM.fullmatch(text)
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        raise ConfigError(
            f"{text!r} is no host: expected a name or an address, as in node1, user@node1 or "
            "node1:2222, with an IPv6 address in brackets"
        )
    options: dict[str, Any] = {}
    if match["user"]:
        options["username"] = match["user"]
    if match["port"]:
        options["port"] = int(match["port"])
    return match["six"] or match["host"], options


def read_hostfile(path: str) -> list[str]:
    """Hosts of a file: one per line, or several with spaces between; ``#`` begins a comment.

    Raises
    ------
    ConfigError
        If it cannot be read, or a line holds no host.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConfigError(f"cannot read the hostfile {path}: {reason}") from exc
    found = []
    for number, line in enumerate(lines, 1):
        for word in line.partition("#")[0].split():
            try:
                parse_host(word)
            except ConfigError as exc:
                raise ConfigError(f"{path}, line {number}: {exc}") from None
            found.append(word)
    return found


def make_hosts(
    names: Sequence[str],
    connect_options: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    remote_python: str | Sequence[str] | None,
    default_python: str,
) -> list[SSHHost]:
    """Put together what is known of each host.

    Raises
    ------
    ConfigError
        If there is none, one is no host, or a list has not one item for each.
    """
    if isinstance(names, str) or not names:
        raise ConfigError(f"hosts must be a list with at least one host, not {names!r}")
    options = _one_each("connect_options", connect_options or {}, Mapping, len(names))
    pythons = _one_each("remote_python", remote_python or default_python, str, len(names))
    hosts = []
    for text, given, python in zip(names, options, pythons, strict=True):
        name, own = parse_host(text)
        hosts.append(SSHHost(name, {**given, **own}, python))
    return hosts


def _one_each(what: str, given: Any, kind: type, n: int) -> list[Any]:
    if isinstance(given, kind):
        return [given] * n
    items = list(given)
    if len(items) != n:
        raise ConfigError(f"{what} has {len(items)} items for {n} hosts; give one, or one for each")
    return items


def known_address(address: str, others: Sequence[str]) -> str:
    """At which address a host is to be known to the others, given where SSH has reached each.

    Empty if that is of no use to the others, or nobody knows: then the host itself has to find out.
    """
    if not address or network.is_link_local(address):
        return ""
    if network.is_loopback(address) and not all(map(network.is_loopback, others)):
        return ""
    return address


# -- Which host gets a worker ---------------------------------------------------------------------


class Load(NamedTuple):
    """How many workers a host has, or will have soon, and how many it should have at most first."""

    n_workers: int
    n_planned: int  # what the user asked for on each host
    is_usable: bool = True  # it was, when it was tried last


def choose_hosts(loads: Sequence[Load], n: int) -> list[int]:
    """Positions of the hosts that get `n` more workers: always the one with the least to carry.

    Hosts that could not be used lately get one only if there is no other.
    """
    usable = [i for i, load in enumerate(loads) if load.is_usable] or list(range(len(loads)))
    counts = {i: loads[i].n_workers for i in usable}
    chosen = []
    for _ in range(n):
        least = min(usable, key=lambda i: ((counts[i] + 1) / max(loads[i].n_planned, 1), i))
        counts[least] += 1
        chosen.append(least)
    return chosen


def choose_surplus(workers: Iterable[tuple[str, int]], planned: Sequence[int], n: int) -> list[str]:
    """Names of `n` workers to end: always the youngest of the host that has the most to carry.

    Parameters
    ----------
    workers : iterable of (str, int)
        Their names and the positions of their hosts; the youngest last.
    planned : sequence of int
        By host, as `Load.n_planned`.
    """
    by_host: dict[int, list[str]] = {}
    for name, position in workers:
        by_host.setdefault(position, []).append(name)
    chosen = []
    for _ in range(n):
        most = max(by_host, key=lambda i: (len(by_host[i]) / max(planned[i], 1), i))
        chosen.append(by_host[most].pop())
        if not by_host[most]:
            del by_host[most]
    return chosen
