"""The plugins of one worker or nanny: set up one after another, called, and torn down."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from hpcdask.messages import (
    CallReturned,
    Failure,
    Message,
    PluginFailed,
    SetUpPlugin,
    TearDownPlugin,
)
from hpcdask.places import coroutine_is_of, on_behalf_of
from hpcdask.plugin_hooks import RAISED, Hooks, hook_of, tell
from hpcdask.threads import in_thread
from hpcdask.tracebacks import to_task_error
from hpcdask.wire.serialize import dumps, loads

log = logging.getLogger("hpcdask.plugins")

#: Seconds that all plugins together have for their teardown when their process ends, which the
#: nanny of a worker kills after two.
_TEARDOWN = 1.5
#: Seconds after which it is said what others wait for.
_SLOW = 30.0

#: What a plugin's setup gives to who registered it, on each worker or nanny.
_OK = dumps({"status": "OK"})
#: States of tasks that have another name where users see them.
_PUBLIC = {"new": "released", "gone": "released"}


class PluginHost:
    """Has the plugins of a worker or a nanny.

    Plain functions of plugins run in a thread, so that one that takes long keeps nobody else from
    being served; async ones run on the loop.

    Parameters
    ----------
    service : Worker or Nanny
        What plugins get.
    worker : Worker or None
        What `get_worker` gives in a plugin.
    address : str
        Named in errors.
    spawn : callable
        Runs a coroutine that ends with the service at the latest.
    say : callable of Message
        Tells the scheduler.
    on_hold : callable of bool
        Called when there begins, and when there ends, something to be set up before all else.
    on_change : callable
        Called when a plugin has come or gone.
    after_setup : async callable of object
        Called with a plugin that has been set up, before any other coroutine has its turn.

    Attributes
    ----------
    plugins : dict
        Those that are set up, by name.
    hooks : Hooks
        What they have to say.
    settled : asyncio.Event
        Set unless something is to be set up before all else.
    """

    def __init__(
        self,
        service: Any,
        worker: Any,
        address: str,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
        say: Callable[[Message], None],
        on_hold: Callable[[bool], None] = lambda is_held: None,
        on_change: Callable[[], None] = lambda: None,
        after_setup: Callable[[Any], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._service, self._worker, self._address = service, worker, address
        self._spawn, self._say = spawn, say
        self._on_hold, self._on_change, self._after_setup = on_hold, on_change, after_setup
        self.plugins: dict[str, Any] = {}
        self.registrations: dict[str, str] = {}  # by name
        self.hooks = Hooks(("transition",), self._report)
        self.settled = asyncio.Event()
        self.settled.set()
        self._turn = asyncio.Lock()
        self._n_held = 0  # that others wait for
        self._n_announced = 0  # of these, still to come
        self._is_closed = False

    # -- What the scheduler says ------------------------------------------------------------------

    def announce(self, n: int) -> None:
        """The next `n` plugins that come are to be set up before all else."""
        self._hold(n - self._n_announced)  # some may not have come before a connection was lost
        self._n_announced = n

    def take(self, message: SetUpPlugin | TearDownPlugin) -> None:
        """Do as the scheduler says, in the order of what it says, and answer."""
        if isinstance(message, TearDownPlugin):
            self._spawn(self._answer(message.request, self._remove(message.name)))
        else:
            if message.holds and self._n_announced:
                self._n_announced -= 1
            elif message.holds:
                self._hold(1)
            self._spawn(self._answer(message.request, self._add(message)))

    def _hold(self, n: int) -> None:
        was_held, self._n_held = bool(self._n_held), self._n_held + n
        if was_held != bool(self._n_held):
            (self.settled.clear if self._n_held else self.settled.set)()
            self._on_hold(bool(self._n_held))

    async def _answer(self, request: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except RAISED as exc:
            if not self._is_closed:  # else it is by that, and who has asked sees us end
                self._say(Failure(request, to_task_error(exc, worker=self._address)))
        else:
            self._say(CallReturned(request, _OK))

    # -- Setting up and tearing down --------------------------------------------------------------

    async def _add(self, message: SetUpPlugin) -> None:
        slow = asyncio.get_running_loop().call_later(_SLOW, self._is_slow, message)
        plugin = None
        try:
            async with self._turn:
                if self.registrations.get(message.name) != message.registration:
                    plugin = await self._replace(message)
        except RAISED as exc:
            if not self._is_closed:
                tell(message.name, "setup", exc, self._address)
            raise
        finally:
            slow.cancel()
            if message.holds:
                self._hold(-1)
        # Not while others wait for the setup: a worker that is replaced is one of them.
        if plugin is not None and self._after_setup is not None:
            await self._after_setup(plugin)

    async def _replace(self, message: SetUpPlugin) -> Any:
        if self._is_closed:
            raise RuntimeError(f"{self._address} is about to end")
        name = message.name
        await self._tear_down(name)
        plugin = await in_thread(self._on_our_behalf, loads, message.plugin)
        await self._run(plugin, "setup")
        self.plugins[name] = plugin
        self.registrations[name] = message.registration
        self.hooks.add(name, plugin)
        self._on_change()
        return plugin

    def _is_slow(self, message: SetUpPlugin) -> None:
        what = "tasks wait for it" if message.holds else "its client waits for it"
        text = "plugin %r has not been set up within %g s on %s: %s"
        log.warning(text, message.name, _SLOW, self._address, what)

    async def _remove(self, name: str) -> None:
        async with self._turn:
            await self._tear_down(name)

    async def _tear_down(self, name: str) -> None:
        """Let a plugin go; what its teardown raises is told, and changes nothing."""
        plugin = self.plugins.pop(name, None)
        if plugin is None:
            return
        registration = self.registrations.pop(name)
        self.hooks.remove(name)
        self._on_change()
        try:
            await self._run(plugin, "teardown")
        except RAISED as exc:
            self._tell(name, registration, "teardown", exc)

    async def close(self) -> None:
        """Tear down all plugins, the last one first."""
        self._is_closed = True
        self.settled.set()

        async def work() -> None:
            for name in reversed(list(self.plugins)):
                await self._tear_down(name)

        try:
            await asyncio.wait_for(work(), _TEARDOWN)
        except asyncio.TimeoutError:
            text = "the teardown of plugins on %s has not ended within %g s and is given up"
            log.warning(text, self._address, _TEARDOWN)

    async def _run(self, plugin: Any, event: str) -> None:
        hook = hook_of(plugin, event)
        if hook is None:
            return
        if inspect.iscoroutinefunction(getattr(plugin, event)):
            value: Any = hook(self._service)
        else:
            value = await in_thread(self._on_our_behalf, hook, self._service)
        if inspect.isawaitable(value):
            coroutine_is_of(self._worker)
            await value

    def _on_our_behalf(self, function: Callable[[Any], Any], argument: Any) -> Any:
        with on_behalf_of(self._worker):
            return function(argument)

    # -- Events -----------------------------------------------------------------------------------

    def moved(
        self, moves: Iterable[tuple[str, str, str]], exceptions: dict[str, BaseException]
    ) -> None:
        """Tell plugins of tasks that went from state to state.

        Parameters
        ----------
        exceptions : dict
            What those have raised that went to "error", by key.
        """
        with on_behalf_of(self._worker):
            for key, start, finish in moves:
                states = _PUBLIC.get(start, start), _PUBLIC.get(finish, finish)
                about = {"exception": exceptions.get(key)} if finish == "error" else {}
                self.hooks.call("transition", key, *states, **about)

    def _report(self, name: str, event: str, exc: BaseException) -> None:
        self._tell(name, self.registrations.get(name, ""), event, exc)

    def _tell(self, name: str, registration: str, event: str, exc: BaseException) -> None:
        """A plugin has raised while nobody waited for it: who registered it is told as well."""
        tell(name, event, exc, self._address)
        error = to_task_error(exc, worker=self._address)
        self._say(PluginFailed(name, registration, event, error))
