"""Collections as futures of a client: what dask does around a scheduler, with ours within."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import dask

from hpcdask.client.graphs import key_name

if TYPE_CHECKING:
    from hpcdask.client.collection_calls import CollectionCalls
    from hpcdask.client.streaming import Conditions

#: What is one value if it is computed with the collections in it.
_TRAVERSED = (list, tuple, set, frozenset, dict, Iterator)


def futures_of_collections(
    client: CollectionCalls,
    items: list[Any],
    how: Conditions,
    actors: Any,
    optimize_graph: bool,
    traverse: bool,
) -> list[Any]:
    """A future of the value of each collection among `items`; see `Client.compute`."""
    if traverse:
        items = [dask.delayed(i) if isinstance(i, _TRAVERSED) else i for i in items]
    computed = dask.compute(
        *items,
        traverse=False,
        optimize_graph=optimize_graph,
        scheduler=_submitter(client, how, actors),
    )
    return list(computed)


def persisted(
    client: CollectionCalls, items: list[Any], how: Conditions, actors: Any, optimize_graph: bool
) -> list[Any]:
    """Collections of futures; see `Client.persist`."""
    for item in items:
        if not dask.is_dask_collection(item):
            raise TypeError(f"persist() takes dask collections, not {item!r:.80}")
    found = dask.persist(
        *items,
        traverse=False,
        optimize_graph=optimize_graph,
        scheduler=_submitter(client, how, actors),
    )
    return list(found)


def _submitter(client: CollectionCalls, how: Conditions, actors: Any) -> Callable[..., Any]:
    """Looks to dask like a scheduler; what it gives are futures, and dask puts them in places."""

    def submit(dsk: Any, keys: Any, **unused: Any) -> Any:
        return client._futures_of_graph(dsk, keys, how, actors)

    return submit


def with_futures(client: CollectionCalls, collection: Any) -> Any:
    """See `Client.normalize_collection`."""
    graph = dict(collection.__dask_graph__())
    with client._lock:
        states = {key: client._futures.get(key_name(key)) for key in graph}
        known = {
            key: state
            for key, state in states.items()
            if state is not None and state.status != "cancelled"
        }
        for state in known.values():
            state.refs += 1
    if not known:
        return collection
    graph.update((key, client._future(state)) for key, state in known.items())
    rebuild, arguments = collection.__dask_postpersist__()
    return rebuild(graph, *arguments)
