"""Requests about plugins; and which plugins those get that come later."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from hpcdask.comm import Comm
from hpcdask.core.plugins import Plugin, PluginRegistry
from hpcdask.messages import Blob, Failure, PluginFailed, SetUpPlugin, TaskError, TearDownPlugin
from hpcdask.messages.client import CallOutcomes, RegisterPlugin, UnregisterPlugin
from hpcdask.plugin_hooks import RAISED
from hpcdask.requests.calls import Answers, Calls, Events, outcomes
from hpcdask.tracebacks import to_task_error
from hpcdask.wire.serialize import dumps, loads

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler

log = logging.getLogger("hpcdask.plugins")

_OK = dumps({"status": "OK"})


class PluginRequests:
    """Answers requests about plugins, as part of `ClientRequests`."""

    def __init__(
        self,
        scheduler: Scheduler,
        calls: Calls,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self._scheduler, self._calls, self._spawn = scheduler, calls, spawn
        self._registries = {"worker": PluginRegistry(), "nanny": PluginRegistry()}
        self._clients: dict[str, str] = {}  # who has registered what
        self._under_way: set[asyncio.Task[None]] = set()  # on those that have come
        #: Setups that go before all else, by the address of the worker.
        self.equipping: dict[str, set[asyncio.Task[None]]] = {}
        self.answers: Answers = {UnregisterPlugin: self._unregister}
        self.events: Events = {RegisterPlugin: self._register}

    # -- Those that come --------------------------------------------------------------------------

    def n_missing(self, kind: str, there: Iterable[str]) -> int:
        """How many plugins a process will be sent that has those of these registrations."""
        return len(self._registries[kind].missing(there))

    def equip(self, kind: str, address: str, comm: Comm, there: tuple[str, ...]) -> None:
        """Have a process that has come set up the plugins that it lacks, before all else."""
        for name in self._registries[kind].outdated(there):
            asked = self._calls.ask(comm, functools.partial(_tear_down, name))
            self._spawn(self._calls.outcome(address, asked))
        for plugin in self._registries[kind].missing(there):
            task = self._watch(plugin, address, comm, self._set_up(plugin, comm, holds=True))
            if kind == "worker":
                self.equipping.setdefault(address, set()).add(task)
                task.add_done_callback(functools.partial(self._equipped, address))

    def _equipped(self, address: str, task: asyncio.Task[None]) -> None:
        self.equipping[address].discard(task)
        if not self.equipping[address]:
            del self.equipping[address]
            self._scheduler.members.progress.set()

    def _set_up(self, plugin: Plugin, comm: Comm, holds: bool) -> asyncio.Future[Any]:
        def message(request: int) -> SetUpPlugin:
            return SetUpPlugin(request, plugin.name, plugin.registration, plugin.pickled, holds)

        return self._calls.ask(comm, message)

    def _watch(
        self, plugin: Plugin, address: str, comm: Comm, asked: asyncio.Future[Any]
    ) -> asyncio.Task[None]:
        """Tell a client if its plugin cannot be set up while nobody waits for that."""

        async def watch() -> None:
            error = await self._calls.outcome(address, asked)
            if isinstance(error, TaskError) and not comm.closed:  # else it has ended meanwhile
                self.failed(PluginFailed(plugin.name, plugin.registration, "setup", error))

        task = self._spawn(watch())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    def failed(self, message: PluginFailed) -> None:
        """A plugin has raised on a worker or a nanny, which has logged it."""
        text = "plugin %r raised in %s on %s, whose log has more"
        log.warning(text, message.name, message.hook, message.error.worker)
        comm = self._scheduler.clients.get(self._clients.get(message.registration, ""))
        if comm is not None:
            comm.send(message)

    # -- Requests ---------------------------------------------------------------------------------

    def _there(self, kind: str) -> list[tuple[str, Comm]]:
        if kind == "worker":
            return list(self._scheduler.workers.items())
        return [(name, comm) for name, (comm, _) in self._scheduler.nannies.items()]

    def _register(self, client: str, msg: RegisterPlugin) -> None:
        """At once, before what the client says next: that may be tasks that need it."""
        self._clients[msg.registration] = client
        if msg.kind == "scheduler":
            self._spawn(self._reply(client, msg.request, self._register_here(client, msg)))
            return
        plugin = Plugin(msg.name, msg.registration, msg.plugin)
        asked = []
        if self._registries[msg.kind].registered(plugin, msg.idempotent):
            log.info("plugin %r of each %s, from client %s", msg.name, msg.kind, client)
            asked = [
                (address, comm, self._set_up(plugin, comm, holds=msg.again))
                for address, comm in self._there(msg.kind)
            ]
        if msg.again:
            for address, comm, future in asked:
                self._watch(plugin, address, comm, future)
        else:
            answers = [(address, future) for address, _, future in asked]
            work = self._outcomes(msg.request, {msg.kind: answers})
            self._spawn(self._reply(client, msg.request, work))

    async def _reply(
        self, client: str, request: int, work: Coroutine[Any, Any, CallOutcomes]
    ) -> None:
        answer: CallOutcomes | Failure
        try:
            answer = await work
        except RAISED as exc:
            answer = Failure(request, to_task_error(exc, worker=self._scheduler.address))
        comm = self._scheduler.clients.get(client)
        if comm is not None:
            comm.send(answer)

    async def _register_here(self, client: str, msg: RegisterPlugin) -> CallOutcomes:
        plugin = loads(msg.plugin)
        await self._scheduler.hooks.register(
            plugin, msg.name, msg.idempotent, client, msg.registration
        )
        log.info("plugin %r of the scheduler, from client %s", msg.name, client)
        return outcomes(msg.request, [(self._scheduler.address, _OK)])

    async def _unregister(self, client: str, msg: UnregisterPlugin) -> CallOutcomes:
        if msg.kind == "scheduler":
            plugin = self._scheduler.hooks.remove(msg.name)
            kinds = tuple(getattr(plugin, "companion_kinds", ()))
        elif self._registries[msg.kind].unregistered(msg.name):
            kinds = (msg.kind,)
        else:
            raise ValueError(f"there is no {msg.kind} plugin {msg.name!r}")
        asked: dict[str, list[tuple[str, asyncio.Future[Any]]]] = {}
        for kind in kinds:
            self._registries[kind].unregistered(msg.name)
            make = functools.partial(_tear_down, msg.name)
            asked[kind] = [(a, self._calls.ask(comm, make)) for a, comm in self._there(kind)]
        return await self._outcomes(msg.request, asked)

    async def _outcomes(
        self, request: int, asked: dict[str, list[tuple[str, asyncio.Future[Any]]]]
    ) -> CallOutcomes:
        """What was answered by those that are still there, by their kind."""
        answers: list[tuple[str, Blob | TaskError]] = []
        for kind, futures in asked.items():
            of_kind = [(a, await self._calls.outcome(a, future)) for a, future in futures]
            there = dict(self._there(kind))
            answers += [(address, answer) for address, answer in of_kind if address in there]
        if self._under_way:  # on workers that nannies have restarted for it, among others
            await asyncio.wait(self._under_way)
        return outcomes(request, answers)


def _tear_down(name: str, request: int) -> TearDownPlugin:
    return TearDownPlugin(request, name)
