"""Tasks that may run on some workers only, or take what a worker has little of."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, LocalCluster, Worker, get_worker, network
from hpcdask.errors import WaitTimeoutError


class Cluster:
    """A scheduler, and workers of this process that a test adds as it likes."""

    def __init__(self, local: LocalCluster) -> None:
        self.local = local
        self._workers: list[Worker] = []

    def add(self, name: str, nthreads: int = 4, **options: Any) -> Worker:
        scheduler = self.local.scheduler

        async def started() -> Worker:
            return await Worker(
                scheduler.address,
                token=scheduler.token,
                host="127.0.0.1",
                name=name,
                nthreads=nthreads,
                memory_limit=0,
                **options,
            )

        worker: Worker = self._on_loop(started())
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        for worker in self._workers:
            self._on_loop(worker.close())

    def _on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.local.loop).result(20)


@pytest.fixture(scope="module")
def local() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=0) as cluster:
        yield cluster


@pytest.fixture
def cluster(local: LocalCluster) -> Iterator[Cluster]:
    cluster = Cluster(local)
    yield cluster
    cluster.close()


@pytest.fixture
def client(local: LocalCluster, cluster: Cluster) -> Iterator[Client]:
    with Client(local) as client:
        yield client
    wait_until(lambda: not local.scheduler.state.tasks, 20, "the scheduler forgets all tasks")


class Count:
    """How many tasks run at a time, in this process."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()
        self._twice = threading.Event()

    def task(self, _: int) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now == 2:
                self._twice.set()
        # Long enough for another one to begin, if it may.
        self._twice.wait(0.02)
        with self._lock:
            self.now -= 1


_counts: dict[str, Count] = {}


def count(name: str, i: int) -> None:
    _counts[name].task(i)


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Iterator[str]:
    _counts[request.node.name] = Count()
    yield request.node.name
    del _counts[request.node.name]


def where() -> str:
    return str(get_worker().name)


# -- Resources -------------------------------------------------------------------------------------


def test_a_gpu_serves_one_task_at_a_time(cluster: Cluster, client: Client, counted: str) -> None:
    cluster.add("g", resources={"GPU": 1})
    futures = client.map(count, [counted] * 20, range(20), resources={"GPU": 1}, pure=False)
    client.gather(futures, timeout=20)
    assert _counts[counted].most == 1


def test_as_many_run_as_the_amounts_allow(cluster: Cluster, client: Client, counted: str) -> None:
    cluster.add("g", resources={"GPU": 4, "MEMORY": 10})
    takes = {"GPU": 1, "MEMORY": 4}
    futures = client.map(count, [counted] * 20, range(20), resources=takes, pure=False)
    client.gather(futures, timeout=20)
    assert _counts[counted].most == 2


def test_who_takes_nothing_runs_beside(cluster: Cluster, client: Client, gate: Path) -> None:
    cluster.add("g", nthreads=2, resources={"GPU": 1})
    first = client.submit(wait_for_file, gate, 1, resources={"GPU": 1})
    second = client.submit(where, resources={"GPU": 1})
    assert client.submit(where, pure=False).result(timeout=10) == "g"
    assert second.status == "pending"
    gate.touch()
    assert client.gather([first, second], timeout=10) == [1, "g"]


def test_tasks_go_where_the_resource_is(cluster: Cluster, client: Client) -> None:
    cluster.add("plain", nthreads=8)
    cluster.add("g", nthreads=1, resources={"GPU": 2})
    futures = [client.submit(where, pure=False, resources={"GPU": 1}) for _ in range(20)]
    assert set(client.gather(futures, timeout=10)) == {"g"}


def test_the_tasks_of_a_graph_take_resources(cluster: Cluster, client: Client) -> None:
    cluster.add("plain", nthreads=8)
    cluster.add("g", nthreads=1, resources={"GPU": 1})
    dsk = {f"k{i}": (where,) for i in range(10)}
    assert set(client.get(dsk, list(dsk), resources={"GPU": 1}, timeout=10)) == {"g"}


def test_a_local_cluster_gives_its_workers_resources() -> None:
    own = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "resources": {"GPU": 1}}
    with Client(**own, set_as_default=False) as client:
        assert client.submit(abs, -1, resources={"GPU": 1}).result(timeout=10) == 1
        future = client.submit(abs, -2, resources={"GPU": 2})
        assert list(client.unrunnable(timeout=5)) == [future.key]


# -- Workers ---------------------------------------------------------------------------------------


def test_tasks_run_on_the_worker_that_is_named(cluster: Cluster, client: Client) -> None:
    a, b = cluster.add("a"), cluster.add("b")
    for worker in (a, b):
        for named in (worker.name, worker.address, [worker.name], {worker.address}):
            futures = [client.submit(where, pure=False, workers=named) for _ in range(5)]
            assert set(client.gather(futures, timeout=10)) == {worker.name}


def test_tasks_run_on_the_host_that_is_named(cluster: Cluster, client: Client) -> None:
    cluster.add("a")
    here = network.hostname()
    assert client.submit(where, pure=False, workers=here).result(timeout=10) == "a"
    future = client.submit(where, pure=False, workers=f"not-{here}")
    wait_until(lambda: future.key in client.unrunnable(timeout=5))
    assert future.status == "pending"


def test_others_help_where_none_of_the_named_is_there(cluster: Cluster, client: Client) -> None:
    cluster.add("a")
    future = client.submit(where, pure=False, workers="b", allow_other_workers=True)
    assert future.result(timeout=10) == "a"
    cluster.add("b")
    futures = [
        client.submit(where, pure=False, workers="b", allow_other_workers=True) for _ in range(5)
    ]
    assert set(client.gather(futures, timeout=10)) == {"b"}


def test_inputs_come_from_wherever_they_are(cluster: Cluster, client: Client) -> None:
    cluster.add("a")
    cluster.add("b")
    x = client.submit(pow, 2, 10, workers="a")
    assert client.submit(abs, x, workers="b").result(timeout=10) == 1024


# -- Nowhere ---------------------------------------------------------------------------------------


def test_what_nothing_can_run_waits_visibly_for_a_worker(cluster: Cluster, client: Client) -> None:
    cluster.add("plain")
    future = client.submit(where, resources={"GPU": 1})
    wait_until(lambda: client.unrunnable(timeout=5))
    [(key, reason)] = client.unrunnable(timeout=5).items()
    assert key == future.key
    assert "GPU" in reason
    with pytest.raises(WaitTimeoutError, match=r"cannot run: .*GPU"):
        future.result(timeout=0.5)
    cluster.add("g", resources={"GPU": 1})
    assert future.result(timeout=10) == "g"
    assert client.unrunnable(timeout=5) == {}


def test_a_worker_with_too_little_is_not_enough(cluster: Cluster, client: Client) -> None:
    cluster.add("small", resources={"GPU": 1})
    future = client.submit(where, resources={"GPU": 2})
    wait_until(lambda: future.key in client.unrunnable([future], timeout=5))
    cluster.add("big", resources={"GPU": 2})
    assert future.result(timeout=10) == "big"


def test_the_next_worker_of_that_name_takes_over(cluster: Cluster, client: Client) -> None:
    cluster.add("plain")
    future = client.submit(where, workers="late")
    wait_until(lambda: future.key in client.unrunnable(timeout=5))
    cluster.add("late")
    assert future.result(timeout=10) == "late"
