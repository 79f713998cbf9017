"""The scheduler process: sockets and timers around a `SchedulerState`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from hpcdask import host as hosts
from hpcdask import network
from hpcdask._version import __version__
from hpcdask.calls import call
from hpcdask.comm import Comm, Listener, connect, listen
from hpcdask.comm.addresses import Address, parse_address
from hpcdask.comm.options import CommOptions
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.errors import CommClosedError, LaunchError, TokenError, WaitTimeoutError
from hpcdask.messages import (
    PROTOCOL_VERSION,
    AwaitWorkers,
    Blob,
    CallFunction,
    CallOutcomes,
    CallReturned,
    CancelKeys,
    CloseNanny,
    CloseWorker,
    DataMissing,
    DataScattered,
    Failure,
    GatherKeys,
    Heartbeat,
    Inspect,
    KeepUntilDone,
    KeysAdded,
    KeyValues,
    LocateKeys,
    Locations,
    Message,
    PlanScatter,
    Refused,
    RegisterClient,
    Registered,
    RegisterNanny,
    RegisterWorker,
    ReleaseKeys,
    Reply,
    RestartWorker,
    RestartWorkers,
    RunOnScheduler,
    RunOnWorkers,
    ScatterPlan,
    SchedulerClosing,
    Shutdown,
    StoredValue,
    StoreForClient,
    SubmitTasks,
    TaskErred,
    TaskError,
    TaskFinished,
    ThreadsLent,
    Version,
    WantKeys,
    WorkerClosing,
    WorkerDied,
)
from hpcdask.peers import Peers, RequestFailedError, Requests
from hpcdask.rendezvous import (
    Contact,
    SchedulerFileReader,
    remove_scheduler_file,
    resolve_token,
    write_scheduler_file,
)
from hpcdask.service import Service
from hpcdask.snapshots import INSPECTIONS, identity
from hpcdask.tracebacks import to_task_error

log = logging.getLogger("hpcdask.scheduler")

#: Seconds that a new connection has to say who it is.
_INTRODUCTION = 10.0
#: Seconds in which the scheduler of a scheduler file must answer to be taken for running.
_ONE_LOOK = 2.0
#: Seconds that workers and nannies have to end when the cluster is shut down.
_FAREWELL = 3.0
#: Heartbeats that all workers together send, per second, at most; and seconds between two of one.
_HEARTBEATS_PER_SECOND, _HEARTBEAT = 100.0, 2.0


class Scheduler(Service):
    """Takes graphs from clients, gives tasks to workers, knows where every value is.

    Parameters
    ----------
    host : str, optional
        Address or name to listen on; every interface by default.
    port : int or str
        Port, 0 for any free one, or a range ``"9000:9010"`` to try in turn.
    interface : str, optional
        Listen only on, and advertise, this network interface; a name, list, glob or subnet.
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
        End after so many seconds without tasks.
    allowed_failures : int
        Workers that may die under a task before it is given up.
    protocol : str
        "tcp" or "inproc".
    preload, preload_argv : iterable of str
        Modules or files with ``dask_setup(scheduler)`` and ``dask_teardown(scheduler)``.
    name : str, optional
        For logs and `identity`.

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
        port: int | str = 0,
        *,
        interface: str | None = None,
        contact_address: str | None = None,
        scheduler_file: str | os.PathLike[str] | None = None,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
        idle_timeout: float | str | None = None,
        allowed_failures: int = 3,
        protocol: str = "tcp",
        preload: Iterable[str] = (),
        preload_argv: Iterable[str] = (),
        name: str | None = None,
    ) -> None:
        super().__init__(preload, preload_argv)
        self.id = f"Scheduler-{uuid.uuid4()}"
        self.name = name or self.id
        self.started = time.time()
        self.scheduler_file = None if scheduler_file is None else os.fspath(scheduler_file)
        self.state = SchedulerState(allowed_failures)
        self.address = ""
        self.inproc_address = ""
        self.workers: dict[str, Comm] = {}
        self.clients: dict[str, Comm] = {}
        self.nannies: dict[str, tuple[Comm, RegisterNanny]] = {}
        self.last_words: dict[str, WorkerDied] = {}  # by worker name
        #: Nannies that surely come, as the ranks of an MPI job do: who closes waits for them a
        #: moment, since one that comes too late would look for us until its deadline.
        self.expected_nannies = 0
        self._nannies_joined = 0
        self._host, self._port, self._interface = host, port, interface
        self._contact_address, self._protocol = contact_address, protocol
        self._token, self._token_file, self._auth = token, token_file, auth
        self._idle_timeout = None if idle_timeout is None else hosts.parse_timedelta(idle_timeout)
        self._listeners: list[Listener] = []
        self._comms: set[Comm] = set()
        self._requests = Requests()
        self._idle_since: float | None = None
        self._progress = asyncio.Event()  # set whenever workers or nannies come or go

    @property
    def token(self) -> bytes:
        """The cluster token; empty without authentication."""
        return self.options.token or b""

    # -- Life -------------------------------------------------------------------------------------

    async def _start(self) -> None:
        token = None
        if self._auth:
            token = resolve_token(self._token, self._token_file)
        else:
            log.warning("authentication is off: anybody who reaches this port can run code as you")
        self.options = CommOptions.from_environment(token)
        self._peers = Peers(self.options)
        await self._listen()
        if self.scheduler_file is not None:
            await self._refuse_taken_file(self.scheduler_file)
            write_scheduler_file(self.scheduler_file, self.contact())
        self._spawn(self._watch_idle())
        log.info("Scheduler at: %s", self.address)

    async def _refuse_taken_file(self, path: str) -> None:
        """Do not take the file of a scheduler that still runs, which nobody would find any more.

        Whoever answers at its address and holds its token is that scheduler; else it is stale.
        """
        try:
            contact = SchedulerFileReader(path).probe(time.time())
        except TokenError:  # not a private file: writing it anew mends that
            return
        if contact is None or contact.id == self.id:
            return
        options = CommOptions(token=contact.token or None)
        try:
            comm = await connect(contact.address, options, _ONE_LOOK, was_there=True)
        except OSError:
            log.info("replacing %s, left by a scheduler at %s", path, contact.address)
            return
        comm.close()
        raise LaunchError(
            f"{path} is the file of a scheduler that runs: pid {contact.pid} on {contact.host}, at "
            f"{contact.address}. Use another --scheduler-file, or end that one first."
        )

    async def _listen(self) -> None:
        inproc = await listen("inproc://", self._on_comm, self.options)
        self._listeners.append(inproc)
        self.address = self.inproc_address = inproc.address
        if self._protocol == "inproc":
            return
        host = self._host or ""
        if self._interface:
            host = network.interface_address(self._interface)
        try:
            address = str(Address("tcp", host, 0))
            tcp = await listen(address, self._on_comm, self.options, self._port)
        except OSError as exc:
            raise LaunchError(f"the scheduler {exc.strerror or exc}") from exc
        self._listeners.append(tcp)
        port = parse_address(tcp.address).port
        if host in ("", "0.0.0.0", "::"):
            host = network.default_address()
        self.address = str(Address("tcp", host, port))
        if self._contact_address:
            self.address = str(parse_address(self._contact_address, port))

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
        if self.scheduler_file is not None:
            remove_scheduler_file(self.scheduler_file, self.id)
        for comm in list(self.clients.values()):
            comm.send(SchedulerClosing(reason))
        if self.has_run:
            await self._until(lambda: self._nannies_joined >= self.expected_nannies, _FAREWELL)
        for listener in self._listeners:
            listener.close()
        if hasattr(self, "_peers"):
            self._peers.close()
        # Nannies first, or they would replace the workers that end.
        for comm, _ in list(self.nannies.values()):
            comm.send(CloseNanny(reason))
        for comm in list(self.workers.values()):
            comm.send(CloseWorker(reason))
        await self._until(lambda: not self.workers and not self.nannies, _FAREWELL)
        for comm in list(self._comms):
            comm.close()
        if self.has_run:
            log.info("Scheduler closed: %s", reason)

    async def _until(self, happened: Callable[[], bool], timeout: float) -> bool:
        """Wait for something that workers' coming and going decides."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not happened():
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), deadline - loop.time())
            except asyncio.TimeoutError:
                return happened()
        return True

    async def _watch_idle(self) -> None:
        if not self._idle_timeout:
            return
        while True:
            await asyncio.sleep(min(1.0, self._idle_timeout / 4))
            busy = any(t.state not in ("memory", "erred") for t in self.state.tasks.values())
            now = time.monotonic()
            self._idle_since = None if busy else self._idle_since or now
            if self._idle_since and now - self._idle_since > self._idle_timeout:
                text = f"idle for {self._idle_timeout:g} s"
                log.info("Scheduler ends: %s", text)
                # Not awaited: closing cancels this very task.
                asyncio.get_running_loop().create_task(self.close(text))
                return

    # -- Connections ------------------------------------------------------------------------------

    def _on_comm(self, comm: Comm) -> None:
        self._comms.add(comm)
        self._spawn(self._introduce(comm))

    async def _introduce(self, comm: Comm) -> None:
        """Find out who has connected."""
        try:
            hello = await asyncio.wait_for(comm.receive(), _INTRODUCTION)
        except (CommClosedError, asyncio.TimeoutError):
            comm.close()
            self._comms.discard(comm)
            return
        joins: dict[type[Any], Callable[[Comm, Any], None]] = {
            RegisterClient: self._client_joins,
            RegisterWorker: self._worker_joins,
            RegisterNanny: self._nanny_joins,
        }
        join = joins.get(type(hello))
        if join is None:
            log.warning("closed the connection of %s: it began with %r", comm.peer, hello)
            comm.close()
            self._comms.discard(comm)
        elif hello.protocol != PROTOCOL_VERSION:
            text = (
                f"it speaks version {hello.protocol} of the protocol (hpcdask {hello.version}), "
                f"the scheduler version {PROTOCOL_VERSION} (hpcdask {__version__}): "
                "install the same hpcdask on all hosts"
            )
            log.warning("refused %s: %s", comm.peer, text)
            comm.send(Refused(text))
            comm.close()
            self._comms.discard(comm)
        else:
            join(comm, hello)

    def _registered(self) -> Registered:
        interval = max(_HEARTBEAT, len(self.workers) / _HEARTBEATS_PER_SECOND)
        return Registered(self.id, interval)

    def _client_joins(self, comm: Comm, hello: RegisterClient) -> None:
        name = hello.client
        self.clients[name] = comm
        self.state.client_joined(self._now(), name)
        comm.send(self._registered())

        def on_closed(reason: CommClosedError) -> None:
            self._comms.discard(comm)
            if self.clients.get(name) is comm:
                del self.clients[name]
                self.state.client_lost(self._now(), name)
                self._flush()

        comm.start(lambda batch: self._from_client(name, comm, batch), on_closed)

    def _worker_joins(self, comm: Comm, hello: RegisterWorker) -> None:
        address = hello.address
        if address in self.workers:  # the old connection is dead and we do not know it yet
            self.workers.pop(address).abort("replaced by a new connection")
            self.state.worker_lost(self._now(), address, planned=True)
        self.workers[address] = comm
        self._progress.set()
        log.info("Register worker %s, %d threads, at %s", hello.name, hello.nthreads, address)
        comm.send(self._registered())
        self.state.worker_joined(self._now(), hello)
        self._flush()
        leaves_on_purpose = False

        def on_batch(batch: list[Message]) -> None:
            nonlocal leaves_on_purpose
            leaves_on_purpose |= any(type(message) is WorkerClosing for message in batch)
            self._from_worker(address, batch)

        def on_closed(reason: CommClosedError) -> None:
            self._comms.discard(comm)
            if self.workers.get(address) is not comm:
                return
            del self.workers[address]
            self._peers.forget(address)
            self._progress.set()
            planned = leaves_on_purpose or self.status == "closing"
            level = logging.INFO if planned else logging.WARNING
            log.log(level, "Remove worker %s at %s: %s", hello.name, address, reason)
            self.state.worker_lost(self._now(), address, planned)
            self._flush()

        comm.start(on_batch, on_closed)

    def _nanny_joins(self, comm: Comm, hello: RegisterNanny) -> None:
        self.nannies[hello.name] = (comm, hello)
        self._nannies_joined += 1
        self._progress.set()
        comm.send(self._registered())

        def on_batch(batch: list[Message]) -> None:
            for message in batch:
                if type(message) is WorkerDied:
                    self.last_words[message.name] = message
                    log.warning(
                        "worker %s (pid %d) ended with code %d; the last lines it wrote: %s",
                        message.name,
                        message.pid,
                        message.exit_code,
                        message.stderr or "none",
                    )
                elif type(message) in (CallReturned, Failure):
                    self._requests.answered(message)

        def on_closed(reason: CommClosedError) -> None:
            self._comms.discard(comm)
            if self.nannies.get(hello.name, (None,))[0] is comm:
                del self.nannies[hello.name]
            self._progress.set()

        comm.start(on_batch, on_closed)

    # -- Messages ---------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic()

    def _flush(self) -> None:
        """Send what the state has to say."""
        outbox = self.state.outbox
        if not outbox:
            return
        self.state.outbox = {}
        for address, messages in outbox.items():
            comm = self.workers.get(address) or self.clients.get(address)
            if comm is not None:
                comm.send_now(messages)

    def _from_worker(self, address: str, batch: list[Message]) -> None:
        now, state = self._now(), self.state
        for message in batch:
            event = _WORKER_EVENTS.get(type(message))
            if event is not None:
                event(state, now, address, message)
            elif type(message) in (CallReturned, Failure):
                self._requests.answered(message)
        self._flush()

    def _from_client(self, name: str, comm: Comm, batch: list[Message]) -> None:
        now, state = self._now(), self.state
        for message in batch:
            event = _CLIENT_EVENTS.get(type(message))
            if event is not None:
                event(state, now, name, message)
                continue
            if type(message) is KeepUntilDone:
                state.kept_until_done(now, message)
            elif type(message) is Shutdown:
                log.info("client %s shuts the cluster down: %s", name, message.reason)
                asyncio.get_running_loop().create_task(self.close(message.reason))
            elif type(message) in _REQUESTS:
                self._spawn(self._serve(name, comm, message))
        self._flush()

    async def _serve(self, name: str, comm: Comm, message: Any) -> None:
        """Answer a request; whatever goes wrong is the answer, too."""
        try:
            answer = await _REQUESTS[type(message)](self, name, message)
        except RequestFailedError as exc:
            answer = Failure(message.request, exc.error)
        except Exception as exc:
            answer = Failure(message.request, to_task_error(exc))
        comm.send(answer)

    # -- Requests of clients ----------------------------------------------------------------------

    async def _locate(self, name: str, msg: LocateKeys) -> Locations:
        return Locations(msg.request, tuple(map(self.state.locate, msg.keys)))

    async def _gather(self, name: str, msg: GatherKeys) -> KeyValues:
        """Fetch for a client that cannot reach the workers itself."""
        by_worker: dict[str, list[Version]] = {}
        missing = []
        for dependency in map(self.state.locate, msg.keys):
            if dependency.addresses:
                version = Version(dependency.key, dependency.attempt)
                by_worker.setdefault(dependency.addresses[0], []).append(version)
            else:
                missing.append(dependency.key)
        fetches = [self._peers.fetch(address, keys) for address, keys in by_worker.items()]
        answers = await asyncio.gather(*fetches, return_exceptions=True)
        values: list[StoredValue] = []
        failed: list[tuple[str, TaskError]] = []
        for versions, answer in zip(by_worker.values(), answers, strict=True):
            if isinstance(answer, BaseException):
                missing += [version.key for version in versions]
            else:
                values += answer.values
                missing += answer.missing
                failed += answer.failed
        return KeyValues(msg.request, tuple(values), tuple(missing), tuple(failed))

    async def _plan_scatter(self, name: str, msg: PlanScatter) -> ScatterPlan:
        planned = self.state.scatter_planned(self._now(), name, msg)
        return ScatterPlan(msg.request, tuple(planned))

    async def _store(self, name: str, msg: StoreForClient) -> Reply:
        await self._peers.store(msg.address, msg.values)
        return Reply(msg.request, None)

    async def _inspect(self, name: str, msg: Inspect) -> Reply:
        if msg.what == "identity":
            about = identity(self.state, self.id, self.name, self.address, self.started)
            return Reply(msg.request, about)
        return Reply(msg.request, INSPECTIONS[msg.what](self.state, msg.names))

    async def _run_on_scheduler(self, name: str, msg: RunOnScheduler) -> CallOutcomes:
        work = call(msg.function, self.address, {"dask_scheduler": self}, threaded=False)
        if not msg.wait:
            self._spawn(work)
            return CallOutcomes(msg.request, (), ())
        return _outcomes(msg.request, [(self.address, await work)])

    async def _run_on_workers(self, name: str, msg: RunOnWorkers) -> CallOutcomes:
        chosen = self.state.find_workers(msg.workers)
        comms = [(worker.address, self.workers[worker.address]) for worker in chosen]
        if msg.nanny:
            comms = [
                (worker.info.nanny, self.nannies[worker.info.nanny][0])
                for worker in chosen
                if worker.info.nanny in self.nannies
            ]
        asked = [
            (address, await self._call(comm, msg.function, msg.wait)) for address, comm in comms
        ]
        if not msg.wait:
            return CallOutcomes(msg.request, (), ())
        answers = [(address, await _result_or_error(address, future)) for address, future in asked]
        return _outcomes(msg.request, answers)

    async def _call(self, comm: Comm, function: Any, wait: bool) -> asyncio.Future[Any]:
        """Send a call; its future fails if the connection ends before the answer."""
        number, future = self._requests.new()
        comm.send(CallFunction(number, function))
        if not wait:
            future.cancel()
            return future

        async def watch() -> None:
            await comm.wait_closed()
            if not future.done():
                future.set_exception(CommClosedError(f"{comm.peer} ended before it answered"))

        watcher = self._spawn(watch())
        future.add_done_callback(lambda _: watcher.cancel())
        return future

    async def call_worker(self, address: str, function: Blob) -> Blob | TaskError:
        """Call a pickled (function, args, kwargs) on one worker, and return its pickled result."""
        asked = await self._call(self.workers[address], function, True)
        answer: Blob | TaskError = await _result_or_error(address, asked)
        return answer

    async def _await_workers(self, name: str, msg: AwaitWorkers) -> Reply:
        await self._until(lambda: len(self.workers) >= msg.n_workers, msg.timeout)
        return Reply(msg.request, len(self.workers))

    async def _restart(self, name: str, msg: RestartWorkers) -> Reply:
        """Forget all tasks, and give every nanny's worker a new process."""
        self.state.restarted(self._now(), "the cluster was restarted")
        self._flush()
        old = {worker.address: worker.info for worker in self.state.workers.values()}
        expected = {info.nanny for info in old.values() if info.nanny in self.nannies}
        for nanny in expected:
            self.nannies[nanny][0].send(RestartWorker())
        for address, info in old.items():
            if info.nanny not in expected:
                self.workers[address].send(CloseWorker("the cluster was restarted"))

        def are_back() -> bool:
            fresh = [w.info for a, w in self.state.workers.items() if a not in old]
            return expected <= {info.nanny for info in fresh}

        if not await self._until(are_back, msg.timeout):
            fresh = {w.info.nanny for a, w in self.state.workers.items() if a not in old}
            raise WaitTimeoutError(
                f"{len(expected - fresh)} of {len(expected)} workers were not back within "
                f"{msg.timeout:g} s after a restart: {sorted(expected - fresh)}"
            )
        return Reply(msg.request, None)

    def __repr__(self) -> str:
        return f"<Scheduler {self.address!r}, workers: {len(self.workers)}, {self.status}>"


async def _result_or_error(address: str, future: asyncio.Future[Any]) -> Any:
    try:
        return (await future).value
    except RequestFailedError as exc:
        return exc.error
    except Exception as exc:
        return to_task_error(exc, worker=address)


def _outcomes(request: int, answers: list[tuple[str, Any]]) -> CallOutcomes:
    returned = tuple((a, value) for a, value in answers if type(value) is not TaskError)
    raised = tuple((a, value) for a, value in answers if type(value) is TaskError)
    return CallOutcomes(request, returned, raised)


_WORKER_EVENTS: dict[type[Any], Callable[[SchedulerState, float, str, Any], None]] = {
    TaskFinished: SchedulerState.task_finished,
    TaskErred: SchedulerState.task_erred,
    KeysAdded: SchedulerState.keys_added,
    DataMissing: SchedulerState.data_missing,
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
_REQUESTS: dict[type[Any], Any] = {
    LocateKeys: Scheduler._locate,
    GatherKeys: Scheduler._gather,
    PlanScatter: Scheduler._plan_scatter,
    StoreForClient: Scheduler._store,
    Inspect: Scheduler._inspect,
    RunOnWorkers: Scheduler._run_on_workers,
    RunOnScheduler: Scheduler._run_on_scheduler,
    RestartWorkers: Scheduler._restart,
    AwaitWorkers: Scheduler._await_workers,
}
