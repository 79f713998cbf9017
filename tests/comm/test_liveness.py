"""Hosts that are gone are noticed, and those that merely do not read are kept."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

import pytest
from endpoints import LOCAL, Ear, connected, eventually, listening, run, shake_hands, stranger

from hpcdask.comm import liveness, tcp
from hpcdask.messages import CallReturned, Frames
from hpcdask.messages.client import KeyLost

only_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux' TCP")


def tcp_info(retransmits: int, probes: int, silence: float) -> bytes:
    """As in linux/tcp.h: eight bytes, then 32-bit numbers; the 13th is tcpi_last_ack_recv."""
    head = bytes([1, 0, retransmits, probes, 0, 0, 0, 0])
    return head + struct.pack("=12I", *[7] * 12) + struct.pack("=I", int(1000 * silence))


@pytest.mark.parametrize(
    ("retransmits", "probes", "silence", "expected"),
    [
        (0, 0, 1000.0, False),  # idle, or its process does not read and is asked ever more rarely
        (1, 0, 1000.0, False),  # asked this moment
        (7, 0, 5.0, False),  # a cut of a few seconds
        (7, 0, 29.9, False),
        (7, 0, 30.0, True),
        (0, 2, 30.0, True),
    ],
)
def test_a_peer_is_lost_when_it_was_asked_in_vain_for_long(
    retransmits: int, probes: int, silence: float, expected: bool
) -> None:
    assert liveness.is_lost(tcp_info(retransmits, probes, silence), 30.0) is expected


@pytest.mark.parametrize("patience", [0.1, 1.0, 5.0, 10.0, 30.0, 100.0, 3600.0])
def test_an_idle_peer_is_given_up_after_about_as_long_as_asked_for(patience: float) -> None:
    idle, pause, count = tcp.keepalive(patience).values()
    assert patience * 0.8 <= idle + pause * count <= max(patience * 1.2, 5.0)


def test_an_unknown_kernel_tells_nothing() -> None:
    assert not liveness.is_lost(b"", 1.0)
    assert not liveness.is_lost(tcp_info(7, 7, 100)[:-1], 1.0)


@only_on_linux
def test_the_kernel_tells_what_we_think_it_tells() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sock,
    ):
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
        assert (len(state), state[0]) == (60, 1)  # TCP_ESTABLISHED
        silence = struct.unpack_from("=I", state, 56)[0]
        assert silence < 5000
        assert not liveness.is_lost(state, 5.0)


@only_on_linux
def test_an_idle_peer_is_asked_whether_it_is_there() -> None:
    async def main() -> None:
        async with connected(LOCAL) as ends:
            for end in ends:
                sock = end._sock  # type: ignore[attr-defined]
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                wanted = tcp.keepalive(30.0)
                idle, pause, count = (
                    sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in wanted
                )
                assert (idle, pause, count) == tuple(wanted.values()) == (10, 5, 4)
                # It would end connections with processes that are only busy.
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0

    run(main())


@only_on_linux
def test_both_ends_of_a_dead_link_are_told(monkeypatch: Any) -> None:
    monkeypatch.setattr(liveness, "INTERVAL", 0.05)

    async def main() -> None:
        async with connected(LOCAL) as ends:
            ears = [Ear(end) for end in ends]
            ends[0].send(KeyLost("x"))
            await ears[1].heard(1)
            monkeypatch.setattr(liveness, "is_lost", lambda tcp_info, _: len(tcp_info) >= 60)
            for ear in ears:
                reason = str(await ear.told_the_end())
                assert ear.comm.peer in reason
            assert "has not answered for 30 s" in str(ears[0].reasons + ears[1].reasons)

    run(main())


@only_on_linux
def test_a_peer_that_does_not_read_for_long_is_kept(monkeypatch: Any) -> None:
    monkeypatch.setattr(liveness, "INTERVAL", 0.05)
    looks: list[bytes] = []
    is_lost = liveness.is_lost
    monkeypatch.setattr(
        liveness, "is_lost", lambda info, _: looks.append(info) or is_lost(info, 0.2)
    )

    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            with stranger(listener) as sock:
                await shake_hands(sock)
                await eventually(lambda: comms)
                ear = Ear(comms[0])
                comms[0].send(CallReturned(1, Frames([bytes(50 * 2**20)])))
                await eventually(lambda: len(looks) > 30)  # 1.5 s
                assert ear.reasons == []

    run(main())
