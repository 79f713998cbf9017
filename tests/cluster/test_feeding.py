"""Messages of connections that end, fail or are replaced while some still wait."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from listening import LOCAL, until
from waiting import on_a_loop

from hpcdask import Client, Nanny, Scheduler
from hpcdask.comm import Comm, connect
from hpcdask.feeding import SLICE, Feed
from hpcdask.messages import PROTOCOL_VERSION, RegisterClient, Registered


class Heard:
    """What a feed handed on; each message takes a slice, so one is handled at a time.

    It stands for the connection as well.
    """

    def __init__(self, bad: object = None, seconds: float = 1.2 * SLICE) -> None:
        self.messages: list[Any] = []
        self.errors: list[str] = []
        self.slices = 0
        self.is_read = True
        self._bad, self._seconds = bad, seconds
        self.feed = Feed(self, self._handle, self._after)  # type: ignore[arg-type]

    def abort(self, reason: str) -> None:
        self.errors.append(reason)

    def pause(self) -> None:
        self.is_read = False

    def resume(self) -> None:
        self.is_read = True

    def _handle(self, message: Any) -> None:
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end:
            pass
        if message == self._bad:
            raise ValueError(message)
        self.messages.append(message)

    def _after(self) -> None:
        self.slices += 1


def feed(heard: Heard, messages: list[Any]) -> None:
    heard.feed(messages)
    assert heard.messages == messages[:1], "others get their turn"


@on_a_loop
async def test_what_waits_at_the_end_is_handled_in_slices_and_the_end_told_after_it() -> None:
    heard = Heard()
    feed(heard, [1, 2, 3])
    seen_at_end: list[list[Any]] = []
    heard.feed.finish(lambda: seen_at_end.append(list(heard.messages)))
    assert heard.messages == [1]
    await until(lambda: bool(seen_at_end))
    assert seen_at_end == [[1, 2, 3]]
    assert heard.slices == 3


@on_a_loop
async def test_nothing_more_is_read_while_messages_wait() -> None:
    heard = Heard(seconds=0)
    heard.feed([1, 2, 3])
    assert heard.messages == [1, 2, 3]
    assert heard.is_read, "none waits"
    heard = Heard()
    feed(heard, [1, 2, 3])
    assert not heard.is_read
    await until(lambda: heard.is_read)
    assert heard.messages == [1, 2, 3]


@on_a_loop
async def test_a_turn_ends_when_its_time_is_over_although_more_comes_with_the_same_read() -> None:
    heard = Heard()
    feed(heard, [1])
    heard.feed([2])
    assert heard.messages == [1]
    await until(lambda: heard.is_read)
    assert heard.messages == [1, 2]


@on_a_loop
async def test_the_end_is_told_at_once_if_nothing_waits() -> None:
    ends: list[str] = []
    Heard().feed.finish(lambda: ends.append("end"))
    assert ends == ["end"]


@on_a_loop
async def test_a_bad_message_ends_the_connection_and_those_behind_it_are_dropped() -> None:
    heard = Heard(bad=2)
    feed(heard, [1, 2, 3])
    ends: list[str] = []
    heard.feed.finish(lambda: ends.append("end"))
    await until(lambda: bool(ends))
    assert heard.errors == ["its messages could not be handled"]
    heard.feed([4])
    assert heard.messages == [1]
    assert ends == ["end"]


@on_a_loop
async def test_a_dropped_feed_hands_on_nothing_more() -> None:
    heard = Heard()
    feed(heard, [1, 2, 3])
    heard.feed.drop()
    ends: list[str] = []
    heard.feed.finish(lambda: ends.append("end"))
    await until(lambda: bool(ends))
    heard.feed([4])
    assert heard.messages == [1]


async def join(scheduler: Scheduler, returns: bool) -> tuple[Comm, Registered]:
    comm = await connect(scheduler.address, scheduler.options)
    comm.send(RegisterClient("somebody", PROTOCOL_VERSION, "0", returns))
    registered = await comm.receive()
    assert type(registered) is Registered
    return comm, registered


@on_a_loop
async def test_a_client_that_returns_ends_its_old_connection() -> None:
    async with Scheduler(**LOCAL) as scheduler:
        old, _ = await join(scheduler, returns=False)
        new, _ = await join(scheduler, returns=True)
        await asyncio.wait_for(old.wait_closed(), 10)
        assert not new.closed
        assert list(scheduler.clients) == ["somebody"]
        new.close()


@on_a_loop
async def test_an_earlier_absence_does_not_shorten_a_later_one() -> None:
    async with Scheduler(**LOCAL, client_grace=60) as scheduler:
        for returns in (False, True):
            comm, _ = await join(scheduler, returns)
            assert not scheduler.members.absences
            comm.abort("as a broken link does")
            await until(lambda: bool(scheduler.members.absences))
        timers = [task for task in asyncio.all_tasks() if "_forget_client" in repr(task)]
        assert len(timers) == 1


@pytest.mark.parametrize(("ttl", "expected"), [(1, 0.25), (0, 2.0), (30, 2.0)])
@on_a_loop
async def test_heartbeats_come_well_within_worker_ttl(ttl: float, expected: float) -> None:
    async with Scheduler(**LOCAL, worker_ttl=ttl) as scheduler:
        comm, registered = await join(scheduler, returns=False)
        assert registered.heartbeat == expected
        comm.close()


@on_a_loop
async def test_a_worker_with_a_fixed_port_comes_back_from_a_restart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    async with (
        Scheduler(**LOCAL) as scheduler,
        Nanny(scheduler.address, nthreads=1, port=port) as nanny,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        [address], pid = scheduler.workers, nanny.pid
        await client.restart(timeout=20)
        assert list(scheduler.workers) == [address]
        assert scheduler.state.workers[address].info.pid != pid


@on_a_loop
async def test_all_that_a_client_wanted_goes_with_it_although_that_takes_several_turns() -> None:
    async with Scheduler(**LOCAL) as scheduler:
        scheduler.state.drop_at_once = 100
        async with Client(scheduler.address, asynchronous=True) as client:
            futures = client.map(abs, range(1000))
            await until(lambda: len(scheduler.state.tasks) == 1000)
        await until(lambda: not scheduler.state.tasks)
        assert not scheduler.state.departed
        del futures
