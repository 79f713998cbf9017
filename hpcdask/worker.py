"""The worker process: sockets, threads and timers around a `WorkerState`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hpcdask import config, network, sizing, with_dask
from hpcdask import host as hosts
from hpcdask._version import __version__
from hpcdask.calls import call
from hpcdask.comm import Comm, Listener, listen
from hpcdask.comm.addresses import Address, parse_address, parse_host
from hpcdask.comm.options import CommOptions
from hpcdask.core.worker_state import Abandon, Execute, Fetch, Outcome, WorkerState
from hpcdask.dialling import (
    Link,
    SchedulerPlace,
    host_and_port,
    reach_scheduler,
    reach_scheduler_again,
)
from hpcdask.errors import CommClosedError, ConfigError, HpcdaskError, LaunchError
from hpcdask.exchange import Exchange
from hpcdask.execution import TaskThreads
from hpcdask.messages import (
    PROTOCOL_VERSION,
    AcquireKeys,
    CallFunction,
    CallReturned,
    CloseWorker,
    ComputeTask,
    DefineFunction,
    Failure,
    ForgetFunctions,
    FreeKeys,
    Heartbeat,
    Message,
    RegisterWorker,
    SetUpPlugin,
    TakeBack,
    TaskErred,
    TaskError,
    TearDownPlugin,
    ThreadsLent,
    WorkerClosing,
    WorkerLeaving,
    WorkersGone,
)
from hpcdask.peers import Peers
from hpcdask.resources import checked_resources
from hpcdask.scratch import own_folder, remove_leftovers
from hpcdask.service import Lifetime
from hpcdask.tracebacks import to_exception
from hpcdask.versions import software
from hpcdask.worker_view import WorkerView
from hpcdask.worker_view import get_worker as get_worker

if TYPE_CHECKING:
    from hpcdask.plugin_host import PluginHost

log = logging.getLogger("hpcdask.worker")

_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Seconds for which a worker that is to leave waits for a scheduler that is away.
_AWAY = 5.0
#: Seconds for which a run that was given up may go on before its thread is said to be busy, and
#: seconds between two looks at that.
_STUCK = 0.1


class Worker(WorkerView):
    """Runs tasks and holds their values.

    What is not given is as `hpcdask.config` has it, below ``worker``.

    Parameters
    ----------
    scheduler : str, optional
        Address of the scheduler.
    scheduler_port : int, optional
        Its port, if `scheduler` is a host alone.
    scheduler_file : str, optional
        File that tells the address; read if nobody answers at `scheduler`, should both be given.
    nthreads : int, optional
        Tasks to run at a time; by default as many as its part of the host's CPUs.
    name : str, optional
        By default the address.
    memory_limit : str, int or float
        Bytes, "4 GiB", a fraction of what the host grants, 0 for none, or "auto": as configured,
        by default its part of what the host grants. Told to the scheduler; nothing enforces it yet.
    sharing : Sharing, optional
        With how many others it shares what the host grants; see `hpcdask.sizing`. By default as
        the variables of srun and mpirun have it.
    local_directory : str, optional
        Where its scratch folder is made.
    host, port : str, int or str
        What to listen on; port may be a range ``"9000:9010"``.
    interface : str, optional
        Network interface to listen on and advertise: a name, list, glob or subnet. Where a host or
        an address to listen on is given, what is configured does not count.
    listen_address, contact_address : str, optional
        What to listen on and what to advertise where these differ.
    protocol : str
        "tcp" or "inproc".
    death_timeout : float or str, optional
        Seconds to wait for the scheduler at start.
    drain_timeout : float or str, optional
        Seconds that `leave` may take to hand over what only this worker holds.
    lifetime, lifetime_stagger : float or str, optional
        How long it runs before it leaves by itself, and by how much longer or shorter that may be,
        at random, so that not all workers leave at the same time.
    lifetime_restart : bool, optional
        For a worker with a nanny, which then starts another.
    token, token_file, auth
        As for `Scheduler`.
    nanny : str
        Name of the nanny that watches this worker, if one does.
    resources : mapping of str to float, or str, optional
        As ``{"GPU": 1}`` or ``"GPU=1"``: what tasks submitted with ``resources=`` may take of this
        worker while they run.
    reconnect_timeout : float or str, optional
        Seconds to look for a lost scheduler, or another in its place, while what runs goes on and
        what is held is kept; 0 to end at once.
    preload, preload_argv : iterable of str, optional
        Modules or files with ``dask_setup(worker)`` and ``dask_teardown(worker)``.
    loop : asyncio event loop or tornado IOLoop, optional
        One that runs in another thread, for `start` without await.
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
        local_directory: str | None = None,
        host: str | None = None,
        port: int | str | None = None,
        interface: str | None = None,
        listen_address: str | None = None,
        contact_address: str | None = None,
        protocol: str = "tcp",
        death_timeout: float | str | None = None,
        drain_timeout: float | str | None = None,
        lifetime: float | str | None = None,
        lifetime_stagger: float | str | None = None,
        lifetime_restart: bool | None = None,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
        nanny: str = "",
        resources: Mapping[str, float] | str | None = None,
        reconnect_timeout: float | str | None = None,
        preload: Iterable[str] | None = None,
        preload_argv: Iterable[str] | None = None,
        loop: Any = None,
    ) -> None:
        self.settings = settings = config.current()
        super().__init__(
            settings.value("worker.preload", preload),
            settings.value("worker.preload-argv", preload_argv),
            loop,
        )
        self.place = SchedulerPlace(
            host_and_port(scheduler, scheduler_port),
            None if scheduler_file is None else os.fspath(scheduler_file),
            token,
            token_file,
            auth,
            settings,
        )
        # With a nanny, what is configured is for that: it takes its worker along, or replaces it.
        if lifetime is not None or not nanny:
            self.lifetime = Lifetime.settled(settings, lifetime, lifetime_stagger, lifetime_restart)
        if lifetime_restart:
            raise ConfigError("--lifetime-restart is a nanny's part, and this worker has none")
        if resources is None:
            resources = settings["worker.resources"]
        self.resources = dict(checked_resources(resources))
        if contact_address and not listen_address:
            raise ConfigError("--contact-address needs --listen-address: it stands for that one")
        if memory_limit == "auto":
            memory_limit = settings["worker.memory-limit"]
        wanted = settings.value("worker.nthreads", nthreads)
        self._size = sizing.size_worker(wanted, memory_limit, sharing, has_nanny=bool(nanny))
        self.nthreads, self.memory_limit = self._size.nthreads, self._size.memory_limit
        self.name = "" if name is None else str(name)
        self.local_directory = ""
        self.address = ""
        self.scheduler_address = ""
        self._scratch = settings.value("worker.local-directory", local_directory)
        self.nanny = nanny
        self._host, self._interface = parse_host(host), interface
        self._port = settings.value("worker.port", port)
        if host is None and listen_address is None and interface is None:
            self._interface = settings["worker.interface"]
        self._listen_address, self._contact_address = listen_address, contact_address
        self._protocol = protocol
        self._death_timeout: float = settings.value("worker.death-timeout", death_timeout)
        self._drain_timeout: float = settings.value("worker.drain-timeout", drain_timeout)
        self._profile_interval: float = settings["worker.profile.interval"]
        if not settings["worker.profile.enabled"]:
            self._profile_interval = 0.0
        self._leaving: WorkerLeaving | None = None  # what was said, once it leaves
        self._listener: Listener | None = None
        self._offered: tuple[str, CommOptions] | None = None  # to whom, as what `_offer` has made
        self._reconnect_timeout: float = settings.value(
            "worker.reconnect-timeout", reconnect_timeout
        )
        self._n_lent = 0  # tasks that wait for others or have seceded
        self._n_stuck = 0  # threads whose runs were given up and go on, as told
        self._looks_for_stuck = False
        self._change_told = 0  # of the number of tasks that can run at a time
        self._link: Link | None = None
        self._linked = asyncio.Event()  # set while there is a scheduler
        self._client: Any = None  # of tasks that use the cluster
        self._plugin_host: PluginHost | None = None
        self._is_held = False  # plugins are being set up that tasks may need

    # -- Life -------------------------------------------------------------------------------------

    async def _start(self) -> None:
        scratch = hosts.local_directory(self._scratch)
        remove_leftovers(scratch)
        self.local_directory, self._scratch_lock = own_folder(scratch, "worker")
        link = await reach_scheduler(self.place, self._offer, self._death_timeout)
        self._tell_size()
        self._join(link)
        self._threads.start()
        if self._profile_interval:
            self._threads.profile(lambda: self.state.executing > 0, self._profile_interval)
        with_dask.enter(self)
        self._spawn(self._beat(link.registered.heartbeat))
        log.info("Registered to: %s", self.scheduler_address)
        if link.registered.mismatch:
            log.warning(link.registered.mismatch)

    def _tell_size(self) -> None:
        scratch = hosts.find_scratch(self._scratch)
        if not self.nanny:  # which has told it
            what = sizing.in_words(self._size, os.environ, scratch)
            log.info("Worker %s: %s", self.name, what)
        if scratch.complaint:
            log.warning("%s", scratch.complaint)

    def _join(self, link: Link) -> None:
        self._link = link
        self._linked.set()
        self.scheduler_address = link.address
        link.comm.start(self._from_scheduler, self._scheduler_lost)
        self._act()

    async def _offer(self, scheduler: str, options: CommOptions) -> RegisterWorker:
        """Listen, and say where."""
        if self._offered == (scheduler, options):  # it may have been out of reach for a moment
            return self._about()
        self._stop_listening()
        try:
            await self._listen(scheduler, options)
        except OSError as exc:
            raise LaunchError(f"the worker {exc.strerror or exc}") from exc
        self.name = self.name or self.address
        self.options = options
        self.state = WorkerState(
            self.address,
            self.nthreads,
            self.resources,
            self.settings["worker.connections.outgoing"],
            self.settings["worker.transfer.message-bytes-limit"],
        )
        self._exchange = Exchange(
            self,
            self.address,
            self.state,
            Peers(options),
            self._act,
            self._spawn,
            self._futures_are_known,
            self._close_soon,
            options.stall_timeout,
        )
        self._threads = TaskThreads(
            self, self.address, self.nthreads, self._runs_ended, self._threads_lent
        )
        log.info("Start worker at: %s", self.address)
        self._offered = (scheduler, options)
        return self._about()

    def _about(self) -> RegisterWorker:
        return RegisterWorker(
            address=self.address,
            name=self.name,
            nthreads=self.nthreads,
            memory_limit=self.memory_limit,
            host=network.hostname(),
            pid=os.getpid(),
            local_directory=self.local_directory,
            nanny=self.nanny,
            protocol=PROTOCOL_VERSION,
            version=__version__,
            resources=tuple(self.resources.items()),
            software=software(),
        )

    async def _listen(self, scheduler: str, options: CommOptions) -> None:
        if self._protocol == "inproc" or scheduler.startswith("inproc://"):
            self._listener = await listen("inproc://", self._on_comm, options)
            self.address = self._listener.address
            return
        host = self._host
        ports: int | str | None = self._port
        if self._listen_address:
            where = parse_address(self._listen_address, 0)
            host, ports = parse_host(where.host), where.port
        elif self._interface:
            host = network.interface_address(self._interface)
        self._listener = await listen(str(Address("tcp", host, 0)), self._on_comm, options, ports)
        port = parse_address(self._listener.address).port
        if host in ("", "0.0.0.0"):
            target = parse_address(scheduler)
            host = network.address_towards(target.host, target.port)
        self.address = str(Address("tcp", host, port))
        if self._contact_address:
            self.address = str(parse_address(self._contact_address, port))

    def _listen_at(self, where: int | str) -> None:
        if isinstance(where, str) and not where.isdecimal():
            self._listen_address = where
        else:
            self._port = where

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def leave(
        self, reason: str = "asked to leave", limit: float | None = None, waits: bool = False
    ) -> None:
        """End without losing what only this worker holds, if there is time enough for that.

        The scheduler has the rest run elsewhere and moves values; it says when all that is done.

        Parameters
        ----------
        limit : float, optional
            Seconds that this may take; by default `drain_timeout`.
        waits : bool
            Whether to wait so long for another worker to come, if none is there to take over.
        """
        if self.status == "running" and self._link is not None and self._has_something_to_lose():
            self._leaving = WorkerLeaving(reason, waits)
            log.info("leaving the cluster: %s", reason)
            self._link.comm.send(self._leaving)
            limit = self._drain_timeout if limit is None else limit
            await self._hand_over(self._longest(limit))
        await self.close(reason)

    async def _hand_over(self, limit: float) -> None:
        """Wait until the scheduler, which knows that we leave, says that nothing more is needed."""
        end = time.monotonic() + limit
        why = ""
        while self.status == "running" and not why:
            assert self._link is not None
            left = end - time.monotonic()
            if left <= 0:
                why = f"it would take more than {limit:.3g} s"
            elif self._linked.is_set():
                await _any_within(left, self.finished(), self._link.comm.wait_closed())
            # Who ends a whole job has often killed its scheduler as well: it may not come back.
            elif not await _any_within(min(_AWAY, left), self.finished(), self._linked.wait()):
                why = f"there is no scheduler, and none has come within {min(_AWAY, left):.3g} s"
        if why:
            log.warning("ending before all has been handed over: %s", why)

    def _has_something_to_lose(self) -> bool:
        return bool(self.state.tasks or self.state.nbytes)

    async def _close(self, reason: str) -> None:
        with_dask.leave(self)
        if self._plugin_host is not None:
            await self._plugin_host.close()
        self._stop_listening()
        if self._client is not None:
            await self._client._close()
        if self._link is not None:
            self._link.comm.send(WorkerClosing(reason))
            self._link.comm.close()
            self._threads.close()
        if hasattr(self, "_exchange"):
            self._exchange.close()
        if self.local_directory:
            shutil.rmtree(self.local_directory, ignore_errors=True)
            os.close(self._scratch_lock)
        if self.has_run:
            log.info("Stopped worker at %s: %s", self.address, reason)

    def _scheduler_lost(self, reason: CommClosedError) -> None:
        self._linked.clear()
        if self._reconnect_timeout and self.status == "running":
            self._spawn(self._find_scheduler_again(reason))
        else:
            asyncio.get_running_loop().create_task(self._fail(f"lost the scheduler: {reason}"))

    async def _find_scheduler_again(self, reason: CommClosedError) -> None:
        """Go on with what runs, and look for the scheduler, or another in its place."""
        limit = self._reconnect_timeout
        log.warning("lost the scheduler (%s); looking for it for %g s", reason, limit)
        try:
            link = await reach_scheduler_again(self.place, self._offer_again, limit)
        except (OSError, HpcdaskError) as exc:
            text = f"lost the scheduler: {reason}; not found again within {limit:g} s: {exc}"
            asyncio.get_running_loop().create_task(self._fail(text))
            return
        self._join(link)
        self._change_told = 0
        if self._leaving is not None:
            link.comm.send(self._leaving)
        self._tell_threads()
        log.info("Registered again to: %s", self.scheduler_address)

    async def _offer_again(self, scheduler: str, options: CommOptions) -> RegisterWorker:
        """Say what has been kept; who gets to know us by that has the token of that scheduler."""
        self.options = options
        if self._listener is not None:
            self._listener.options = options
        self._exchange.use(options)
        values, runs = self.state.came_back(time.monotonic())
        if actors := self.actors:
            values = tuple([value._replace(is_actor=value.key in actors) for value in values])
        host = self._plugin_host
        plugins = () if host is None else tuple(host.registrations.values())
        return self._about()._replace(returns=True, values=values, runs=runs, plugins=plugins)

    async def _beat(self, interval: float) -> None:
        """Tell the scheduler how we are, every `interval` seconds."""
        assert self._link is not None
        cpu, at = time.process_time(), time.monotonic()
        while True:
            await asyncio.sleep(interval)
            cpu_now, now = time.process_time(), time.monotonic()
            percent = 100 * (cpu_now - cpu) / (now - at)
            cpu, at = cpu_now, now
            state = self.state
            beat = Heartbeat(percent, _rss(), state.nbytes, state.executing, state.n_ready)
            self._link.comm.send(beat)

    # -- The scheduler speaks ---------------------------------------------------------------------

    def _from_scheduler(self, batch: list[Message]) -> None:
        now, state = time.monotonic(), self.state
        for message in batch:
            kind = type(message)
            event = _EVENTS.get(kind)
            if event is not None:
                event(state, now, message)
            if kind is ForgetFunctions:
                for function_id in message.function_ids:
                    self._threads.forget(function_id)
            elif kind is WorkersGone:
                self._exchange.hang_up(message.addresses)
            elif kind is CallFunction:
                self._spawn(self._call(message))
            elif kind is SetUpPlugin or kind is TearDownPlugin:
                self._plugins_here().take(message)
            elif kind is CloseWorker:
                asyncio.get_running_loop().create_task(self.close(message.reason))
        self._act()

    def _act(self) -> None:
        """Do what the state says, and tell the scheduler."""
        state = self.state
        if state.moves:
            self._tell_of_moves()
        if state.instructions:
            instructions, state.instructions = state.instructions, []
            for instruction in instructions:
                kind = type(instruction)
                if kind is Execute:
                    self._threads.submit(instruction)  # type: ignore[arg-type]
                elif kind is Fetch:
                    self._spawn(self._exchange.fetch(instruction))  # type: ignore[arg-type]
                elif kind is Abandon:
                    self._threads.abandon(instruction)  # type: ignore[arg-type]
        if state.abandoned and not self._looks_for_stuck:
            self._looks_for_stuck = True
            asyncio.get_running_loop().call_later(_STUCK, self._look_for_stuck)
        # While the scheduler is lost it is kept: runs end that were announced to the next one.
        if state.outbox and self._link is not None and not self._link.comm.closed:
            messages, state.outbox = state.outbox, []
            self._link.comm.send_now(messages)

    def _runs_ended(self, outcomes: list[tuple[str, int, Outcome]]) -> None:
        now, state = time.monotonic(), self.state
        for key, attempt, outcome in outcomes:
            state.task_ran(now, key, attempt, outcome)
        self._act()

    def _look_for_stuck(self) -> None:
        """Tell of threads that are busy with what nobody wants, or the scheduler counts on them."""
        self._looks_for_stuck = bool(self.state.abandoned) and self.status == "running"
        if self._looks_for_stuck:
            asyncio.get_running_loop().call_later(_STUCK, self._look_for_stuck)
        n_stuck = min(len(self.state.abandoned), self.nthreads)
        if n_stuck != self._n_stuck:
            self._n_stuck = n_stuck
            self._tell_threads()

    def _tell_threads(self) -> None:
        change = -self.nthreads if self._is_held else self._n_lent - self._n_stuck
        if self._link is not None and change != self._change_told:
            self._change_told = change
            self._link.comm.send(ThreadsLent(change))

    def _threads_lent(self, count: int) -> None:
        self._n_lent = count
        if self._link is not None:
            self._tell_threads()  # first: what ends next may fill the room
            self._use_threads()

    def _use_threads(self) -> None:
        """Have as many tasks run as there is room for now."""
        room = 0 if self._is_held else self.nthreads + self._n_lent
        self.state.threads_changed(time.monotonic(), room)
        self._act()

    async def _call(self, message: CallFunction) -> None:
        assert self._link is not None
        service = {"dask_worker": self}
        result = await call(message.function, self.address, service, worker=self, threaded=True)
        if type(result) is TaskError:
            self._link.comm.send(Failure(message.request, result))
        else:
            self._link.comm.send(CallReturned(message.request, result))  # type: ignore[arg-type]

    def _say(self, message: Message) -> None:
        """Tell the scheduler something, behind what it is to be told already."""
        self.state.outbox.append(message)
        self._act()

    # -- Plugins ----------------------------------------------------------------------------------

    @property
    def plugins(self) -> dict[str, Any]:
        """Plugins of this worker, by name."""
        return {} if self._plugin_host is None else self._plugin_host.plugins

    def forget_functions(self) -> None:
        """Load functions anew that tasks use from now on: modules that they are in have changed."""
        self._threads.forget_all()

    def _plugins_here(self) -> PluginHost:
        if self._plugin_host is None:
            from hpcdask.plugin_host import PluginHost  # here, since most workers need none

            self._plugin_host = PluginHost(
                self,
                self,
                self.address,
                self._spawn,
                self._send,
                self._hold_tasks,
                self._plugins_changed,
            )
        return self._plugin_host

    def _send(self, message: Message) -> None:
        if self._link is not None:
            self._link.comm.send(message)

    def _hold_tasks(self, is_held: bool) -> None:
        """Start no task while a plugin is set up that it may need; others may run them instead."""
        self._is_held = is_held
        self._tell_threads()
        self._use_threads()

    def _plugins_changed(self) -> None:
        wants_moves = self._plugin_host is not None and self._plugin_host.hooks.has("transition")
        if not wants_moves:
            self.state.moves = None
        elif self.state.moves is None:
            self.state.moves = []

    def _tell_of_moves(self) -> None:
        """Tell plugins of the tasks that went from state to state."""
        assert self._plugin_host is not None
        assert self.state.moves is not None
        moves, self.state.moves = self.state.moves, []
        erred = (m for m in self.state.outbox if type(m) is TaskErred)
        self._plugin_host.moved(moves, {m.key: to_exception(m.error) for m in erred})

    # -- Data -------------------------------------------------------------------------------------

    async def _futures_are_known(self) -> None:
        """Wait until the scheduler knows of futures that lay in values which came here.

        It hears of the values on another connection, and may then release what they came from.
        """
        if self._client is not None:
            with contextlib.suppress(CommClosedError):
                await self._client._wants_are_known()

    def _on_comm(self, comm: Comm) -> None:
        self._exchange.serve(comm)

    def __repr__(self) -> str:
        return f"<Worker {self.address!r}, {self.nthreads} threads, {self.status}>"


_EVENTS: dict[type[Any], Callable[[WorkerState, float, Any], None]] = {
    ComputeTask: WorkerState.compute_task,
    FreeKeys: WorkerState.keys_freed,
    DefineFunction: WorkerState.function_defined,
    ForgetFunctions: WorkerState.functions_forgotten,
    TakeBack: WorkerState.take_back,
    AcquireKeys: WorkerState.acquire_keys,
    WorkersGone: WorkerState.workers_gone,
}


async def _any_within(seconds: float, *work: Coroutine[Any, Any, Any]) -> bool:
    """Wait until one of these has ended, and say whether one has; the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return bool(done)


def _rss() -> int:
    """Resident memory of this process, in bytes."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * _PAGE
    except OSError:  # not Linux
        import psutil

        return int(psutil.Process().memory_info().rss)
