"""Connections over real sockets: dialling, protocol errors, backpressure, ends."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
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
    connected,
    eventually,
    free_port,
    hangs_up,
    listening,
    n_open_files,
    run,
    shake_hands,
    stranger,
    where,
)

from hpcdask.comm import Listener, connect, listen, tcp, tcp_listener
from hpcdask.comm.options import CommOptions
from hpcdask.errors import AuthenticationError, CommClosedError, ConfigError, HandshakeError
from hpcdask.messages import CallReturned, Frames, Reply
from hpcdask.messages.client import KeyLost
from hpcdask.wire import compression
from hpcdask.wire.framing import Limits, frame_parts

LOCAL = "tcp://127.0.0.1:0"
MIB = 2**20
PACKAGE = Path(tcp.__file__).parents[2]


# -- Dialling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.05, 0.3])
def test_nobody_at_an_address_is_told_in_time(timeout: float) -> None:
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(CommClosedError, match=f"tcp://{address} within {timeout:g} s"):
        run(connect(address, OPTIONS, timeout))
    assert timeout <= time.monotonic() - started < timeout + 2


def test_the_default_timeout_is_that_of_the_options() -> None:
    options = CommOptions(token=TOKEN, connect_timeout=0.05)
    with pytest.raises(CommClosedError, match=r"within 0\.05 s"):
        run(connect(f"127.0.0.1:{free_port()}", options))


def test_an_unknown_host_is_told_in_time() -> None:
    with pytest.raises(CommClosedError, match="resolved"):
        run(connect("no-such-host.invalid:1", OPTIONS, 0.3), timeout=30)


def test_a_listener_that_comes_later_is_reached() -> None:
    async def main() -> None:
        port = free_port()
        dialling = asyncio.ensure_future(connect(f"tcp://127.0.0.1:{port}", OPTIONS, 20))
        done, _ = await asyncio.wait({dialling}, timeout=0.05)
        assert not done
        async with listening(f"tcp://127.0.0.1:{port}"):
            comm = await dialling
            comm.close()
            await comm.wait_closed()

    run(main())


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{}", "localhost:{}", "tcp://:{}", "tcp://0.0.0.0:{}"]
)
def test_a_listener_on_every_interface_is_reached_by_any_address(address: str) -> None:
    async def main() -> None:
        async with listening("tcp://:0") as (listener, _):
            port = where(listener)[1]
            assert port > 0
            assert listener.address == f"tcp://0.0.0.0:{port}"
            comm = await connect(address.format(port), OPTIONS)
            comm.close()
            await comm.wait_closed()

    run(main())


def test_every_address_of_a_host_gets_its_share_of_the_time(monkeypatch: Any) -> None:
    dial = tcp._dial

    async def resolve(host: str, port: int) -> Any:
        return [("swallows packets",), (socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]

    async def dial_or_wait(info: Any, options: CommOptions, in_vain: float, timeout: float) -> Any:
        if info == ("swallows packets",):
            await asyncio.wait_for(asyncio.Event().wait(), in_vain)
        return await dial(info, options, in_vain, timeout)

    monkeypatch.setattr(tcp, "_resolve", resolve)
    monkeypatch.setattr(tcp, "_dial", dial_or_wait)

    async def main() -> None:
        async with listening(LOCAL) as (listener, _):
            comm = await connect(listener.address, OPTIONS, 1)
            comm.close()
            await comm.wait_closed()

    run(main())


def test_an_address_that_says_nothing_is_not_the_only_one(monkeypatch: Any) -> None:
    options = CommOptions(token=TOKEN, handshake_timeout=0.2)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            async with listening(LOCAL) as (listener, _):
                places = [mute.getsockname(), where(listener)]

                async def resolve(host: str, port: int) -> Any:
                    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", place) for place in places]

                monkeypatch.setattr(tcp, "_resolve", resolve)
                comm = await connect(listener.address, options, 10)
                comm.close()
                await comm.wait_closed()

    run(main())


def test_what_is_dialled_in_vain_is_told_now_and_then(monkeypatch: Any) -> None:
    monkeypatch.setattr(tcp, "_REPORT_AFTER", 0.2)
    told: list[tuple[str, float]] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def report(problem: str, left: float) -> None:
        told.append((problem, left))

    with pytest.raises(CommClosedError):
        run(connect(f"tcp://127.0.0.1:{port}", OPTIONS, 1.5, report=report))
    assert {problem for problem, _ in told} == {"Connection refused"}
    assert 2 <= len(told) <= 4, "ever more rarely"
    assert all(0 < left < 1.3 for _, left in told)


def test_a_server_that_says_nothing_is_given_up_within_the_handshake_timeout() -> None:
    options = CommOptions(token=TOKEN, handshake_timeout=0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(CommClosedError, match=rf"{address}.*within 0\.2 s.*is it hpcdask"):
            run(connect(address, options, 30))
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00"]
)
def test_a_server_of_another_protocol_is_recognised_at_its_first_words(answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(speak, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        with pytest.raises(HandshakeError, match=f"tcp://{host}:{port}.*hpcdask handshake, got"):
            await asyncio.wait_for(connect(f"{host}:{port}", OPTIONS, 30), 3)
        server.close()

    run(main())


def test_a_server_that_hangs_up_is_tried_again_until_the_timeout() -> None:
    n_tries = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal n_tries
        n_tries += 1
        await reader.readexactly(41)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        with pytest.raises(CommClosedError, match="hung up during the handshake"):
            await connect(f"{host}:{port}", OPTIONS, 0.3)
        server.close()

    run(main())
    assert n_tries > 1


@pytest.mark.parametrize(
    ("dialling", "listening_", "told", "logged"),
    [
        (OTHER_TOKEN, TOKEN, "another cluster token", "another cluster token"),
        (None, TOKEN, "wants the cluster token", "it has no token"),
        (TOKEN, None, "runs without authentication", "it has a token"),
    ],
)
def test_a_dialler_without_the_right_token_is_told_why_and_logged_once(
    dialling: Any, listening_: Any, told: str, logged: str, caplog: Any
) -> None:
    async def main() -> None:
        async with listening(LOCAL, CommOptions(token=listening_)) as (listener, comms):
            with pytest.raises(AuthenticationError, match=f"{listener.address}.*{told}"):
                await connect(listener.address, CommOptions(token=dialling), 30)
            await eventually(lambda: caplog.records)
            (record,) = caplog.records
            assert record.levelno == logging.WARNING
            assert "tcp://127.0.0.1:" in record.getMessage()
            assert logged in record.getMessage()
            assert comms == []

    run(main())


def test_two_without_authentication_talk() -> None:
    async def main() -> None:
        async with connected(LOCAL, CommOptions(token=None)) as (a, b):
            a.send(KeyLost("x"))
            assert await b.receive() == KeyLost("x")

    run(main())


def test_a_token_is_not_in_the_repr_of_options() -> None:
    assert "ttt" not in repr(OPTIONS)


# -- Listening -------------------------------------------------------------------------------------


def test_the_first_free_port_of_a_range_is_taken() -> None:
    async def main() -> None:
        first = next(port for port in iter(free_port, None) if port < 65000)
        async with listening("tcp://127.0.0.1", ports=f"{first}:{first + 50}") as (one, _):
            assert where(one)[1] >= first
            port = where(one)[1]
            async with listening("tcp://127.0.0.1", ports=f"{port}:{port + 50}") as (two, _):
                assert port < where(two)[1] <= port + 50
            with pytest.raises(OSError, match=f"port {port}: it is in use; choose another"):
                await listen("tcp://127.0.0.1", print, OPTIONS, port)

    run(main())


@pytest.mark.parametrize(
    ("address", "problem"),
    [("tcp://192.0.2.1:0", "no such address; see --interface"), ("no-such-host.invalid:0", "host")],
)
def test_a_place_where_nobody_can_listen_is_explained(address: str, problem: str) -> None:
    with pytest.raises(OSError, match=f"cannot listen on|{problem}"):
        run(listen(address, print, OPTIONS))


@pytest.mark.parametrize("action", [connect, lambda *args: listen(args[0], print, args[1])])
def test_a_bad_address_is_a_config_error(action: Any) -> None:
    with pytest.raises(ConfigError):
        run(action("tcp://host:port", OPTIONS))


def test_an_unknown_compression_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="'brotli'"):
        CommOptions(compression="brotli")


def test_out_of_file_descriptors_a_listener_pauses_and_goes_on(caplog: Any) -> None:
    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            warm = await connect(listener.address, OPTIONS)
            with socket.socket() as sock:
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                highest = max(map(int, os.listdir("/proc/self/fd")))
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
                try:
                    fill = []
                    try:
                        while True:
                            fill.append(os.dup(sock.fileno()))
                    except OSError:
                        pass
                    sock.connect(where(listener))
                    await eventually(lambda: "cannot accept" in caplog.text)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    for fd in fill:
                        os.close(fd)
                sock.setblocking(False)
                assert await shake_hands(sock) == b"\x01"
                await eventually(lambda: len(comms) == 2)
            warm.close()
            await warm.wait_closed()

    run(main())
    assert caplog.text.count("cannot accept") <= 2


# -- What a peer must not send ---------------------------------------------------------------------


def framed(control: bytes) -> bytes:
    return b"".join(map(bytes, frame_parts(control, [], Limits())))


OUTRAGES = {
    "wrong arity": framed(msgpack.packb([KEY_LOST, ("x", 1)])),
    "wrong type": framed(msgpack.packb([KEY_LOST, (1,)])),
    "an unknown message": framed(msgpack.packb([250, ("x",)])),
    "not msgpack": framed(b"\xc1\xc1\xc1"),
    "deep nesting": framed(b"\x92\x1c\x92\x01" + b"\x91" * 500_000 + b"\xc0"),
    "a wrong type deep down": framed(b"\x92\x0d\x91" + b"\x91" * 900 + b"\xc0"),
    "garbage": random.Random(1).randbytes(5000),
    "an endless section": struct.pack("<II", 2**32 - 1, 0),
    "endless buffers": struct.pack("<IIQQB", 18, 1, 2**63, 2**63, 0) + b"\x90",
    "too many buffers": struct.pack("<II", 100, 2**32 - 1),
}


@pytest.mark.parametrize("words", OUTRAGES.values(), ids=OUTRAGES.keys())
def test_a_protocol_error_costs_its_connection_and_one_line(words: bytes, caplog: Any) -> None:
    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            good = await connect(listener.address, OPTIONS)
            await eventually(lambda: comms)
            good_ear = Ear(comms[0])
            with stranger(listener) as sock:
                assert await shake_hands(sock) == b"\x01"
                await eventually(lambda: len(comms) == 2)
                bad_ear = Ear(comms[1])
                name = "tcp://{}:{}".format(*sock.getsockname())
                await asyncio.get_running_loop().sock_sendall(sock, words)
                await hangs_up(sock)
                assert "protocol error" in str(await bad_ear.told_the_end())
                assert bad_ear.messages == []
            (record,) = caplog.records
            assert record.levelno == logging.WARNING
            assert name in record.getMessage()
            assert len(record.getMessage()) < 1000
            for n in range(100):
                good.send(KeyLost(f"x-{n}"))
            await good_ear.heard(100)
            assert good_ear.reasons == []
            good.close()
            await good.wait_closed()

    run(main())


def test_messages_before_a_protocol_error_are_delivered() -> None:
    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            with stranger(listener) as sock:
                await shake_hands(sock)
                await eventually(lambda: comms)
                ear = Ear(comms[0])
                right = framed(msgpack.packb([KEY_LOST, ("x",)]))
                sock.sendall(right + right + framed(b"\xc1") + right)
                await ear.told_the_end()
                assert ear.messages == [KeyLost("x")] * 2

    run(main())


def test_what_cannot_be_sent_ends_the_connection_with_a_line(caplog: Any) -> None:
    async def main() -> None:
        async with connected(LOCAL) as (a, b):
            ears = Ear(a), Ear(b)
            a.send(Reply(1, object()))
            for ear in ears:
                await ear.told_the_end()
            assert "cannot send" in caplog.text
            assert a.peer in caplog.text

    run(main())


def test_a_message_over_the_limit_is_refused_by_its_sender_and_by_its_receiver() -> None:
    small = CommOptions(token=TOKEN, limits=Limits(section=1000, buffers=1000))

    async def main(dialling: CommOptions, accepting: CommOptions) -> None:
        async with listening(LOCAL, accepting) as (listener, comms):
            ear = Ear(await connect(listener.address, dialling))
            await eventually(lambda: comms)
            other = Ear(comms[0])
            ear.comm.send(CallReturned(1, Frames([bytes(1001)])))
            await ear.told_the_end()
            await other.told_the_end()
            assert other.messages == []

    run(main(small, OPTIONS))
    run(main(OPTIONS, small))


# -- Compression -----------------------------------------------------------------------------------


def test_nothing_is_compressed_within_one_host(monkeypatch: Any) -> None:
    monkeypatch.setattr(compression.Codec, "compress", lambda *_: pytest.fail("compressed"))

    async def main(address: str) -> None:
        async with connected(address, CommOptions(token=TOKEN, compression="zstd")) as (a, b):
            a.send(CallReturned(1, Frames([bytes(MIB)])))
            await b.receive()
            assert a.same_host
            assert b.same_host

    run(main(LOCAL))
    run(main("tcp://127.0.1.1:0"))  # what Debian calls the machine itself


@pytest.mark.parametrize("name", ["auto", "lz4", "zstd", None])
def test_between_hosts_what_is_worth_it_is_compressed(name: str | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(tcp, "_is_same_host", lambda *_: False)
    zeros, noise = bytes(20 * MIB), random.Random(1).randbytes(MIB)

    async def main() -> None:
        async with connected(LOCAL, CommOptions(token=TOKEN, compression=name)) as (a, b):
            ear = Ear(b)
            a.send(CallReturned(1, Frames([zeros, noise])))
            (message,) = await ear.heard(1)
            assert message.value == Frames([zeros, noise])
            assert (b.progress < 3 * MIB) == (name is not None)
            assert b.progress > MIB
            assert a.compresses == (name is not None)

    run(main())


# -- Backpressure ----------------------------------------------------------------------------------


def test_drained_waits_while_the_peer_does_not_read_and_memory_stays_bounded() -> None:
    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            with stranger(listener) as sock:
                await shake_hands(sock)
                await eventually(lambda: comms)
                comm, n_sent = comms[0], 0

                async def pour() -> None:
                    nonlocal n_sent
                    while n_sent < 200:
                        comm.send(CallReturned(1, Frames([bytearray(MIB)])))
                        n_sent += 1
                        await comm.drained()

                tracemalloc.start()
                pouring = asyncio.ensure_future(pour())
                done, _ = await asyncio.wait({pouring}, timeout=0.3)
                assert not done
                stalled_at = n_sent
                done, _ = await asyncio.wait({pouring}, timeout=0.1)
                assert not done
                assert n_sent == stalled_at < 100
                assert tracemalloc.get_traced_memory()[0] < tcp._HIGH_WATER + 4 * MIB
                tracemalloc.stop()

                loop, n_read = asyncio.get_running_loop(), 0
                while n_read < 200 * MIB:
                    n_read += len(await asyncio.wait_for(loop.sock_recv(sock, MIB), 10))
                await asyncio.wait_for(pouring, 10)
                assert n_sent == 200
                await comm.drained()

    run(main())


def test_who_pauses_reads_no_more_until_it_resumes() -> None:
    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            comm = await connect(listener.address, OPTIONS)
            await eventually(lambda: comms)
            ear = Ear(comms[0])
            comm.send(CallReturned(0, b""))
            await ear.heard(1)
            comms[0].pause()
            for number in range(1, 41):
                comm.send(CallReturned(number, Frames([bytearray(MIB)])))
            draining = asyncio.ensure_future(comm.drained())
            done, _ = await asyncio.wait({draining}, timeout=0.2)
            assert not done, "the sender has to wait"
            assert len(ear.messages) == 1
            comms[0].resume()
            assert [m.request for m in await ear.heard(41)] == list(range(41))
            await asyncio.wait_for(draining, 10)
            comms[0].pause()
            comm.close()
            comms[0].resume()
            assert "closed" in str(await ear.told_the_end())
            comms[0].pause()  # of a connection that has ended means nothing
            comms[0].resume()

    run(main())


@pytest.mark.parametrize("end", ["abort", "close", "vanish"])
def test_drained_ends_with_the_connection(end: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(tcp, "_LINGER", 0.1)

    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            with stranger(listener) as sock:
                await shake_hands(sock)
                await eventually(lambda: comms)
                comms[0].send(CallReturned(1, Frames([bytes(100 * MIB)])))
                waiting = [asyncio.ensure_future(comms[0].drained()) for _ in range(3)]
                await asyncio.sleep(0)
                if end == "abort":
                    comms[0].abort("enough")
                elif end == "close":
                    comms[0].close()
                else:
                    sock.close()
                await asyncio.wait_for(asyncio.gather(*waiting), 10)
                await asyncio.wait_for(comms[0].wait_closed(), 10)

    run(main())


class EagerSocket:
    """A socket whose peer reads as fast as we write."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def sendmsg(self, buffers: list[memoryview]) -> int:
        return self._sock.send(buffers[0][:1000])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_a_long_transfer_leaves_the_loop_to_others() -> None:
    async def main() -> None:
        async with connected(LOCAL) as (a, b):
            ear = Ear(b)
            a._sock = EagerSocket(a._sock)
            a.send(CallReturned(1, Frames([bytes(100_000)])))
            n_turns = 0
            while not n_turns or a._queued:
                await asyncio.sleep(0)
                n_turns += 1
            assert n_turns > 5
            await ear.heard(1)

    run(main())


# -- Ends ------------------------------------------------------------------------------------------

PEER = """
    import asyncio, sys
    from hpcdask.comm import connect
    from hpcdask.comm.options import CommOptions
    from hpcdask.messages.client import KeyLost
    async def main():
        comm = await connect(sys.argv[1], CommOptions(token=b"t" * 32))
        comm.start(print, print)
        comm.send(KeyLost("I am here"))
        await asyncio.Event().wait()
    asyncio.run(main())
"""


def test_a_peer_that_is_killed_ends_its_connection() -> None:
    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(PEER), listener.address], cwd=PACKAGE
            )
            try:
                await eventually(lambda: comms, 30)
                ear = Ear(comms[0])
                await ear.heard(1)
                process.send_signal(signal.SIGKILL)
                reason = str(await ear.told_the_end())
                assert comms[0].peer in reason
                assert len(ear.reasons) == 1
            finally:
                process.kill()
                process.wait(10)

    run(main())


def test_a_peer_that_resets_ends_its_connection_even_within_a_frame() -> None:
    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            with stranger(listener) as sock:
                await shake_hands(sock)
                await eventually(lambda: comms)
                ear = Ear(comms[0])
                sock.sendall(framed(b"x" * 1000)[:500])
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
                await ear.told_the_end()
                assert ear.messages == []

    run(main())


@pytest.mark.parametrize("size", [MIB, 30 * MIB])
def test_all_that_was_sent_arrives_although_its_sender_closes_with_bytes_unread(size: int) -> None:
    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            with stranger(listener) as sock:
                await shake_hands(sock)
                await eventually(lambda: comms)
                sock.send(bytes(1000))  # is there, but the loop has had no turn to read it
                comms[0].send(CallReturned(1, Frames([bytes(size)])))
                comms[0].close()
                assert len(await hangs_up(sock)) > size
                sock.close()
                await asyncio.wait_for(comms[0].wait_closed(), 3)

    run(main())


def test_a_closing_connection_does_not_wait_for_ever(monkeypatch: Any) -> None:
    monkeypatch.setattr(tcp, "_LINGER", 0.1)

    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            with stranger(listener) as sock:  # neither reads nor hangs up
                await shake_hands(sock)
                await eventually(lambda: comms)
                comms[0].send(CallReturned(1, Frames([bytes(100 * MIB)])))
                comms[0].close()
                await asyncio.wait_for(comms[0].wait_closed(), 10)

    run(main())


def test_a_closing_connection_waits_as_long_as_the_peer_takes_something(monkeypatch: Any) -> None:
    monkeypatch.setattr(tcp, "_LINGER", 0.2)

    async def main() -> None:
        async with listening(LOCAL) as (listener, comms):
            with stranger(listener) as sock:
                await shake_hands(sock)
                await eventually(lambda: comms)
                size = 100 * MIB
                comms[0].send(CallReturned(1, Frames([bytes(size)])))
                comms[0].close()
                loop, n_read, started = asyncio.get_running_loop(), 0, time.monotonic()
                while n_read < size:
                    words = await asyncio.wait_for(loop.sock_recv(sock, MIB), 10)
                    assert words, "it gave up"
                    n_read += len(words)
                    if time.monotonic() - started < 1:
                        await asyncio.sleep(0.02)  # a slow reader
                await hangs_up(sock)

    run(main())


def test_no_file_descriptor_is_left_when_all_is_closed() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, int)
        before = n_open_files()
        options = CommOptions(token=TOKEN, handshake_timeout=0.1)
        async with listening(LOCAL, options) as (listener, comms):
            dialled = [await connect(listener.address, options) for _ in range(10)]
            await eventually(lambda: len(comms) == 10)
            dialled[0].abort("enough")
            comms[1].abort("enough")
            dialled[2].send(Reply(1, object()))
            for comm in dialled[5:]:
                comm.send(CallReturned(1, Frames([bytes(MIB)])))
            with pytest.raises(AuthenticationError):
                await connect(listener.address, CommOptions(token=OTHER_TOKEN))
            with stranger(listener, b"garbage"), stranger(listener):
                pass
            with pytest.raises(CommClosedError):
                await connect(f"127.0.0.1:{free_port()}", options, 0.05)
            with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(CommClosedError):
                await connect(f"127.0.0.1:{silent.getsockname()[1]}", options, 5)
            dialling = asyncio.ensure_future(connect(listener.address, options))
            await asyncio.sleep(0)
            dialling.cancel()
            for comm in dialled:
                comm.close()
            for comm in dialled:
                await comm.wait_closed()
        await eventually(lambda: n_open_files() == before)

    run(main())


def test_strangers_are_closed_with_their_listener_however_early() -> None:
    async def main() -> None:
        before = n_open_files()
        async with listening(LOCAL) as (listener, _):
            with stranger(listener) as known, stranger(listener) as new:
                await eventually(lambda: accepted(listener) == 2)
                with stranger(listener) as newest:
                    assert isinstance(listener, tcp_listener.TCPListener)
                    listener._accept_ready(listener._socks[0])  # its task has not begun yet
                    listener.close()
                    for sock in (known, new, newest):
                        assert await hangs_up(sock) == b""
        await eventually(lambda: n_open_files() == before)

    def accepted(listener: Listener) -> int:
        return len(listener._strangers)  # type: ignore[attr-defined]

    run(main())
