"""Gathering values whose holders die, lie, or cannot be reached."""

from __future__ import annotations

import asyncio
from typing import Any

from endpoints import TOKEN, free_port, run
from exchanges import Desk, desk

from hpcdask.comm.options import CommOptions
from hpcdask.gathering import MAX_BYTES, Gathered, gather_values, request_ends
from hpcdask.messages import Dependency, FetchKeys, KeyValues
from hpcdask.peers import Peers
from hpcdask.wire.serialize import loads

OPTIONS = CommOptions(token=TOKEN, stall_timeout=0.4)


async def gathered(*located: Dependency, unreachable: set[str] | None = None) -> Gathered:
    peers = Peers(OPTIONS, connect_timeout=2)
    try:
        return await gather_values(peers, located, unreachable)
    finally:
        peers.close()
        await asyncio.sleep(0)


def at(key: str, *addresses: str, nbytes: int = 100) -> Dependency:
    return Dependency(key, 1, nbytes, addresses)


def nobody() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


def values_of(found: Gathered) -> dict[str, Any]:
    return {stored.key: loads(stored.value) for stored in found.values}


def test_the_next_holder_is_asked_when_one_cannot_be_dialled() -> None:
    async def main() -> None:
        async with desk() as holder:
            holder.hold({"x": 1, "y": 2})
            gone, unreachable = nobody(), set[str]()
            wanted = at("x", gone, holder.address), at("y", gone, holder.address)
            found = await gathered(*wanted, unreachable=unreachable)
            assert values_of(found) == {"x": 1, "y": 2}
            assert unreachable == {gone}
            assert found.missing == found.unreached == []

    run(main())


def test_the_next_holder_is_asked_when_one_does_not_have_it() -> None:
    async def main() -> None:
        async with desk() as forgetful, desk() as holder:
            forgetful.hold({"x": 1})
            holder.hold({"y": 2})
            both = (forgetful.address, holder.address)
            found = await gathered(at("x", *both), at("y", *both), at("z", *both))
            assert values_of(found) == {"x": 1, "y": 2}
            assert found.missing == ["z"]
            assert found.unreached == []

    run(main())


def test_the_next_holder_is_asked_when_one_falls_silent() -> None:
    async def main() -> None:
        async with desk() as silent, desk() as holder:
            silent.exchange._asked = lambda comm, message: None  # type: ignore[method-assign]
            holder.hold({"x": 1})
            unreachable = set[str]()
            wanted = at("x", silent.address, holder.address)
            found = await gathered(wanted, unreachable=unreachable)
            assert values_of(found) == {"x": 1}
            assert unreachable == set(), "it may answer next time"

    run(main())


def test_keys_that_nobody_holds_are_told_from_those_whose_holders_are_out_of_reach() -> None:
    async def main() -> None:
        async with desk() as holder:
            gone = nobody()
            wanted = at("nowhere"), at("away", gone), at("denied", holder.address, gone)
            found = await gathered(*wanted)
            assert found.unreached == ["away"]
            assert sorted(found.missing) == ["denied", "nowhere"]
            answer = found.as_answer(7)
            assert type(answer) is KeyValues
            assert (answer.request, answer.values, answer.failed) == (7, (), ())
            assert sorted(answer.missing) == ["away", "denied", "nowhere"]

    run(main())


def test_who_is_known_to_be_unreachable_is_not_dialled() -> None:
    async def main() -> None:
        async with desk() as holder:
            holder.hold({"x": 1})
            found = await gathered(at("x", holder.address), unreachable={holder.address})
            assert found.unreached == ["x"]
            assert holder.exchange._comms == set()

    run(main())


def asked_of(holder: Desk) -> list[FetchKeys]:
    """Keep the requests that a holder gets."""
    asked: list[FetchKeys] = []
    answer = holder.exchange._asked

    def note(comm: Any, message: FetchKeys) -> None:
        if message.versions:
            asked.append(message)
        answer(comm, message)

    holder.exchange._asked = note  # type: ignore[method-assign]
    return asked


def test_a_holder_is_asked_for_much_in_several_requests_until_it_fails() -> None:
    async def main() -> None:
        async with desk() as one, desk() as two:
            keys = [f"x-{n}" for n in range(1200)]
            one.hold(dict.fromkeys(keys, 1))
            two.hold(dict.fromkeys(keys, 2))
            asked = asked_of(one)
            found = await gathered(*(at(key, one.address) for key in keys))
            assert [len(message.versions) for message in asked] == [500, 500, 200]
            assert values_of(found) == dict.fromkeys(keys, 1)

            spoil_second_answer(one)
            asked = asked_of(one)
            wanted = [at(key, one.address, two.address) for key in keys]
            # Bytes that others were asked for count, so that all begin with the first one.
            found = await gathered(*(w._replace(nbytes=0) for w in wanted))
            assert len(asked) == 2
            assert sum(value == 1 for value in values_of(found).values()) == 500
            assert values_of(found).keys() == set(keys)

    run(main())


def spoil_second_answer(holder: Desk) -> None:
    send, n_sent = holder.exchange._send_values, 0

    async def spoilt(comm: Any, message: FetchKeys) -> None:
        nonlocal n_sent
        n_sent += 1
        if n_sent == 2:
            comm.abort("as if it had died")
        else:
            await send(comm, message)

    holder.exchange._send_values = spoilt  # type: ignore[method-assign]


def test_holders_share_the_work() -> None:
    async def main() -> None:
        async with desk() as one, desk() as two:
            keys = [f"x-{n}" for n in range(20)]
            for holder in (one, two):
                holder.hold(dict.fromkeys(keys, 1))
            asked = asked_of(one), asked_of(two)
            found = await gathered(*(at(key, one.address, two.address) for key in keys))
            assert len(found.values) == 20
            assert [sum(len(m.versions) for m in messages) for messages in asked] == [10, 10]

    run(main())


def test_a_value_that_cannot_be_pickled_is_told_and_not_asked_of_others() -> None:
    class Unpicklable:
        def __reduce__(self) -> Any:
            raise ZeroDivisionError

    async def main() -> None:
        async with desk() as one, desk() as two:
            one.hold({"x": Unpicklable()})
            two.hold({"x": 1})
            found = await gathered(at("x", one.address, two.address))
            ((key, error),) = found.failed
            assert (key, error.worker) == ("x", one.address)
            assert found.values == []

    run(main())


def test_requests_are_cut_by_bytes_and_by_number() -> None:
    assert list(request_ends([])) == []
    assert list(request_ends([MAX_BYTES] * 3)) == [1, 2, 3]
    assert list(request_ends([MAX_BYTES // 2] * 5)) == [2, 4, 5]
    assert list(request_ends([10 * MAX_BYTES, 1, 1])) == [1, 3]
    assert list(request_ends([1] * 1001)) == [500, 1000, 1001]
