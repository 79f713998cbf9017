"""What every connection does, whatever carries it."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import numpy as np
import pytest
from endpoints import OPTIONS, Ear, connected, eventually, listening, run

from hpcdask.comm import Comm, connect
from hpcdask.errors import CommClosedError
from hpcdask.messages import CallReturned, Frames, KeyValues
from hpcdask.messages.client import KeyLost
from hpcdask.wire.serialize import dumps, loads


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(
    params=[
        "tcp://127.0.0.1:0",
        pytest.param(
            "tcp://[::1]:0",
            marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6"),
        ),
        "inproc://",
    ]
)
def address(request: Any) -> str:
    return str(request.param)


def numbered(start: int, stop: int) -> list[KeyLost]:
    return [KeyLost(f"x-{i}") for i in range(start, stop)]


def test_many_small_messages_arrive_in_order_both_ways(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            ears = Ear(a), Ear(b)
            for start in range(0, 20_000, 1000):
                for message in numbered(start, start + 500):
                    a.send(message)
                a.send_now(numbered(start + 500, start + 1000))
                b.send_now(numbered(start, start + 1000))
                await asyncio.sleep(0)
            for ear in ears:
                assert await ear.heard(20_000) == numbered(0, 20_000)
                assert {type(message) for message in ear.messages} == {KeyLost}

    run(main())


def test_large_arrays_arrive_whole_and_between_small_messages(address: str) -> None:
    array = np.arange(50 * 2**20 // 8)

    async def main() -> None:
        async with connected(address) as (a, b):
            ears = Ear(a), Ear(b)
            for comm in (a, b):
                for n in range(3):
                    comm.send(KeyLost(f"before-{n}"))
                    comm.send(CallReturned(n, dumps(array + n)))
                    comm.send(KeyLost(f"after-{n}"))
            for ear in ears:
                messages = await ear.heard(9)
                for n in range(3):
                    before, large, after = messages[3 * n : 3 * n + 3]
                    assert (before.key, after.key) == (f"before-{n}", f"after-{n}")
                    assert np.array_equal(loads(large.value), array + n)

    run(main())


def test_a_message_with_many_buffers_of_every_size_arrives(address: str) -> None:
    parts: list[Any] = [bytes([n % 256]) * (n * 37 % 5000) for n in range(3000)]

    async def main() -> None:
        async with connected(address) as (a, b):
            ear = Ear(b)
            a.send(CallReturned(1, Frames(parts)))
            ((_, value),) = await ear.heard(1)
            assert value == Frames(parts)

    run(main())


def test_messages_wait_until_somebody_wants_them(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            a.send_now(numbered(0, 10))
            for expected in numbered(0, 3):
                assert await asyncio.wait_for(b.receive(), 10) == expected
            ear = Ear(b)
            assert await ear.heard(7) == numbered(3, 10)

    run(main())


def test_waiting_for_a_message_can_be_given_up(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(b.receive(), 0.01)
            a.send(KeyLost("x"))
            assert await asyncio.wait_for(b.receive(), 10) == KeyLost("x")

    run(main())


def test_what_is_queued_still_arrives_when_its_sender_closes(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            mine, theirs = Ear(a), Ear(b)
            a.send(CallReturned(1, Frames([bytes(30 * 2**20)])))
            a.send_now(numbered(0, 5000))
            a.send(KeyLost("last"))
            a.close()
            assert (await theirs.heard(5002))[-1] == KeyLost("last")
            assert "closed" in str(await theirs.told_the_end())
            await asyncio.wait_for(a.wait_closed(), 3)
            assert mine.reasons == []
            assert len(theirs.reasons) == 1

    run(main())


def test_what_is_queued_arrives_although_the_closer_has_not_read_all(address: str) -> None:
    # A socket that is closed with bytes unread resets its connection.
    async def main() -> None:
        async with connected(address) as (a, b):
            ear = Ear(b)
            for n in range(20):
                b.send(CallReturned(n, Frames([bytes(2**20)])))
            a.send(CallReturned(1, Frames([bytes(30 * 2**20)])))
            a.close()
            assert len(await ear.heard(1)) == 1
            assert await ear.told_the_end()

    run(main())


def test_both_ends_may_close_at_once(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            ears = Ear(a), Ear(b)
            for comm in (a, b):
                comm.send_now(numbered(0, 100))
                comm.close()
                comm.close()
            await asyncio.wait_for(asyncio.gather(a.wait_closed(), b.wait_closed()), 3)
            assert a.closed
            assert b.closed
            assert [ear.reasons for ear in ears] == [[], []]

    run(main())


def test_nothing_is_sent_or_delivered_after_close(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            heard: list[Any] = []

            def close_at_once(messages: list[Any]) -> None:
                heard.extend(messages)
                b.close()
                b.send(KeyLost("too late"))
                b.send_now([KeyLost("too late")])

            b.start(close_at_once, lambda _: heard.append("the end"))
            ear = Ear(a)
            for message in numbered(0, 3):
                a.send_now([message])  # each in a frame of its own
            await ear.told_the_end()
            assert heard == [KeyLost("x-0")]
            assert ear.messages == []

    run(main())


def test_an_abort_tells_both_ends_once(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            mine, theirs = Ear(a), Ear(b)
            a.abort("out of patience")
            a.abort("again")
            a.close()
            assert "out of patience" in str(await mine.told_the_end())
            assert b.local in str(mine.reasons[0])
            await theirs.told_the_end()
            await asyncio.wait_for(asyncio.gather(a.wait_closed(), b.wait_closed()), 10)
            a.send(KeyLost("x"))
            await a.drained()
            await asyncio.sleep(0)
            assert len(mine.reasons) == len(theirs.reasons) == 1

    run(main())


def test_receiving_from_a_connection_that_ends_raises(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            a.send(KeyLost("x"))
            waiting = asyncio.ensure_future(receive_two(b))
            await asyncio.sleep(0)
            a.close()
            assert await asyncio.wait_for(waiting, 10) == KeyLost("x")
            with pytest.raises(CommClosedError):
                await b.receive()

    async def receive_two(comm: Comm) -> Any:
        first = await comm.receive()
        with pytest.raises(CommClosedError):
            await comm.receive()
        return first

    run(main())


def test_who_starts_late_gets_all_messages_and_then_the_end(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            a.send_now(numbered(0, 10))
            a.close()
            await eventually(lambda: b.closed)
            told: list[Any] = []
            b.start(told.extend, lambda _: told.append("the end"))
            await eventually(lambda: "the end" in told)
            assert told == [*numbered(0, 10), "the end"]

    run(main())


def test_a_handler_that_fails_ends_its_connection_only(address: str, caplog: Any) -> None:
    def fail(messages: list[Any]) -> None:
        raise ZeroDivisionError("a defect")

    async def main() -> None:
        async with listening(address) as (listener, comms):
            bad, good = [await connect(listener.address, OPTIONS) for _ in range(2)]
            await eventually(lambda: len(comms) == 2)
            ends: list[Any] = []
            comms[0].start(fail, ends.append)
            heard = Ear(comms[1])
            bad.send(KeyLost("x"))
            await eventually(lambda: ends)
            good.send(KeyLost("y"))
            await heard.heard(1)
            assert len(ends) == 1
            (record,) = caplog.records
            assert record.levelno == logging.ERROR
            assert comms[0].peer in record.getMessage()
            assert "a defect" in caplog.text
            for comm in (bad, good):
                comm.close()
                await comm.wait_closed()

    run(main())


@pytest.mark.parametrize("ends_by", ["an error", "closing"])
def test_an_end_within_the_first_batch_is_told_as_any_other(address: str, ends_by: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            a.send(KeyLost("x"))
            await eventually(lambda: b._inbox)
            ends: list[Any] = []

            def end(messages: list[Any]) -> None:
                if ends_by == "an error":
                    raise ZeroDivisionError
                b.close()

            b.start(end, ends.append)
            await asyncio.wait_for(b.wait_closed(), 10)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(ends) == (ends_by == "an error")

    run(main())


def test_an_owner_that_cannot_take_a_connection_costs_that_connection_only(
    address: str, caplog: Any
) -> None:
    def refuse_first(comm: Comm) -> None:
        if not seen:
            seen.append(comm)
            raise ZeroDivisionError("a defect")

    seen: list[Comm] = []

    async def main() -> None:
        async with listening(address, on_comm=refuse_first) as (listener, comms):
            first = Ear(await connect(listener.address, OPTIONS))
            await first.told_the_end()
            assert "a defect" in caplog.text
            second = await connect(listener.address, OPTIONS)
            await eventually(lambda: len(comms) == 2)
            Ear(comms[1])
            assert not second.closed
            second.close()
            await second.wait_closed()

    run(main())


def test_ends_know_each_other_by_name(address: str) -> None:
    async def main() -> None:
        async with connected(address) as (a, b):
            assert (a.local, a.peer) == (b.peer, b.local)
            assert a.same_host
            assert b.same_host
            assert "open" in repr(a)
            assert a.peer in repr(a)
            a.close()
            assert "closed" in repr(a)

    run(main())


def test_a_closed_listener_accepts_nobody(address: str) -> None:
    async def main() -> None:
        async with listening(address) as (listener, comms):
            listener.close()
            listener.close()
            with pytest.raises(CommClosedError):
                await connect(listener.address, OPTIONS, timeout=0.1)
            assert comms == []

    run(main())


def test_a_place_that_is_taken_is_refused(address: str) -> None:
    async def main() -> None:
        async with listening(address) as (listener, _):
            with pytest.raises(OSError, match="in use"):
                async with listening(listener.address):
                    pass
            comm = await connect(listener.address, OPTIONS)
            comm.close()
            await comm.wait_closed()

    run(main())


def test_values_of_every_kind_arrive(address: str) -> None:
    values = [b"small", b"x" * 100_000, bytearray(100_000), {"a": np.ones((50, 50), order="F")}]

    async def main() -> None:
        async with connected(address) as (a, b):
            ear = Ear(b)
            stored = tuple((f"k{n}", n, dumps(value)) for n, value in enumerate(values))
            a.send(KeyValues(1, stored, (), ()))
            (message,) = await ear.heard(1)
            back = [loads(blob) for _, _, blob in message.values]
            assert back[:3] == values[:3]
            assert list(map(type, back)) == list(map(type, values))
            assert np.array_equal(back[3]["a"], values[3]["a"])

    run(main())
