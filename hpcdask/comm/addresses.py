"""Addresses as people write them: ``tcp://10.1.0.3:8786``, ``host:8786``, ``[::1]``, ``tcp://:0``."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from hpcdask.errors import ConfigError

DEFAULT_PORT = 8786
PROTOCOLS = ("tcp", "inproc")

_FORM = re.compile(
    r"(?:(?P<protocol>[a-z0-9]+)://)?"
    r"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[\w.-]*))"
    r"(?::(?P<port>\d{1,5}))?/?"
)


class Address(NamedTuple):
    """Where a process listens."""

    protocol: str
    host: str  # empty: every interface
    port: int  # 0: any free one

    def __str__(self) -> str:
        if self.protocol == "inproc":
            return f"inproc://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}:{self.port}"


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """Read an address.

    Parameters
    ----------
    text : str
        ``[protocol://]host[:port]``; the protocol defaults to tcp. An IPv6 host stands in brackets.
    default_port : int
        What a missing port means.

    Raises
    ------
    ConfigError
        If it has not this form, or the protocol or port is not a known one.

    Examples
    --------
    >>> parse_address("login1")
    Address(protocol='tcp', host='login1', port=8786)
    >>> str(parse_address("tcp://[::1]:9000"))
    'tcp://[::1]:9000'
    """
    text = text.strip()
    if text.startswith("inproc://"):
        return Address("inproc", text.removeprefix("inproc://"), 0)
    match = _FORM.fullmatch(text)
    if match is None or not text or (match["six"] is not None and not _is_ipv6(match["six"])):
        raise ConfigError(
            f"{text!r} is no address: expected host, host:port or tcp://host:port, "
            "with an IPv6 host in brackets"
        )
    protocol = match["protocol"] or "tcp"
    port = int(match["port"]) if match["port"] else default_port
    if protocol not in PROTOCOLS:
        raise ConfigError(f"unknown protocol in {text!r}; this build speaks {', '.join(PROTOCOLS)}")
    if port > 65535:
        raise ConfigError(f"{text!r} names port {port}; the highest is 65535")
    return Address(protocol, match["six"] or match["host"] or "", port)


def parse_host(text: str | None) -> str:
    """Read a host to listen on, as of ``--host``; empty for every interface.

    Parameters
    ----------
    text : str or None
        A name or an address; an IPv6 one may stand in brackets. "*", "::" and None are every
        interface, and "0.0.0.0" every one with IPv4.

    Raises
    ------
    ConfigError
        If there are brackets around something else.
    """
    host = (text or "").strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ConfigError(f"{text!r} is no host: only an IPv6 address stands in brackets")
    return "" if host in ("*", "::") else host


def _is_ipv6(host: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(host))
    except ValueError:
        return False


def parse_ports(spec: int | str | None, default: int = 0) -> list[int]:
    """Read a port or a range of ports to try in turn.

    Parameters
    ----------
    spec : int, str or None
        ``8786``, ``"8786"``, ``"9000:9010"`` (both ends included) or None for `default`.

    Raises
    ------
    ConfigError
        If it is none of these.
    """
    if spec is None or spec == "":
        return [default]
    first, _, last = str(spec).partition(":")
    try:
        ports = range(int(first), int(last or first) + 1)
    except ValueError:
        ports = range(0)
    if not ports or ports[0] < 0 or ports[-1] > 65535:
        raise ConfigError(f"{spec!r} is no port or range of ports: expected 8786 or 9000:9010")
    return list(ports)
