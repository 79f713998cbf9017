"""Requests to workers that answer, that are slow, and that do not answer any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from endpoints import LOCAL, TOKEN, eventually, free_port, listening, run

from hpcdask.comm import Comm, listen
from hpcdask.comm.options import CommOptions
from hpcdask.errors import CommClosedError
from hpcdask.messages import (
    PROTOCOL_VERSION,
    FetchKeys,
    Frames,
    KeyValues,
    RegisterPeer,
    Reply,
    StoredValue,
    StoreKeys,
    Version,
)
from hpcdask.peers import MAX_STORE_BYTES, Peers, UnreachableError
from hpcdask.wire import codec, framing

STALL = 0.3
OPTIONS = CommOptions(token=TOKEN, stall_timeout=STALL)
#: For what is not about silence: a busy machine is silent at times.
PATIENT = CommOptions(token=TOKEN, stall_timeout=60)
X = Version("x", 1)
MIB = 2**20


@asynccontextmanager
async def peers(
    options: CommOptions = OPTIONS, connect_timeout: float = 5.0
) -> AsyncIterator[Peers]:
    peers = Peers(options, connect_timeout)
    try:
        yield peers
    finally:
        peers.close()
        await asyncio.sleep(0)


def values_of(message: FetchKeys) -> KeyValues:
    values = tuple(StoredValue(v.key, v.attempt, v.key.encode()) for v in message.versions)
    return KeyValues(message.request, values, (), ())


class Answering:
    """A worker that knows every key; `delay` answers to requests for keys, in seconds."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.heard: list[Any] = []
        self.comms: list[Comm] = []

    def __call__(self, comm: Comm) -> None:
        self.comms.append(comm)

        def on_batch(batch: list[Any]) -> None:
            for message in batch:
                self.heard.append(message)
                if type(message) is FetchKeys:
                    delay = self.delay if message.versions else 0
                    loop = asyncio.get_running_loop()
                    loop.call_later(delay, comm.send, values_of(message))
                elif type(message) is StoreKeys:
                    comm.send(Reply(message.request, None))

        comm.start(on_batch, lambda reason: None)


def test_many_requests_share_one_connection() -> None:
    worker = Answering()

    async def main() -> None:
        async with listening(LOCAL, OPTIONS, worker) as (listener, comms), peers(PATIENT) as mine:
            wanted = [[Version(f"x-{n}", n)] for n in range(20)]
            answers = await asyncio.gather(*(mine.fetch(listener.address, w) for w in wanted))
            assert [answer.values[0].key for answer in answers] == [f"x-{n}" for n in range(20)]
            assert len(comms) == 1
            assert worker.heard[0] == RegisterPeer(PROTOCOL_VERSION, listener.address)

    run(main())


def test_a_worker_that_says_nothing_is_given_up_in_time() -> None:
    async def main() -> None:
        async with listening(LOCAL, OPTIONS) as (listener, comms), peers() as mine:
            start = time.monotonic()
            with pytest.raises(CommClosedError, match=r"nothing has come from it for 0\.3 s") as e:
                await mine.fetch(listener.address, [X])
            assert listener.address in str(e.value)
            assert STALL * 0.9 < time.monotonic() - start < 5
            assert not isinstance(e.value, UnreachableError)
            await eventually(lambda: comms[0].closed)
            # The next request dials anew.
            with pytest.raises(CommClosedError, match="nothing has come"):
                await mine.fetch(listener.address, [X])
            assert len(comms) == 2

    run(main())


def test_a_worker_that_takes_long_is_not_given_up() -> None:
    worker = Answering(delay=5 * STALL)

    async def main() -> None:
        async with listening(LOCAL, OPTIONS, worker) as (listener, _), peers() as mine:
            answer = await mine.fetch(listener.address, [X])
            assert answer.values == (StoredValue("x", 1, b"x"),)
            assert FetchKeys(0, ()) in worker.heard, "it was not even asked whether it lives"

    run(main())


def test_an_idle_connection_is_kept() -> None:
    worker = Answering()

    async def main() -> None:
        async with listening(LOCAL, OPTIONS, worker) as (listener, comms), peers() as mine:
            await mine.fetch(listener.address, [X])
            n_heard = len(worker.heard)
            looks = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(3 * STALL, looks.set_result, None)
            await looks
            assert len(worker.heard) == n_heard, "nothing was due"
            await mine.fetch(listener.address, [X])
            assert len(comms) == 1

    run(main())


@asynccontextmanager
async def bare_worker(speak: Callable[[Any], Any]) -> AsyncIterator[str]:
    """A listener whose connections are bare sockets, each given to `speak` after its handshake."""
    done: list[asyncio.Task[Any]] = []
    comms: list[Any] = []

    def on_comm(comm: Any) -> None:
        sock = comm._sock
        comms.append(comm)
        asyncio.get_running_loop().remove_reader(sock.fileno())
        done.append(asyncio.ensure_future(speak(sock)))

    listener = await listen(LOCAL, on_comm, OPTIONS)
    try:
        yield listener.address
    finally:
        listener.close()
        for task in done:
            task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await task
        for comm in comms:
            comm.abort("the test is over")


def test_an_answer_that_trickles_is_waited_for() -> None:
    answer = KeyValues(1, (StoredValue("x", 1, b"v" * 100),), (), ())
    parts = framing.frame_parts(*codec.encode([answer]), framing.Limits())
    stream = b"".join(map(bytes, parts))

    async def trickle(sock: Any) -> None:
        loop = asyncio.get_running_loop()
        for start in range(0, len(stream), len(stream) // 10):
            await asyncio.sleep(STALL / 3)
            await loop.sock_sendall(sock, stream[start : start + len(stream) // 10])

    async def main() -> None:
        async with bare_worker(trickle) as address, peers() as mine:
            start = time.monotonic()
            assert await mine.fetch(address, [X]) == answer
            assert time.monotonic() - start > 3 * STALL

    run(main())


def test_who_takes_data_slowly_is_not_given_up_before_it_stops() -> None:
    n_read = 0

    async def read_slowly(sock: Any) -> None:
        nonlocal n_read
        loop = asyncio.get_running_loop()
        while n_read < 30 * MIB:
            n_read += len(await loop.sock_recv(sock, 2 * MIB))
            await asyncio.sleep(STALL / 10)
        await asyncio.Event().wait()

    async def main() -> None:
        async with bare_worker(read_slowly) as address, peers() as mine:
            with pytest.raises(CommClosedError, match="nothing has come"):
                await mine.store(address, [StoredValue("x", 1, Frames([bytes(100 * MIB)]))])
            assert n_read >= 30 * MIB

    run(main())


def test_what_is_stored_goes_in_portions() -> None:
    worker = Answering()
    size = MAX_STORE_BYTES // 2 - 1000
    values = [StoredValue(f"x-{n}", n, Frames([bytes(size)])) for n in range(5)]
    values.append(StoredValue("large", 9, Frames([bytes(MAX_STORE_BYTES + 1)])))
    values.append(StoredValue("small", 10, b"small"))

    async def main() -> None:
        async with listening(LOCAL, OPTIONS, worker) as (listener, _), peers(PATIENT) as mine:
            await mine.store(listener.address, values)
            stored = [m for m in worker.heard if type(m) is StoreKeys]
            keys = [[value.key for value in message.values] for message in stored]
            assert keys == [["x-0", "x-1"], ["x-2", "x-3"], ["x-4"], ["large"], ["small"]]

    run(main())


def test_requests_to_a_worker_that_is_forgotten_fail_at_once() -> None:
    async def main() -> None:
        async with listening(LOCAL, PATIENT) as (listener, comms), peers(PATIENT) as mine:
            asking = asyncio.ensure_future(mine.fetch(listener.address, [X]))
            await eventually(lambda: comms and comms[0]._inbox)
            mine.forget(listener.address)
            with pytest.raises(CommClosedError, match="closed"):
                await asyncio.wait_for(asking, 1)

    run(main())


def test_dialling_a_worker_that_is_forgotten_fails_at_once() -> None:
    async def main() -> None:
        async with peers(connect_timeout=60) as mine:
            server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
            async with server:
                address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                asking = [asyncio.ensure_future(mine.fetch(address, [X])) for _ in range(3)]
                await asyncio.sleep(0)
                await eventually(lambda: mine._peers)
                mine.forget(address)
                for request in asking:
                    with pytest.raises(CommClosedError, match="given up"):
                        await asyncio.wait_for(request, 1)

    run(main())


def test_a_request_that_is_cancelled_stays_cancelled() -> None:
    async def main() -> None:
        async with listening(LOCAL, OPTIONS) as (listener, _), peers(PATIENT) as mine:
            asking = asyncio.ensure_future(mine.fetch(listener.address, [X]))
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    run(main())


def test_a_worker_that_is_not_there_is_unreachable() -> None:
    async def main() -> None:
        async with peers() as mine:
            with pytest.raises(UnreachableError, match="cannot reach"):
                await mine.fetch(f"tcp://127.0.0.1:{free_port()}", [X])

    run(main())
