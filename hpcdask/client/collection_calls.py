"""Graphs and dask collections: computed, kept on the cluster, and made of what is there already."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from hpcdask.client import graphs
from hpcdask.client.annotations import Annotations
from hpcdask.client.cluster_calls import ClusterCalls
from hpcdask.client.streaming import CHUNK, Conditions, Submission, chunked, conditions
from hpcdask.messages import Function
from hpcdask.wire.serialize import loads

#: Keywords of dask's own schedulers, which programs give to `compute` and which mean nothing here.
_OF_OTHER_SCHEDULERS = frozenset(
    {"num_workers", "pool", "chunksize", "rerun_exceptions_locally", "fifo_timeout"}
)


class CollectionCalls(ClusterCalls):
    """The part of `hpcdask.Client` that is about graphs."""

    gather: Any  # of the Client itself

    def compute(
        self,
        collections: Any,
        sync: bool = False,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: dict[str, float] | None = None,
        retries: int = 0,
        priority: float = 0,
        fifo_timeout: float | str = "60s",
        actors: Any = None,
        traverse: bool = True,
        timeout: float | str | None = None,
    ) -> Any:
        """Compute dask collections, each as one value.

        Parameters
        ----------
        collections : dask collection, or list, tuple or set of them
            Anything else among them is returned as it is.
        sync : bool
            Wait for the values; else return futures.
        optimize_graph : bool
            Whether dask optimises the graphs before.
        workers, resources, retries, priority, allow_other_workers
            As for `submit`; of all tasks but those that are annotated otherwise, see
            `dask.annotate`.
        fifo_timeout : float or str
            Means nothing here: tasks of all submissions take turns.
        actors : bool, collection or key, or list of these, optional
            Which of them are actors: with True all that are computed, not what these need.
        traverse : bool
            Whether collections are looked for in lists, tuples, sets and dicts too, each of which
            is one value then.
        timeout : float or str, optional
            Seconds to wait for the values, with `sync`.

        Returns
        -------
        Future or value, or a list of them as `collections` is

        Examples
        --------
        >>> import dask
        >>> total = dask.delayed(sum)([dask.delayed(abs)(-1), 2])
        >>> client.compute(total).result()
        3
        """
        from hpcdask.collections.computing import futures_of_collections

        how = conditions(priority, retries, workers, allow_other_workers, resources)
        found = futures_of_collections(
            self, _listed(collections), how, actors, optimize_graph, traverse
        )
        result = found if _is_several(collections) else found[0]
        return self.gather(result, timeout=timeout) if sync else result

    def persist(
        self,
        collections: Any,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: dict[str, float] | None = None,
        retries: int = 0,
        priority: float = 0,
        fifo_timeout: float | str = "60s",
        actors: Any = None,
    ) -> Any:
        """Compute dask collections and keep their parts on the cluster.

        Parameters
        ----------
        collections : dask collection, or list, tuple or set of them
        optimize_graph, workers, resources, retries, priority, allow_other_workers, fifo_timeout, \
actors
            As for `compute`.

        Returns
        -------
        dask collection, or a list of them
            Equal ones, whose graphs are futures. They are returned at once, while the parts are
            being computed, and what they hold is kept until they are dropped.

        Examples
        --------
        >>> import dask.bag
        >>> numbers = client.persist(dask.bag.from_sequence(range(10), npartitions=2))
        >>> numbers.sum().compute()
        45
        """
        from hpcdask.collections.computing import persisted

        how = conditions(priority, retries, workers, allow_other_workers, resources)
        found = persisted(self, _listed(collections), how, actors, optimize_graph)
        return found if _is_several(collections) else found[0]

    def normalize_collection(self, collection: Any) -> Any:
        """Put futures of this client into a collection, in the place of tasks with their keys.

        Parameters
        ----------
        collection : dask collection

        Returns
        -------
        dask collection
            One that computes nothing which is computed, or being computed, already.
        """
        from hpcdask.collections.computing import with_futures

        return with_futures(self, collection)

    def get(
        self,
        dsk: Any,
        keys: Any,
        *,
        workers: Any = None,
        resources: dict[str, float] | None = None,
        sync: bool = True,
        asynchronous: bool | None = None,
        retries: int = 0,
        priority: float = 0,
        allow_other_workers: bool = False,
        actors: Any = None,
        direct: bool | None = None,
        timeout: float | str | None = None,
        **unused: Any,
    ) -> Any:
        """Compute a graph.

        Parameters
        ----------
        dsk : dict, HighLevelGraph or dask expression
            Key -> task. A task is a tuple ``(callable, argument, ...)``, an object of
            ``dask._task_spec``, or anything else, which stands for itself; arguments that are keys
            of the graph stand for their values.
        keys : key or nested lists of keys
            What to compute.
        sync : bool
            Wait for the values; else return futures.
        asynchronous : bool, optional
            Return an awaitable of the values.
        workers, resources, retries, priority, allow_other_workers, actors
            As for `compute`.
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
        unknown = unused.keys() - _OF_OTHER_SCHEDULERS
        if unknown:
            raise TypeError(f"get() has no keyword {sorted(unknown)[0]!r}")
        how = conditions(priority, retries, workers, allow_other_workers, resources)
        nested = self._futures_of_graph(dsk, keys, how, actors)
        if not sync:
            return nested
        return self.gather(nested, direct=direct, timeout=timeout, asynchronous=asynchronous)

    def _futures_of_graph(self, dsk: Any, keys: Any, how: Conditions, actors: Any = None) -> Any:
        """Submit what is needed of a graph; return futures, nested as `keys` are."""
        graph: Any
        if _is_plain(dsk):
            graph = graphs.Graph(dsk, keys)
        else:
            from hpcdask.collections.graph import CollectionGraph

            graph = CollectionGraph(dsk, keys)
        said = dict(graph.annotations)
        if actors is not None and actors is not False:  # a collection has no truth
            said["actor"] = dict.fromkeys(_flat(keys if actors is True else actors), True)
        futures: dict[str, Any] = {}
        with Submission(self, how) as submission:
            for message, is_final, own in _messages(graph, Annotations(said, how)):
                functions, specs, wanted = message
                if own.restriction is not None and own.restriction.actor:
                    functions = _as_actors(functions)
                with self._lock:
                    self._check_open()
                    # Keys of graphs are short, and those of the last graph may be the same.
                    self._release_keys()
                    want = self._want_all(wanted, futures) if wanted else 0
                    submission.send(functions, specs, wanted, is_final, want, conditions=own)
                submission.keep_pace()
        return graphs.rename(keys, graph.name, futures)

    def _want_all(self, keys: tuple[str, ...], futures: dict[str, Any]) -> int:
        """Make a future of each key, and return the number of the want; the lock is held."""
        self._wants += 1
        for key in keys:
            state = self._futures.get(key)
            if state is None or state.status == "cancelled":
                state = self._wanted(key, state)
            state.refs += 1
            futures[key] = self._future(state)
        return self._wants


def _messages(graph: Any, annotations: Annotations) -> Iterator[tuple[Any, bool, Conditions]]:
    """Chunks of a graph, each with those of its keys that are wanted, and whether it is the last.

    All these keys in one message kept the scheduler from all else: 90 ms for 50,000.
    """
    left = dict.fromkeys(graph.wanted)
    for functions, specs, is_final, own in graph.packed(annotations):
        wanted = tuple([spec.key for spec in specs if spec.key in left])
        for key in wanted:
            del left[key]
        # What is left in the end is on the cluster already.
        rest = [tuple(keys) for keys, _ in chunked(left, CHUNK)] if is_final else []
        yield (functions, specs, wanted), is_final and not rest, own
        for i, keys in enumerate(rest, 1):
            yield ((), (), keys), i == len(rest), own


def _is_several(collections: Any) -> bool:
    return isinstance(collections, (list, tuple, set, frozenset))


def _listed(collections: Any) -> list[Any]:
    return list(collections) if _is_several(collections) else [collections]


def _is_plain(dsk: Any) -> bool:
    """Whether it is a dict of tuples and other values, for which dask is not needed."""
    if not isinstance(dsk, dict):
        return False
    node = getattr(sys.modules.get("dask._task_spec"), "GraphNode", None)  # which may be coming
    return node is None or not any([isinstance(value, node) for value in dsk.values()])


def _as_actors(functions: tuple[Function, ...]) -> tuple[Function, ...]:
    """Functions that make actors of what these return."""
    from hpcdask.client.actor import pack_actor  # few programs have any

    return tuple(pack_actor(loads(function.code)) for function in functions)


def _flat(keys: Any) -> Iterator[Any]:
    """The keys in nested lists of keys, and those of collections among them."""
    if hasattr(keys, "__dask_keys__"):
        keys = keys.__dask_keys__()
    if isinstance(keys, (list, set, frozenset, dict)):
        for key in keys:
            yield from _flat(key)
    else:
        yield keys
