"""Who connects without the token: refused within seconds, logged, and nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
import resource
import struct
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import pytest
from endpoints import (
    KEY_LOST,
    OPTIONS,
    OTHER_TOKEN,
    TOKEN,
    Ear,
    eventually,
    hangs_up,
    listening,
    run,
    stranger,
)

from hpcdask.comm import Comm, connect, tcp_listener
from hpcdask.comm.options import CommOptions
from hpcdask.messages.client import KeyLost
from hpcdask.wire import codec, framing
from hpcdask.wire.framing import Limits, frame_parts
from hpcdask.wire.handshake import CHALLENGE_LENGTH, HELLO_LENGTH, MAGIC, PROOF_LENGTH, Dialler

LOCAL = "tcp://127.0.0.1:0"
HASTY = CommOptions(token=TOKEN, handshake_timeout=0.3)


class Bomb:
    """A pickle that makes a file where it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def refusals(caplog: Any) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("refused")]


FIRST_WORDS = {
    "nothing": b"",
    "garbage": b"\x00\xff" * 500,
    "a 4 GiB length": struct.pack("<II", 2**32 - 1, 1),
    "HTTP": b"GET / HTTP/1.1\r\nHost: login1\r\n\r\n",
    "half a hello": (MAGIC + b"T" + bytes(32))[:20],
    "half a magic": MAGIC[:4],
    "a hello and then silence": MAGIC + b"T" + bytes(32),
    "a hello and half a proof": MAGIC + b"T" + bytes(32) + bytes(16),
    "a hello and a made-up proof": MAGIC + b"T" + bytes(32) + bytes(32),
    "a hello of another version": MAGIC[:-1] + b"\x63T" + bytes(32),
    "a hello of an unknown mode": MAGIC + b"?" + bytes(32),
    "a hello without token": MAGIC + b"-" + bytes(32),
    "a message without a handshake": b"".join(
        map(bytes, frame_parts(msgpack.packb([KEY_LOST, ("x",)]), [], Limits()))
    ),
}


@pytest.mark.parametrize("words", FIRST_WORDS.values(), ids=FIRST_WORDS.keys())
def test_a_stranger_is_refused_in_time_with_one_line_that_names_it(
    words: bytes, caplog: Any
) -> None:
    async def main() -> None:
        async with listening(LOCAL, HASTY) as (listener, comms):
            with stranger(listener, words) as sock:
                said = await hangs_up(sock, 5)
                assert len(said) <= CHALLENGE_LENGTH + 1
                (line,) = refusals(caplog)
                assert "tcp://{}:{}:".format(*sock.getsockname()) in line
                assert comms == []

    run(main())


def test_of_a_crowd_each_stranger_has_longer(monkeypatch: Any) -> None:
    monkeypatch.setattr(tcp_listener, "_CROWD", 2)

    async def main() -> None:
        async with listening(LOCAL, HASTY) as (listener, _):
            with ExitStack() as stack:
                crowd = [stack.enter_context(stranger(listener)) for _ in range(4)]
                started = time.monotonic()
                gone = [asyncio.ensure_future(hangs_up(sock)) for sock in crowd]
                await asyncio.wait(gone, return_when=asyncio.FIRST_COMPLETED)
                assert time.monotonic() - started > 0.6
                await asyncio.gather(*gone)

    run(main())


def test_a_stranger_that_drips_its_words_is_refused_in_time() -> None:
    async def main() -> None:
        async with listening(LOCAL, HASTY) as (listener, _):
            with stranger(listener) as sock:
                started, gone = time.monotonic(), asyncio.ensure_future(hangs_up(sock))
                for byte in MAGIC + b"T" + bytes(32):
                    if not gone.done():
                        try:
                            sock.send(bytes([byte]))
                        except ConnectionError:
                            break
                    await asyncio.wait({gone}, timeout=0.05)
                await gone
                assert time.monotonic() - started < 3

    run(main())


def test_nothing_is_decoded_before_the_handshake(monkeypatch: Any, tmp_path: Path) -> None:
    decoded: list[str] = []

    def watched(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            decoded.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    watched(msgpack, "unpackb")
    watched(pickle, "loads")
    watched(codec, "decode")
    watched(framing.FrameReader, "feed")
    target = tmp_path / "made by a pickle"
    bomb = pickle.dumps(Bomb(target))

    async def main() -> None:
        async with listening(LOCAL, HASTY) as (listener, comms):
            hello = Dialler(OTHER_TOKEN).hello()
            for words in (bomb, hello + bomb, *FIRST_WORDS.values()):
                with stranger(listener, words) as sock:
                    await hangs_up(sock)
            assert decoded == []
            assert comms == []
            friend = await connect(listener.address, HASTY)
            friend.send(KeyLost("x"))
            await eventually(lambda: comms)
            await comms[0].receive()
            assert "unpackb" in decoded  # so the watch does work
            friend.close()
            await friend.wait_closed()

    run(main())
    assert not target.exists()
    pickle.loads(bomb)
    assert target.exists()


def test_a_recorded_handshake_is_refused_when_replayed(caplog: Any) -> None:
    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            recorded: list[bytes] = []
            port = int(listener.address.rpartition(":")[2])

            async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                there_reader, there = await asyncio.open_connection("127.0.0.1", port)
                for length, source, sink in (
                    (HELLO_LENGTH, reader, there),
                    (CHALLENGE_LENGTH, there_reader, writer),
                    (PROOF_LENGTH, reader, there),
                    (1, there_reader, writer),
                ):
                    words = await source.readexactly(length)
                    recorded.append(words)
                    sink.write(words)
                await reader.read()
                there.close()
                writer.close()

            server = await asyncio.start_server(relay, "127.0.0.1", 0)
            friend = await connect("{}:{}".format(*server.sockets[0].getsockname()), OPTIONS)
            await eventually(lambda: len(comms) == 1)
            hello, challenge, proof, _ = recorded
            with stranger(listener, hello, proof) as sock:
                said = await hangs_up(sock)
                assert said[:CHALLENGE_LENGTH] != challenge
                assert said[CHALLENGE_LENGTH:] == b"\x00"
            assert len(comms) == 1
            assert len(refusals(caplog)) == 1
            comms[0].close()
            friend.close()
            await friend.wait_closed()
            server.close()

    run(main())


def test_a_listener_does_not_make_the_proof_that_it_asks_for(caplog: Any) -> None:
    """An attacker opens a second connection and passes the first one's nonce on."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with listening(LOCAL) as (listener, comms):
            with stranger(listener, MAGIC + b"T" + bytes(32)) as first:
                challenge = await loop.sock_recv(first, CHALLENGE_LENGTH)
                nonce = challenge[len(MAGIC) + 1 : -32]
                with stranger(listener, MAGIC + b"T" + nonce) as second:
                    reflected = await loop.sock_recv(second, CHALLENGE_LENGTH)
                    assert reflected[: len(MAGIC) + 1] == MAGIC + b"T"
                    await loop.sock_sendall(first, reflected[-32:])
                    assert await hangs_up(first) == b"\x00"
                    await loop.sock_sendall(second, challenge[-32:])
                    assert await hangs_up(second) == b"\x00"
            assert comms == []
            assert len(refusals(caplog)) == 2

    run(main())


def told(lines: list[str]) -> int:
    summaries = [re.match(r"refused (\d+) more", line) for line in lines]
    return sum(int(summary[1]) if summary else 1 for summary in summaries)


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1200,
    reason="1000 sockets need more file descriptors; try ulimit -n 4096",
)
def test_500_idle_connections_disturb_nobody_and_are_all_refused(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "hpcdask.comm")
    options = CommOptions(token=TOKEN, handshake_timeout=4)  # or the first leave before the last

    def echo(comm: Comm) -> None:
        comm.start(comm.send_now, lambda _: None)

    async def main() -> None:
        async with listening(LOCAL, options, on_comm=echo) as (listener, comms):
            friend = await connect(listener.address, options)
            ear = Ear(friend)
            with ExitStack() as crowd:
                started = time.monotonic()
                socks = [crowd.enter_context(stranger(listener)) for _ in range(500)]
                await eventually(lambda: len(listener._strangers) == 500, 4)
                for n in range(1, 101):  # each answered, one at a time
                    friend.send(KeyLost("x"))
                    await ear.heard(n)
                another = await connect(listener.address, options)
                another.close()
                await asyncio.gather(*(hangs_up(sock) for sock in socks))
                assert time.monotonic() - started < 10
                await eventually(lambda: told(refusals(caplog)) == 500)
                assert len(refusals(caplog)) < 50
            assert len(comms) == 2
            assert not friend.closed
            friend.close()
            await friend.wait_closed()

    run(main())


def test_of_too_many_strangers_the_oldest_leave(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(tcp_listener, "_MAX_STRANGERS", 5)

    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            with ExitStack() as crowd:
                socks = [crowd.enter_context(stranger(listener)) for _ in range(15)]
                await asyncio.gather(*(hangs_up(sock) for sock in socks[:10]))
                assert len(listener._strangers) == 5
                assert len(refusals(caplog)) == 10
                friend = await connect(listener.address, OPTIONS)
                await eventually(lambda: comms)
                friend.close()
                await friend.wait_closed()
                assert len(refusals(caplog)) == 11
            await eventually(lambda: not listener._strangers)

    run(main())


def test_a_listener_that_closes_refuses_nobody(caplog: Any) -> None:
    async def main() -> None:
        async with listening(LOCAL) as (listener, _):
            with stranger(listener) as sock:
                await eventually(lambda: listener._strangers)
                listener.close()
                assert await hangs_up(sock) == b""
                assert refusals(caplog) == []

    run(main())
