"""A client whose scheduler is lost: it finds that one again, or another, and all values are right.

The schedulers here know nothing of the client that returns, and their workers end with them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import (
    Client,
    CommClosedError,
    FutureCancelledError,
    LocalCluster,
    SchedulerPlugin,
    WorkerPlugin,
    as_completed,
    fire_and_forget,
    get_client,
    get_worker,
    wait,
)
from hpcdask.client.retained import Recipe
from hpcdask.errors import WaitTimeoutError
from hpcdask.messages import RegisterClient

TOKEN, OTHER_TOKEN = "5a" * 32, "a5" * 32
_SCHEDULER = """
import asyncio, sys
from hpcdask import Scheduler, Worker

async def main():
    path, port, token = sys.argv[1:]
    where = dict(host="127.0.0.1", port=int(port), scheduler_file=path or None, token=token)
    async with Scheduler(**where) as scheduler, Worker(scheduler.address, nthreads=2, token=token):
        print("ready", flush=True)
        await scheduler.finished()

asyncio.run(main())
"""


class Schedulers:
    """Schedulers, each with a worker in the same process, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self, path: str | Path = "", port: int = 0, token: str = TOKEN) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", _SCHEDULER, str(path), str(port), token]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """As the kernel or a broken node does: nobody is told."""
        self._processes[-1].kill()
        self._processes[-1].wait(10)

    def terminate(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def schedulers(tmp_path: Path) -> Iterator[Schedulers]:
    schedulers = Schedulers(tmp_path / "scheduler.json")
    yield schedulers
    schedulers.terminate()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        2, 1, processes=False, host="127.0.0.1", scheduler_kwargs={"client_grace": 5}
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client that is connected by TCP."""
    with Client(cluster.scheduler_address, token=cluster._token, timeout=10) as client:
        yield client
    wait_until(lambda: not cluster.scheduler.state.tasks, 20, "the scheduler forgets all tasks")


@pytest.fixture
def by_file(schedulers: Schedulers) -> Iterator[Client]:
    """A client of a scheduler in another process, by its file."""
    schedulers.start(schedulers.path)
    with Client(scheduler_file=schedulers.path, timeout=10) as client:
        yield client


def increment(x: int) -> int:
    return x + 1


def add(*values: int) -> int:
    return sum(values)


def after(path: Path, value: Any, *unused: Any) -> Any:
    return wait_for_file(path, value)


class Marks(WorkerPlugin):
    """Takes a while to mark each worker, and says that it was asked to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def setup(self, worker: Any) -> None:
        with open(self.path, "a") as file:
            file.write("setup\n")
        await asyncio.sleep(0.1)
        worker.mark = "marked"


class Counts(SchedulerPlugin):
    n = 0

    def transition(self, key: str, start: str, finish: str, **kwargs: Any) -> None:
        self.n += finish == "memory"


def lose(client: Client, schedulers: Schedulers) -> None:
    schedulers.kill()
    wait_until(lambda: client.status == "reconnecting", 10, "the loss is noticed")


def test_plugins_are_there_again_before_the_tasks_that_need_them(
    by_file: Client, schedulers: Schedulers, tmp_path: Path
) -> None:
    def mark(_: int) -> str:
        return str(get_worker().mark)  # type: ignore[attr-defined]

    by_file.register_plugin(Marks(tmp_path / "notes"), name="marks", timeout=20)
    by_file.register_plugin(Counts(), name="counts", timeout=20)
    by_file.register_plugin(Marks(tmp_path / "others"), name="gone", timeout=20)
    by_file.unregister_worker_plugin("gone", timeout=20)
    lose(by_file, schedulers)
    futures = by_file.map(mark, range(20))
    schedulers.start(schedulers.path)  # with a worker that has never seen a plugin
    assert by_file.gather(futures, timeout=30) == ["marked"] * 20
    assert (tmp_path / "notes").read_text() == "setup\n" * 2
    assert (tmp_path / "others").read_text() == "setup\n"
    assert by_file.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["counts"].n) == 20


def cut(client: Client, cluster: LocalCluster, end: str) -> None:
    """End the connection, and wait until the client has noticed; it may be back by then."""
    comm = client._link.comm
    of_scheduler = cluster.scheduler.clients[client.id]
    victim = comm if end == "client" else of_scheduler
    cluster.loop.call_soon_threadsafe(victim.abort, "cut by a test")
    wait_until(lambda: client._link.comm is not comm, 10, "the client is connected again")


# -- The link is lost ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["client", "scheduler"])
def test_futures_finish_although_the_connection_was_cut(
    cluster: LocalCluster, client: Client, gate: Path, end: str
) -> None:
    done = client.submit(increment, 1)
    assert done.result(timeout=10) == 2
    pending = client.submit(after, gate, 5)
    built_on = [client.submit(add, pending, n) for n in range(20)]
    mapped = client.map(after, [gate] * 2500, range(2500))
    for _ in range(3):
        cut(client, cluster, end)
        assert {f.status for f in (pending, *built_on, *mapped)} == {"pending"}
        assert done.result(timeout=0) == 2
    gate.touch()
    assert client.gather(built_on, timeout=30) == [5 + n for n in range(20)]
    assert client.gather(mapped, timeout=60) == list(range(2500))
    assert client.status == "running"


def test_waits_go_through_the_loss(cluster: LocalCluster, client: Client, gate: Path) -> None:
    futures = [client.submit(after, gate, bytes(200_000), n) for n in range(6)]
    results: list[Any] = []
    asks: list[Callable[[], Any]] = [
        lambda: futures[0].result(timeout=30),
        lambda: client.gather(futures, timeout=30),
        lambda: [f.result() for f in wait(futures, timeout=30).done],
        lambda: [value for _, value in as_completed(futures, with_results=True, timeout=30)],
        lambda: client.wait_for_workers(2, timeout=30),
        lambda: list(client.nthreads(timeout=30).values()),
    ]
    threads = [threading.Thread(target=lambda a=a: results.append(a())) for a in asks]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(futures[0]._state.waiters or ()) == 4)
    cut(client, cluster, "scheduler")
    gate.touch()
    for thread in threads:
        thread.join(30)
    assert len(results) == len(asks)
    sizes = sorted(sum(map(len, r)) if isinstance(r, list) and r != [1, 1] else 0 for r in results)
    assert sizes == [0, 0, 0, *[1_200_000] * 3]


def test_an_asynchronous_client_comes_back(cluster: LocalCluster, gate: Path) -> None:
    async def work() -> None:
        token = cluster._token
        async with Client(cluster.scheduler_address, token=token, asynchronous=True) as client:
            future = client.submit(after, gate, 7)
            awaited = asyncio.ensure_future(client.gather([future, client.submit(increment, 7)]))
            await client.wait_for_workers(2)
            client._link.comm.abort("cut by a test")
            while client._absence is None:
                await asyncio.sleep(0)
            gate.touch()
            assert await asyncio.wait_for(awaited, 30) == [7, 8]

    asyncio.run(work())


def test_the_loss_and_the_return_are_each_told_in_one_line(
    cluster: LocalCluster, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "hpcdask.client"):
        cut(client, cluster, "scheduler")
        wait_until(lambda: client.status == "running")
        wait_until(lambda: client._absence is not None and client._absence._returned)
    lost, back = [r for r in caplog.records if r.name == "hpcdask.client"]
    assert lost.levelno == logging.WARNING
    assert "looks for it for 60 s" in lost.getMessage()
    assert back.levelno == logging.WARNING, "as loud as the loss"
    assert "has found a scheduler again" in back.getMessage()


def test_what_is_done_stays_so_although_the_scheduler_has_forgotten_it(
    cluster: LocalCluster, client: Client
) -> None:
    def fail() -> None:
        raise ValueError("as it should")

    done, failed = client.submit(increment, 1), client.submit(fail)
    wait([done, failed], timeout=10)
    cut(client, cluster, "scheduler")
    client.wait_for_workers(2, timeout=10)  # what it says after the wants was read
    assert (done.status, failed.status) == ("finished", "error")
    assert done.result(timeout=0) == 2
    with pytest.raises(ValueError, match="as it should"):
        failed.result(timeout=5)


def test_large_values_survive_a_cut(cluster: LocalCluster, client: Client, gate: Path) -> None:
    *large, pending = client.map(after, [gate.parent, gate.parent, gate], [bytes(200_000)] * 3)
    wait(large, timeout=10)
    alone = client.submit(bytes, 200_000)
    wait(alone, timeout=10)
    cut(client, cluster, "scheduler")
    gate.touch()
    assert [len(value) for value in client.gather(large, timeout=20)] == [200_000] * 2
    assert len(alone.result(timeout=10)) == 200_000
    assert len(pending.result(timeout=10)) == 200_000


def test_a_key_that_was_released_is_kept_for_the_task_that_needs_it(
    cluster: LocalCluster, client: Client, gate: Path
) -> None:
    first = client.submit(after, gate, 1)
    second = client.submit(add, first, 1)
    last = client.submit(add, first, second)
    del first, second
    cut(client, cluster, "client")
    gate.touch()
    assert last.result(timeout=20) == 3


def test_a_graph_is_submitted_again_as_a_whole(
    cluster: LocalCluster, client: Client, gate: Path
) -> None:
    graph: dict[Any, Any] = {("x", 0): (after, gate, 1)}
    graph |= {("x", n): (add, ("x", n - 1), 1) for n in range(1, 2500)}
    last, middle = client.get(graph, [("x", 2499), ("x", 1000)], sync=False)
    more = client.submit(add, last, middle)
    cut(client, cluster, "client")
    gate.touch()
    assert client.gather([last, middle, more], timeout=60) == [2500, 1001, 3501]


def test_arguments_are_those_of_the_time_of_submission(
    cluster: LocalCluster, client: Client, gate: Path
) -> None:
    mine = bytearray(b"a" * 100_000)
    future = client.submit(after, gate, mine)
    client.wait_for_workers(2, timeout=10)  # it has been sent
    mine[:] = b"b" * 100_000
    mine.append(1)  # not locked by a view of it
    cut(client, cluster, "client")
    gate.touch()
    assert future.result(timeout=20) == b"a" * 100_000


def test_fire_and_forget_does_not_forget_because_of_a_loss(
    cluster: LocalCluster, client: Client, gate: Path, tmp_path: Path
) -> None:
    def leave_a_mark(_: Any) -> None:
        (tmp_path / "mark").touch()

    future = client.submit(after, gate, 1)
    fire_and_forget(client.submit(leave_a_mark, future))
    del future
    cut(client, cluster, "client")
    assert client._kept
    gate.touch()
    wait_until((tmp_path / "mark").exists, 20)
    wait_until(lambda: not client._kept and not client._futures)


def test_a_cancelled_future_stays_so(cluster: LocalCluster, client: Client, gate: Path) -> None:
    future, other = client.submit(after, gate, 1), client.submit(after, gate, 2)
    future.cancel()
    cut(client, cluster, "client")
    client.wait_for_workers(2, timeout=10)
    assert (future.status, other.status) == ("cancelled", "pending")
    assert list(cluster.scheduler.state.tasks) == [other.key]
    gate.touch()
    assert other.result(timeout=20) == 2


def test_a_call_on_the_workers_is_not_made_twice(
    cluster: LocalCluster, client: Client, gate: Path
) -> None:
    errors: list[BaseException] = []

    def call() -> None:
        try:
            client.run(wait_for_file, gate)
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: client._requests._waiting)
    cut(client, cluster, "scheduler")
    thread.join(10)
    gate.touch()
    assert [type(exc) for exc in errors] == [CommClosedError]
    assert "lost before it answered" in str(errors[0])


# -- The scheduler is lost -------------------------------------------------------------------------


@pytest.mark.parametrize("token", [TOKEN, OTHER_TOKEN], ids=["same token", "another token"])
def test_a_new_scheduler_on_the_same_file_goes_on(
    schedulers: Schedulers, by_file: Client, gate: Path, token: str
) -> None:
    done = by_file.submit(increment, 1)
    assert done.result(timeout=10) == 2
    large = by_file.submit(after, gate, bytes(300_000))
    mapped = by_file.map(after, [gate] * 1500, range(1500))
    total = by_file.submit(add, *mapped)
    old_id = by_file.scheduler_id
    lose(by_file, schedulers)
    assert total.status == "pending"
    gate.touch()
    schedulers.start(schedulers.path, token=token)
    assert total.result(timeout=60) == sum(range(1500))
    assert by_file.gather([*mapped, done], timeout=60) == [*range(1500), 2]
    assert len(large.result(timeout=10)) == 300_000
    assert by_file.submit(increment, 41).result(timeout=10) == 42
    assert by_file.scheduler_id != old_id


def test_a_new_scheduler_at_the_same_address_goes_on(schedulers: Schedulers, gate: Path) -> None:
    schedulers.start(port=schedulers.port)
    with Client(schedulers.address, token=TOKEN, timeout=10) as client:
        future = client.submit(after, gate, 3)
        for _ in range(2):
            lose(client, schedulers)
            schedulers.start(port=schedulers.port)
            wait_until(lambda: client.status == "running", 10)
        gate.touch()
        assert future.result(timeout=20) == 3


def test_what_is_asked_for_meanwhile_is_done_afterwards(
    schedulers: Schedulers, by_file: Client, gate: Path
) -> None:
    before, unwanted = by_file.submit(after, gate, 1), by_file.submit(after, gate, 2)
    lose(by_file, schedulers)
    submitted = by_file.submit(add, before, 10)
    mapped = by_file.map(increment, range(1500))
    outcomes: list[Any] = []
    asks: list[Callable[[], Any]] = [
        lambda: by_file.get({"x": 1, "y": (increment, "x")}, "y", timeout=30),
        lambda: by_file.scatter([7], timeout=30)[0].result(timeout=30),
        lambda: by_file.run(increment, 1, timeout=30).popitem()[1],
        lambda: by_file.run_on_scheduler(increment, 1, timeout=30),
        lambda: by_file.cancel(unwanted, timeout=30),
        lambda: by_file.wait_for_workers(1, timeout=30),
        lambda: by_file.scheduler_info(timeout=30)["type"],
    ]
    threads = [threading.Thread(target=lambda a=a: outcomes.append(a())) for a in asks]
    for thread in threads:
        thread.start()
    with pytest.raises(WaitTimeoutError):
        by_file.nthreads(timeout=0.1)
    with pytest.raises(WaitTimeoutError):
        submitted.result(timeout=0.1)
    wait_until(lambda: len(by_file._requests._waiting) == 6)
    schedulers.start(schedulers.path)
    gate.touch()
    for thread in threads:
        thread.join(30)
    assert sorted(map(str, outcomes)) == ["2", "2", "2", "7", "None", "None", "Scheduler"]
    assert submitted.result(timeout=20) == 11
    assert by_file.gather(mapped, timeout=20) == list(range(1, 1501))
    assert unwanted.cancelled()


def test_released_while_away_is_not_asked_for_again(
    schedulers: Schedulers, by_file: Client, tmp_path: Path
) -> None:
    def leave_a_mark(name: str) -> str:
        (tmp_path / name).touch()
        return name

    closed = tmp_path / "never"
    blocking = [by_file.submit(after, closed, n) for n in range(2)]
    wanted, unwanted = by_file.submit(leave_a_mark, "wanted"), by_file.submit(leave_a_mark, "not")
    lose(by_file, schedulers)
    del unwanted, blocking
    schedulers.start(schedulers.path)
    assert wanted.result(timeout=20) == "wanted"
    by_file.wait_for_workers(1, timeout=10)
    assert by_file.submit(increment, 1).result(timeout=10) == 2
    assert not (tmp_path / "not").exists()


def test_when_the_time_is_over_all_is_cancelled_and_says_why(
    schedulers: Schedulers, gate: Path
) -> None:
    schedulers.start(schedulers.path)
    patience = 2
    with Client(scheduler_file=schedulers.path, reconnect_timeout=patience) as client:
        futures = client.map(after, [gate] * 3, range(3))
        lose(client, schedulers)
        start = time.monotonic()
        late = client.submit(increment, 1)
        with pytest.raises(FutureCancelledError, match=r"the scheduler is gone .* for 2 s"):
            futures[0].result(timeout=10)
        assert time.monotonic() - start < patience + 5
        assert {future.status for future in (*futures, late)} == {"cancelled"}
        with pytest.raises(CommClosedError, match=r"looked for it for 2 s"):
            client.submit(increment, 2)
        with pytest.raises(CommClosedError, match=r"looked for it for 2 s"):
            client.nthreads(timeout=5)


def test_without_patience_the_end_comes_at_once(schedulers: Schedulers, gate: Path) -> None:
    schedulers.start(schedulers.path)
    with Client(scheduler_file=schedulers.path, reconnect_timeout=0) as client:
        future = client.submit(after, gate, 1)
        assert future._state.recipe is None, "nothing is kept of what will not be needed"
        schedulers.kill()
        with pytest.raises(FutureCancelledError, match="the scheduler is gone"):
            future.result(timeout=10)


def test_a_scheduler_with_another_token_ends_the_search(schedulers: Schedulers, gate: Path) -> None:
    schedulers.start(port=schedulers.port)
    with Client(schedulers.address, token=TOKEN) as client:
        future = client.submit(after, gate, 1)
        lose(client, schedulers)
        schedulers.start(port=schedulers.port, token=OTHER_TOKEN)
        with pytest.raises(FutureCancelledError, match="token"):
            future.result(timeout=10)
        assert client.status == "closed"


def test_a_scheduler_that_ends_on_purpose_is_not_looked_for(cluster: LocalCluster) -> None:
    with LocalCluster(0, processes=False, host="127.0.0.1") as ending:
        client = Client(ending.scheduler_address, token=ending._token)
        future = client.submit(increment, 1)
        ending.close()
        with pytest.raises(FutureCancelledError, match=r"gone \(the cluster ends\)"):
            future.result(timeout=5)
        assert client._returning is None
        client.close()


def test_the_client_that_shuts_the_cluster_down_does_not_look_for_it(
    schedulers: Schedulers,
) -> None:
    schedulers.start(schedulers.path)
    client = Client(scheduler_file=schedulers.path)
    client.wait_for_workers(1, timeout=10)
    client.shutdown(timeout=10)
    assert client.status == "closed"
    assert client._returning is None


def test_a_client_of_its_own_cluster_keeps_nothing() -> None:
    with LocalCluster(0, processes=False) as cluster, Client(cluster) as client:
        future = client.submit(increment, 1)
        assert future._state.recipe is None


@pytest.mark.parametrize("call", ["close", "shutdown"])
def test_a_client_can_be_closed_while_it_looks(
    schedulers: Schedulers, gate: Path, call: str
) -> None:
    schedulers.start(schedulers.path)
    client = Client(scheduler_file=schedulers.path)
    future = client.submit(after, gate, 1)
    lose(client, schedulers)
    start = time.monotonic()
    if call == "close":
        client.close()
        reason = "the client was closed"
    else:
        with pytest.raises(WaitTimeoutError):
            client.shutdown(timeout=0.3)
        client.close()
        reason = "the client was closed"
    assert time.monotonic() - start < 10  # and not 60
    assert client.status == "closed"
    with pytest.raises(FutureCancelledError, match=reason):
        future.result(timeout=1)


def test_a_program_that_ends_while_it_looks_does_not_linger(
    schedulers: Schedulers, tmp_path: Path
) -> None:
    schedulers.start(schedulers.path)
    script = (
        "import sys, time\n"
        "from hpcdask import Client\n"
        "client = Client(scheduler_file=sys.argv[1])\n"
        "print('connected', flush=True)\n"
        "while client.status == 'running':\n"
        "    time.sleep(0.01)\n"
        "print(client.status, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(schedulers.path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"connected\n"
        schedulers.kill()
        assert program.stdout.readline() == b"reconnecting\n"
        assert program.wait(20) == 0


def test_a_scheduler_that_drops_the_client_again_and_again_is_given_up(
    cluster: LocalCluster, gate: Path
) -> None:
    with Client(cluster.scheduler_address, token=cluster._token, reconnect_timeout=3) as client:
        future = client.submit(after, gate, 1)
        comms: set[Any] = set()
        deadline = time.monotonic() + 20
        while client.status != "closed" and time.monotonic() < deadline:
            comm = cluster.scheduler.clients.get(client.id)
            if comm is not None and comm not in comms:
                comms.add(comm)
                cluster.loop.call_soon_threadsafe(comm.abort, "dropped by a test")
            time.sleep(0.01)
        assert len(comms) > 1
        with pytest.raises(FutureCancelledError, match=r"looked for it for 3 s"):
            future.result(timeout=1)


def test_many_clients_come_back(schedulers: Schedulers, gate: Path) -> None:
    schedulers.start(schedulers.path)
    clients = [Client(scheduler_file=schedulers.path, timeout=20) for _ in range(20)]
    mapped = [
        client.map(after, [gate] * 50, [100 * n + i for i in range(50)])
        for n, client in enumerate(clients)
    ]
    lose(clients[0], schedulers)
    schedulers.start(schedulers.path)
    gate.touch()
    for n, client in enumerate(clients):
        assert client.gather(mapped[n], timeout=60) == [100 * n + i for i in range(50)]
    for client in clients:
        client.close()


# -- Clients of tasks ------------------------------------------------------------------------------


def ask_for_more(gate: Path) -> int:
    client = get_client()
    futures = [client.submit(after, gate, n, pure=False) for n in range(3)]
    (gate.parent / "asked").touch()
    return sum(client.gather(futures))


def test_the_client_of_a_task_comes_back(tmp_path: Path, gate: Path) -> None:
    def cut_link(dask_worker: Any) -> str:
        comm = dask_worker._client._link.comm
        dask_worker.loop.call_soon_threadsafe(comm.abort, "cut by a test")
        return str(dask_worker._client.id)

    def is_running(dask_worker: Any) -> bool:
        client = dask_worker._client
        return client._absence is not None and client.status == "running"

    with LocalCluster(1, 1) as cluster, Client(cluster) as client:
        future = client.submit(ask_for_more, gate)
        wait_until((tmp_path / "asked").exists, 20)
        client.run(cut_link)
        wait_until(lambda: all(client.run(is_running).values()), 20)
        gate.touch()
        assert future.result(timeout=30) == 3


# -- What is kept for it ---------------------------------------------------------------------------


def test_nothing_is_kept_of_what_is_done(client: Client) -> None:
    futures = client.map(increment, range(3000))
    futures += [client.submit(add, *futures[n : n + 3]) for n in range(100)]
    futures.append(client.get({"x": 1, "y": (increment, "x")}, "y", sync=False))
    client.gather(futures, timeout=60)
    assert client._retained.recipes() == []
    del futures
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Recipe]


# -- With a scheduler and workers that know of it --------------------------------------------------


def test_a_client_that_returns_says_so(cluster: LocalCluster, client: Client) -> None:
    heard: list[RegisterClient] = []
    joins = cluster.scheduler.members._client_joins

    def listen(comm: Any, hello: RegisterClient) -> None:
        heard.append(hello)
        joins(comm, hello)

    cluster.scheduler.members._client_joins = listen  # type: ignore[method-assign]
    try:
        cut(client, cluster, "client")
    finally:
        cluster.scheduler.members._client_joins = joins  # type: ignore[method-assign]
    assert [(hello.client, hello.returns) for hello in heard] == [(client.id, True)]


def test_what_runs_is_not_run_again_when_the_connection_was_cut(
    cluster: LocalCluster, client: Client, gate: Path, tmp_path: Path
) -> None:
    def count() -> None:
        (tmp_path / f"run-{time.monotonic_ns()}").touch()
        wait_for_file(gate)

    future = client.submit(count)
    wait_until(lambda: list(tmp_path.glob("run-*")))
    cut(client, cluster, "scheduler")
    gate.touch()
    future.result(timeout=20)
    assert len(list(tmp_path.glob("run-*"))) == 1


def test_a_large_value_survives_a_cut(cluster: LocalCluster, client: Client) -> None:
    future = client.submit(bytes, 200_000)
    wait(future, timeout=10)
    cut(client, cluster, "scheduler")
    assert len(future.result(timeout=10)) == 200_000
