"""The scheduler process: sockets and timers around a `SchedulerState`."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from typing import Any

from hpcdask import config, descriptors, network
from hpcdask import host as hosts
from hpcdask._version import __version__
from hpcdask.comm import Comm, Listener, listen
from hpcdask.comm.addresses import Address, parse_address, parse_host
from hpcdask.comm.options import CommOptions
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.story import Story
from hpcdask.dialling import refuse_taken_file
from hpcdask.errors import LaunchError
from hpcdask.membership import Membership
from hpcdask.messages import (
    CallReturned,
    CloseNanny,
    CloseWorker,
    DataMissing,
    Failure,
    GivenBack,
    Heartbeat,
    KeysAdded,
    KeysDropped,
    Message,
    NotAcquired,
    PluginFailed,
    RegisterNanny,
    TaskErred,
    TaskFinished,
    TaskRescheduled,
    ThreadsLent,
    WorkerLeaving,
)
from hpcdask.messages.client import (
    AllTold,
    CancelKeys,
    DataScattered,
    KeepUntilDone,
    ReleaseKeys,
    SchedulerClosing,
    Shutdown,
    SubmitTasks,
    WantKeys,
)
from hpcdask.messages.shared import LogEvent
from hpcdask.peers import Peers
from hpcdask.rendezvous import Contact, remove_scheduler_file, resolve_token, write_scheduler_file
from hpcdask.requests import ClientRequests
from hpcdask.scheduler_plugins import SchedulerPlugins
from hpcdask.service import Service
from hpcdask.snapshots import identity
from hpcdask.tracebacks import shown

log = logging.getLogger("hpcdask.scheduler")

#: Seconds that workers and nannies have to end when the cluster is shut down.
_FAREWELL = 3.0
#: Seconds between two looks at the clock: for idle workers, silent ones, and how busy the loop is.
_TICK = 0.1
#: Thresholds of the collector in a process of our own: often among new objects, never among all.
_RARE = (10_000, 3, 1_000_000_000)
#: Seconds between two collections of all, if there are few tasks.
_COLLECTION, _FEW_TASKS = 60.0, 10_000


class Scheduler(Service):
    """Takes graphs from clients, gives tasks to workers, knows where every value is.

    What is not given is as `hpcdask.config` has it, below ``scheduler``.

    Parameters
    ----------
    host : str, optional
        Address or name to listen on; every interface by default.
    port : int or str, optional
        Port, 0 for any free one, or a range ``"9000:9010"`` to try in turn.
    interface : str, optional
        Listen only on, and advertise, this network interface; a name, list, glob or subnet. Where
        a host is given, what is configured does not count.
    contact_address : str, optional
        What to advertise instead of the address that is listened on.
    scheduler_file : str, optional
        File that tells workers and clients where we are, and the token; mode 0600.
    token : bytes, optional
        The cluster token; see `hpcdask.rendezvous.resolve_token` for where it comes from otherwise.
    token_file : str, optional
        File with the token, as hex digits.
    auth : bool
        False lets anybody in who can reach the port, and says so.
    idle_timeout : float or str, optional
        End after so many seconds without tasks and actors.
    dial_back : bool, optional
        Whether a worker is let in only if it can be reached from here at the address that it
        advertises, since others could not fetch values from it either.
    allowed_failures : int, optional
        Workers that may die under a task before it is given up.
    own_process : bool
        Whether nothing else lives in this process. Then Python's search for cyclic garbage, which
        takes a second for a million tasks, waits until there are few.
    worker_ttl : float or str, optional
        Seconds of silence after which a worker is taken for lost; 0 to wait for ever.
    client_grace : float or str, optional
        Seconds that the work of a client is kept which has vanished without a word, and may come
        back; and that workers of a scheduler before this one keep values that no client has asked
        for yet.
    protocol : str
        "tcp" or "inproc".
    preload, preload_argv : iterable of str, optional
        Modules or files with ``dask_setup(scheduler)`` and ``dask_teardown(scheduler)``.
    name : str, optional
        For logs and `identity`.
    loop : asyncio event loop or tornado IOLoop, optional
        One that runs in another thread, for `start` without await.

    Examples
    --------
    >>> async def main():
    ...     async with Scheduler(port=0) as scheduler, Worker(scheduler.address):
    ...         async with Client(scheduler.address, asynchronous=True) as client:
    ...             return await client.submit(lambda: 1 + 1)
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | str | None = None,
        *,
        interface: str | None = None,
        contact_address: str | None = None,
        scheduler_file: str | os.PathLike[str] | None = None,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
        idle_timeout: float | str | None = None,
        dial_back: bool | None = None,
        allowed_failures: int | None = None,
        worker_ttl: float | str | None = None,
        client_grace: float | str | None = None,
        own_process: bool = False,
        protocol: str = "tcp",
        preload: Iterable[str] | None = None,
        preload_argv: Iterable[str] | None = None,
        name: str | None = None,
        loop: Any = None,
    ) -> None:
        self.settings = settings = config.current()
        super().__init__(
            settings.value("scheduler.preload", preload),
            settings.value("scheduler.preload-argv", preload_argv),
            loop,
        )
        self.id = f"Scheduler-{secrets.token_hex(16)}"
        self.name = name or self.id
        self.started = time.time()
        self.scheduler_file = None if scheduler_file is None else os.fspath(scheduler_file)
        self.state = SchedulerState(
            settings.value("scheduler.allowed-failures", allowed_failures),
            first_attempt=time.time_ns() // 1000,
            work_stealing=settings["scheduler.work-stealing"],
        )
        self.address = ""
        self.inproc_address = ""
        self._dropping: asyncio.Task[None] | None = None  # of the wants of those who are gone
        self.dial_back: bool = settings.value("scheduler.dial-back", dial_back)
        self.worker_ttl: float = settings.value("scheduler.worker-ttl", worker_ttl)
        #: Longest time in seconds for which the event loop was not free, lately and ever.
        self.longest_tick = 0.0
        self.own_process = own_process
        self.state.unclaimed = settings.value("scheduler.client-grace", client_grace)
        self.members = Membership(self, self._spawn, self.state.unclaimed)
        #: Nannies that surely come, as the ranks of an MPI job do: who closes waits for them a
        #: moment, since one that comes too late would look for us until its deadline.
        self.expected_nannies = 0
        self._host, self._port = parse_host(host), settings.value("scheduler.port", port)
        self._interface, self._contact_address = interface, contact_address
        if host is None and interface is None:
            self._interface = settings["scheduler.interface"]
            self._contact_address = settings.value("scheduler.contact-address", contact_address)
        self._protocol = protocol
        self._token, self._token_file, self._auth = token, token_file, auth
        self._idle_timeout: float | None = settings.value("scheduler.idle-timeout", idle_timeout)
        self._listeners: list[Listener] = []
        #: What each message of a worker means for the state.
        self.worker_events = _WORKER_EVENTS
        self.story = Story(self.state, settings["scheduler.transition-log-length"], time.time)
        self.hooks = SchedulerPlugins(self, self._spawn)
        self.requests = ClientRequests(self, self._spawn)
        self._idle_since: float | None = None
        self._folder: tuple[str, int] | None = None  # and the descriptor that locks it

    @property
    def workers(self) -> dict[str, Comm]:
        """Connections of the workers, by address."""
        return self.members.workers

    @property
    def clients(self) -> dict[str, Comm]:
        """Connections of the clients, by id."""
        return self.members.clients

    @property
    def nannies(self) -> dict[str, tuple[Comm, RegisterNanny]]:
        """Connections of the nannies, and what they are, by id."""
        return self.members.nannies

    @property
    def local_directory(self) -> str:
        """Folder for files on this host; made when first asked for, and removed at the end."""
        if self._folder is None:
            from hpcdask.scratch import own_folder, remove_leftovers

            scratch = hosts.local_directory(self.settings["worker.local-directory"])
            remove_leftovers(scratch)
            self._folder = own_folder(scratch, "scheduler")
        return self._folder[0]

    @property
    def token(self) -> bytes:
        """The cluster token; empty without authentication."""
        return self.options.token or b""

    # -- Plugins ----------------------------------------------------------------------------------

    @property
    def plugins(self) -> dict[str, Any]:
        """Plugins of this scheduler, by name."""
        return self.hooks.plugins

    def add_plugin(
        self, plugin: Any, *, idempotent: bool = False, name: str | None = None, **kwargs: Any
    ) -> None:
        """Tell a plugin of what happens here, from now on.

        For preloads, and functions that run here. Before the scheduler runs, as in ``dask_setup``,
        the plugin's ``start`` is called once it does.

        Parameters
        ----------
        plugin : SchedulerPlugin
            Any object with some of its methods will do.
        idempotent : bool
            Whether to do nothing if there is a plugin of that name. Else it is replaced, with a
            warning.
        name : str, optional
            By default the plugin's own, or a new one.
        **kwargs
            Taken and not used, as by dask.distributed.
        """
        self.hooks.add(plugin, name, idempotent)

    def remove_plugin(self, name: str) -> None:
        """Tell a plugin of nothing any more.

        Raises
        ------
        ValueError
            If there is none of that name.
        """
        self.hooks.remove(name)

    # -- Life -------------------------------------------------------------------------------------

    async def _start(self) -> None:
        token = None
        if self._auth:
            own_file = self.settings["token-file"]
            token = resolve_token(self._token, self._token_file, own_file=own_file)
        else:
            log.warning("authentication is off: anybody who reaches this port can run code as you")
        self.options = CommOptions.configured(token, self.settings)
        self.peers = Peers(self.options)
        self.actor_peers = Peers(self.options, is_patient=True)
        await self._listen()
        self._look_at_descriptors()
        if self.scheduler_file is not None:
            await refuse_taken_file(self.scheduler_file)
            write_scheduler_file(self.scheduler_file, self.contact())
        self._spawn(self._watch_idle())
        self._spawn(self._tick())
        if self.own_process:
            gc.set_threshold(*_RARE)
            self._spawn(self._collect_garbage())
        log.info("Scheduler at: %s", self.address)
        await self.hooks.start()

    def _listen_at(self, where: int | str) -> None:
        if isinstance(where, str) and not where.isdecimal():
            address = parse_address(where)
            self._host, self._port = parse_host(address.host), address.port
        else:
            self._port = where

    def _look_at_descriptors(self) -> None:
        """Say in time when there are too few for the workers that come."""
        available = descriptors.raise_limit() if self.own_process else descriptors.limit()
        self.members.limit_descriptors(available)
        if shortage := descriptors.shortage(self.expected_nannies, available):
            log.warning("%s", shortage)

    async def _listen(self) -> None:
        inproc = await listen("inproc://", self.members.on_comm, self.options)
        self._listeners.append(inproc)
        self.address = self.inproc_address = inproc.address
        if self._protocol == "inproc":
            return
        host = self._host
        if self._interface:
            host = network.interface_address(self._interface)
        try:
            address = str(Address("tcp", host, 0))
            tcp = await listen(address, self.members.on_comm, self.options, self._port)
        except OSError as exc:
            raise LaunchError(f"the scheduler {exc.strerror or exc}") from exc
        self._listeners.append(tcp)
        port = parse_address(tcp.address).port
        if host in ("", "0.0.0.0"):
            host = network.default_address()
        self.address = str(Address("tcp", host, port))
        if self._contact_address:
            self.address = str(parse_address(self._contact_address, port))

    def identity(self) -> dict[str, Any]:
        """What ``Client.scheduler_info()`` returns.

        `started` is in seconds since the epoch; `longest_tick` is the longest time in seconds for
        which the event loop was busy.
        """
        about = {
            "id": self.id,
            "name": self.name,
            "address": self.address,
            "started": self.started,
            "longest_tick": self.longest_tick,
        }
        return identity(self.state, about, time.time() - self.now())

    def contact(self) -> Contact:
        """What the scheduler file says."""
        return Contact(
            type="Scheduler",
            id=self.id,
            address=self.address,
            dashboard="",
            token=self.token,
            started=self.started,
            version=__version__,
            host=network.hostname(),
            pid=os.getpid(),
            job=hosts.batch_job(),
        )

    async def _close(self, reason: str) -> None:
        await self.hooks.call_last("before_close")
        if self.scheduler_file is not None:
            remove_scheduler_file(self.scheduler_file, self.id)
        for comm in list(self.clients.values()):
            comm.send(SchedulerClosing(reason))
        if self.has_run:
            await self.members.until(
                lambda: self.members.n_nannies_joined >= self.expected_nannies, _FAREWELL
            )
        for listener in self._listeners:
            listener.close()
        if hasattr(self, "peers"):
            self.peers.close()
            self.actor_peers.close()
        # Nannies first, or they would replace the workers that end.
        for comm, _ in list(self.nannies.values()):
            comm.send(CloseNanny(reason))
        for comm in list(self.workers.values()):
            comm.send(CloseWorker(reason))
        await self.members.until(lambda: not self.workers and not self.nannies, _FAREWELL)
        await self.hooks.call_last("close")
        for comm in list(self.members.comms):
            comm.close()
        if self._folder is not None:
            shutil.rmtree(self._folder[0], ignore_errors=True)
            os.close(self._folder[1])
        if self.has_run:
            log.info("Scheduler closed: %s", reason)

    async def _watch_idle(self) -> None:
        if not self._idle_timeout:
            return
        while True:
            await asyncio.sleep(min(1.0, self._idle_timeout / 4))
            now = time.monotonic()
            self._idle_since = None if self.state.has_work else self._idle_since or now
            if self._idle_since and now - self._idle_since > self._idle_timeout:
                text = f"idle for {self._idle_timeout:g} s"
                log.info("Scheduler ends: %s", text)
                # Not awaited: closing cancels this very task.
                asyncio.get_running_loop().create_task(self.close(text))
                return

    async def _tick(self) -> None:
        """Do what is due by time alone, and measure how long others had to wait for the loop."""
        look_for_silent = 0.0
        while True:
            due = self.now() + _TICK
            await asyncio.sleep(_TICK)
            now = self.now()
            self.longest_tick = max(self.longest_tick, now - due)
            self.state.tick(now)
            self.requests.coordination.tick()
            self._tell_of_unseen_errors()
            if self.worker_ttl and now > look_for_silent:
                look_for_silent = now + min(1.0, self.worker_ttl / 4)
                self._drop_silent(now, now - due)
            self.flush()

    def _tell_of_unseen_errors(self) -> None:
        """Say that tasks have failed of which nobody holds a future, or nobody would know."""
        unseen, self.state.unseen_errors = self.state.unseen_errors, []
        for key, error in unseen:
            lines = shown(error.frames) or [("?", 0, "?")]
            filename, line, name = lines[-1]
            text = "task %r, which was fired and forgotten, failed on %s: %s, in %s (%s, line %d)"
            worker, what = error.worker or "no worker", error.text.splitlines() or ["?"]
            log.warning(text, key, worker, what[0], name, filename, line)

    async def _collect_garbage(self) -> None:
        """Look for cyclic garbage while there is little else to look at."""
        while True:
            await asyncio.sleep(_COLLECTION)
            if len(self.state.tasks) < _FEW_TASKS:
                gc.collect()

    def _drop_silent(self, now: float, late: float) -> None:
        """Give up workers of which nothing is heard, although the connection stands.

        What they sent while we were late ourselves is still to be read.
        """
        silent = self.state.silent_workers(now - late, self.worker_ttl)
        for worker in silent:
            text = f"nothing was heard of it for {self.worker_ttl:g} s"
            comm = self.workers.get(worker.address)
            if comm is not None:
                comm.abort(text)
        if silent:
            self.state.workers_gone(tuple(worker.address for worker in silent))

    # -- Leaving ---------------------------------------------------------------------------------

    def wants_to_leave(self, address: str, message: WorkerLeaving) -> None:
        """A worker is to end, as itself or its nanny says."""
        worker = self.state.workers.get(address)
        if worker is not None and not worker.is_leaving:  # or the other has said it before
            log.info("worker %s is to end: %s", address, message.reason)
            self._let_leave(address, message.reason, message.waits)

    def _let_leave(self, address: str, reason: str, waits: bool = False) -> None:
        self.state.worker_leaving(self.now(), address, reason, waits)
        n_lost = self.state.would_lose(address)
        if n_lost:
            text = "worker %s takes %d values along that no other worker is there to take over: %s"
            log.warning(text, address, n_lost, reason)
        worker = self.state.workers.get(address)
        if worker is not None and worker.actors:
            some, number = next(iter(worker.actors)).key, len(worker.actors)
            text = "worker %s takes %d actors along, %s among them, which end with it: %s"
            log.warning(text, address, number, some, reason)

    async def retire(
        self, addresses: Iterable[str], timeout: float, patience: float | None = None
    ) -> list[str]:
        """Let workers end, after others have what only they hold.

        Parameters
        ----------
        addresses : iterable of str
            Of the workers.
        timeout : float
            Seconds after which those that have not ended are ended anyway.
        patience : float, optional
            Seconds after which what they run is run elsewhere; by default that is awaited.

        Returns
        -------
        list of str
            The addresses of those that have ended.
        """
        leaving = [address for address in addresses if address in self.workers]
        for address in leaving:
            self._let_leave(address, "it was retired")
        self.flush()

        def have_gone() -> bool:
            return not set(leaving) & self.workers.keys()

        if patience is not None and not await self.members.until(have_gone, min(patience, timeout)):
            for address in leaving:
                self.state.wait_no_longer(address)
            self.flush()
        if not await self.members.until(have_gone, timeout):
            for address in leaving:
                if address in self.workers:
                    self.workers[address].send(CloseWorker("it was retired"))
            await self.members.until(have_gone, _FAREWELL)
        return [address for address in leaving if address not in self.workers]

    # -- Messages ---------------------------------------------------------------------------------

    def now(self) -> float:
        return time.monotonic()

    def flush(self) -> None:
        """Send what the state has to say."""
        if self.hooks.moves:
            self.hooks.tell_moves()
        if self.state.has_more_to_drop and self._dropping is None:
            self._dropping = self._spawn(self._drop_wants())
        outbox = self.state.outbox
        if not outbox:
            return
        self.state.outbox = {}
        for address, messages in outbox.items():
            worker = self.workers.get(address)
            if worker is not None:
                worker.send_now(messages)
            elif address in self.clients:
                self.clients[address].send_first(messages)

    async def _drop_wants(self) -> None:
        """Drop little by little what would have been too much for one event."""
        try:
            while self.state.has_more_to_drop:
                await asyncio.sleep(0)
                self.state.drop_more(self.now())
                self.flush()
        finally:
            self._dropping = None

    def worker_said(self, address: str, message: Message) -> None:
        """Deal with a message of a worker."""
        kind = type(message)
        event = self.worker_events.get(kind)
        if event is not None:
            event(self.state, self.now(), address, message)
        elif kind is DataMissing:
            self.members.reach.data_missing(address, message)
            self.state.data_missing(self.now(), address, message)
        elif kind is WorkerLeaving:
            self.wants_to_leave(address, message)
        elif kind is LogEvent:
            self.requests.topics.logged(message.topics, message.message)
        elif kind in (CallReturned, Failure):
            self.requests.calls.answered(message)
        elif kind is PluginFailed:
            self.requests.plugins.failed(message)

    def client_lost(self, name: str) -> None:
        """A client is gone for good: what it wanted and held is free."""
        self.state.client_lost(self.now(), name)
        self.requests.client_lost(name)
        self.flush()

    def log_event(self, topic: str | Iterable[str], msg: Any) -> None:
        """Log an event, of one topic or several; see `Client.log_event`."""
        self.requests.topics.log((topic,) if isinstance(topic, str) else topic, msg)

    def client_said(self, name: str, comm: Comm, message: Message) -> None:
        """Deal with a message of a client."""
        kind = type(message)
        event = _CLIENT_EVENTS.get(kind)
        if event is not None:
            event(self.state, self.now(), name, message)
            if kind is SubmitTasks and self.hooks.wants_graphs:
                self.hooks.graph_came(name, message)
        elif kind in self.requests.events:
            self.requests.events[kind](name, message)
        elif kind in self.requests.answers:
            self._spawn(self._answer(name, comm, message))
        elif kind is KeepUntilDone:
            self.state.kept_until_done(self.now(), message)
        elif kind is AllTold:
            self.state.all_told(self.now(), name)
        elif kind is Shutdown:
            log.info("client %s shuts the cluster down: %s", name, message.reason)
            asyncio.get_running_loop().create_task(self.close(message.reason))

    async def _answer(self, name: str, comm: Comm, message: Message) -> None:
        comm.send(await self.requests.answer(name, message))

    def __repr__(self) -> str:
        return f"<Scheduler {self.address!r}, workers: {len(self.workers)}, {self.status}>"


_WORKER_EVENTS: dict[type[Any], Callable[[SchedulerState, float, str, Any], None]] = {
    TaskFinished: SchedulerState.task_finished,
    TaskErred: SchedulerState.task_erred,
    TaskRescheduled: SchedulerState.task_rescheduled,
    KeysAdded: SchedulerState.keys_added,
    KeysDropped: SchedulerState.keys_dropped,
    GivenBack: SchedulerState.given_back,
    NotAcquired: SchedulerState.not_acquired,
    Heartbeat: SchedulerState.heartbeat,
    ThreadsLent: SchedulerState.threads_lent,
}
_CLIENT_EVENTS: dict[type[Any], Callable[[SchedulerState, float, str, Any], None]] = {
    SubmitTasks: SchedulerState.tasks_submitted,
    WantKeys: SchedulerState.keys_wanted,
    ReleaseKeys: SchedulerState.keys_released,
    CancelKeys: SchedulerState.keys_cancelled,
    DataScattered: SchedulerState.data_scattered,
}
