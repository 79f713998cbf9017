"""The client: submits tasks to a scheduler and gets their values."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from hpcdask.client import collecting, graphs, scattering
from hpcdask.client.cluster_calls import ClusterCalls, worker_names
from hpcdask.client.future import Future, FutureState, Latch
from hpcdask.client.loop import uncarried
from hpcdask.client.submission import (
    fresh_key,
    pack_arguments,
    pack_function,
    pure_key,
)
from hpcdask.errors import WaitTimeoutError
from hpcdask.messages import (
    CancelKeys,
    SubmitTasks,
    TaskSpec,
)
from hpcdask.wire.serialize import loads

#: Tasks per message: enough to share a function's code, few enough that the first run soon.
CHUNK = 1000
#: Keywords of distributed's `submit` that are no arguments of the function, and that mean nothing
#: here; and those that would mean something which this version cannot do.
_MEANINGLESS = {"fifo_timeout", "allow_other_workers"}
_UNSUPPORTED = {"workers", "resources", "actor", "actors"}


class Client(ClusterCalls):
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
    reconnect_timeout : float or str
        Seconds for which a scheduler that was lost is looked for, at the same address or in the
        same scheduler file. Futures stay pending meanwhile, and what they need is submitted again.
        With 0 they are cancelled at once.

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
        else:
            key = graphs.key_name(key)
        how = _priority_and_retries(priority, retries)
        with self._lock:
            self._check_open()
            if is_named and self._released:
                self._release_keys()  # those with this very key may have been dropped just now
            state = self._futures.get(key)
            if state is None or state.status == "cancelled":
                self._submissions += 1
                self._wants += 1
                state = self._wanted(key, state)
                spec = TaskSpec(key, 0, arguments, dependencies)
                number, want = self._submissions, self._wants
                self._submit(SubmitTasks(number, (function,), (spec,), None, 0, *how, True, want))
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
        how = _priority_and_retries(priority, retries)
        futures: list[Future] = []
        with self._lock:
            self._check_open()
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
                    self._submit(SubmitTasks(number, (), (), (), first, *how, True))
                raise
            # All of the chunk is packed: from here on nothing fails half-way.
            specs = []
            with self._lock:
                self._check_open()
                if keys is not None and self._released:
                    self._release_keys()
                self._wants += 1
                for spec in packed:
                    state = self._futures.get(spec.key)
                    if state is None or state.status == "cancelled":
                        state = self._wanted(spec.key, state)
                        specs.append(spec)
                    state.refs += 1
                    futures.append(self._future(state))
                final = first + size >= len(calls)
                chunk = ((function,), tuple(specs), None, first, *how, final, self._wants)
                self._submit(SubmitTasks(number, *chunk))
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
        unknown = _own_keywords(unused)
        if unknown:
            raise TypeError(f"get() has no keyword {sorted(unknown)[0]!r}")
        graph = graphs.pack(dsk, keys)
        how = _priority_and_retries(priority, retries)
        with self._lock:
            self._check_open()
            self._release_keys()  # keys of graphs are short, and the last graph's may be the same
            self._submissions += 1
            self._wants += 1
            states = {}
            for key in graph.wanted:
                state = self._futures.get(key)
                if state is None or state.status == "cancelled":
                    state = self._wanted(key, state)
                states[key] = state
                state.refs += 1
            for message in graph.messages(self._submissions, CHUNK, *how, self._wants):
                self._submit(message)
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
        work = scattering.scatter(
            self, packed, worker_names(workers), broadcast, direct, limit, patience
        )
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
            await self._has_been_read()
            for state in found.values():
                if state.status != "cancelled":
                    state.reason = why
                    state.end("cancelled")

        limit = self._timeout if timeout is None else self._seconds(timeout)
        return self._maybe_sync(until_told(), limit)


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


def _priority_and_retries(priority: Any, retries: Any) -> tuple[float, int]:
    """Check here what would make a message that the scheduler refuses with all else."""
    return float(priority or 0), operator.index(retries or 0)


def _map_keys(key: Any, count: int) -> list[str] | None:
    if key is None or isinstance(key, str):
        return None
    keys = [graphs.key_name(each) for each in key]
    if len(keys) != count:
        raise ValueError(f"map got {len(keys)} keys for {count} calls")
    return keys
