"""The part of `hpcdask.Client` that has code of users run on scheduler, workers and nannies."""

from __future__ import annotations

import logging
import os
import secrets
import warnings
from collections.abc import Callable
from typing import Any

from hpcdask import logs
from hpcdask.client.cluster_calls import called, worker_names
from hpcdask.client.topic_calls import TopicCalls
from hpcdask.messages import Blob
from hpcdask.messages.client import (
    AwaitWorkers,
    CallOutcomes,
    Inspect,
    RegisterPlugin,
    RunOnScheduler,
    RunOnWorkers,
    UnregisterPlugin,
)
from hpcdask.plugin_hooks import name_of
from hpcdask.plugins.base import NannyPlugin, SchedulerPlugin, WorkerPlugin, kind_of
from hpcdask.wire.serialize import dumps

log = logging.getLogger("hpcdask.client")

#: A plugin and what has to be there with it: kind, pickle, and whether one of its name may stay.
_Parts = list[tuple[str, Blob, bool]]


class PluginCalls(TopicCalls):
    """Plugins, files for all workers, and what the processes of a cluster have logged."""

    def register_plugin(
        self,
        plugin: WorkerPlugin | NannyPlugin | SchedulerPlugin,
        name: str | None = None,
        idempotent: bool | None = None,
        timeout: float | str | None = None,
    ) -> Any:
        """Have a plugin run: on workers, in nannies or on the scheduler, as what it derives from.

        Workers and nannies that come later, or are restarted, get it too, before they run a task.
        If the scheduler is lost and another takes its place, it is registered there again.

        Parameters
        ----------
        plugin : WorkerPlugin, NannyPlugin or SchedulerPlugin
            What is sent is a copy.
        name : str, optional
            One of that name is replaced: it is torn down first. By default the plugin's own
            ``name``, or a new one.
        idempotent : bool, optional
            Whether to do nothing if there is one of that name; by default as the plugin has it.
        timeout : float or str, optional
            Seconds to wait until it is set up.

        Returns
        -------
        dict
            ``{"status": "OK"}`` by the address of each worker, or the id of each nanny, that has
            set it up, and by that of the scheduler for its own.

        Raises
        ------
        TypeError
            If it is no plugin, or a class.
        Exception
            What its ``setup`` or ``start`` has raised. Workers where it raised go on without it.

        Examples
        --------
        >>> class Greeter(WorkerPlugin):
        ...     def setup(self, worker):
        ...         worker.greeting = "hello"
        >>> results = client.register_plugin(Greeter(), name="greeter")
        >>> client.submit(lambda: get_worker().greeting).result()
        'hello'
        """
        if idempotent is None:
            idempotent = bool(getattr(plugin, "idempotent", False))
        return self._register(kind_of(plugin), plugin, name, idempotent, timeout)

    def register_worker_plugin(
        self, plugin: Any = None, name: str | None = None, nanny: bool | None = None
    ) -> Any:
        """As `register_plugin`, for any object; an old name.

        Parameters
        ----------
        nanny : bool, optional
            Whether it is for nannies. By default what it derives from decides.
        """
        _is_old("register_worker_plugin")
        if nanny is None:
            nanny = isinstance(plugin, NannyPlugin)
        kind = "nanny" if nanny else "worker"
        is_idempotent = bool(getattr(plugin, "idempotent", False))
        return self._register(kind, plugin, name, is_idempotent, None)

    def register_scheduler_plugin(
        self, plugin: Any, name: str | None = None, idempotent: bool | None = None
    ) -> Any:
        """As `register_plugin`, for any object; an old name."""
        _is_old("register_scheduler_plugin")
        if idempotent is None:
            idempotent = bool(getattr(plugin, "idempotent", False))
        return self._register("scheduler", plugin, name, idempotent, None)

    def _register(
        self,
        kind: str,
        plugin: Any,
        name: str | None,
        idempotent: bool,
        timeout: float | str | None,
    ) -> Any:
        name = name or name_of(plugin)
        parts: _Parts = [(kind, dumps(plugin), idempotent)]
        # A plugin of the scheduler may stand for others, which go by its name.
        for companion in plugin.companions() if hasattr(plugin, "companions") else ():
            parts.append((kind_of(companion), dumps(companion), idempotent))

        async def work() -> dict[str, Any]:
            result: dict[str, Any] = {}
            for part, pickled, is_idempotent in parts:
                fields = (part, name, secrets.token_hex(8), pickled, is_idempotent, False)
                outcomes: CallOutcomes = await self._ask(RegisterPlugin, *fields)
                self._plugins.keep(RegisterPlugin(0, *fields), kind, self.scheduler_id)
                result |= called(outcomes, "raise")
                if part == "nanny" and not (outcomes.returned or is_idempotent):
                    await self._miss_nannies(name)
            return result

        return self._maybe_sync(work(), self._seconds(timeout))

    async def _miss_nannies(self, name: str) -> None:
        """No nanny runs a plugin of nannies: say so, unless there are no workers yet."""
        n_workers = (await self._ask(AwaitWorkers, 0, 0.0)).value
        if n_workers:
            text = "plugin %r is for nannies, and none of the %d workers has one"
            log.warning(text, name, n_workers)

    def unregister_worker_plugin(
        self, name: str, nanny: bool | None = None, timeout: float | str | None = None
    ) -> Any:
        """Tear a plugin down on all workers, and give it to no other any more.

        Parameters
        ----------
        name : str
            By which it was registered.
        nanny : bool, optional
            Whether it is one of nannies.

        Returns
        -------
        dict
            ``{"status": "OK"}`` by the address of each worker.

        Raises
        ------
        ValueError
            If there is none of that name.
        """
        return self._unregister("nanny" if nanny else "worker", name, timeout)

    def unregister_nanny_plugin(self, name: str, timeout: float | str | None = None) -> Any:
        """As `unregister_worker_plugin`, for a plugin of nannies."""
        return self._unregister("nanny", name, timeout)

    def unregister_scheduler_plugin(self, name: str, timeout: float | str | None = None) -> Any:
        """As `unregister_worker_plugin`, for a plugin of the scheduler."""
        return self._unregister("scheduler", name, timeout)

    def _unregister(self, kind: str, name: str, timeout: float | str | None) -> Any:
        async def work() -> dict[str, Any]:
            outcomes: CallOutcomes = await self._ask(UnregisterPlugin, kind, name)
            self._plugins.drop(kind, name)
            return called(outcomes, "raise")

        return self._maybe_sync(work(), self._seconds(timeout))

    def register_worker_callbacks(
        self, setup: Callable[..., Any] | None = None, timeout: float | str | None = None
    ) -> Any:
        """Call a function on each worker, on those that come later too.

        Parameters
        ----------
        setup : callable
            If it has a parameter ``dask_worker`` it gets the `Worker`. May be async.

        Examples
        --------
        >>> def prepare(dask_worker):
        ...     dask_worker.is_prepared = True
        >>> results = client.register_worker_callbacks(prepare)
        """
        from hpcdask.plugins.callbacks import SetupCallback

        if not callable(setup):
            raise TypeError(f"register_worker_callbacks() takes a function, not {setup!r}")
        return self._register("worker", SetupCallback(setup), None, False, timeout)

    def upload_file(
        self,
        filename: str | os.PathLike[str],
        load: bool = True,
        timeout: float | str | None = None,
    ) -> Any:
        """Put a file onto scheduler and workers, where tasks can import it.

        It goes into the local directory of each (``get_worker().local_directory``). Workers that
        come later get it as it is now.

        Parameters
        ----------
        filename : str
            A ``.py``, ``.zip``, ``.egg`` or ``.pyz`` file is put on the path from which modules are
            imported; any other is only put there.
        load : bool
            Whether to import what it holds, again if there is a module of that name already.

        Returns
        -------
        dict
            As of `register_plugin`.

        Raises
        ------
        OSError
            If it cannot be read.
        Exception
            What importing it has raised.

        Examples
        --------
        >>> client.upload_file("mylibrary.py")                              # doctest: +SKIP
        """
        from hpcdask.plugins.uploading import SchedulerFile, UploadFile

        plugin = SchedulerFile(UploadFile(filename, load))
        return self._register("scheduler", plugin, None, False, timeout)

    # -- Logs -------------------------------------------------------------------------------------

    def forward_logging(
        self,
        logger_name: str | None = None,
        level: int | str = logging.NOTSET,
        timeout: float | str | None = None,
    ) -> Any:
        """Have what workers log handled here too, by the logger of the same name.

        A worker sends what its logger handles, so that one has to have its level set there, as by
        ``client.run(logging.getLogger(name).setLevel, "DEBUG")``; and the one here has its own
        level and handlers. Each record has an attribute ``worker``, an address.

        Parameters
        ----------
        logger_name : str, optional
            The logger, with all below it. By default the root, which means all of them, but for
            hpcdask's own: these are below "hpcdask".
        level : int or str
            Lowest level to send.

        Examples
        --------
        >>> import logging
        >>> results = client.forward_logging("simulation", level=logging.WARNING)
        >>> client.submit(logging.getLogger("simulation").error, "it diverges").result()
        >>> results = client.unforward_logging("simulation")
        """
        from hpcdask.plugins.forwarding import ForwardLogging, handle_forwarded

        name = _forwarding(logger_name)
        self.subscribe_topic(name, handle_forwarded)
        plugin = ForwardLogging(logger_name, level, name)
        return self._register("worker", plugin, name, False, timeout)

    def unforward_logging(
        self, logger_name: str | None = None, timeout: float | str | None = None
    ) -> Any:
        """End `forward_logging` of a logger, for all clients.

        Raises
        ------
        ValueError
            If this client has not asked for it.
        """
        name = _forwarding(logger_name)
        self.unsubscribe_topic(name)
        return self._unregister("worker", name, timeout)

    def get_worker_logs(
        self,
        n: int | None = None,
        workers: Any = None,
        nanny: bool = False,
        timeout: float | str | None = None,
    ) -> Any:
        """Last lines that workers have logged.

        Parameters
        ----------
        n : int, optional
            So many of each; by default all that it keeps (``admin.log-length``).
        workers : str or list of str, optional
            Addresses or names; all by default.
        nanny : bool
            What the nannies of these workers have logged instead.

        Returns
        -------
        dict
            By the worker's address, a tuple of (level, line), the latest first.
        """
        function = dumps((_latest_first, (n,), {}))

        async def work() -> dict[str, Any]:
            names = worker_names(workers)
            found = called(await self._ask(RunOnWorkers, function, names, True, nanny), "ignore")
            if nanny:
                infos = (await self._ask(Inspect, "identity", ())).value["workers"]
                addresses = {info["nanny"]: address for address, info in infos.items()}
                found = {addresses.get(name, name): lines for name, lines in found.items()}
            return found

        return self._maybe_sync(work(), self._seconds(timeout))

    def get_scheduler_logs(self, n: int | None = None, timeout: float | str | None = None) -> Any:
        """Last lines that the scheduler has logged: a tuple of (level, line), the latest first.

        Parameters
        ----------
        n : int, optional
            So many; by default all that it keeps (``admin.log-length``).
        """
        function = dumps((_latest_first, (n,), {}))

        async def work() -> Any:
            outcomes = await self._ask(RunOnScheduler, function, True)
            return next(iter(called(outcomes, "raise").values()))

        return self._maybe_sync(work(), self._seconds(timeout))


def _latest_first(n: int | None) -> tuple[tuple[str, str], ...]:
    return tuple(reversed(logs.recent(n)))


def _forwarding(logger_name: str | None) -> str:
    """Name of the plugin that forwards a logger, and of its events' topic."""
    return f"forward-logging-{logger_name or '<root>'}"


def _is_old(name: str) -> None:
    text = f"Client.{name}() is an old name; register_plugin() does the same"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
