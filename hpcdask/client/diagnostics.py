"""What a client asks to understand a cluster: why a task waits, what runs, in what versions."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from hpcdask import host as hosts
from hpcdask.client.cluster_calls import ClusterCalls, called, worker_names
from hpcdask.client.data_calls import key_names
from hpcdask.client.future import Future
from hpcdask.client.loop import limited
from hpcdask.errors import CommClosedError, HpcdaskError
from hpcdask.messages import TaskError
from hpcdask.messages.client import AskTaskStream, RunOnScheduler, RunOnWorkers
from hpcdask.tracebacks import to_exception
from hpcdask.wire.serialize import dumps

if TYPE_CHECKING:
    from hpcdask.client.figures import Figure
    from hpcdask.client.state_dump import Format

log = logging.getLogger("hpcdask.client")

#: Seconds that a worker has to say what it does with a task.
_ACCOUNT = 2.0
#: Seconds for which event loops are watched.
_LOOP = 1.0


class Diagnostics(ClusterCalls):
    """The part of `hpcdask.Client` that tells what goes on."""

    # -- One task ---------------------------------------------------------------------------------

    def explain(self, key: Future | str, timeout: float | str | None = None) -> Any:
        """Say why a task is where it is.

        What it waits for; which workers lack what it needs; behind how many others it is queued;
        on which worker it runs, since when and where in the code; or why it failed.

        Parameters
        ----------
        key : future or str
        timeout : float or str, optional
            Seconds; by default the client's timeout. If the worker that has the task does not
            answer, that is said.

        Returns
        -------
        str
            Some sentences.

        Examples
        --------
        >>> stuck = client.submit(abs, -1, resources={"GPU": 1}, key="stuck")
        >>> print(client.explain(stuck))
        'stuck' is without a worker. No worker may run it: it needs GPU=1: ...
        """
        [name] = key_names([key])

        async def work() -> str:
            text, state, worker = (await self._inspected("explain", (name,)))[name]
            if state == "processing":
                text = f"{text} {await self._account_of(worker, name)}"
            elif state == "erred":
                text = f"{text} The error was {await self._error_of(name)}."
            return str(text)

        limit = self._timeout if timeout is None else self._seconds(timeout)
        return self._maybe_sync(work(), limit)

    async def _account_of(self, worker: str, key: str) -> str:
        """What the worker says of a task, that it does not say it, or nothing if it has ended."""
        from hpcdask import inspection

        try:
            found = await self._on_workers(inspection.account, (key,), (worker,), _ACCOUNT)
        except HpcdaskError as exc:
            return f"The worker does not say what it does with it ({exc})."
        except ValueError:
            return "That worker has gone just now."
        return str(found[worker])

    async def _error_of(self, key: str) -> str:
        state = self._hold(key)
        try:
            await self._all_done([state], _ACCOUNT)
            return repr(state.exception())
        finally:
            self._let_go(key)

    def story(
        self,
        *keys_or_stimuli: Any,
        on_error: str = "raise",
        timeout: float | str | None = None,
    ) -> Any:
        """How tasks got where they are: the moves that the scheduler remembers, oldest first.

        It remembers as many as ``scheduler.transition-log-length`` says, which is none by default,
        since it slows every task down. Then only the present states are known.

        Parameters
        ----------
        *keys_or_stimuli : future or str
            Keys; by default all.
        on_error : {"raise", "ignore"}
            Whether a scheduler that cannot be asked is an error, or has no story.
        timeout : float or str, optional
            Seconds; by default the client's timeout.

        Returns
        -------
        list of hpcdask.core.story.Step
            Tuples ``(key, start, finish, worker, attempt, time)``.

        Examples
        --------
        >>> future = client.submit(abs, -1)
        >>> _ = future.result(timeout=10)
        >>> [(step.finish, step.attempt > 0) for step in client.story(future)]
        [('memory', True)]
        """
        if on_error not in ("raise", "ignore"):
            raise ValueError(f"on_error must be 'raise' or 'ignore', not {on_error!r}")
        names = key_names(list(keys_or_stimuli))
        limit = self._timeout if timeout is None else self._seconds(timeout)

        async def work() -> list[Any]:
            from hpcdask.core.story import Step

            try:
                is_kept, steps = await limited(self._inspected("story", names), limit)
            except HpcdaskError:
                if on_error == "raise":
                    raise
                return []
            if not is_kept:
                log.info("no moves of tasks are kept: set scheduler.transition-log-length")
            return [Step(*step) for step in steps]

        return self._maybe_sync(work())

    def call_stack(
        self, futures: Any = None, keys: Any = None, timeout: float | str | None = None
    ) -> Any:
        """Where in the code the tasks are that run in this moment.

        Parameters
        ----------
        futures : future or list of futures, optional
        keys : str or list of str, optional
            Keys, instead. By default of all tasks that run.
        timeout : float or str, optional
            Seconds; by default the client's timeout.

        Returns
        -------
        dict
            Worker -> key -> lines, as of a traceback. Workers that run none are left out.

        Examples
        --------
        >>> client.call_stack()
        {}
        """
        from hpcdask import inspection

        asked = keys if futures is None else futures
        names = () if asked is None else key_names(asked)

        async def work() -> dict[str, Any]:
            if asked is not None and not names:
                return {}
            found = await self._on_workers(inspection.call_stacks, (names,))
            return {worker: stacks for worker, stacks in found.items() if stacks}

        limit = self._timeout if timeout is None else self._seconds(timeout)
        return self._maybe_sync(work(), limit)

    # -- All tasks --------------------------------------------------------------------------------

    def profile(
        self,
        key: str | None = None,
        start: float | None = None,
        stop: float | None = None,
        workers: Any = None,
        merge_workers: bool = True,
        plot: bool = False,
        filename: str | os.PathLike[str] | None = None,
        server: bool = False,
        scheduler: bool = False,
        timeout: float | str | None = None,
    ) -> Any:
        """What tasks have spent their time with, by looking at their stacks now and then.

        Workers look while tasks run, unless ``worker.profile.enabled`` is false.

        Parameters
        ----------
        key : str, optional
            Name of a function; only of its tasks.
        start, stop : float, optional
            Between these times, in seconds since the epoch. The last minutes are known in steps of
            two seconds, what is longer ago in greater ones.
        workers : str, int or list of these, optional
            Addresses or names; by default all.
        merge_workers : bool
            Whether all workers are added up.
        plot : bool
            Whether to return a figure as well, which notebooks show.
        filename : path, optional
            File to write that figure to, as HTML.
        server, scheduler : bool
            What the event loops of workers or of the scheduler do instead: they are watched for one
            second, from now on.
        timeout : float or str, optional
            Seconds; by default the client's timeout.

        Returns
        -------
        dict, or dict and figure
            Tree of calls: ``count`` (looks), ``identifier``, ``description`` and ``children``; of
            each worker, if these are not merged.

        Raises
        ------
        ValueError
            If a worker is not known, or times are given for event loops.

        Examples
        --------
        >>> future = client.submit(time.sleep, 0.5)
        >>> _ = future.result(timeout=10)
        >>> client.profile()["count"] > 0
        True
        """
        if (server or scheduler) and (key, start, stop) != (None, None, None):
            raise ValueError("event loops are watched from now on: leave key, start and stop out")

        async def work() -> Any:
            from hpcdask import profiling

            if scheduler:
                return await self._on_scheduler(profiling.profile_loop, (_LOOP,))
            which = worker_names(workers)
            if server:
                found = await self._on_workers(profiling.profile_loop, (_LOOP,), which)
            else:
                found = await self._on_workers(profiling.profile_of, (key, start, stop), which)
            return profiling.merge(found.values()) if merge_workers else found

        async def drawn() -> Any:
            tree = await work()
            if not (plot or filename):
                return tree
            from hpcdask.client.figures import flame_graphs

            trees = {"": tree} if merge_workers or scheduler else tree
            return tree, _saved(flame_graphs(trees), filename)

        limit = self._timeout if timeout is None else self._seconds(timeout)
        return self._maybe_sync(drawn(), limit)

    def get_task_stream(
        self,
        start: float | str | None = None,
        stop: float | str | None = None,
        count: int | None = None,
        plot: bool | str = False,
        filename: str | os.PathLike[str] = "task-stream.html",
        timeout: float | str | None = None,
    ) -> Any:
        """Which tasks ran where and when.

        The scheduler notes that from the first call on, as long as the client is there; so call it
        once before the work. It keeps the last 100,000 runs.

        Parameters
        ----------
        start, stop : float or str, optional
            Seconds since the epoch, or how long ago, as "5s".
        count : int, optional
            Runs at most, the last ones.
        plot : bool or "save"
            Whether to return a figure as well; with "save" it is written to `filename`, as HTML.
        filename : path
        timeout : float or str, optional
            Seconds; by default the client's timeout.

        Returns
        -------
        list of dict, or that and a figure
            ``key``, ``name`` (of the function), ``worker``, ``startstops`` (action, start and stop
            in seconds since the epoch, as the scheduler knows them), ``nbytes``, ``status``.

        See Also
        --------
        hpcdask.get_task_stream : the same for a ``with`` block.

        Examples
        --------
        >>> _ = client.get_task_stream()
        >>> _ = client.submit(abs, -1).result(timeout=10)
        >>> [run["name"] for run in client.get_task_stream()]
        ['abs']
        """
        begin = _time(start, -math.inf)
        end = _time(stop, math.inf)
        most = 2**62 if count is None else count

        async def work() -> Any:
            answer = await self._ask(AskTaskStream, begin, end, most)
            runs = [_run(*row) for row in answer.value]
            if not plot:
                return runs
            from hpcdask.client.figures import task_stream

            return runs, _saved(task_stream(runs), filename if plot == "save" else None)

        limit = self._timeout if timeout is None else self._seconds(timeout)
        return self._maybe_sync(work(), limit)

    # -- The cluster ------------------------------------------------------------------------------

    def get_versions(
        self,
        check: bool = False,
        packages: Sequence[str] | None = None,
        timeout: float | str | None = None,
    ) -> Any:
        """Versions of Python and packages here, at the scheduler and at the workers.

        Parameters
        ----------
        check : bool
            Whether to raise if they do not go together.
        packages : list of str, optional
            Distributions besides the usual ones.
        timeout : float or str, optional
            Seconds; by default the client's timeout.

        Returns
        -------
        dict
            ``client``, ``scheduler``: what is there; ``workers``: by address. Each has ``host``
            and ``packages``, name -> version.

        Raises
        ------
        ValueError
            With `check`, if some package is not the same everywhere: says which is what where.

        Examples
        --------
        >>> client.get_versions(check=True)["client"]["packages"]["hpcdask"] == hpcdask.__version__
        True
        """
        if isinstance(packages, str):
            packages = [packages]
        names = tuple(packages or ())

        async def work() -> dict[str, Any]:
            from hpcdask import versions

            here = versions.versions(names)
            scheduler = await self._on_scheduler(versions.versions, (names,))
            workers = await self._on_workers(versions.versions, (names,))
            if check:
                found = versions.mismatches({"client": here, "scheduler": scheduler, **workers})
                if found:
                    raise ValueError(
                        f"versions differ:\n{versions.in_words(found)}\n"
                        "Install the same everywhere, or start all from one environment."
                    )
            return {"client": here, "scheduler": scheduler, "workers": workers}

        limit = self._timeout if timeout is None else self._seconds(timeout)
        return self._maybe_sync(work(), limit)

    def dump_cluster_state(
        self,
        filename: str | os.PathLike[str] = "hpcdask-cluster-dump",
        write_from_scheduler: bool | None = None,
        exclude: Collection[str] = (),
        format: Format = "msgpack",
        timeout: float | str | None = None,
        **storage_options: Any,
    ) -> Any:
        """Write all that scheduler and workers know of their tasks to a file, to look at later.

        Values of tasks, their arguments and the token are not in it.

        Parameters
        ----------
        filename : path or URL
            ``.msgpack.gz`` or ``.yaml`` is appended. For a URL such as ``s3://bucket/dump`` fsspec
            must be installed.
        write_from_scheduler : bool, optional
            Whether the scheduler writes the file, on its host. By default for URLs.
        exclude : collection of str
            Keys at any depth to leave out, as ``{"dependencies"}``.
        format : {"msgpack", "yaml"}
        timeout : float or str, optional
            Seconds.
        **storage_options
            For fsspec.

        Examples
        --------
        >>> client.dump_cluster_state("dump")
        >>> import gzip, msgpack
        >>> sorted(msgpack.unpackb(gzip.open("dump.msgpack.gz").read()))
        ['scheduler', 'versions', 'workers']
        """
        from hpcdask.client import state_dump

        path = os.fspath(filename)
        target = state_dump.Target(path, format, tuple(exclude), storage_options)

        async def work() -> None:
            await state_dump.dump(self, target, write_from_scheduler)

        return self._maybe_sync(work(), self._seconds(timeout))

    def benchmark_hardware(
        self, duration: float | str = 0.1, timeout: float | str | None = None
    ) -> Any:
        """How fast memory, disks and network of the workers are. Better while they do nothing else.

        Parameters
        ----------
        duration : float or str
            Seconds that each size is measured for. Workers measure memory and disk at the same
            time, and the network one after the other, of eight pairs at most.
        timeout : float or str, optional
            Seconds.

        Returns
        -------
        dict
            ``memory``, ``disk``, ``network``: size, as "10 kB", -> bytes per second, the mean of
            all workers. With one worker there is no network.

        Examples
        --------
        >>> found = client.benchmark_hardware(duration=0.01)
        >>> sorted(found), found["memory"]["1 MB"] > 1e6
        (['disk', 'memory', 'network'], True)
        """
        from hpcdask.client import benchmark

        seconds = self._seconds(duration) or 0.0
        return self._maybe_sync(benchmark.measure(self, seconds), self._seconds(timeout))

    # -- Functions of ours on others --------------------------------------------------------------

    async def _on_workers(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        workers: tuple[str, ...] = (),
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Call one on workers, all by default that stay; raise the first error."""
        blob = dumps((function, args, {}))
        asking = self._ask(RunOnWorkers, blob, workers, True, False)
        outcomes = await limited(asking, timeout)
        if not workers:  # one may leave meanwhile
            left = [(a, e) for a, e in outcomes.raised if not _has_gone(e)]
            outcomes = outcomes._replace(raised=tuple(left))
        return called(outcomes, "raise")

    async def _on_scheduler(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        outcomes = await self._ask(RunOnScheduler, dumps((function, args, {})), True)
        return next(iter(called(outcomes, "raise").values()))


def _has_gone(error: TaskError) -> bool:
    return isinstance(to_exception(error), CommClosedError)


def _time(when: float | str | None, default: float) -> float:
    """Seconds since the epoch; text says how long ago that was."""
    if when is None:
        return default
    if isinstance(when, str):
        return time.time() - hosts.parse_timedelta(when)
    return float(when)


def _run(
    key: str, name: str, worker: str, start: float, stop: float, nbytes: int, has_failed: bool
) -> dict[str, Any]:
    return {
        "key": key,
        "name": name,
        "worker": worker,
        "startstops": [{"action": "compute", "start": start, "stop": stop}],
        "nbytes": nbytes,
        "status": "error" if has_failed else "OK",
    }


def _saved(figure: Figure, filename: str | os.PathLike[str] | None) -> Figure:
    if filename is not None:
        figure.save(filename)
    return figure
