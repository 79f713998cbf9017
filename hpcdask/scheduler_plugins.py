"""The plugins of a scheduler: what they are told, and what becomes of their errors."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from hpcdask.core.story import watch_moves, watch_runs
from hpcdask.messages import Blob, PluginFailed
from hpcdask.messages.client import SubmitTasks
from hpcdask.plugin_hooks import RAISED, Hooks, hook_of, name_of, tell
from hpcdask.tracebacks import lines_of, to_task_error
from hpcdask.wire.serialize import loads

if TYPE_CHECKING:
    from hpcdask.core.records import Task, WorkerRecord
    from hpcdask.scheduler import Scheduler

log = logging.getLogger("hpcdask.plugins")

#: What plugins are told.
EVENTS = (
    "add_worker",
    "remove_worker",
    "add_client",
    "remove_client",
    "update_graph",
    "transition",
    "restart",
    "log_event",
    "valid_workers_downscaling",
    "before_close",
    "close",
)
#: Seconds that all plugins together have for each of the last two.
_LAST_WORDS = 2.0
#: Seconds after which it is said what the scheduler waits for.
_SLOW = 30.0


class SchedulerPlugins:
    """Has the plugins of a scheduler.

    Parameters
    ----------
    scheduler : Scheduler
        What they are told of.
    spawn : callable
        Runs a coroutine that ends with the scheduler at the latest.

    Attributes
    ----------
    plugins : dict
        By name.
    moves : list of (Task, str, str, float or None)
        Tasks that have gone from state to state, and of which `tell_moves` is to tell; with the
        seconds that those ran which have run.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self._scheduler, self._spawn = scheduler, spawn
        self.plugins: dict[str, Any] = {}
        self._owners: dict[str, tuple[str, str]] = {}  # client and registration, by plugin's name
        self._hooks = Hooks(EVENTS, self._report)
        self.moves: list[tuple[Task, str, str, float | None]] = []
        self._n_looks = 0  # at these
        self._duration: float | None = None  # of the run that ends now
        self._watching: list[Callable[[], None]] = []  # what ends it

    # -- Coming and going -------------------------------------------------------------------------

    def add(self, plugin: Any, name: str | None = None, idempotent: bool = False) -> None:
        """Tell a plugin of events from now on; see `Scheduler.add_plugin`."""
        name = name or name_of(plugin)
        if name in self.plugins:
            if idempotent:
                return
            warnings.warn(
                f"the scheduler has a plugin {name!r} already, which this one replaces",
                stacklevel=3,
            )
        self._take(name, plugin)

    def _take(self, name: str, plugin: Any) -> None:
        self._owners.pop(name, None)
        self.plugins[name] = plugin
        self._hooks.add(name, plugin)
        self._watch_moves()

    def remove(self, name: str) -> Any:
        """Tell a plugin of nothing any more, and return it.

        Raises
        ------
        ValueError
            If there is none of that name.
        """
        if name not in self.plugins:
            known = ", ".join(map(repr, self.plugins)) or "none"
            raise ValueError(f"the scheduler has no plugin {name!r}; it has {known}")
        self._owners.pop(name, None)
        self._hooks.remove(name)
        plugin = self.plugins.pop(name)
        self._watch_moves()
        return plugin

    async def register(
        self, plugin: Any, name: str, idempotent: bool, client: str, registration: str
    ) -> None:
        """Start a plugin that a client has sent, and tell it of events then."""
        is_known = self._owners.get(name, ("", ""))[1] == registration
        if name in self.plugins and (idempotent or is_known):
            return
        await _awaited(_start(plugin, self._scheduler))
        self._take(name, plugin)
        self._owners[name] = client, registration

    async def start(self) -> None:
        """Start those plugins that preloads have added; the scheduler can be reached."""
        for name, plugin in list(self.plugins.items()):
            text = "the scheduler waits for the start of plugin %r"
            slow = asyncio.get_running_loop().call_later(_SLOW, log.warning, text, name)
            try:
                await _awaited(_start(plugin, self._scheduler))
            except RAISED as exc:
                self._report(name, "start", exc)
            finally:
                slow.cancel()

    def _watch_moves(self) -> None:
        if not self._hooks.has("transition"):
            while self._watching:
                self._watching.pop()()
            self.moves.clear()
        elif not self._watching:
            state = self._scheduler.state
            self._watching = [watch_moves(state, self._note), watch_runs(state, self._ran)]

    def _ran(self, task: Task, duration: float) -> None:
        self._duration = duration

    def _note(self, task: Task, start: str) -> None:
        duration, self._duration = self._duration, None
        self.moves.append((task, start, task.state, duration))

    # -- Events -----------------------------------------------------------------------------------

    def call(self, event: str, *args: Any, **kwargs: Any) -> None:
        """Tell all plugins of an event; what is async in that runs behind it."""
        for name, returned in self._hooks.call(event, *args, **kwargs):
            if inspect.isawaitable(returned):
                self._spawn(self._finish(name, event, returned))

    async def _finish(self, name: str, event: str, work: Awaitable[Any]) -> None:
        try:
            await work
        except RAISED as exc:
            self._hooks.raised(name, event, exc)

    async def call_last(self, event: str) -> None:
        """Tell all plugins of the end, and wait for them, but not for ever."""
        if not self._hooks.has(event):
            return
        works = [
            self._finish(name, event, returned)
            for name, returned in self._hooks.call(event)
            if inspect.isawaitable(returned)
        ]
        try:
            await asyncio.wait_for(asyncio.gather(*works), _LAST_WORDS)
        except asyncio.TimeoutError:
            text = "plugins have not ended %s within %g s; the scheduler ends all the same"
            log.warning(text, event, _LAST_WORDS)

    def tell_moves(self) -> None:
        """Tell of the tasks that went from state to state since the last time."""
        while self.moves:  # a plugin may cause others
            moves, self.moves = self.moves, []
            self._n_looks += 1
            stimulus = f"look-{self._n_looks}"
            for task, start, finish, duration in moves:
                about = _about(task, finish, duration)
                self._hooks.call(
                    "transition", task.key, start, finish, stimulus_id=stimulus, **about
                )

    @property
    def wants_graphs(self) -> bool:
        """Whether `graph_came` has to be called."""
        return self._hooks.has("update_graph")

    def graph_came(self, client: str, message: SubmitTasks) -> None:
        """Tell of a graph, or a chunk of one."""
        tasks = self._scheduler.state.tasks
        keys = [spec.key for spec in message.tasks]
        self.call(
            "update_graph",
            self._scheduler,
            client=client,
            keys=set(keys if message.wanted is None else message.wanted),
            tasks=keys,
            annotations=_annotations(message, keys),
            priority={key: tasks[key].priority for key in keys if key in tasks},
            dependencies={spec.key: set(spec.dependencies) for spec in message.tasks},
            stimulus_id=f"update-graph-{client}-{message.submission}-{message.first}",
        )

    def event_logged(self, topics: Iterable[str], message: Blob) -> None:
        """Tell of an event; it is unpickled only if a plugin wants it."""
        if self._hooks.has("log_event"):
            try:
                msg = loads(message)
            except RAISED as exc:
                text = "cannot read an event of %s for plugins: %s: %s"
                log.warning(text, ", ".join(topics), type(exc).__name__, exc)
                return
            for topic in topics:
                self.call("log_event", topic, msg)

    def workers_to_spare(self, workers: list[WorkerRecord]) -> list[WorkerRecord]:
        """Those of `workers` that may end although they have nothing to do, as plugins have it."""
        for name, hook in self._hooks.of("valid_workers_downscaling"):
            try:
                chosen = set(hook(self._scheduler, list(workers)))
            except RAISED as exc:
                self._hooks.raised(name, "valid_workers_downscaling", exc)
            else:
                workers = [worker for worker in workers if worker in chosen]
        return workers

    # -- Errors -----------------------------------------------------------------------------------

    def _report(self, name: str, event: str, exc: BaseException) -> None:
        """A plugin has raised: tell, and who registered it as well."""
        tell(name, event, exc, "the scheduler")
        client, registration = self._owners.get(name, ("", ""))
        comm = self._scheduler.clients.get(client)
        if comm is not None:
            error = to_task_error(exc, worker=self._scheduler.address)
            comm.send(PluginFailed(name, registration, event, error))


def _start(plugin: Any, scheduler: Scheduler) -> Any:
    hook = hook_of(plugin, "start")
    return None if hook is None else hook(scheduler)


async def _awaited(value: Any) -> None:
    if inspect.isawaitable(value):
        await value


def _about(task: Task, finish: str, duration: float | None) -> dict[str, Any]:
    """What is known of a move besides the states; of one that is past, less."""
    about: dict[str, Any] = {}
    if finish == "processing" and task.worker is not None:
        about["worker"] = task.worker.address
    elif finish == "memory" and task.who_has:
        about["worker"] = next(iter(task.who_has)).address
        about["nbytes"] = task.nbytes
    elif finish == "erred" and task.error is not None:
        about["worker"] = task.error.worker
        about["exception_text"] = task.error.text
        about["traceback_text"] = lines_of(task.error.frames)
    if duration is not None:
        stop = time.time()
        about["startstops"] = [{"action": "compute", "start": stop - duration, "stop": stop}]
    return about


def _annotations(message: SubmitTasks, keys: list[str]) -> dict[str, dict[str, Any]]:
    """What was asked of all tasks of a chunk, as ``{what: {key: value}}``."""
    asked: dict[str, Any] = {}
    if message.priority:
        asked["priority"] = message.priority
    if message.retries:
        asked["retries"] = message.retries
    if message.restriction is not None:
        workers, allow_others, resources, actor = message.restriction
        if workers:
            asked["workers"], asked["allow_other_workers"] = list(workers), allow_others
        if resources:
            asked["resources"] = dict(resources)
        if actor:
            asked["actor"] = True
    return {what: dict.fromkeys(keys, value) for what, value in asked.items()}
