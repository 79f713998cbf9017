"""Connections within a process, between event loops of several threads too."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from endpoints import OPTIONS, Ear, connected, eventually, run

from hpcdask.comm import Comm, Listener, connect, listen
from hpcdask.errors import CommClosedError
from hpcdask.messages import Reply
from hpcdask.messages.client import KeyLost


class Elsewhere:
    """An event loop in a thread of its own, with a listener that echoes."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.comms: list[Comm] = []
        self.ends: list[Any] = []
        self.threads: set[int | None] = set()

    def start(self) -> Listener:
        self.thread.start()
        return self.ask(self._listen())

    async def _listen(self) -> Listener:
        return await listen("inproc://", self._accept, OPTIONS)

    def _accept(self, comm: Comm) -> None:
        def echo(messages: list[Any]) -> None:
            self.threads.add(threading.get_ident())
            comm.send_now(messages)

        self.comms.append(comm)
        comm.start(echo, self.ends.append)

    def ask(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def call(self, function: Any) -> Any:
        async def called() -> Any:
            return function()

        return self.ask(called())

    def stop(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)
        if not self.loop.is_closed():
            self.loop.close()


@contextmanager
def elsewhere() -> Iterator[tuple[Elsewhere, Listener]]:
    place = Elsewhere()
    try:
        yield place, place.start()
    finally:
        place.stop()


def test_messages_go_to_another_thread_and_back_in_order() -> None:
    async def main(listener: Listener, place: Elsewhere) -> None:
        comm = await connect(listener.address, OPTIONS)
        ear = Ear(comm)
        messages = [KeyLost(f"x-{n}") for n in range(5000)]
        for n in range(0, 5000, 50):
            comm.send_now(messages[n : n + 50])
        assert await ear.heard(5000) == messages
        assert place.threads == {place.thread.ident}
        comm.close()
        await eventually(lambda: place.ends)
        assert ear.reasons == []

    with elsewhere() as (place, listener):
        run(main(listener, place))


def test_the_other_thread_may_close() -> None:
    async def main(listener: Listener, place: Elsewhere) -> None:
        comm = await connect(listener.address, OPTIONS)
        ear = Ear(comm)
        await eventually(lambda: place.comms)
        place.call(lambda: (place.comms[0].send(KeyLost("last")), place.comms[0].close()))
        await ear.told_the_end()
        assert ear.messages == [KeyLost("last")]
        assert len(ear.reasons) == 1
        assert place.ends == []

    with elsewhere() as (place, listener):
        run(main(listener, place))


def test_both_threads_may_close_at_once() -> None:
    async def main(listener: Listener, place: Elsewhere) -> None:
        for n in range(50):
            comm = await connect(listener.address, OPTIONS)
            await eventually(lambda n=n: len(place.comms) == n + 1)
            other = place.comms[n]
            place.loop.call_soon_threadsafe(other.close)
            comm.close()
            await asyncio.wait_for(comm.wait_closed(), 10)
            await eventually(lambda other=other: other.closed)

    with elsewhere() as (place, listener):
        run(main(listener, place))


def test_drained_waits_until_the_other_thread_has_taken_all() -> None:
    async def main(listener: Listener, place: Elsewhere) -> None:
        comm = await connect(listener.address, OPTIONS)
        ear = Ear(comm)
        may_go_on = threading.Event()
        place.loop.call_soon_threadsafe(may_go_on.wait, 20)
        comm.send(KeyLost("x"))
        drained = asyncio.ensure_future(comm.drained())
        done, _ = await asyncio.wait({drained}, timeout=0.1)
        assert not done
        may_go_on.set()
        await asyncio.wait_for(drained, 10)
        assert place.threads
        await ear.heard(1)
        comm.close()

    with elsewhere() as (place, listener):
        run(main(listener, place))


def test_drained_ends_with_the_connection() -> None:
    async def main(listener: Listener, place: Elsewhere) -> None:
        comm = await connect(listener.address, OPTIONS)
        may_go_on = threading.Event()
        place.loop.call_soon_threadsafe(may_go_on.wait, 20)
        drained = asyncio.ensure_future(comm.drained())
        await asyncio.sleep(0)
        comm.abort("enough")
        await asyncio.wait_for(drained, 10)
        await comm.drained()
        may_go_on.set()

    with elsewhere() as (place, listener):
        run(main(listener, place))


def test_a_loop_that_is_gone_ends_the_connection_when_it_is_used() -> None:
    async def main(listener: Listener, place: Elsewhere) -> None:
        comm = await connect(listener.address, OPTIONS)
        ear = Ear(comm)
        place.stop()
        comm.send(KeyLost("x"))
        assert "gone" in str(await ear.told_the_end())
        await comm.drained()
        with pytest.raises(CommClosedError, match=listener.address):
            await connect(listener.address, OPTIONS)

    with elsewhere() as (place, listener):
        run(main(listener, place))
        place.comms.clear()


def test_a_loop_that_does_not_run_is_given_up_in_time() -> None:
    async def main(listener: Listener, place: Elsewhere) -> None:
        may_go_on = threading.Event()
        place.loop.call_soon_threadsafe(may_go_on.wait, 20)
        with pytest.raises(CommClosedError, match=r"within 0\.1 s"):
            await connect(listener.address, OPTIONS, timeout=0.1)
        may_go_on.set()
        comm = await connect(listener.address, OPTIONS)
        await eventually(lambda: place.comms)
        assert [accepted.peer for accepted in place.comms] == [comm.local]

    with elsewhere() as (place, listener):
        run(main(listener, place))


def test_nobody_listens_at_an_unknown_name() -> None:
    with pytest.raises(CommClosedError, match="inproc://nobody"):
        run(connect("inproc://nobody", OPTIONS))


def test_a_name_is_free_again_once_its_listener_has_closed() -> None:
    async def main() -> None:
        first = await listen("inproc://place", print, OPTIONS)
        first.close()
        second = await listen("inproc://place", print, OPTIONS)
        first.close()  # is not the second
        comm = await connect("inproc://place", OPTIONS)
        comm.close()
        second.close()
        with pytest.raises(CommClosedError):
            await connect("inproc://place", OPTIONS)

    run(main())


def test_values_are_handed_over_and_not_copied() -> None:
    async def main() -> None:
        async with connected("inproc://") as (a, b):
            ear = Ear(b)
            value = (object(),)
            a.send(Reply(1, value))
            (message,) = await ear.heard(1)
            assert message.value is value

    run(main())


def test_a_closed_connection_keeps_nothing_alive() -> None:
    class Value: ...

    async def main() -> Any:
        async with connected("inproc://") as (a, b):
            value = Value()
            left = weakref.ref(value)
            a.send(Reply(1, value))
            await b.receive()
            del value
            return left

    assert run(main())() is None


def test_each_nameless_listener_has_a_name_of_its_own() -> None:
    async def main() -> None:
        listeners = [await listen("inproc://", print, OPTIONS) for _ in range(3)]
        assert len({listener.address for listener in listeners}) == 3
        for listener in listeners:
            listener.close()

    run(main())
