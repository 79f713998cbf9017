"""The nanny: starts a worker process, replaces it when it dies, and takes it along at the end."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import secrets
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hpcdask import config, network, sizing
from hpcdask import host as hosts
from hpcdask._version import __version__
from hpcdask.calls import call
from hpcdask.comm.options import CommOptions
from hpcdask.dialling import (
    Link,
    SchedulerPlace,
    host_and_port,
    reach_scheduler,
    reach_scheduler_again,
)
from hpcdask.errors import CommClosedError, HpcdaskError, LaunchError
from hpcdask.messages import (
    PROTOCOL_VERSION,
    CallFunction,
    CallReturned,
    CloseNanny,
    Failure,
    Message,
    RegisterNanny,
    RestartWorker,
    SetUpPlugin,
    TaskError,
    TearDownPlugin,
    WorkerDied,
    WorkerLeaving,
    WorkerLives,
)
from hpcdask.pulse import Pulse
from hpcdask.resources import checked_resources
from hpcdask.restarts import MAX_FAILED_STARTS, Restarts
from hpcdask.service import ENDED_AS_ASKED, Lifetime, Service
from hpcdask.worker_child import GRACE, CutOffAtStartError, KilledAtStartError, WorkerChild, ending
from hpcdask.worker_class import path_of

if TYPE_CHECKING:
    from hpcdask.plugin_host import PluginHost

log = logging.getLogger("hpcdask.nanny")

#: Seconds that a worker gets beyond `death_timeout` to say that it has started.
_SILENCE = 10.0
#: Seconds between two looks at whether another worker has started.
_LOOK = 0.05
#: How MPI, and hpcdask where ranks are numbered by hand, find out that they were launched. A worker
#: is no rank: with these it could call MPI_Init, and would stand for its nanny's rank.
MPI_VARIABLES = (
    "OMPI_",
    "PMIX_",
    "PMI_",
    "PRTE_",
    "PRTE",
    "MPI_LOCAL",
    "HYDRA_",
    "HYDI_",
    "I_MPI_",
    "MV2_",
    "HPCDASK_RANK",
    "HPCDASK_SIZE",
    "HPCDASK_LAUNCH_ID",
)

_nannies: weakref.WeakSet[Nanny] = weakref.WeakSet()


class Nanny(Service):
    """Keeps one worker process alive.

    Takes the parameters of `Worker`, and these.

    Parameters
    ----------
    env : mapping, optional
        Environment variables for the worker, besides ours and those configured.
    lifetime_restart : bool, optional
        At the end of a worker's lifetime start another; by default the nanny ends with it.
    preload_nanny : iterable of str, optional
        Modules or files with ``dask_setup(nanny)`` and ``dask_teardown(nanny)``.
    preload_nanny_argv : iterable of str, optional
        Arguments of a ``dask_setup`` among these that is a click command; by default as
        `preload_argv`, which is also for those of the worker.
    worker_class : type or str, optional
        A subclass of `Worker` to run, or where to import it from, as in "module.Class".
    """

    def __init__(
        self,
        scheduler: str | None = None,
        scheduler_port: int | None = None,
        *,
        scheduler_file: str | os.PathLike[str] | None = None,
        nthreads: int | None = None,
        name: str | int | None = None,
        memory_limit: str | float | None = "auto",
        sharing: sizing.Sharing | None = None,
        resources: Mapping[str, float] | str | None = None,
        death_timeout: float | str | None = None,
        reconnect_timeout: float | str | None = None,
        drain_timeout: float | str | None = None,
        lifetime: float | str | None = None,
        lifetime_stagger: float | str | None = None,
        lifetime_restart: bool | None = None,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
        env: Mapping[str, str] | None = None,
        preload_nanny: Iterable[str] | None = None,
        preload_nanny_argv: Iterable[str] | None = None,
        preload: Iterable[str] | None = None,
        preload_argv: Iterable[str] | None = None,
        worker_class: type | str | None = None,
        loop: Any = None,
        **worker_options: Any,
    ) -> None:
        self.settings = settings = config.current()
        super().__init__(
            settings.value("nanny.preload", preload_nanny),
            settings.value(
                "nanny.preload-argv",
                preload_argv if preload_nanny_argv is None else preload_nanny_argv,
            ),
            loop,
        )
        path = None if scheduler_file is None else os.fspath(scheduler_file)
        scheduler = host_and_port(scheduler, scheduler_port)
        self.place = SchedulerPlace(scheduler, path, token, token_file, auth, settings)
        if memory_limit == "auto":
            memory_limit = settings["worker.memory-limit"]
        wanted = settings.value("worker.nthreads", nthreads)
        self._size = sizing.size_worker(wanted, memory_limit, sharing)
        self.nthreads = self._size.nthreads
        self.name = str(name) if name is not None else f"nanny-{secrets.token_hex(4)}"
        # Two people may give two workers the same name.
        self.id = f"{self.name}-{secrets.token_hex(4)}"
        self.address = ""
        self.environment = dict(env or {})
        self._death_timeout: float = settings.value("worker.death-timeout", death_timeout)
        self._reconnect_timeout: float = settings.value(
            "worker.reconnect-timeout", reconnect_timeout
        )
        self._drain_timeout: float = settings.value("worker.drain-timeout", drain_timeout)
        if resources is None:
            resources = settings["worker.resources"]
        self._worker_options = {
            **worker_options,
            "name": self.name,
            "nthreads": self.nthreads,
            "memory_limit": self._size.memory_limit,
            "resources": dict(checked_resources(resources)),
            "scheduler_file": path and os.path.abspath(path),
            "death_timeout": self._death_timeout,
            "reconnect_timeout": self._reconnect_timeout,
            "drain_timeout": self._drain_timeout,
            "preload": settings.value("worker.preload", preload),
            "preload_argv": settings.value("worker.preload-argv", preload_argv),
            "nanny": self.id,
            "auth": auth,
            "worker_class": None if worker_class is None else path_of(worker_class),
        }
        # Without a restart it is the nanny's own: a worker that died early is no reason to outlive
        # the batch job. With one, each worker has its own.
        life = Lifetime.settled(settings, lifetime, lifetime_stagger, lifetime_restart)
        restarts = settings.value("worker.lifetime.restart", lifetime_restart)
        self.lifetime = None if restarts else life
        self._workers_lifetime = life if restarts else None
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._unsaid: list[Message] = []  # while there was no scheduler
        self._child: WorkerChild | None = None
        self._restarts = Restarts(self._reconnect_timeout)
        self._is_leaving = False
        self._retirement: asyncio.Task[None] | None = None
        self._plugin_host: PluginHost | None = None
        self._is_met = asyncio.Event()  # the scheduler has told of plugins, or never will
        _nannies.add(self)

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The worker's process."""
        return None if self._child is None else self._child.process

    @property
    def pid(self) -> int | None:
        """Process id of the worker."""
        return None if self._child is None else self._child.pid

    @property
    def worker_address(self) -> str:
        """Address of the worker; empty until it has registered."""
        return "" if self._child is None else self._child.address

    # -- Life -------------------------------------------------------------------------------------

    async def _start(self) -> None:
        if self.place.scheduler_file:
            # Of a scheduler file there is one reader per nanny; the worker is told what it says.
            link = await self._register()
            await self._plugins_are_set_up()
            await self._start_first_worker(link.address, link.options)
        else:
            # Both can connect at the same time: spawning Python takes the longest.
            options = self.place.options()
            work = [
                asyncio.ensure_future(self._register()),
                asyncio.ensure_future(self._start_first_worker(self.place.address or "", options)),
            ]
            try:
                await asyncio.wait(work, return_when=asyncio.FIRST_EXCEPTION)
                for task in work:
                    if task.done():
                        task.result()
            finally:
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
        self._tell_size()
        log.info("Start Nanny at: %r", self.address)
        self._spawn(self._watch())
        self._spawn(self._vouch())

    def _tell_size(self) -> None:
        environ = self._worker_environment()
        given = self._worker_options.get("local_directory")
        folder = self.settings.value("worker.local-directory", given)
        scratch = hosts.find_scratch(folder, environ)
        log.info("Worker %s: %s", self.name, sizing.in_words(self._size, environ, scratch))

    async def leave(
        self, reason: str = "asked to leave", limit: float | None = None, waits: bool = False
    ) -> None:
        """End without losing what only the worker holds, as `Worker.leave` does."""
        if self.status == "running" and self._child is not None:
            self._is_leaving = True
            limit = self._drain_timeout if limit is None else limit
            await self._let_leave(self._child, reason, self._longest(limit), waits)
        await self.close(reason)

    async def _let_leave(
        self, child: WorkerChild, reason: str, limit: float, waits: bool = False
    ) -> None:
        if self._link is not None and not self._link.comm.closed:  # else the worker says it, later
            self._link.comm.send(WorkerLeaving(reason, waits))
        await child.leave(reason, limit, waits)

    async def _close(self, reason: str) -> None:
        if self._child is not None:
            await self._child.stop()
        self._is_met.set()
        if self._plugin_host is not None:
            await self._plugin_host.close()
        if self._link is not None:
            self._link.comm.close()
        if self.has_run:
            log.info("Closed nanny %s: %s", self.name, reason)

    # -- The scheduler ----------------------------------------------------------------------------

    async def _register(self) -> Link:
        """Join the scheduler, and listen to it from then on: it may end while a worker starts."""
        link = await reach_scheduler(self.place, self._introduce, self._death_timeout)
        self._listen_to(link)
        return link

    async def _introduce(self, scheduler: str, options: CommOptions) -> RegisterNanny:
        me = (network.hostname(), os.getpid())
        host = self._plugin_host
        plugins = () if host is None else tuple(host.registrations.values())
        return RegisterNanny(self.id, *me, PROTOCOL_VERSION, __version__, plugins)

    def _listen_to(self, link: Link) -> None:
        self._link = link
        self.address = link.comm.local
        if link.registered.n_plugins or self._plugin_host is not None:
            self._plugins_here().announce(link.registered.n_plugins)
        self._is_met.set()
        link.comm.start(self._from_scheduler, self._scheduler_lost)
        unsaid, self._unsaid = self._unsaid, []
        link.comm.send_now(unsaid)
        self._linked.set()

    def _scheduler_lost(self, reason: CommClosedError) -> None:
        if self._closing is not None:
            return
        self._linked.clear()
        # While its worker starts, who waits for us should know at once; but where there is a
        # scheduler file another scheduler may follow, and the worker reads it, too.
        may_follow = self.status == "running" or self.place.scheduler_file is not None
        if may_follow and self._reconnect_timeout:
            self._spawn(self._find_scheduler_again(reason))
        else:
            self._fail_soon(f"lost the scheduler: {reason}")

    async def _find_scheduler_again(self, reason: CommClosedError) -> None:
        """Join it again; the worker, which does the same, goes on meanwhile."""
        limit = self._reconnect_timeout
        log.warning("lost the scheduler: %s; looking for it for %g s", reason, limit)
        try:
            link = await reach_scheduler_again(self.place, self._introduce, limit)
        except (HpcdaskError, OSError) as exc:
            self._fail_soon(f"lost the scheduler: {exc}")
        else:
            log.info("found the scheduler again: %s", link.address)
            self._listen_to(link)

    def _listen_at(self, where: int | str) -> None:
        self._worker_options["port"] = where  # what listens is the worker

    def _say(self, message: Message) -> None:
        """Tell the scheduler, when it is there again at the latest."""
        if self._link is None or self._link.comm.closed:
            self._unsaid.append(message)
        else:
            self._link.comm.send(message)

    def _from_scheduler(self, batch: list[Message]) -> None:
        for message in batch:
            if type(message) is CloseNanny:
                asyncio.get_running_loop().create_task(self.close(message.reason))
            elif type(message) is RestartWorker and self._child is not None:
                self._child.restart_reason = "the cluster is restarted"
                self._spawn(self._child.stop(grace=0.5))
            elif type(message) is CallFunction:
                self._spawn(self._call(message))
            elif type(message) in (SetUpPlugin, TearDownPlugin):
                self._plugins_here().take(message)

    async def _call(self, message: CallFunction) -> None:
        assert self._link is not None
        result = await call(message.function, self.name, {"dask_nanny": self}, threaded=True)
        if type(result) is TaskError:
            self._link.comm.send(Failure(message.request, result))
        else:
            self._link.comm.send(CallReturned(message.request, result))  # type: ignore[arg-type]

    # -- Plugins ----------------------------------------------------------------------------------

    @property
    def plugins(self) -> dict[str, Any]:
        """Plugins of this nanny, by name."""
        return {} if self._plugin_host is None else self._plugin_host.plugins

    @property
    def env(self) -> dict[str, str]:
        """Environment variables for the worker; a plugin may change them before it starts."""
        return self.environment

    def _plugins_here(self) -> PluginHost:
        if self._plugin_host is None:
            from hpcdask.plugin_host import PluginHost  # here, since most nannies need none

            self._plugin_host = PluginHost(
                self, None, self.name, self._spawn, self._say, after_setup=self._plugin_is_set_up
            )
        return self._plugin_host

    async def _plugins_are_set_up(self) -> None:
        """Wait for the plugins that the scheduler has for us, unless we end before."""
        await self._is_met.wait()
        if self._plugin_host is not None:
            await self._plugin_host.settled.wait()

    async def _plugin_is_set_up(self, plugin: Any) -> None:
        if getattr(plugin, "restart", False):
            await self._restart_worker(f"plugin {type(plugin).__name__} asks for it")

    async def _restart_worker(self, reason: str) -> None:
        """Let the worker hand over what only it holds, and wait for another in its place.

        One that has not been configured yet can stay: it gets what it needs.
        """
        while (child := self._child) is None or not child.has_started:
            if child is None or not child.is_configured or self.status != "running":
                return
            await asyncio.sleep(_LOOK)
        child.restart_reason = reason
        await self._let_leave(child, reason, self._drain_timeout)
        while self.status == "running" and not self._has_other_worker(child):
            await asyncio.sleep(_LOOK)

    def _has_other_worker(self, child: WorkerChild) -> bool:
        return self._child is not None and self._child is not child and self._child.has_started

    # -- The worker -------------------------------------------------------------------------------

    async def _start_first_worker(self, scheduler: str, options: CommOptions) -> None:
        """Start a worker, and another if it is killed meanwhile: that is not its fault.

        A worker that fails by itself would fail again, and whoever starts us should know at once.
        """
        for is_last in (*[False] * (MAX_FAILED_STARTS - 1), True):
            try:
                return await self._start_worker(scheduler, options)
            except KilledAtStartError as exc:
                if is_last or self._closing is not None:
                    raise
                log.warning("starting another worker: %s", exc)

    async def _start_worker(self, scheduler: str, options: CommOptions) -> None:
        """Start a worker process and wait until it has registered; tell of it if it does not."""
        parameters = {**self._worker_options, "scheduler": scheduler}
        parameters["token"] = None if options.token is None else options.token.hex()
        parameters["sys_path"] = sys.path  # a script's own folder, whose modules tasks may need
        parameters["settings"] = config.hand_over(self.settings)
        limit = self._death_timeout + _SILENCE
        environ = self._worker_environment()
        self._child = child = WorkerChild(self.name, environ)
        # It starts its interpreter meanwhile, which takes longer.
        await self._plugins_are_set_up()
        if self._closing is None and self._worker_environment() != environ:
            await child.stop()
            self._child = child = WorkerChild(self.name, self._worker_environment())
        try:
            await child.start(parameters, limit)
        except LaunchError:
            self._report_death(child)
            raise
        self._restarts.started(time.monotonic())
        if self._workers_lifetime is not None:
            if self._retirement is not None:
                self._retirement.cancel()
            self._retirement = self._spawn(self._retire(child, self._workers_lifetime))

    def _worker_environment(self) -> dict[str, str]:
        """Ours without MPI's, then what is configured, but what was given goes before both."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith(MPI_VARIABLES)}
        if hosts.omp_is_from_pbs(ours):
            del ours["OMP_NUM_THREADS"]
        environ = {**self.settings["nanny.environ"], **ours}
        environ.update(hosts.thread_environment(self.nthreads, environ))
        environ.update(self.environment)
        return environ

    async def _watch(self) -> None:
        """Replace the worker when it dies."""
        while True:
            child = self._child
            assert child is not None
            code = await child.ended()
            if self._closing is not None:
                return
            if code != ENDED_AS_ASKED and not child.was_stopped:
                self._restarts.died(time.monotonic())
                then = "" if self._is_leaving else f"; starting another{self._pause_in_words()}"
                log.warning("worker %s (pid %d) %s%s", self.name, child.pid, ending(code), then)
                self._report_death(child)
            elif child.restart_reason:
                log.info("starting another worker %s: %s", self.name, child.restart_reason)
            elif not self._is_leaving:
                asyncio.get_running_loop().create_task(self.close("its worker has ended"))
                return
            if self._is_leaving or not await self._replace(child):
                return

    def _pause_in_words(self) -> str:
        pause = self._restarts.pause()
        return f" in {pause:.1f} s" if pause else ""

    async def _replace(self, child: WorkerChild) -> bool:
        """Start other workers until one has started; False if it is not worth while any more."""
        pause = 0.0 if child.restart_reason else self._restarts.pause()  # who asks need not wait
        while not self._is_leaving:
            await asyncio.sleep(pause)
            await self._linked.wait()  # or it would only wait for the scheduler, too
            assert self._link is not None
            try:
                await self._start_worker(self._link.address, self._link.options)
                return True
            except LaunchError as exc:
                if self._child is not child and self._child is not None and self._child.was_stopped:
                    continue
                log.error("%s", exc)
                if isinstance(exc, CutOffAtStartError):
                    self._restarts.was_cut_off(time.monotonic())
                else:
                    self._restarts.failed_to_start()
            pause = self._restarts.pause()
            if why := self._restarts.why_hopeless(time.monotonic()):
                self._fail_soon(f"worker {self.name} {why}")
                return False
        return False

    def _report_death(self, child: WorkerChild) -> None:
        """Tell the scheduler that the worker has ended by itself, and what it said last."""
        if not child.was_stopped and self._closing is None:
            code = child.process.poll() or 0
            self._say(WorkerDied(self.name, child.pid, code, child.last_lines))

    async def _retire(self, child: WorkerChild, lifetime: Lifetime) -> None:
        """Replace a worker at the end of its lifetime."""
        await asyncio.sleep(lifetime.drawn())
        if child is self._child and not self._is_leaving:
            child.restart_reason = "its lifetime is over"
            await self._let_leave(child, child.restart_reason, self._drain_timeout)

    async def _vouch(self) -> None:
        """Tell the scheduler, as often as the worker should, that its process is at work.

        The worker cannot while a task keeps the interpreter's lock, which may take minutes.
        """
        pulse: Pulse | None = None
        while True:
            assert self._link is not None
            await asyncio.sleep(self._link.registered.heartbeat)
            pid = self.pid
            if pid is None:
                continue
            if pulse is None or pulse.pid != pid:
                pulse = Pulse(pid)
            elif pulse.beats():
                self._link.comm.send(WorkerLives())

    def __repr__(self) -> str:
        return f"<Nanny {self.name!r}, worker {self.worker_address!r}, {self.status}>"


@atexit.register
def _end_workers() -> None:
    """Let workers end cleanly, although the program ends without closing its nannies."""
    children = [nanny._child for nanny in _nannies if nanny._child is not None]
    alive = [child for child in children if child.process.poll() is None]
    for child in alive:
        child.ask_to_end()
    deadline = time.monotonic() + GRACE
    for child in alive:
        try:
            child.process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            child.process.kill()
