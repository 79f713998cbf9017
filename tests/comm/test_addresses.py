"""Addresses and ports as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from hpcdask.comm.addresses import Address, parse_address, parse_host, parse_ports
from hpcdask.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected", "canonical"),
    [
        ("tcp://10.1.0.3:9000", ("tcp", "10.1.0.3", 9000), "tcp://10.1.0.3:9000"),
        ("10.1.0.3:9000", ("tcp", "10.1.0.3", 9000), "tcp://10.1.0.3:9000"),
        ("login1", ("tcp", "login1", 8786), "tcp://login1:8786"),
        ("node-3.my_cluster.org:1", ("tcp", "node-3.my_cluster.org", 1), None),
        ("tcp://login1", ("tcp", "login1", 8786), "tcp://login1:8786"),
        ("tcp://login1:8786/", ("tcp", "login1", 8786), "tcp://login1:8786"),
        ("  login1:80\n", ("tcp", "login1", 80), "tcp://login1:80"),
        ("tcp://:0", ("tcp", "", 0), "tcp://:0"),
        (":8787", ("tcp", "", 8787), "tcp://:8787"),
        ("tcp://", ("tcp", "", 8786), "tcp://:8786"),
        ("[::1]", ("tcp", "::1", 8786), "tcp://[::1]:8786"),
        ("[::1]:0", ("tcp", "::1", 0), "tcp://[::1]:0"),
        ("tcp://[fe80::1%eth0]:9000", ("tcp", "fe80::1%eth0", 9000), "tcp://[fe80::1%eth0]:9000"),
        ("tcp://[::]:65535", ("tcp", "::", 65535), "tcp://[::]:65535"),
        ("inproc://", ("inproc", "", 0), "inproc://"),
        ("inproc://123/4", ("inproc", "123/4", 0), "inproc://123/4"),
    ],
)
def test_an_address_is_read(text: str, expected: Any, canonical: str | None) -> None:
    address = parse_address(text)
    assert address == Address(*expected)
    if canonical is not None:
        assert str(address) == canonical
    assert parse_address(str(address)) == address


def test_the_default_port_is_the_callers() -> None:
    assert parse_address("login1", default_port=0).port == 0
    assert parse_address("login1:1", default_port=0).port == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "::1",
        "::1:8786",
        "[::1",
        "[]:1",
        "[login1]:1",
        "[1.2.3.4]",
        "host:",
        "host:port",
        "host:-1",
        "host:65536",
        "host:123456",
        "host:1:2",
        "my host:1",
        "user@host:1",
        "tcp://host:1/path",
        "tcp://host:1?token=x",
        "udp://host:1",
        "TCP://host:1",
        "://host",
        "tcp:/host:1",
    ],
)
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_address(text)
    assert repr(text.strip()) in str(error.value)


def test_an_unknown_protocol_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="tcp, inproc"):
        parse_address("ucx://host:1")


@pytest.mark.parametrize(
    ("spec", "ports"),
    [
        (None, [7]),
        ("", [7]),
        (0, [0]),
        (8786, [8786]),
        ("8786", [8786]),
        ("9000:9003", [9000, 9001, 9002, 9003]),
        ("9000:9000", [9000]),
        ("9000:", [9000]),
    ],
)
def test_ports_are_read(spec: Any, ports: list[int]) -> None:
    assert parse_ports(spec, default=7) == ports


@pytest.mark.parametrize("spec", ["a", "1:b", "9:8", "-1", -1, 65536, "65530:65536", "1:2:3", ":9"])
def test_what_is_no_range_of_ports_is_named(spec: Any) -> None:
    with pytest.raises(ConfigError, match=f"{spec!r}"):
        parse_ports(spec)


@pytest.mark.parametrize(
    ("given", "host"),
    [
        (None, ""),
        ("", ""),
        ("*", ""),
        ("::", ""),
        ("[::]", ""),
        ("0.0.0.0", "0.0.0.0"),
        ("node7", "node7"),
        (" 10.1.0.7 ", "10.1.0.7"),
        ("[fd00:1::7]", "fd00:1::7"),
        ("fd00:1::7", "fd00:1::7"),
        ("[fe80::1%ib0]", "fe80::1%ib0"),
    ],
)
def test_a_host_to_listen_on_is_read(given: str | None, host: str) -> None:
    assert parse_host(given) == host


@pytest.mark.parametrize("text", ["[node7]", "[]", "[10.1.0.7]"])
def test_only_an_ipv6_host_stands_in_brackets(text: str) -> None:
    with pytest.raises(ConfigError, match="only an IPv6 address stands in brackets"):
        parse_host(text)
