"""Collections by way of a client: computed, persisted, made of futures, with conditions."""

from __future__ import annotations

import asyncio
import traceback
from concurrent.futures import Executor
from operator import add
from typing import Any

import dask
import dask.bag as db
import pytest

from hpcdask import Client, LocalCluster, fire_and_forget, futures_of, get_client, get_worker, wait
from hpcdask.client.streaming import CHUNK
from hpcdask.errors import FutureCancelledError
from hpcdask.messages.client import SubmitTasks

np = pytest.importorskip("numpy")
da = pytest.importorskip("dask.array")

WORDS = ["to be or not", "to be that is", "the question"] * 4


def test_values_are_those_of_threads(client: Client, threads: Executor) -> None:
    x = da.random.default_rng(3).random((120, 120), chunks=(40, 40))
    words = db.from_sequence(WORDS, npartitions=5).str.split().flatten()
    count = dask.delayed(len)([dask.delayed(abs)(-1), 2])
    for collection in (
        (x + x.T).mean(axis=0),
        x.rechunk((30, 60)).T.dot(x),
        x[::2, 3:50].std(),
        words.frequencies().topk(3, key=1),
        words.map(len).groupby(lambda n: n % 3).map(lambda pair: (pair[0], sorted(pair[1]))),
        words.foldby(len, lambda total, word: total + 1, 0),
        count,
    ):
        ours, theirs = collection.compute(), collection.compute(scheduler=threads)
        if isinstance(ours, list):
            assert sorted(ours) == sorted(theirs)
        else:
            np.testing.assert_allclose(ours, theirs)


def test_several_are_computed_and_nested_ones_are_found(client: Client) -> None:
    one, two = dask.delayed(abs)(-1), dask.delayed(abs)(-2)
    array = da.ones(4, chunks=2)
    assert dask.compute(one, {"a": [two, array.sum()]}, 7) == (1, {"a": [2, 4.0]}, 7)
    first, second, third = client.compute([one, [one, {"k": two}], 7])
    assert (first.result(timeout=20), second.result(timeout=20), third) == (1, [1, {"k": 2}], 7)
    assert client.compute(array, sync=True).tolist() == [1.0] * 4
    assert client.compute([one, [two]], traverse=False)[1] == [two]
    assert client.compute((array + 1).sum(), optimize_graph=False).result(timeout=20) == 8.0


def test_what_is_persisted_stays_on_the_cluster_until_it_is_dropped(client: Client) -> None:
    bag = db.from_sequence(range(10), npartitions=2).map(lambda n: n + len(str(get_worker())) * 0)
    bag_kept, array = client.persist([bag, da.arange(12, chunks=4) * 2])
    assert [len(futures_of(each)) for each in (bag_kept, array)] == [2, 3]
    assert futures_of([array, {"a": bag_kept}], client=client)[2].key == str(
        array.name and (array.name, 2)
    )
    wait(array, timeout=20)
    assert all(client.who_has(futures_of(array)).values())
    assert (array + 1).sum().compute() == 144
    assert bag_kept.sum().compute() == 45
    again = array.persist()
    assert again.sum().compute() == 132
    assert dask.persist(array)[0].sum().compute() == 132


def test_futures_are_values_in_graphs(client: Client) -> None:
    three, block = client.submit(abs, -3), client.scatter(np.arange(4))
    assert dask.delayed(add)(three, 1).compute() == 4
    assert dask.delayed(sum)([three, [three][0], dask.delayed(three)]).compute() == 9
    assert dask.delayed(dict)(a=three).compute() == {"a": 3}
    assert da.from_delayed(dask.delayed(block), (4,), dtype=int).sum().compute() == 6
    assert da.from_delayed(block, (4,), dtype=int).sum().compute() == 6
    assert db.from_delayed([dask.delayed([1, 2]), client.submit(list, "ab")]).count().compute() == 4
    assert client.get({"y": (add, three, "x"), "x": 5}, "y") == 8
    mapped = da.ones(4, chunks=2).map_blocks(add, three, dtype=float)
    assert mapped.sum().compute() == 16


def test_a_collection_is_made_of_what_is_computed_already(client: Client) -> None:
    array = da.arange(6, chunks=3)
    assert client.normalize_collection(array) is array
    kept = client.persist(array)
    made = client.normalize_collection(array)
    assert len(futures_of(made)) == 2
    assert {f.key for f in futures_of(made)} == {f.key for f in futures_of(kept)}
    assert made.sum().compute() == 15


def test_a_persisted_collection_stands_for_its_futures(client: Client) -> None:
    array = client.persist(da.arange(6, chunks=3))
    fire_and_forget(array)
    wait(array, timeout=20)
    assert sorted(map(len, client.who_has(array).values())) == [1, 1]
    client.cancel(array)
    with pytest.raises(FutureCancelledError, match="2 futures were cancelled"):
        futures_of(array, client=client)


def test_annotations_are_conditions_of_tasks(
    client: Client, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[SubmitTasks] = []
    read = cluster.scheduler.client_said

    def note(name: str, comm: Any, what: Any) -> None:
        heard.extend(
            m for m in (what if isinstance(what, list) else [what]) if type(m) is SubmitTasks
        )
        read(name, comm, what)

    monkeypatch.setattr(cluster.scheduler, "client_said", note)
    name = next(iter(cluster.scheduler.state.workers.values())).info.name
    with dask.annotate(priority=7, retries=2, workers=name):
        x = da.ones(4, chunks=2).map_blocks(
            lambda block: block * 0 + float(get_worker().name), dtype=float, meta=np.empty(0)
        )
    assert (x + 1).compute(optimize_graph=False).tolist() == [float(name) + 1] * 4
    conditions = {(m.priority, m.retries, m.restriction and m.restriction.workers) for m in heard}
    assert conditions == {(7.0, 2, (name,)), (0.0, 0, None)}
    heard.clear()
    with dask.annotate(priority=lambda key: key[1] if isinstance(key, tuple) else 0):
        y = da.ones(4, chunks=2).map_blocks(lambda block: block)
    client.compute(y, priority=-1, optimize_graph=False).result(timeout=20)
    assert {0.0, 1.0, -1.0} <= {m.priority for m in heard if m.tasks}
    heard.clear()
    with dask.annotate(priority=3, workers=[name], allow_other_workers=True):
        assert client.submit(abs, -5, pure=False).result(timeout=20) == 5
        client.submit(abs, -6, pure=False, priority=1).result(timeout=20)
        dask.delayed(abs)(-5).compute()
    assert [m.priority for m in heard] == [3.0, 1.0, 3.0]
    assert all(m.restriction.allow_others for m in heard)
    with dask.annotate(resources={"nothing": 1}):
        future = client.compute(dask.delayed(abs)(-1))
    with pytest.raises(TimeoutError, match="nothing"):
        future.result(timeout=0.5)


def test_conditions_of_a_computation_are_checked(client: Client) -> None:
    value = dask.delayed(abs)(-1)
    with pytest.raises(TypeError, match="amounts by name"):
        client.compute(value, resources=["GPU"])
    with pytest.raises(TypeError, match="no keyword 'wrokers'"):
        value.compute(wrokers="a")
    with pytest.raises(TypeError, match="dask collections"):
        client.persist([3])
    assert value.compute(num_workers=2) == 1  # of dask's own schedulers


def test_a_task_computes_a_collection_on_the_cluster(client: Client) -> None:
    def inner() -> tuple[Any, str]:
        scheduler = repr(dask.config.get("scheduler"))
        return da.ones(40, chunks=10).sum().compute(), scheduler

    assert client.submit(inner).result(timeout=30) == (40.0, "<the current client of hpcdask>")
    # All threads of all workers wait for tasks of their own.
    futures = [client.submit(inner, pure=False) for _ in range(4)]
    assert [value for value, _ in client.gather(futures, timeout=30)] == [40.0] * 4


def test_errors_of_tasks_come_with_their_own_type(client: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        dask.delayed(lambda: 1 / 0)().compute()
    with pytest.raises(ZeroDivisionError):
        da.ones(4, chunks=2).map_blocks(lambda block: 1 / 0, dtype=float).compute()


def wrong(block: Any) -> Any:
    raise ValueError("of a block")


async def one_more(number: int) -> int:
    await asyncio.sleep(0)
    return number + 1


def test_the_traceback_of_a_block_has_no_lines_of_ours(client: Client) -> None:
    with pytest.raises(ValueError, match="of a block") as caught:
        da.ones(4, chunks=2).map_blocks(wrong, dtype=float).sum().compute()
    remote = [
        e for e in traceback.extract_tb(caught.value.__traceback__) if "compute" not in e.name
    ]
    assert remote[-1].name == "wrong"
    assert not any(entry.filename.endswith("programs.py") for entry in remote)


def test_coroutine_functions_are_awaited(client: Client) -> None:
    assert dask.delayed(one_more)(dask.delayed(one_more)(1)).compute(timeout=20) == 3


class Counter:
    def __init__(self) -> None:
        self.n = 0

    def increment(self) -> int:
        self.n += 1
        return self.n


def test_collections_and_keys_of_graphs_may_be_actors(client: Client) -> None:
    delayed, other = dask.delayed(Counter)(), dask.delayed(Counter)()
    futures = client.compute([delayed, other], actors=delayed)
    assert futures[0].result(timeout=20).increment().result(timeout=20) == 1
    assert futures[0].result(timeout=20).increment().result(timeout=20) == 2
    assert futures[1].result(timeout=20).increment() == 1  # a copy
    both = client.compute([delayed, dask.delayed(Counter)()], actors=True)
    assert both[1].result(timeout=20).increment().result(timeout=20) == 1
    graph = {"x": (Counter,), "y": (abs, -1)}
    x, y = client.get(graph, ["x", "y"], actors=["x"])
    assert (x.increment().result(timeout=20), y) == (1, 1)


def test_a_dataset_of_xarray_is_computed_and_kept(client: Client) -> None:
    xarray = pytest.importorskip("xarray")
    data = xarray.Dataset({"t": (("x", "y"), np.arange(24.0).reshape(6, 4))}).chunk({"x": 2})
    kept = client.persist(data)
    assert len(futures_of(kept)) == 3
    assert kept.mean("x").compute().equals(data.mean("x").compute(scheduler="sync"))
    assert client.compute(data.t.sum()).result(timeout=20) == 276


def test_arrays_are_not_copied_on_their_way(client: Client) -> None:
    array = da.ones((400, 400), chunks=(200, 400)).persist()
    whole = array.compute()
    assert not whole.flags.owndata  # it lies in what was received
    assert whole.flags.writeable

    def is_shared(block: Any) -> bool:
        return not block.flags.owndata

    first = futures_of(array)[0]
    others = [
        address for address in client.nthreads() if address not in client.who_has(first)[first.key]
    ]
    assert client.submit(is_shared, first, workers=others).result(timeout=20)


def test_an_asynchronous_client_computes_and_awaits_collections(cluster: LocalCluster) -> None:
    async def work() -> None:
        async with Client(cluster, asynchronous=True) as client:
            array = client.persist(da.arange(6, chunks=3))
            assert await array is array
            assert all(future.done() for future in futures_of(array))
            await dask.base.wait(array)
            assert await client.compute(array.sum()) == 15
            assert await client.compute(array.sum(), sync=True) == 15
            assert await client.get({"x": (abs, -1)}, "x") == 1
            with pytest.raises(RuntimeError, match="asynchronous"):
                array.sum().compute()

    asyncio.run(work())


def test_a_large_graph_is_sent_while_its_first_tasks_run(
    client: Client, cluster: LocalCluster
) -> None:
    graph = {("n", i): (add, i, 1) for i in range(3 * CHUNK)}
    hlg = dask.highlevelgraph.HighLevelGraph.from_collections("n", graph, dependencies=[])
    futures = client.get(hlg, list(graph), sync=False)
    assert sum(client.gather(futures)) == sum(range(1, 3 * CHUNK + 1))


def test_the_client_of_a_task_computes(client: Client) -> None:
    def inner() -> int:
        total = dask.delayed(sum)([1, 2])
        return get_client().compute(total).result()

    assert client.submit(inner).result(timeout=20) == 3
