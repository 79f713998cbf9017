"""The client: submits tasks to a scheduler and gets their values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from hpcdask.client import collecting, graphs, scattering
from hpcdask.client.cluster_calls import ClusterCalls, worker_names
from hpcdask.client.datasets import DatasetCalls
from hpcdask.client.future import Future, FutureState, Latch
from hpcdask.client.loop import uncarried
from hpcdask.client.plugin_calls import PluginCalls
from hpcdask.client.reasons import why_pending
from hpcdask.client.streaming import CHUNK, Submission, chunked, conditions
from hpcdask.client.submission import (
    fresh_key,
    pack_arguments,
    pack_function,
    pure_key,
)
from hpcdask.errors import WaitTimeoutError
from hpcdask.messages import CancelKeys, SubmitTasks, TaskSpec
from hpcdask.wire.serialize import loads

#: Keywords of distributed's `submit` that are no arguments of the function, and that mean nothing
#: here; and those that would mean something which this version cannot do.
_MEANINGLESS = {"fifo_timeout"}
_UNSUPPORTED = {"actor", "actors"}


class Client(ClusterCalls, DatasetCalls, PluginCalls):
    """A connection to a cluster.

    What is not given is as `hpcdask.config` has it.

    Parameters
    ----------
    address : str or cluster, optional
        Address of a scheduler (``tcp://host:8786``, ``host``), or an object such as a
        `LocalCluster`. By default what is configured as ``scheduler-file`` or
        ``scheduler-address``, as under ``hpc-dask run``; else a new `LocalCluster` that ends with
        the client and takes the remaining keywords.
    timeout : float or str, optional
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
    reconnect_timeout : float or str, optional
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
        workers: Any = None,
        resources: dict[str, float] | None = None,
        retries: int = 0,
        priority: float = 0,
        allow_other_workers: bool = False,
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
        workers : str or int, or list, tuple or set of these, optional
            Addresses, names or hosts of workers that may run it.
        resources : dict, optional
            What it takes of its worker's resources while it runs, as ``{"GPU": 1}``. Without a
            worker that has so much it stays pending; see `unrunnable`.
        retries : int
            How often it is tried again if it raises.
        priority : float
            Higher ones run first.
        allow_other_workers : bool
            Whether others may run it where none of `workers` is there.
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
        how = conditions(priority, retries, workers, allow_other_workers, resources)
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
                self._submit(
                    SubmitTasks(
                        self._submissions,
                        (function,),
                        (spec,),
                        None,
                        0,
                        how.priority,
                        how.retries,
                        True,
                        self._wants,
                        how.restriction,
                    )
                )
            state.refs += 1
        return self._future(state)

    def map(
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any],
        key: str | Iterable[str] | None = None,
        workers: Any = None,
        resources: dict[str, float] | None = None,
        retries: int = 0,
        priority: float = 0,
        allow_other_workers: bool = False,
        pure: bool = True,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[Future]:
        """Run a function on each element of iterables, as the builtin `map` does.

        The first tasks leave, and run, while the rest is being packed.

        Parameters
        ----------
        key : str or iterable of str, optional
            Beginning of the keys, or a key for each.
        batch_size : int, optional
            Tasks per message.
        workers, resources, retries, priority, allow_other_workers, pure, **kwargs
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
        calls: Iterable[tuple[Any, ...]] = zip(*iterables)  # noqa: B905 - the shortest decides
        names = None
        if key is not None and not isinstance(key, str):
            calls = list(calls)
            names = _map_keys(key, len(calls))
        how = conditions(priority, retries, workers, allow_other_workers, resources)
        futures: list[Future] = []
        with Submission(self, how) as submission:
            for chunk, is_final in chunked(calls, batch_size or CHUNK):
                packed = []
                for position, args in enumerate(chunk, len(futures)):
                    arguments, dependencies = pack_arguments(args, kwargs)
                    if names is not None:
                        name = names[position]
                    elif pure:
                        name = pure_key(function, arguments)
                        name = name if key is None else f"{key}-{name}"
                    else:
                        name = fresh_key(str(key or function.name))
                    packed.append(TaskSpec(name, 0, arguments, dependencies))
                # All of the chunk is packed: from here on nothing fails half-way.
                with self._lock:
                    self._check_open()
                    if names is not None and self._released:
                        self._release_keys()
                    new = self._hold_chunk(packed, futures)
                    submission.send((function,), new, None, is_final, self._wants, len(chunk))
                submission.keep_pace()
        return futures

    def _hold_chunk(self, packed: list[TaskSpec], futures: list[Future]) -> tuple[TaskSpec, ...]:
        """Append a future of each task; return the tasks that are new. The lock is held."""
        self._wants += 1
        new = []
        for spec in packed:
            state = self._futures.get(spec.key)
            if state is None or state.status == "cancelled":
                state = self._wanted(spec.key, state)
                new.append(spec)
            state.refs += 1
            futures.append(self._future(state))
        return tuple(new)

    def get(
        self,
        dsk: dict[Any, Any],
        keys: Any,
        *,
        workers: Any = None,
        resources: dict[str, float] | None = None,
        sync: bool = True,
        retries: int = 0,
        priority: float = 0,
        allow_other_workers: bool = False,
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
        workers, resources, retries, priority, allow_other_workers
            As for `submit`; of every task of the graph.
        direct, timeout
            As for `gather`.

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
        how = conditions(priority, retries, workers, allow_other_workers, resources)
        graph = graphs.Graph(dsk, keys)
        states: dict[str, FutureState] = {}
        with Submission(self, how) as submission:
            for functions, specs, is_final in graph.packed():
                with self._lock:
                    self._check_open()
                    # Keys of graphs are short, and those of the last graph may be the same.
                    self._release_keys()
                    want = self._want_all(graph.wanted, states) if is_final else 0
                    wanted = graph.wanted if is_final else ()
                    submission.send(functions, specs, wanted, is_final, want)
                submission.keep_pace()
        futures = {key: self._future(state) for key, state in states.items()}
        nested = graphs.rename(keys, dsk, futures)
        if not sync:
            return nested
        return self.gather(nested, direct=direct, timeout=timeout)

    def _want_all(self, keys: tuple[str, ...], states: dict[str, FutureState]) -> int:
        """Count a future of each key, and return the number of the want; the lock is held."""
        self._wants += 1
        for key in keys:
            state = self._futures.get(key)
            if state is None or state.status == "cancelled":
                state = self._wanted(key, state)
            states[key] = state
            state.refs += 1
        return self._wants

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
                why = self._sync(why_pending(self, states, seconds or 0))
                raise WaitTimeoutError(f"{pending} futures are not done within {seconds:g} s{why}")
            # Each is looked at once: one that is lost meanwhile is pending again, without a value.
            blobs = [state.value for state in states if state.status == "finished"]
            if len(blobs) == len(states) and None not in blobs:
                return rebuilt(blobs)
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


class InternalClient(Client):
    """A client of a launcher, which is of no interest to users."""

    _is_internal = True
    _shows_output = False


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


def _map_keys(key: Any, count: int) -> list[str]:
    keys = [graphs.key_name(each) for each in key]
    if len(keys) != count:
        raise ValueError(f"map got {len(keys)} keys for {count} calls")
    return keys
