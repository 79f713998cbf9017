"""The client: submits tasks to a scheduler and gets their values."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any

from hpcdask import host as hosts
from hpcdask._version import __version__
from hpcdask.client import collecting, graphs, scattering
from hpcdask.client.future import Callbacks, Future, FutureState, Latch, until_done
from hpcdask.client.loop import CarriedError, is_in_loop, run_sync, shared_loop, uncarried
from hpcdask.client.submission import (
    fresh_key,
    pack_arguments,
    pack_function,
    pure_key,
)
from hpcdask.comm.options import CommOptions
from hpcdask.dialling import Link, SchedulerPlace, reach_scheduler
from hpcdask.errors import CommClosedError, ConfigError, WaitTimeoutError
from hpcdask.execution import current_worker
from hpcdask.messages import (
    PROTOCOL_VERSION,
    AwaitWorkers,
    CallOutcomes,
    CancelKeys,
    Inspect,
    KeyCancelled,
    KeyLost,
    Message,
    RegisterClient,
    ReleaseKeys,
    RestartWorkers,
    RunOnScheduler,
    RunOnWorkers,
    Shutdown,
    SubmitTasks,
    TaskDone,
    TaskFailed,
    TaskSpec,
    WantKeys,
)
from hpcdask.peers import Peers, RequestFailedError, Requests
from hpcdask.tracebacks import to_exception
from hpcdask.wire.serialize import dumps, loads

log = logging.getLogger("hpcdask.client")

#: Tasks per message: enough to share a function's code, few enough that the first run soon.
CHUNK = 1000
#: Seconds of one question to the scheduler about the number of workers.
_AWAIT = 5.0
#: Seconds that the scheduler may take to say that something has not happened in time.
_ANSWER = 1.0

_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_default: list[weakref.ref[Client]] = []


class Client:
    """A connection to a cluster.

    Parameters
    ----------
    address : str or cluster, optional
        Address of a scheduler (``tcp://host:8786``, ``host``), or an object such as a
        `LocalCluster`. By default what ``HPCDASK_SCHEDULER_FILE`` or
        ``HPCDASK_SCHEDULER_ADDRESS`` says, as under ``hpc-dask run``; else a new `LocalCluster`
        that ends with the client and takes the remaining keywords.
    timeout : float or str
        Seconds to reach the scheduler, and for the client's own housekeeping.
    set_as_default : bool
        Whether `get_client` and bare futures use it.
    scheduler_file : str, optional
        File that tells the address and the token.
    asynchronous : bool
        Work on the running event loop; methods return awaitables.
    name : str, optional
        For logs.
    direct_to_workers : bool, optional
        Whether data goes directly between client and workers. By default that is tried, and where
        a worker cannot be reached the scheduler passes its data on.
    loop : asyncio event loop, optional
        A running loop of another thread to use.
    token, token_file, auth
        As for `Scheduler`.

    Raises
    ------
    CommClosedError, RendezvousTimeoutError
        If no scheduler is reached in time.
    AuthenticationError
        If it holds another token.

    Examples
    --------
    >>> with Client(n_workers=2) as client:
    ...     client.gather(client.map(abs, [-1, 2, -3]))
    [1, 2, 3]
    """

    loop: asyncio.AbstractEventLoop
    _starting: asyncio.Task[Client] | None

    def __init__(
        self,
        address: Any = None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        timeout: float | str = 30,
        set_as_default: bool = True,
        scheduler_file: str | os.PathLike[str] | None = None,
        asynchronous: bool = False,
        name: str | None = None,
        direct_to_workers: bool | None = None,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
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
        timeout: float | str = 30,
        set_as_default: bool = True,
        scheduler_file: str | os.PathLike[str] | None = None,
        asynchronous: bool = False,
        name: str | None = None,
        direct_to_workers: bool | None = None,
        token: bytes | str | None = None,
        token_file: str | None = None,
        auth: bool = True,
        **cluster_options: Any,
    ) -> None:
        self.id = f"Client-{name + '-' if name else ''}{uuid.uuid4()}"
        self.name = name or self.id
        self._asynchronous = asynchronous
        self.status = "connecting"
        self.cluster: Any = None
        self.direct_to_workers = direct_to_workers
        self._timeout = hosts.parse_timedelta(timeout)
        self._place = SchedulerPlace(
            address if isinstance(address, str) else None,
            None if scheduler_file is None else os.fspath(scheduler_file),
            token,
            token_file,
            auth,
        )
        self._given, self._cluster_options = address, cluster_options
        self._owns_cluster = False
        self._futures: dict[str, FutureState] = {}
        self._lock = threading.RLock()
        self._outbox: list[Message] = []
        self._released: deque[str] = deque()  # keys whose handles were dropped, one entry each
        self._flush_is_due = False
        self._submissions = 0
        self._link: Link | None = None
        self._requests = Requests()
        self._options: CommOptions | None = None
        self._unreachable: set[str] = set()  # workers that only the scheduler can reach
        self._set_as_default = set_as_default
        self._starting = None
        self._closing: asyncio.Task[None] | None = None
        self._callbacks = Callbacks()
        self._ending = ""  # why it is closed
        _clients.add(self)

    @classmethod
    def _of_worker(cls, worker: Any) -> Client:
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
        client.loop = worker.loop
        client.loop.call_soon_threadsafe(client._start_soon)
        return client

    def _start_soon(self) -> None:
        self._starting = self.loop.create_task(self._start())
        self._starting.add_done_callback(_retrieve)

    @property
    def asynchronous(self) -> bool:
        """Whether methods return awaitables: if it was made so, or when called on its loop."""
        return self._asynchronous or is_in_loop(self.loop)

    # -- Life -------------------------------------------------------------------------------------

    async def _start(self) -> Client:
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
        place = await self._find_place()
        self._link = await reach_scheduler(place, self._introduce, self._timeout)
        self._options = self._link.options
        self._peers = Peers(self._options, connect_timeout=min(self._timeout, 5.0))
        self._link.comm.start(self._on_batch, self._on_closed)
        self.status = "running"
        self._flush()
        if self._set_as_default:
            _default.append(weakref.ref(self))

    async def _find_place(self) -> SchedulerPlace:
        """Decide which scheduler is meant."""
        place, given = self._place, self._given
        if given is not None and not isinstance(given, str):
            self.cluster = given
            if hasattr(given, "_started"):
                await given._started()
            return cluster_place(given)
        if place.address or place.scheduler_file:
            self._refuse_cluster_options()
            return place
        by_file = os.environ.get("HPCDASK_SCHEDULER_FILE")
        by_address = os.environ.get("HPCDASK_SCHEDULER_ADDRESS")
        if by_file or by_address:
            self._refuse_cluster_options()
            return SchedulerPlace(by_address, by_file, place.token, place.token_file, place.auth)
        from hpcdask.launchers.local import LocalCluster

        options = {"dashboard_address": None, **self._cluster_options}
        self.cluster = LocalCluster(asynchronous=self._asynchronous, loop=self.loop, **options)
        self._owns_cluster = True
        await self.cluster
        return cluster_place(self.cluster)

    def _refuse_cluster_options(self) -> None:
        if self._cluster_options:
            raise TypeError(
                f"Client() got {sorted(self._cluster_options)}, which are options of a new "
                "LocalCluster; here it connects to an existing cluster"
            )

    async def _introduce(self, scheduler: str, options: CommOptions) -> RegisterClient:
        return RegisterClient(self.id, PROTOCOL_VERSION, __version__)

    def close(self, timeout: float | str | None = None) -> Any:
        """Let go of all futures and disconnect; a LocalCluster that the client made ends too."""
        limit = self._timeout if timeout is None else self._seconds(timeout)
        if self.asynchronous:
            return _limited(self._close(), limit)
        if self._closing is not None and self._closing.done():
            return None
        return self._sync(self._close(), limit)

    async def _close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close_once())
        await asyncio.shield(self._closing)

    async def _close_once(self) -> None:
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        was_lost = self.status == "closed"
        self.status = "closed"
        for reference in list(_default):
            if reference() in (self, None):
                _default.remove(reference)
        if self._link is not None:
            if not was_lost:
                self._flush()
            self._link.comm.close()
            self._peers.close()
        self._ending = self._ending or "it was closed"
        self._give_up("the client was closed")
        if self._owns_cluster and self.cluster is not None:
            await self.cluster._close()

    def _give_up(self, reason: str) -> None:
        """Nothing will come any more."""
        self._requests.fail(CommClosedError(reason))
        for state in list(self._futures.values()):
            if state.status == "pending":
                state.reason = reason
                state.end("cancelled")

    def _on_closed(self, reason: CommClosedError) -> None:
        if self.status != "closed":
            self.status, self._ending = "closed", f"the scheduler is gone ({reason})"
            # Who closes the cluster object of this very program knows that.
            is_known = getattr(self.cluster, "status", "") in ("closing", "closed")
            level = logging.INFO if is_known else logging.WARNING
            log.log(level, "client %s lost the scheduler: %s", self.name, reason)
            self._give_up(self._ending)

    def __enter__(self) -> Client:
        if self.asynchronous:
            raise TypeError("an asynchronous client needs 'async with'")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Client:
        return await self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    def __await__(self) -> Generator[Any, Any, Client]:
        async def started() -> Client:
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

    # -- Talking to the scheduler -----------------------------------------------------------------

    def _seconds(self, timeout: float | str | None) -> float | None:
        return timeout if timeout is None else hosts.parse_timedelta(timeout)

    def _sync(self, work: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        return run_sync(self.loop, work, timeout)

    def _maybe_sync(self, work: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        """An awaitable for asynchronous clients, else what it gives."""
        if self.asynchronous:
            return _limited(work, timeout)
        return self._sync(work, timeout)

    def _send(self, message: Message) -> None:
        """Queue a message from any thread; all that is queued leaves together, at once."""
        if self.status == "closed":
            raise CommClosedError(
                f"client {self.name} is closed, since {self._ending}; make a new Client"
            )
        with self._lock:
            self._outbox.append(message)
        self._requests_flush()

    def _requests_flush(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            try:
                self.loop.call_soon_threadsafe(self._flush)
            except RuntimeError:  # the loop is closed, at interpreter exit
                pass

    def _flush(self) -> None:
        if self._link is None:
            return  # `_connect` does it again
        self._flush_is_due = False
        with self._lock:
            if self._released:
                self._release_keys()
            messages, self._outbox = self._outbox, []
        self._link.comm.send_now(messages)

    def _release_keys(self) -> None:
        gone = []
        while self._released:
            key = self._released.popleft()
            state = self._futures.get(key)
            if state is not None:
                state.refs -= 1
                if not state.refs:
                    del self._futures[key]
                    gone.append(key)
        if gone:
            self._outbox.append(ReleaseKeys(tuple(gone)))

    async def _ask(self, make: Any, *fields: Any) -> Any:
        """Send the request ``make(number, *fields)`` and wait for its answer."""
        number, future = self._requests.new()
        try:
            self._send(make(number, *fields))
            return await future
        except RequestFailedError as exc:
            raise CarriedError(to_exception(exc.error)) from None
        finally:
            future.cancel()

    async def _is_known(self, key: str) -> None:
        """Wait until the scheduler has read all that was sent so far."""
        await self._ask(Inspect, "who_has", (key,))

    def _on_batch(self, batch: list[Message]) -> None:
        futures = self._futures
        for message in batch:
            kind = type(message)
            if kind is TaskDone:
                state = futures.get(message.key)
                if state is not None:
                    state.value = message.value
                    state.end("finished")
            elif kind is TaskFailed:
                state = futures.get(message.key)
                if state is not None:
                    state.error = message.error
                    state.end("error")
            elif kind is KeyLost:
                state = futures.get(message.key)
                if state is not None:
                    state.lost()
            elif kind is KeyCancelled:
                state = futures.get(message.key)
                if state is not None:
                    state.reason = message.reason
                    state.end("cancelled")
            else:
                self._requests.answered(message)

    # -- Futures ----------------------------------------------------------------------------------

    def _hold(self, key: str) -> FutureState:
        """Count one more future of a key, which the scheduler should know."""
        with self._lock:
            state = self._futures.get(key)
            if state is None:
                state = self._new_state(key)
                self._send(WantKeys((key,)))
            state.refs += 1
            return state

    def _new_state(self, key: str) -> FutureState:
        state = self._futures[key] = FutureState(key)
        return state

    def _let_go(self, key: str) -> None:
        self._released.append(key)
        if self.status == "running":
            self._requests_flush()

    def _future(self, state: FutureState) -> Future:
        """A handle for a state that was counted already."""
        future = Future.__new__(Future)
        future.client, future.key, future._state = self, state.key, state
        return future

    async def _all_done(
        self, states: Iterable[FutureState], timeout: float | None, first: bool = False
    ) -> None:
        try:
            await asyncio.wait_for(until_done(states, first), timeout)
        except asyncio.TimeoutError:
            pending = [state.key for state in states if state.status == "pending"]
            some = ", ".join(pending[:3]) + (" ..." if len(pending) > 3 else "")
            raise WaitTimeoutError(
                f"{len(pending)} futures are not done within {timeout:g} s: {some}"
            ) from None

    async def _blobs(
        self, states: list[FutureState], errors: str, timeout: float | None, direct: bool | None
    ) -> list[Any]:
        """Pickled values of futures, in order; see `hpcdask.client.collecting`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return await collecting.blobs_of(self, states, errors, deadline, direct)

    # -- Submitting -------------------------------------------------------------------------------

    def submit(
        self,
        func: Callable[..., Any],
        *args: Any,
        key: str | None = None,
        retries: int = 0,
        priority: float = 0,
        pure: bool = True,
        **kwargs: Any,
    ) -> Future:
        """Run ``func(*args, **kwargs)`` on the cluster.

        Parameters
        ----------
        func : callable
            A coroutine function is awaited on the worker.
        *args, **kwargs
            Futures among them, also within lists, tuples, sets and dicts, stand for their values.
        key : str, optional
            Name of the task. One that exists already is not run again.
        retries : int
            How often it is tried again if it raises.
        priority : float
            Higher ones run first.
        pure : bool
            Whether equal calls are the same task, which runs once.

        Returns
        -------
        Future

        Examples
        --------
        >>> client.submit(max, [3, 5, 4]).result()
        5
        """
        if kwargs:
            kwargs = _own_keywords(kwargs)
        function = pack_function(func)
        arguments, dependencies = pack_arguments(args, kwargs)
        is_named = key is not None
        if key is None:
            key = pure_key(function, arguments) if pure else fresh_key(function.name)
        with self._lock:
            if is_named and self._released:
                self._release_keys()  # those with this very key may have been dropped just now
            state = self._futures.get(key)
            if state is None or state.status == "cancelled":
                state = self._new_state(key) if state is None else _revived(state)
                spec = TaskSpec(key, 0, arguments, dependencies)
                self._submissions += 1
                self._send(
                    SubmitTasks(
                        self._submissions, (function,), (spec,), None, 0, priority, retries, True
                    )
                )
            state.refs += 1
        return self._future(state)

    def map(
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any],
        key: str | Iterable[str] | None = None,
        retries: int = 0,
        priority: float = 0,
        pure: bool = True,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[Future]:
        """Run a function on each element of iterables, as the builtin `map` does.

        Parameters
        ----------
        key : str or iterable of str, optional
            Beginning of the keys, or a key for each.
        batch_size : int, optional
            Tasks per message.
        retries, priority, pure, **kwargs
            As for `submit`; ``kwargs`` are given to every call.

        Returns
        -------
        list of Future

        Examples
        --------
        >>> client.gather(client.map(pow, [2, 3], [10, 2]))
        [1024, 9]
        """
        if kwargs:
            kwargs = _own_keywords(kwargs)
        if kwargs and not pack_arguments((), kwargs)[1]:
            # Without futures among them they are pickled once, with the function.
            func, kwargs = partial(func, **kwargs), {}
        function = pack_function(func)
        calls = list(zip(*iterables))  # noqa: B905 - as the builtin map: the shortest decides
        keys = _map_keys(key, len(calls))
        futures: list[Future] = []
        with self._lock:
            self._submissions += 1
            number = self._submissions
        size = batch_size or CHUNK
        for first in range(0, max(len(calls), 1), size):
            packed = []
            try:
                for position, args in enumerate(calls[first : first + size], first):
                    arguments, dependencies = pack_arguments(args, kwargs)
                    if keys is not None:
                        name = keys[position]
                    elif pure:
                        name = pure_key(function, arguments)
                        name = name if key is None else f"{key}-{name}"
                    else:
                        name = fresh_key(str(key or function.name))
                    packed.append(TaskSpec(name, 0, arguments, dependencies))
            except BaseException:
                if first:  # the scheduler holds the earlier chunks until it has the last
                    self._send(SubmitTasks(number, (), (), (), first, priority, retries, True))
                raise
            # All of the chunk is packed: from here on nothing fails half-way.
            specs = []
            with self._lock:
                if keys is not None and self._released:
                    self._release_keys()
                for spec in packed:
                    state = self._futures.get(spec.key)
                    if state is None or state.status == "cancelled":
                        state = self._new_state(spec.key) if state is None else _revived(state)
                        specs.append(spec)
                    state.refs += 1
                    futures.append(self._future(state))
                final = first + size >= len(calls)
                self._send(
                    SubmitTasks(
                        number, (function,), tuple(specs), None, first, priority, retries, final
                    )
                )
        return futures

    def get(
        self,
        dsk: dict[Any, Any],
        keys: Any,
        *,
        sync: bool = True,
        retries: int = 0,
        priority: float = 0,
        direct: bool | None = None,
        timeout: float | str | None = None,
        **unused: Any,
    ) -> Any:
        """Compute a graph.

        Parameters
        ----------
        dsk : dict
            Key -> task. A task is a tuple ``(callable, argument, ...)``, an object of
            ``dask._task_spec``, or anything else, which stands for itself; arguments that are keys
            of the graph stand for their values.
        keys : key or nested lists of keys
            What to compute.
        sync : bool
            Wait for the values; else return futures.

        Returns
        -------
        object
            The values, nested as `keys` are.

        Raises
        ------
        ValueError
            If the graph has a cycle, or lacks a key.

        Examples
        --------
        >>> client.get({"x": 1, "y": (abs, -2), "z": (max, "x", "y")}, "z")
        2
        """
        _own_keywords(unused)
        graph = graphs.pack(dsk, keys)
        with self._lock:
            self._submissions += 1
            states = {}
            for key in graph.wanted:
                state = self._futures.get(key)
                if state is None or state.status == "cancelled":
                    state = self._new_state(key) if state is None else _revived(state)
                states[key] = state
                state.refs += 1
            for message in graph.messages(self._submissions, CHUNK, priority, retries):
                self._send(message)
        futures = {key: self._future(state) for key, state in states.items()}
        nested = graphs.rename(keys, dsk, futures)
        if not sync:
            return nested
        return self.gather(nested, direct=direct, timeout=timeout)

    # -- Getting values ---------------------------------------------------------------------------

    def gather(
        self,
        futures: Any,
        errors: str = "raise",
        direct: bool | None = None,
        asynchronous: bool | None = None,
        timeout: float | str | None = None,
    ) -> Any:
        """Wait for futures and fetch their values.

        Parameters
        ----------
        futures : future, or nested lists, tuples, sets, dicts and iterators of them
        errors : {"raise", "skip"}
            Whether the first error is raised, or values that do not come are left out of lists.
        direct : bool, optional
            As `direct_to_workers` of the client.
        timeout : float or str, optional
            Seconds for all of it.

        Returns
        -------
        object
            The values, nested as `futures` are.

        Raises
        ------
        WaitTimeoutError
            If it takes longer than `timeout`.
        """
        if errors not in ("raise", "skip"):
            raise ValueError(f"errors must be 'raise' or 'skip', not {errors!r}")
        if isinstance(futures, Iterator):
            futures = list(futures)
        found: dict[str, FutureState] = {}
        collecting.find_states(futures, found)

        def rebuilt(blobs: list[Any]) -> Any:
            pairs = zip(found, blobs, strict=True)
            values = {k: loads(blob) for k, blob in pairs if blob is not collecting.SKIPPED}
            return collecting.replaced(futures, values)

        seconds = self._seconds(timeout)
        states = list(found.values())
        is_sync = not (self.asynchronous or asynchronous)
        if is_sync:
            start = time.monotonic()
            if not Latch(states, fail_early=errors == "raise").wait(seconds):
                pending = sum(state.status == "pending" for state in states)
                raise WaitTimeoutError(f"{pending} futures are not done within {seconds:g} s")
            if all([s.status == "finished" and s.value is not None for s in states]):
                values = {s.key: loads(s.value) for s in states}  # type: ignore[arg-type]
                return collecting.replaced(futures, values)
            if seconds is not None:
                seconds = max(seconds - (time.monotonic() - start), 0.0)

        # Values are rebuilt where they were asked for: that may take long, and run any code.
        if is_sync:
            return rebuilt(self._sync(self._blobs(states, errors, seconds, direct)))

        async def work() -> Any:
            return rebuilt(await uncarried(self._blobs(states, errors, seconds, direct)))

        return work()

    def scatter(
        self,
        data: Any,
        workers: Any = None,
        broadcast: bool = False,
        direct: bool | None = None,
        hash: bool = True,
        timeout: float | str | None = None,
    ) -> Any:
        """Put data on the workers.

        Parameters
        ----------
        data : list, tuple, set, dict or any other object
            Of a container each item becomes a future; anything else becomes one.
        workers : str or list of str, optional
            Addresses or names of workers to use.
        broadcast : bool
            Put every item on every one of them.
        direct : bool, optional
            As `direct_to_workers` of the client.
        hash : bool
            Whether equal data has equal keys and is kept once.
        timeout : float or str, optional
            Seconds for all of it. By default only the wait for a first worker has a limit, that of
            the client.

        Returns
        -------
        Future, or a list, tuple, set or dict of them as `data` is
        """
        limit = self._seconds(timeout)
        packed = scattering.pack(data, hash)
        patience = self._timeout if limit is None else limit
        work = scattering.scatter(self, packed, _names(workers), broadcast, direct, limit, patience)
        return self._maybe_sync(work)

    def cancel(
        self,
        futures: Any,
        force: bool = False,
        reason: str | None = None,
        msg: str | None = None,
        timeout: float | str | None = None,
    ) -> Any:
        """Stop computing futures and all that depends on them.

        A task that runs already goes on, and what comes of it is dropped.

        Parameters
        ----------
        futures : future, or nested lists and dicts of them
        force : bool
            Although other clients want them too.
        reason, msg : str, optional
            Told by the error that waiting for them raises.
        timeout : float or str, optional
            Seconds to wait for the scheduler's answer; by default the client's timeout.
        """
        found: dict[str, FutureState] = {}
        collecting.find_states(futures, found)
        why = ": ".join(filter(None, (reason, msg))) or "cancelled by the client"
        self._send(CancelKeys(tuple(found), force, why))

        async def until_told() -> None:
            for key in found:
                await self._is_known(key)  # once is enough: its answer comes after theirs
                break
            for state in found.values():
                if state.status != "cancelled":
                    state.reason = why
                    state.end("cancelled")

        limit = self._timeout if timeout is None else self._seconds(timeout)
        return self._maybe_sync(until_told(), limit)

    # -- The cluster ------------------------------------------------------------------------------

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: Any = None,
        wait: bool = True,
        nanny: bool = False,
        on_error: str = "raise",
        timeout: float | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a function on all workers now, outside the task queue.

        Parameters
        ----------
        function : callable
            If it has a parameter ``dask_worker`` it gets the `Worker`. May be async.
        workers : str or list of str, optional
            Addresses or names; all by default.
        wait : bool
            For what they return.
        nanny : bool
            Call it on the workers' nannies instead (``dask_nanny``).
        on_error : {"raise", "return", "ignore"}
            What to do with exceptions: raise one, return them, or leave those workers out.

        Returns
        -------
        dict
            Address -> what it returned. None without `wait`.
        """
        if on_error not in ("raise", "return", "ignore"):
            raise ValueError(f"on_error must be 'raise', 'return' or 'ignore', not {on_error!r}")
        blob = dumps((function, args, kwargs))

        async def work() -> dict[str, Any] | None:
            outcomes = await self._ask(RunOnWorkers, blob, _names(workers), wait, nanny)
            return _called(outcomes, on_error) if wait else None

        return self._maybe_sync(work(), self._seconds(timeout))

    def run_on_scheduler(
        self,
        function: Callable[..., Any],
        *args: Any,
        wait: bool = True,
        timeout: float | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a function in the scheduler's process.

        If it has a parameter ``dask_scheduler`` it gets the `Scheduler`. It runs on the event
        loop, so it must be quick; it may be async.
        """
        blob = dumps((function, args, kwargs))

        async def work() -> Any:
            outcomes = await self._ask(RunOnScheduler, blob, wait)
            return next(iter(_called(outcomes, "raise").values()), None)

        return self._maybe_sync(work(), self._seconds(timeout))

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> Any:
        """Wait until so many workers have registered.

        Raises
        ------
        WaitTimeoutError
            If they have not within `timeout` seconds; says how many have.
        """
        seconds = self._seconds(timeout)

        async def work() -> None:
            deadline = None if seconds is None else time.monotonic() + seconds
            while True:
                left = _AWAIT if deadline is None else min(deadline - time.monotonic(), _AWAIT)
                there = (await self._ask(AwaitWorkers, n_workers, max(left, 0.0))).value
                if there >= n_workers:
                    return
                if deadline is not None and time.monotonic() >= deadline:
                    raise WaitTimeoutError(
                        f"{there} of {n_workers} workers have registered within {seconds:g} s"
                    )

        # The scheduler keeps the time, and says how many there are; unless it says nothing at all.
        return self._maybe_sync(work(), None if seconds is None else seconds + _ANSWER)

    def who_has(self, futures: Any = None, timeout: float | str | None = None) -> Any:
        """Addresses of the workers that hold each key; of all keys by default."""
        found: dict[str, FutureState] = {}
        if futures is not None:
            collecting.find_states(futures, found)
            if not found:
                return self._maybe_sync(_nothing_asked(), None)
        return self._inspect("who_has", tuple(found), timeout)

    def has_what(self, workers: Any = None, timeout: float | str | None = None) -> Any:
        """Keys that each worker holds."""
        return self._inspect("has_what", _names(workers), timeout)

    def nthreads(self, workers: Any = None, timeout: float | str | None = None) -> Any:
        """Threads of each worker."""
        return self._inspect("nthreads", _names(workers), timeout)

    ncores = nthreads

    def processing(self, workers: Any = None, timeout: float | str | None = None) -> Any:
        """Keys of tasks that each worker was given and has not finished."""
        return self._inspect("processing", _names(workers), timeout)

    def scheduler_info(self, timeout: float | str | None = None, **unused: Any) -> Any:
        """What the scheduler tells of itself and its workers."""
        return self._inspect("identity", (), timeout)

    def _inspect(self, what: str, names: tuple[str, ...], timeout: float | str | None) -> Any:
        async def work() -> Any:
            return (await self._ask(Inspect, what, names)).value

        return self._maybe_sync(work(), self._seconds(timeout))

    def restart(self, timeout: float | str | None = None, wait_for_workers: bool = True) -> Any:
        """Forget all tasks and give every worker a new process.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds to wait for the new workers; two minutes by default.
        wait_for_workers : bool
            Whether to wait at all.
        """
        seconds = self._seconds(timeout) or 120.0

        async def work() -> Client:
            asking = asyncio.ensure_future(self._ask(RestartWorkers, seconds))
            if wait_for_workers:
                await asking
            else:
                self._flush()
                asking.cancel()
            return self

        return self._maybe_sync(work(), seconds + _ANSWER)

    def shutdown(self, timeout: float | str | None = None) -> Any:
        """End the scheduler, all workers and nannies, and this client."""
        limit = self._timeout if timeout is None else self._seconds(timeout)

        async def work() -> None:
            if self.cluster is not None and hasattr(self.cluster, "_close"):
                await self._close()
                await self.cluster._close()
                return
            if self.status == "running" and self._link is not None:
                self._send(Shutdown(f"client {self.name} asked for it"))
                self._flush()
                self.status, self._ending = "closed", "it has shut the cluster down"
                await self._link.comm.wait_closed()
            await self._close()

        return self._maybe_sync(work(), limit)


# -- Small helpers ------------------------------------------------------------------------------


def cluster_place(cluster: Any) -> SchedulerPlace:
    """How a client reaches a cluster object: what it says itself, or its address."""
    if hasattr(cluster, "place"):
        return cluster.place  # type: ignore[no-any-return]
    address = getattr(cluster, "scheduler_address", None)
    if not isinstance(address, str):
        raise ConfigError(
            f"Client() takes an address or a cluster with a scheduler_address, not {cluster!r:.80}"
        )
    return SchedulerPlace(address)


#: Keywords of distributed's `submit` that are no arguments of the function, and that mean nothing
#: here; and those that would mean something which this version cannot do.
_MEANINGLESS = {"fifo_timeout", "allow_other_workers"}
_UNSUPPORTED = {"workers", "resources", "actor", "actors"}


def _own_keywords(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords that are for the function; refuse those that we cannot serve."""
    for name in _UNSUPPORTED & kwargs.keys():
        if kwargs[name]:
            raise TypeError(
                f"this version cannot do {name}=; to give a function an argument of that name, "
                "wrap it in functools.partial"
            )
    reserved = _MEANINGLESS | _UNSUPPORTED
    return {name: value for name, value in kwargs.items() if name not in reserved}


def _revived(state: FutureState) -> FutureState:
    """A cancelled key that is submitted again."""
    state.status, state.reason = "pending", ""
    return state


def _map_keys(key: Any, count: int) -> list[str] | None:
    if key is None or isinstance(key, str):
        return None
    keys = [str(each) for each in key]
    if len(keys) != count:
        raise ValueError(f"map got {len(keys)} keys for {count} calls")
    return keys


def _names(workers: Any) -> tuple[str, ...]:
    if workers is None:
        return ()
    return (workers,) if isinstance(workers, str) else tuple(map(str, workers))


async def _nothing_asked() -> dict[str, Any]:
    return {}


async def _limited(work: Coroutine[Any, Any, Any], timeout: float | None) -> Any:
    try:
        return await asyncio.wait_for(work, timeout)
    except CarriedError as carried:
        exc = carried.exc
    except asyncio.TimeoutError as late:
        if timeout is None or isinstance(late, WaitTimeoutError):
            raise
        raise WaitTimeoutError(f"not done within {timeout:g} s") from None
    raise exc


def _retrieve(starting: asyncio.Task[Any]) -> None:
    """What uses the client tells of its failure."""
    if not starting.cancelled():
        starting.exception()


def _called(outcomes: CallOutcomes, on_error: str) -> dict[str, Any]:
    results = {address: loads(blob) for address, blob in outcomes.returned}
    for address, error in outcomes.raised:
        exc = to_exception(error)
        if on_error == "raise":
            raise CarriedError(exc)
        if on_error == "return":
            results[address] = exc
    return results


def default_client() -> Client | None:
    """The client made last that is open and default, or None."""
    while _default:
        client = _default[-1]()
        if client is not None and client.status == "running":
            return client
        _default.pop()
    return None


def get_client(address: str | None = None, timeout: float | str = 30) -> Client:
    """Return the current client: in a task that of its worker, else the default one.

    Parameters
    ----------
    address : str, optional
        Of a scheduler, which it must be connected to; else a new client is made.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> def fan_out(n):
    ...     client = get_client()
    ...     return sum(client.gather(client.map(abs, range(n))))
    """
    worker = current_worker()
    if worker is not None and address in (None, worker.scheduler_address):
        client = _client_of(worker)
        if not is_in_loop(client.loop):
            client._sync(client._connected(), hosts.parse_timedelta(timeout))
        return client
    default = default_client()
    if default is not None and address in (None, default.scheduler_address):
        return default
    for client in list(_clients):
        if client.status == "running" and client.scheduler_address == address:
            return client
    if address is None:
        raise ValueError(
            "there is no client: get_client() works in a task, or after a Client was made"
        )
    return Client(address, timeout=timeout, set_as_default=False)


def client_of_scheduler(scheduler_id: str, address: str) -> Client:
    """The client that holds a future of that scheduler which was unpickled here."""
    worker = current_worker()
    if worker is not None and worker.scheduler_id == scheduler_id:
        return _client_of(worker)
    default = default_client()
    for client in (default, *_clients):
        is_its = client is not None and client.scheduler_id == scheduler_id
        if client is not None and is_its and client.status == "running":
            return client
    return get_client(address)


_of_workers = threading.Lock()


def _client_of(worker: Any) -> Client:
    """The client that all tasks of a worker share; it lives on the worker's loop."""
    with _of_workers:
        if worker._client is None or worker._client.status == "closed":
            worker._client = Client._of_worker(worker)
        return worker._client  # type: ignore[no-any-return]


@atexit.register
def close_all() -> None:
    """Let no client, nor a cluster that it made, outlive the program."""
    for client in list(_clients):
        if client.status == "running" and not client._asynchronous:
            with contextlib.suppress(Exception):
                client.close(timeout=5)


os.register_at_fork(after_in_child=_clients.clear)  # they are the parent's
