"""Who is connected with a scheduler: workers, nannies and clients, as they come and go."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from hpcdask import descriptors
from hpcdask._version import __version__
from hpcdask.comm import Comm
from hpcdask.errors import CommClosedError
from hpcdask.feeding import Feed
from hpcdask.messages import (
    PROTOCOL_VERSION,
    CallReturned,
    Failure,
    Message,
    OutOfReach,
    PluginFailed,
    Refused,
    RegisterClient,
    Registered,
    RegisterNanny,
    RegisterWorker,
    Terminate,
    WorkerClosing,
    WorkerDied,
    WorkerLeaving,
    WorkerLives,
)
from hpcdask.messages.client import ClientClosing
from hpcdask.reachability import Reachability
from hpcdask.versions import Census, Software, software

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler

log = logging.getLogger("hpcdask.scheduler")

#: Seconds that a new connection has to say who it is.
_INTRODUCTION = 10.0
#: Seconds in which the end of a process is seen on all its connections.
_IN_THIS_MOMENT = 0.3
#: Seconds that a nanny has to tell how its worker died, if a task is to be given up for that.
_LAST_WORDS = 1.0
#: Heartbeats that all workers together send, per second, at most.
_HEARTBEATS_PER_SECOND = 100.0
#: Seconds per worker between two looks at whether something has happened to all of them.
_LOOK = 20e-6
#: Part of the possible connections at which it is time to say that there will be too few.
_CROWDED = 0.8


class Membership:
    """Lets processes into a cluster, hands on what they say, and tells the state who is gone.

    Parameters
    ----------
    scheduler : Scheduler
        Whose state it tells, and who deals with what members say.
    spawn : callable
        Runs a coroutine that ends with the scheduler at the latest.
    client_grace : float
        Seconds that the work of a client is kept which has vanished without a word.
    Attributes
    ----------
    workers, clients : dict of str to Comm
        Connections by the worker's address and by the client's id.
    nannies : dict of str to (Comm, RegisterNanny)
        By the nanny's id.
    comms : set of Comm
        All connections, of those who have not said yet who they are as well.
    last_words : dict of str to WorkerDied
        What each nanny has told last of a worker's end, by its id.
    n_nannies_joined : int
        All that ever came.
    progress : asyncio.Event
        Set whenever workers or nannies come or go.
    reach : Reachability
        Who can reach whom.
    absences : dict of str to asyncio.Task
        By the client's id: forgets it, unless it comes back before.
    ending : set of str
        Addresses of workers that are about to be replaced, as somebody has asked.
    on_client_gone : callable
        Called with a client's id when its connection has ended, for whatever reason.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
        client_grace: float,
    ) -> None:
        self._scheduler, self._state, self._spawn = scheduler, scheduler.state, spawn
        self._client_grace = client_grace
        self._heartbeat: float = scheduler.settings["scheduler.heartbeat"]
        self.reach = Reachability(scheduler, spawn)
        self._census = Census(software())
        self._told_of: set[Software] = set()
        self.workers: dict[str, Comm] = {}
        self.clients: dict[str, Comm] = {}
        self.nannies: dict[str, tuple[Comm, RegisterNanny]] = {}
        self.comms: set[Comm] = set()
        self.last_words: dict[str, WorkerDied] = {}
        self.n_nannies_joined = 0
        self.progress = asyncio.Event()
        self.absences: dict[str, asyncio.Task[None]] = {}
        self.on_client_gone: Callable[[str], None] = lambda client: None
        self.ending: set[str] = set()
        self._feeds: dict[str, Feed] = {}  # by client or address, as the connections
        #: Processes of clients that serve the tasks of a worker: nanny and pid, by the client's id.
        self._processes: dict[str, tuple[str, int]] = {}
        self._dead: set[str] = set()  # clients whose process has died before their connection did
        self._watched: dict[str, str] = {}  # address of the last worker of each nanny
        self._room = math.inf  # connections beyond which there may soon be no descriptors
        self._has_warned = False

    # -- Introductions ----------------------------------------------------------------------------

    def on_comm(self, comm: Comm) -> None:
        """Somebody has connected who holds the token."""
        self.comms.add(comm)
        if self.is_crowded and not self._has_warned:
            self._has_warned = True
            # The next worker, or as many again: who reads this wants to be safe.
            shortage = descriptors.shortage(2 * len(self.workers) or 1, descriptors.limit())
            log.warning("%d connections are open%s", len(self.comms), shortage and f": {shortage}")
        self._spawn(self._introduce(comm))

    def limit_descriptors(self, available: int) -> None:
        """Say in time that there will be more connections than that."""
        self._room = _CROWDED * available

    @property
    def is_crowded(self) -> bool:
        """Whether there may soon be no file descriptors for further connections."""
        return len(self.comms) >= self._room

    async def _introduce(self, comm: Comm) -> None:
        """Find out who it is."""
        try:
            hello = await asyncio.wait_for(comm.receive(), _INTRODUCTION)
        except (CommClosedError, asyncio.TimeoutError):
            self._hang_up(comm)
            return
        joins: dict[type[Any], Callable[[Comm, Any], None]] = {
            RegisterClient: self._client_joins,
            RegisterWorker: self._worker_joins,
            RegisterNanny: self._nanny_joins,
            Terminate: self._terminate,
        }
        join = joins.get(type(hello))
        if join is None:
            log.warning("closed the connection of %s: it began with %r", comm.peer, hello)
            self._hang_up(comm)
        elif hello.protocol != PROTOCOL_VERSION:
            text = (
                f"it speaks version {hello.protocol} of the protocol (hpcdask {hello.version}), "
                f"the scheduler version {PROTOCOL_VERSION} (hpcdask {__version__}): "
                "install the same hpcdask on all hosts"
            )
            log.warning("refused %s: %s", comm.peer, text)
            comm.send(Refused(text))
            self._hang_up(comm)
        elif type(hello) is not RegisterWorker or await self._is_reached(comm, hello):
            join(comm, hello)

    def _terminate(self, comm: Comm, hello: Terminate) -> None:
        self._scheduler._close_soon(hello.reason)

    def _hang_up(self, comm: Comm) -> None:
        comm.close()
        self.comms.discard(comm)

    def _registered(self) -> Registered:
        interval = max(self._heartbeat, len(self.workers) / _HEARTBEATS_PER_SECOND)
        if self._scheduler.worker_ttl:  # an idle worker says nothing else
            interval = min(interval, self._scheduler.worker_ttl / 4)
        return Registered(self._scheduler.id, interval)

    @property
    def _is_closing(self) -> bool:
        return self._scheduler.status == "closing"

    # -- Clients ----------------------------------------------------------------------------------

    def _client_joins(self, comm: Comm, hello: RegisterClient) -> None:
        name, scheduler = hello.client, self._scheduler
        is_new = name not in self._state.clients
        self._end_absence(name)
        if hello.returns:
            self._state.client_returned(scheduler.now(), name)
        else:
            self._state.client_joined(scheduler.now(), name)
        self.clients[name] = comm
        if hello.nanny:
            self._processes[name] = (hello.nanny, hello.pid)
        mismatch = self._census.client_joined(hello.software)
        comm.send(self._registered()._replace(mismatch=mismatch))
        scheduler.log_event("all", {"action": "add-client", "client": name})
        has_said_goodbye = False

        def handle(message: Message) -> None:
            nonlocal has_said_goodbye
            has_said_goodbye |= type(message) is ClientClosing
            scheduler.client_said(name, comm, message)

        feed = self._feeds[name] = Feed(comm, handle, scheduler.flush)

        def on_closed(reason: CommClosedError) -> None:
            self.comms.discard(comm)
            feed.finish(lambda: self._client_has_gone(name, comm, has_said_goodbye))

        comm.start(feed, on_closed)
        if is_new:
            scheduler.hooks.call("add_client", scheduler=scheduler, client=name)

    def _client_has_gone(self, name: str, comm: Comm, has_said_goodbye: bool) -> None:
        if self.clients.get(name) is not comm:
            return  # it has come back meanwhile
        del self.clients[name], self._feeds[name]
        is_sure = has_said_goodbye or name in self._dead
        if is_sure or not self._client_grace or self._is_closing:
            self._client_lost(name)
        else:
            self.absences[name] = self._spawn(self._forget_client(name))
        self.on_client_gone(name)

    def _end_absence(self, name: str) -> None:
        """A client is here, and tells all anew: what it said before counts no more."""
        absence = self.absences.pop(name, None)
        if absence is not None:
            absence.cancel()
        if name in self.clients:  # the old connection is dead and we may not know it yet
            self._feeds.pop(name).drop()
            self.clients.pop(name).abort("replaced by a new connection")

    async def _forget_client(self, name: str) -> None:
        """Forget a client that said no goodbye, unless it comes back."""
        log.info("client %s has vanished; its work is kept for %g s", name, self._client_grace)
        await asyncio.sleep(self._client_grace)
        del self.absences[name]
        self._client_lost(name)

    def _client_lost(self, name: str) -> None:
        """A client is gone for good."""
        self._processes.pop(name, None)
        self._dead.discard(name)
        scheduler = self._scheduler
        scheduler.client_lost(name)
        scheduler.log_event("all", {"action": "remove-client", "client": name})
        scheduler.hooks.call("remove_client", scheduler=scheduler, client=name)

    def _process_died(self, nanny: str, is_it: Callable[[int], bool]) -> None:
        """A worker's process is no more: what its tasks' client held is free, without any grace."""
        processes = self._processes.items()
        for name in [n for n, (by, pid) in processes if by == nanny and is_it(pid)]:
            absence = self.absences.pop(name, None)
            if absence is None:
                self._dead.add(name)  # its connection has not ended yet, as far as we know
            else:
                absence.cancel()
                self._client_lost(name)

    # -- Workers ----------------------------------------------------------------------------------

    async def _is_reached(self, comm: Comm, hello: RegisterWorker) -> bool:
        """Whether a new worker may join, as others can reach it; if not, it is told why."""
        if not self._scheduler.dial_back:
            return True
        if hello.returns:
            # It has values that are wanted, whether or not all can get at them.
            self._spawn(self.reach.look_again(hello))
        else:
            sentence = await self.reach.why_not(hello)
            # One that has ended meanwhile, as it does with the cluster, is no case of a firewall.
            if sentence and not self._is_closing and not await _has_gone(comm):
                self.reach.tell(hello, sentence)
                comm.send(OutOfReach(sentence))
            if sentence or comm.closed:  # it did not wait
                self._hang_up(comm)
                return False
        return True

    def _worker_joins(self, comm: Comm, hello: RegisterWorker) -> None:
        address, scheduler = hello.address, self._scheduler
        if address in self.workers:  # the old connection is dead and we do not know it yet
            self._feeds.pop(address).drop()
            self.workers.pop(address).abort("replaced by a new connection")
            self._state.worker_lost(scheduler.now(), address, planned=True)
            self._tell_of_loss(address)
        self.workers[address] = comm
        if hello.nanny:
            self._watched[hello.nanny] = address
            self._process_died(hello.nanny, lambda pid: pid != hello.pid)
        self.progress.set()
        again = " again" if hello.returns else ""
        log.info(
            "Register worker %s%s, %d threads, at %s", hello.name, again, hello.nthreads, address
        )
        leaves_on_purpose = False

        def handle(message: Message) -> None:
            nonlocal leaves_on_purpose
            leaves_on_purpose |= type(message) is WorkerClosing
            scheduler.worker_said(address, message)

        feed = self._feeds[address] = Feed(comm, handle, scheduler.flush)
        comm.send(self._registered()._replace(mismatch=self._mismatch(hello)))
        scheduler.requests.plugins.equip("worker", address, comm, hello.plugins)  # before any task
        self._state.worker_joined(scheduler.now(), hello)
        scheduler.flush()
        scheduler.log_event("all", {"action": "add-worker", "worker": address})
        scheduler.hooks.call("add_worker", scheduler=scheduler, worker=address)

        def on_batch(batch: list[Message]) -> None:
            record = self._state.workers.get(address)
            if record is not None:
                record.last_seen = scheduler.now()
            feed(batch)

        def on_closed(reason: CommClosedError) -> None:
            self.comms.discard(comm)
            feed.finish(lambda: self._worker_has_gone(comm, hello, leaves_on_purpose, str(reason)))

        comm.start(on_batch, on_closed)

    def _mismatch(self, hello: RegisterWorker) -> str:
        """Which versions of a worker are not ours, in words; logged of the first that has them."""
        who = f"worker {hello.name} ({hello.host})"
        mismatch = self._census.worker_joined(hello.address, who, hello.software)
        if mismatch and hello.software not in self._told_of:
            self._told_of.add(hello.software)
            log.warning(mismatch)
        return mismatch

    def _worker_has_gone(
        self, comm: Comm, hello: RegisterWorker, leaves_on_purpose: bool, reason: str
    ) -> None:
        address = hello.address
        if self.workers.get(address) is not comm:
            return  # it has come back meanwhile
        self._scheduler.peers.forget(address)
        self._scheduler.actor_peers.forget(address)
        planned = leaves_on_purpose or self._is_closing or address in self.ending
        self.ending.discard(address)
        level = logging.INFO if planned else logging.WARNING
        log.log(level, "Remove worker %s at %s: %s", hello.name, address, reason)
        if not planned and hello.nanny in self.nannies and self._state.would_give_up(address):
            self._spawn(self._bury(comm, hello, reason))
        else:
            self._worker_lost(comm, hello, planned, reason)

    async def _bury(self, comm: Comm, hello: RegisterWorker, reason: str) -> None:
        """Wait for what the nanny knows of a worker's end, since a user is to be told."""
        await self.until(lambda: self._last_words_of(hello) is not None, _LAST_WORDS)
        self._worker_lost(comm, hello, False, reason)

    def _last_words_of(self, hello: RegisterWorker) -> WorkerDied | None:
        words = self.last_words.get(hello.nanny)
        return words if words is not None and words.pid == hello.pid else None

    def _worker_lost(self, comm: Comm, hello: RegisterWorker, planned: bool, reason: str) -> None:
        if self.workers.get(hello.address) is not comm:
            return  # it has come back meanwhile
        del self.workers[hello.address], self._feeds[hello.address]
        self._census.worker_left(hello.address)
        if self._watched.get(hello.nanny) == hello.address:
            del self._watched[hello.nanny]
        self.progress.set()
        words = self._last_words_of(hello)
        how = reason if words is None else in_words(words)
        self._state.worker_lost(self._scheduler.now(), hello.address, planned, how)
        self._scheduler.flush()
        about = {"action": "remove-worker", "worker": hello.address, "expected": planned}
        self._scheduler.log_event("all", about)
        self._tell_of_loss(hello.address)

    def _tell_of_loss(self, address: str) -> None:
        scheduler = self._scheduler
        stimulus = f"remove-worker-{scheduler.now()}"
        scheduler.hooks.call(
            "remove_worker", scheduler=scheduler, worker=address, stimulus_id=stimulus
        )

    @property
    def n_ready(self) -> int:
        """How many workers there are that have set up their plugins."""
        equipping = self._scheduler.requests.plugins.equipping  # few, or none
        return len(self.workers) - sum(address in self.workers for address in equipping)

    async def until(self, happened: Callable[[], bool], timeout: float) -> bool:
        """Wait for something that workers' coming and going decides."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not happened():
            self.progress.clear()
            try:
                await asyncio.wait_for(self.progress.wait(), deadline - loop.time())
            except asyncio.TimeoutError:
                return happened()
            # What looks at all workers must not do so at each of a thousand that come at once.
            await asyncio.sleep(_LOOK * len(self.workers))
        return True

    # -- Nannies ----------------------------------------------------------------------------------

    def _nanny_joins(self, comm: Comm, hello: RegisterNanny) -> None:
        self.nannies[hello.name] = (comm, hello)
        self.n_nannies_joined += 1
        self.progress.set()
        plugins = self._scheduler.requests.plugins
        n_plugins = plugins.n_missing("nanny", hello.plugins)
        comm.send(self._registered()._replace(n_plugins=n_plugins))
        plugins.equip("nanny", hello.name, comm, hello.plugins)

        def on_batch(batch: list[Message]) -> None:
            for message in batch:
                self._nanny_said(hello.name, message)

        def on_closed(reason: CommClosedError) -> None:
            self.comms.discard(comm)
            if self.nannies.get(hello.name, (None,))[0] is comm:
                del self.nannies[hello.name]
                self.last_words.pop(hello.name, None)
            self.progress.set()

        comm.start(on_batch, on_closed)

    def _nanny_said(self, nanny: str, message: Message) -> None:
        kind = type(message)
        if kind is WorkerDied:
            self.last_words[nanny] = message
            self.progress.set()
            self._process_died(nanny, lambda pid: pid == message.pid)
            log.warning("worker %s (pid %d) %s", message.name, message.pid, in_words(message))
        elif kind is WorkerLives:
            self._vouched_for(nanny)
        elif kind is WorkerLeaving:
            self._scheduler.wants_to_leave(self._watched.get(nanny, ""), message)
            self._scheduler.flush()
        elif kind in (CallReturned, Failure):
            self._scheduler.requests.calls.answered(message)
        elif kind is PluginFailed:
            self._scheduler.requests.plugins.failed(message)

    def _vouched_for(self, nanny: str) -> None:
        """A worker that cannot speak, since code of a task keeps the interpreter, is at work."""
        worker = self._state.workers.get(self._watched.get(nanny, ""))
        if worker is not None:
            worker.last_seen = self._scheduler.now()


async def _has_gone(comm: Comm) -> bool:
    """Whether the other side has hung up, or does so in this moment."""
    try:
        await asyncio.wait_for(comm.wait_closed(), _IN_THIS_MOMENT)
    except asyncio.TimeoutError:
        return False
    return True


def in_words(died: WorkerDied) -> str:
    """What a nanny tells of its worker's end, in words."""
    code = died.exit_code
    how = f"exited with code {code}"
    if code < 0:
        try:
            how = f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            how = f"was killed by signal {-code}"
    lines = died.stderr.strip()
    return f"{how}; " + (f"the last lines on stderr:\n{lines}" if lines else "nothing on stderr")
