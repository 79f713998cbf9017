"""The plugins of one process: in their order, with an answer each, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from waiting import on_a_loop

from hpcdask.messages import CallReturned, Failure, PluginFailed, SetUpPlugin, TearDownPlugin
from hpcdask.plugin_host import PluginHost
from hpcdask.tracebacks import to_exception
from hpcdask.wire.serialize import dumps

#: What happens to plugins, which are pickled on their way.
EVENTS: list[str] = []


class Notes:
    """A plugin that notes what happens to it, and waits or raises where it is told to."""

    def __init__(self, name: str, raises: str = "") -> None:
        self.name, self.raises = name, raises

    def _note(self, event: str) -> None:
        EVENTS.append(f"{event} {self.name}")
        if event == self.raises:
            raise ValueError(event)

    async def setup(self, service: Any) -> None:
        await asyncio.sleep(0)
        self._note("setup")

    def teardown(self, service: Any) -> None:
        self._note("teardown")


class Process:
    """A process that has a host of plugins."""

    def __init__(self, **how: Any) -> None:
        EVENTS.clear()
        self.said: list[Any] = []
        self.held: list[bool] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.host = PluginHost(
            self, None, "here", self.spawn, self.said.append, self.held.append, **how
        )

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.ensure_future(work))
        return self.tasks[-1]

    def set_up(self, name: str, registration: str, holds: bool = False, **how: Any) -> None:
        pickled = dumps(Notes(name, **how))
        number = len(self.tasks)
        self.host.take(SetUpPlugin(number, name, registration, pickled, holds))

    async def idle(self) -> None:
        await asyncio.wait_for(asyncio.gather(*self.tasks), 10)


@on_a_loop
async def test_plugins_are_set_up_in_their_order_and_torn_down_from_the_last() -> None:
    process = Process()
    for number, name in enumerate("abc"):
        process.set_up(name, str(number))
    process.host.take(TearDownPlugin(3, "b"))
    await process.idle()
    assert EVENTS == ["setup a", "setup b", "setup c", "teardown b"]
    assert [type(message) for message in process.said] == [CallReturned] * 4
    assert list(process.host.plugins) == ["a", "c"]
    await process.host.close()
    assert EVENTS[4:] == ["teardown c", "teardown a"]


@on_a_loop
async def test_another_registration_of_a_name_replaces_and_the_same_does_nothing() -> None:
    process = Process()
    process.set_up("a", "1")
    process.set_up("a", "1")
    process.set_up("a", "2")
    await process.idle()
    assert EVENTS == ["setup a", "teardown a", "setup a"]
    assert process.host.registrations == {"a": "2"}


@on_a_loop
async def test_what_setup_raises_is_the_answer_and_what_teardown_raises_is_news() -> None:
    process = Process()
    process.set_up("a", "1", raises="setup")
    process.set_up("b", "2", raises="teardown")
    process.host.take(TearDownPlugin(2, "b"))
    await process.idle()
    failure, _, news, _ = process.said
    assert type(failure) is Failure
    assert repr(to_exception(failure.error)) == "ValueError('setup')"
    assert type(news) is PluginFailed
    assert news[:3] == ("b", "2", "teardown")
    assert process.host.plugins == {}


@on_a_loop
async def test_what_was_announced_is_waited_for_and_what_fails_is_not_waited_for_long() -> None:
    process = Process()
    process.host.announce(2)
    assert process.held == [True]
    assert not process.host.settled.is_set()
    process.set_up("a", "1", holds=True, raises="setup")
    await process.idle()
    assert not process.host.settled.is_set()
    process.set_up("b", "2", holds=True)
    await process.idle()
    assert process.held == [True, False]
    assert process.host.settled.is_set()
    process.set_up("c", "3", holds=True)  # nobody has announced it
    assert process.held == [True, False, True]
    await process.idle()
    assert process.host.settled.is_set()


@on_a_loop
async def test_a_connection_that_is_lost_leaves_nothing_to_wait_for() -> None:
    process = Process()
    process.host.announce(2)
    process.set_up("a", "1", holds=True)
    await process.idle()
    process.host.announce(0)  # by the next one, which has no more than that
    assert process.host.settled.is_set()


@on_a_loop
async def test_who_restarts_a_worker_for_a_plugin_may_wait_for_all_plugins() -> None:
    async def restart(plugin: Any) -> None:
        await process.host.settled.wait()
        EVENTS.append(f"restart for {plugin.name}")

    process = Process(after_setup=restart)
    process.set_up("a", "1", holds=True)
    process.set_up("b", "2", holds=True)
    await process.idle()
    assert EVENTS[:2] == ["setup a", "setup b"]
    assert sorted(EVENTS[2:]) == ["restart for a", "restart for b"]
