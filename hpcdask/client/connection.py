"""A client's connection with its scheduler: how it begins, breaks, and ends."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
import warnings
import weakref
from collections.abc import Generator
from types import TracebackType
from typing import Any, TypeVar

from hpcdask import config, with_dask
from hpcdask._version import __version__
from hpcdask.client import collecting, first_things, returning
from hpcdask.client.conversation import Conversation
from hpcdask.client.future import FutureState, until_done
from hpcdask.client.loop import is_of_parent, limited, shared_loop
from hpcdask.client.operations import Operations
from hpcdask.client.place import OF_CLIENTS, find_place, with_meaning
from hpcdask.client.reasons import why_pending
from hpcdask.client.registered import RegisteredPlugins
from hpcdask.client.registry import clients, defaults
from hpcdask.client.subscriptions import Subscriptions
from hpcdask.comm import Comm, ends_of_all
from hpcdask.comm.options import CommOptions
from hpcdask.dialling import Link, SchedulerPlace, reach_scheduler
from hpcdask.errors import CommClosedError, WaitTimeoutError
from hpcdask.messages import PROTOCOL_VERSION, RegisterClient
from hpcdask.messages.client import ClientClosing
from hpcdask.peers import Peers
from hpcdask.places import current_worker
from hpcdask.versions import VersionMismatchWarning, software

log = logging.getLogger("hpcdask.client")

#: Seconds for the other ends of connections to be closed, too.
_GOODBYE = 2.0

C = TypeVar("C", bound="Connection")


class Connection(Conversation):
    """What a client is made of before it has anything to say; see `hpcdask.Client`."""

    #: Whether it is a launcher's, and of no interest to users.
    _is_internal = False
    _peers: Peers
    _actor_peers: Peers  # by which actors are called
    _starting: asyncio.Task[Any] | None

    def __init__(
        self,
        address: Any = None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        timeout: float | str | None = None,
        set_as_default: bool = True,
        scheduler_file: str | os.PathLike[str] | None = None,
        asynchronous: bool = False,
        name: str | None = None,
        direct_to_workers: bool | None = None,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
        reconnect_timeout: float | str | None = None,
        **cluster_options: Any,
    ) -> None:
        self._prepare(
            address,
            timeout=timeout,
            set_as_default=set_as_default,
            scheduler_file=scheduler_file,
            asynchronous=asynchronous,
            name=name,
            direct_to_workers=direct_to_workers,
            token=token,
            token_file=token_file,
            auth=auth,
            reconnect_timeout=reconnect_timeout,
            **cluster_options,
        )
        if asynchronous:
            self.loop = asyncio.get_running_loop()
            self._starting = self.loop.create_task(self._start())
        else:
            self.loop = loop or shared_loop()
            self._sync(self._start())

    def _prepare(
        self,
        address: Any,
        *,
        timeout: float | str | None = None,
        set_as_default: bool = True,
        scheduler_file: str | os.PathLike[str] | None = None,
        asynchronous: bool = False,
        name: str | None = None,
        direct_to_workers: bool | None = None,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
        reconnect_timeout: float | str | None = None,
        **cluster_options: Any,
    ) -> None:
        self.id = f"Client-{name + '-' if name else ''}{secrets.token_hex(16)}"
        self.name = name or self.id
        self._asynchronous = asynchronous
        self.status = "connecting"
        self.cluster: Any = None
        self.settings = settings = config.current()
        self.direct_to_workers: bool | None = settings.value(
            "client.direct-to-workers", direct_to_workers
        )
        self._timeout: float = settings.value("comm.timeouts.connect", timeout)
        self._reconnect_timeout: float = settings.value(
            "client.reconnect-timeout", reconnect_timeout
        )
        self._place = self._way_back = SchedulerPlace(
            address if isinstance(address, str) else None,
            None if scheduler_file is None else os.fspath(scheduler_file),
            token,
            token_file,
            auth,
            settings,
        )
        self._given = address
        self._cluster_options = with_meaning(cluster_options, OF_CLIENTS)
        self._made_in = current_worker()  # in a task
        self._owns_cluster = False
        self._prepare_conversation()
        self._retains = True  # unless it turns out that there is no way back
        self._submissions = 0
        self._link: Link | None = None
        self._scheduler_ids: set[str] = set()  # of all that it has been connected with
        self._absence: returning.Absence | None = None  # the last one
        self._returning: asyncio.Task[None] | None = None
        self._operations = Operations()  # of locks, queues and what else is shared
        self._subscriptions = Subscriptions(self)
        self._plugins = RegisteredPlugins()
        self._preloads: Any = None  # once there are any
        self._options: CommOptions | None = None
        self._unreachable: set[str] = set()  # workers that only the scheduler can reach
        self._set_as_default = set_as_default
        self._starting = None
        self._closing: asyncio.Task[None] | None = None
        self._ending = ""  # why it is closed
        self._is_of_parent = False  # whether it was made before this process was forked
        self._process = "", 0  # of a worker's client: the worker's nanny and pid
        clients.add(self)

    @classmethod
    def _of_worker(cls: type[C], worker: Any) -> C:
        """A client on a worker's loop, for its tasks; it connects while it is used already."""
        client = cls.__new__(cls)
        options = worker.options
        client._prepare(
            worker.scheduler_address,
            name=f"worker-{worker.name}",
            set_as_default=False,
            token=options.token,
            auth=options.token is not None,
        )
        if worker.place.scheduler_file:
            client._way_back = worker.place
        client._process = worker.nanny, os.getpid()
        client._is_internal = True  # the worker says what has happened, and closes it
        client.loop = worker.loop
        client.loop.call_soon_threadsafe(client._start_soon)
        return client

    def _start_soon(self) -> None:
        self._starting = self.loop.create_task(self._start())
        self._starting.add_done_callback(_retrieve)

    # -- Life -------------------------------------------------------------------------------------

    async def _start(self: C) -> C:
        try:
            await self._connect()
            return self
        except BaseException as exc:
            self.status, self._ending = "closed", f"the client could not connect: {exc}"
            self._give_up(self._ending)
            if self._owns_cluster:
                await self.cluster._close()
            raise

    async def _connected(self) -> None:
        if self._starting is not None:
            await asyncio.shield(self._starting)

    async def _connect(self) -> None:
        place = await find_place(self)
        if self._way_back is self._place:  # that of a worker's client may be better
            self._way_back = place
        # A person waits, who sees warnings only.
        self._take(await reach_scheduler(place, self._introduce, self._timeout, log.warning))
        self._retains = self._can_return
        self.status = "running"
        if not self._is_internal:
            first_things.show_output(self)
        self._flush()
        self._flush_releases()
        if self._set_as_default:
            defaults.append(weakref.ref(self))
        with_dask.enter(self)
        if not self._is_internal:
            await first_things.set_up_preloads(self)

    def _take(self, link: Link) -> None:
        """Listen to a scheduler, the first one or another."""
        if link.options != self._options:
            if self._options is not None:
                self._hang_up()
            self._options = link.options
            limit = min(self._timeout, 5.0)
            self._peers = Peers(link.options, limit)
            self._actor_peers = Peers(link.options, limit, is_patient=True)
        self._link = link
        if link.registered.mismatch:
            warnings.warn(link.registered.mismatch, VersionMismatchWarning, stacklevel=2)
        self._scheduler_ids.add(link.registered.scheduler_id)
        self._unreachable.clear()
        link.comm.start(self._on_batch, self._on_closed)

    def _hang_up(self) -> list[Comm]:
        return [*self._peers.close(), *self._actor_peers.close()]

    async def _introduce(self, scheduler: str, options: CommOptions) -> RegisterClient:
        returns = self.status == "reconnecting"
        about = (PROTOCOL_VERSION, __version__, returns, *self._process, software())
        return RegisterClient(self.id, *about)

    def close(self, timeout: float | str | None = None) -> Any:
        """Let go of all futures and disconnect; a LocalCluster that the client made ends too."""
        limit = self._timeout if timeout is None else self._seconds(timeout)
        if self.asynchronous:
            return limited(self._close(limit), limit)
        if is_of_parent(self.loop) or (self._closing is not None and self._closing.done()):
            return None
        return self._sync(self._close(), limit)

    async def _close(self, limit: float | None = None) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close_once(limit))
        await asyncio.shield(self._closing)

    async def _close_once(self, limit: float | None) -> None:
        comms: list[Comm] = []
        for task in (self._starting, self._returning):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task})
        if self._preloads is not None:
            await self._preloads.teardown()
        if self.status == "running":
            with self._lock:
                self._outbox.append(ClientClosing())
            self._flush()
        self.status = "closed"
        self._subscriptions.close()
        for reference in list(defaults):
            if reference() in (self, None):
                defaults.remove(reference)
        if self._link is not None:
            self._link.comm.close()
            comms = [self._link.comm, *self._hang_up()]
        self._give_up("the client was closed")
        if self._owns_cluster and self.cluster is not None:
            await self.cluster._close()
        if self._asynchronous:  # whose loop may end now
            await ends_of_all(comms, _GOODBYE if limit is None else min(_GOODBYE, limit / 2))

    def _give_up(self, reason: str) -> None:
        """Nothing will come any more."""
        with_dask.leave(self)
        self._requests.fail(CommClosedError(reason))
        with self._lock:  # who is just submitting has noted its futures by then
            states = list(self._futures.values())
        for state in states:
            if state.status == "pending":
                state.reason = reason
                state.end("cancelled")

    def _on_closed(self, reason: CommClosedError) -> None:
        """The connection was lost, by nobody's wish."""
        if self.status != "running" or self._link is None or not self._link.comm.closed:
            return
        if self._can_return:
            returning.begin(self, reason)
        else:
            self._is_over(f"the scheduler is gone ({reason})")

    @property
    def _can_return(self) -> bool:
        """Whether a lost scheduler may be found again: one in this very process will not be."""
        is_local = self._link is not None and self._link.address.startswith("inproc://")
        return bool(self._reconnect_timeout) and not is_local and not self._is_end_known

    @property
    def _is_end_known(self) -> bool:
        """Whether this very program closes the scheduler, by the cluster object that it has."""
        return getattr(self.cluster, "status", "") in ("closing", "closed")

    def _is_over(self, why: str) -> None:
        """There is no scheduler any more."""
        if self.status != "closed":
            self.status, self._ending = "closed", why
            level = logging.INFO if self._is_end_known or self._is_internal else logging.WARNING
            log.log(level, "client %s has ended: %s", self.name, why)
            self._give_up(why)

    @property
    def _is_open(self) -> bool:
        """Whether it has been connected, and is or will be again."""
        return self.status in ("running", "reconnecting")

    def __enter__(self: C) -> C:
        if self.asynchronous:
            raise TypeError("an asynchronous client needs 'async with'")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self: C) -> C:
        return await self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    def __await__(self: C) -> Generator[Any, Any, C]:
        async def started() -> C:
            await self._connected()
            return self

        return started().__await__()

    def __repr__(self) -> str:
        return f"<Client: {self.scheduler_address!r}, {self.status}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Client cannot be pickled; within a task, get_client() returns one that is connected"
        )

    @property
    def scheduler_address(self) -> str:
        """Address of the scheduler; empty before the connection stands."""
        if self._link is None:
            return ""
        # To a cluster in this process the connection is by another one, that helps nobody else.
        return str(getattr(self.cluster, "scheduler_address", "") or self._link.address)

    @property
    def scheduler_id(self) -> str:
        """Id of the scheduler, which has several addresses."""
        return "" if self._link is None else self._link.registered.scheduler_id

    # -- Results ----------------------------------------------------------------------------------

    async def _all_done(
        self, states: list[FutureState], timeout: float | None, first: bool = False
    ) -> None:
        try:
            await asyncio.wait_for(until_done(states, first), timeout)
        except asyncio.TimeoutError:
            pending = [state.key for state in states if state.status == "pending"]
            some = ", ".join(pending[:3]) + (" ..." if len(pending) > 3 else "")
            why = await why_pending(self, states, timeout or 0)
            raise WaitTimeoutError(
                f"{len(pending)} futures are not done within {timeout:g} s: {some}{why}"
            ) from None

    async def _blobs(
        self, states: list[FutureState], errors: str, timeout: float | None, direct: bool | None
    ) -> list[Any]:
        """Pickled values of futures, in order; see `hpcdask.client.collecting`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            return await collecting.blobs_of(self, states, errors, deadline, direct)
        except WaitTimeoutError as late:
            why = await why_pending(self, states, timeout or 0)
            raise WaitTimeoutError(f"{late}{why}") from None


def _retrieve(starting: asyncio.Task[Any]) -> None:
    """What uses the client tells of its failure."""
    if not starting.cancelled():
        starting.exception()
