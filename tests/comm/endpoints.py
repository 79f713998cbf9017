"""Both ends of connections, and ways to wait for what happens there."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import msgpack

from hpcdask.comm import Comm, Listener, connect, listen
from hpcdask.comm.addresses import parse_address
from hpcdask.comm.options import CommOptions
from hpcdask.errors import CommClosedError
from hpcdask.messages.client import KeyLost
from hpcdask.wire import handshake
from hpcdask.wire.codec import encode

LOCAL = "tcp://127.0.0.1:0"
TOKEN, OTHER_TOKEN = b"t" * 32, b"o" * 32
#: The number of `KeyLost`, for who writes messages by hand.
KEY_LOST: int = msgpack.unpackb(encode([KeyLost("x")])[0])[0]
OPTIONS = CommOptions(token=TOKEN, connect_timeout=10, handshake_timeout=5)

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], timeout: float = 60) -> T:
    """Run a test's coroutine, but not for ever."""
    return asyncio.run(asyncio.wait_for(main, timeout))


async def eventually(claim: Callable[[], Any], timeout: float = 10) -> None:
    """Wait until a claim is true, or fail."""
    deadline = time.monotonic() + timeout
    while not claim():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(0.002)


class Ear:
    """Keeps what a connection delivers, and why it ended."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.messages: list[Any] = []
        self.reasons: list[CommClosedError] = []
        comm.start(self.messages.extend, self.reasons.append)

    async def heard(self, n_messages: int, timeout: float = 30) -> list[Any]:
        await eventually(lambda: len(self.messages) >= n_messages, timeout)
        return self.messages

    async def told_the_end(self, timeout: float = 10) -> CommClosedError:
        await eventually(lambda: self.reasons, timeout)
        return self.reasons[0]


@asynccontextmanager
async def listening(
    address: str,
    options: CommOptions = OPTIONS,
    on_comm: Callable[[Comm], Any] | None = None,
    ports: int | str | None = None,
) -> AsyncIterator[tuple[Listener, list[Comm]]]:
    """A listener, and the connections that it has accepted so far."""
    comms: list[Comm] = []

    def accept(comm: Comm) -> None:
        comms.append(comm)
        if on_comm is not None:
            on_comm(comm)

    listener = await listen(address, accept, options, ports)
    try:
        yield listener, comms
    finally:
        listener.close()
        for comm in comms:
            comm.close()
        for comm in comms:
            await comm.wait_closed()


@asynccontextmanager
async def connected(
    address: str, options: CommOptions = OPTIONS
) -> AsyncIterator[tuple[Comm, Comm]]:
    """The dialling and the accepting end of one connection."""
    async with listening(address, options) as (listener, comms):
        dialled = await connect(listener.address, options)
        await eventually(lambda: comms)
        try:
            yield dialled, comms[0]
        finally:
            dialled.close()
            comms[0].close()
            await dialled.wait_closed()


def where(listener: Listener) -> tuple[str, int]:
    address = parse_address(listener.address)
    return address.host, address.port


@contextmanager
def stranger(listener: Listener, *first_words: bytes) -> Iterator[socket.socket]:
    """A bare socket that is connected to a listener and has said something."""
    with socket.create_connection(where(listener), timeout=10) as sock:
        for words in first_words:
            sock.sendall(words)
        sock.setblocking(False)
        yield sock


async def hangs_up(sock: socket.socket, timeout: float = 10) -> bytes:
    """All that the other side says until it hangs up."""
    loop, said = asyncio.get_running_loop(), bytearray()
    try:
        while True:
            words = await asyncio.wait_for(loop.sock_recv(sock, 2**18), timeout)
            if not words:
                return bytes(said)
            said += words
    except ConnectionError:  # it had not read all that we said
        return bytes(said)


async def shake_hands(sock: socket.socket, token: bytes = TOKEN) -> bytes:
    """Prove oneself on a bare socket; return the verdict."""
    loop, dialler = asyncio.get_running_loop(), handshake.Dialler(token)
    await loop.sock_sendall(sock, dialler.hello())
    challenge = await asyncio.wait_for(loop.sock_recv(sock, handshake.CHALLENGE_LENGTH), 10)
    await loop.sock_sendall(sock, dialler.challenged(challenge))
    return await asyncio.wait_for(loop.sock_recv(sock, 1), 10)


def n_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])
