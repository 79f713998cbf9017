"""The client: submits tasks to a scheduler and gets their values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from hpcdask.client import collecting, graphs, scattering
from hpcdask.client.cluster_calls import worker_names
from hpcdask.client.collection_calls import CollectionCalls
from hpcdask.client.data_calls import DataCalls
from hpcdask.client.datasets import DatasetCalls
from hpcdask.client.diagnostics import Diagnostics
from hpcdask.client.front_doors import FrontDoors
from hpcdask.client.future import Future, FutureState, Latch
from hpcdask.client.loop import uncarried
from hpcdask.client.plugin_calls import PluginCalls
from hpcdask.client.reasons import why_pending
from hpcdask.client.streaming import CHUNK, Submission, chunked, conditions
from hpcdask.client.submission import fresh_key, pack_arguments, pack_function, pure_key
from hpcdask.errors import WaitTimeoutError
from hpcdask.messages import Function, TaskSpec
from hpcdask.messages.client import CancelKeys, SubmitTasks
from hpcdask.wire.arguments import loads_value


class Client(CollectionCalls, DataCalls, Diagnostics, FrontDoors, PluginCalls, DatasetCalls):
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
    **cluster_options
        For a new `LocalCluster`, without `address`. Keywords that only dask.distributed has are
        accepted where they cannot change anything: ``heartbeat_interval``, ``connection_limit``,
        ``serializers``, ``deserializers``.

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
        fifo_timeout: Any = None,
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        pure: bool | None = None,
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
            Higher ones run first. Of equal ones those that were submitted first do, but clients
            take turns.
        fifo_timeout
            Means nothing here, and is accepted for programs that give it.
        allow_other_workers : bool
            Whether others may run it where none of `workers` is there.
        actor, actors : bool
            Whether the object that `func` returns, which is a class as a rule, shall stay on its
            worker: the future's value is an `Actor` then.
        pure : bool, optional
            Whether equal calls are the same task, which runs once. By default they are, but for
            actors.

        Returns
        -------
        Future

        Examples
        --------
        >>> client.submit(max, [3, 5, 4]).result()
        5
        """
        is_actor = actor or actors
        pure = not is_actor if pure is None else pure
        function = _pack_callable(func, is_actor)
        arguments, dependencies = pack_arguments(args, kwargs, func)
        is_named = key is not None
        if key is None:
            key = pure_key(function, arguments) if pure else fresh_key(function.name)
        else:
            key = graphs.key_name(key)
        how = conditions(priority, retries, workers, allow_other_workers, resources, is_actor)
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
        fifo_timeout: Any = None,
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        pure: bool | None = None,
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
        workers, resources, retries, priority, fifo_timeout, allow_other_workers, actor, actors, \
        pure, **kwargs
            As for `submit`; ``kwargs`` are given to every call.

        Returns
        -------
        list of Future

        Raises
        ------
        TypeError, ValueError
            If there is no iterable, or a keyword has a value that it cannot have.

        Examples
        --------
        >>> client.gather(client.map(pow, [2, 3], [10, 2]))
        [1024, 9]
        """
        if not iterables:
            raise TypeError("map() needs at least one iterable; submit() calls a function once")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size!r}")
        if kwargs and not pack_arguments((), kwargs, func)[1]:
            # Without futures among them they are pickled once, with the function.
            func, kwargs = partial(func, **kwargs), {}
        is_actor = actor or actors
        pure = not is_actor if pure is None else pure
        function = _pack_callable(func, is_actor)
        calls: Iterable[tuple[Any, ...]] = zip(*iterables)  # noqa: B905 - the shortest decides
        names = prefix = None
        if key is None or isinstance(key, str):
            prefix = key
        else:
            calls = list(calls)
            names = _map_keys(key, len(calls))
        how = conditions(priority, retries, workers, allow_other_workers, resources, is_actor)
        futures: list[Future] = []
        with Submission(self, how) as submission:
            for chunk, is_final in chunked(calls, batch_size or CHUNK):
                packed = []
                for position, args in enumerate(chunk, len(futures)):
                    arguments, dependencies = pack_arguments(args, kwargs, func)
                    if names is not None:
                        name = names[position]
                    elif pure:
                        name = pure_key(function, arguments, prefix)
                    else:
                        name = fresh_key(prefix or function.name)
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
        asynchronous : bool, optional
            Whether to return an awaitable; so does an asynchronous client.
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
        collecting.find_states(futures, found, passes_strings=True)
        if not found:  # where there is no future, a string is meant to be the key of one
            collecting.find_states(futures, found)

        def rebuilt(blobs: list[Any]) -> Any:
            pairs = zip(found, blobs, strict=True)
            values = {k: loads_value(blob) for k, blob in pairs if blob is not collecting.SKIPPED}
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
        asynchronous: bool | None = None,
    ) -> Any:
        """Put data on the workers.

        Parameters
        ----------
        data : list, tuple, set, range, dict or any other object
            Of a container each item becomes a future; anything else becomes one. The keys of a dict
            are those of its futures.
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
        asynchronous : bool, optional
            As for `gather`.

        Returns
        -------
        Future, or a list, tuple, set or dict of them as `data` is

        Examples
        --------
        >>> [table] = client.scatter([{"a": 1}])
        >>> client.submit(len, table).result(timeout=10)
        1
        """
        limit = self._seconds(timeout)
        packed = scattering.pack(data, hash)
        patience = self._timeout if limit is None else limit
        work = scattering.scatter(
            self, packed, worker_names(workers), broadcast, direct, limit, patience
        )
        return self._maybe_sync(work, None, asynchronous)

    def cancel(
        self,
        futures: Any,
        asynchronous: bool | None = None,
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
        asynchronous : bool, optional
            As for `gather`.
        force : bool
            Although other clients want them too.
        reason, msg : str, optional
            Told by the error that waiting for them raises.
        timeout : float or str, optional
            Seconds to wait for the scheduler's answer; by default the client's timeout.

        Examples
        --------
        >>> future = client.submit(time.sleep, 60)
        >>> client.cancel([future], reason="no more time")
        >>> future.cancelled()
        True
        """
        found: dict[str, FutureState] = {}
        collecting.refuse_others(futures)
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
        return self._maybe_sync(until_told(), limit, asynchronous)


def _pack_callable(func: Callable[..., Any], actor: bool) -> Function:
    if not actor:
        return pack_function(func)
    from hpcdask.client.actor import pack_actor  # few programs have any

    return pack_actor(func)


class InternalClient(Client):
    """A client of a launcher, which is of no interest to users."""

    _is_internal = True


def _map_keys(key: Any, count: int) -> list[str]:
    keys = [graphs.key_name(each) for each in key]
    if len(keys) != count:
        raise ValueError(f"map got {len(keys)} keys for {count} calls")
    return keys
