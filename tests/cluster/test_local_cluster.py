"""A cluster on this machine: its life, its size, its logs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, LocalCluster, WorkerStartError, get_worker, wait
from hpcdask.errors import ConfigError, LaunchError


def increment(x: int) -> int:
    return x + 1


def own_pid(_: int = 0) -> int:
    return os.getpid()


def test_a_cluster_lives_as_long_as_its_block() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        pids = [nanny.pid for nanny in cluster.workers.values()]
        assert len(pids) == 2
        assert all(psutil.pid_exists(pid) for pid in pids)
        assert cluster.status == "running"
        assert repr(cluster).startswith("LocalCluster(")
        with Client(cluster) as client:
            assert client.submit(increment, 1).result(timeout=10) == 2
    assert cluster.status == "closed"
    assert not any(psutil.pid_exists(pid) for pid in pids)
    cluster.close()


def test_a_cluster_closes_within_a_second() -> None:
    cluster = LocalCluster(n_workers=2, threads_per_worker=1)
    start = time.monotonic()
    cluster.close()
    assert time.monotonic() - start < 1


def test_a_cluster_of_busy_workers_closes_soon(tmp_path: Path) -> None:
    cluster = LocalCluster(n_workers=2, threads_per_worker=1)
    with Client(cluster) as client:
        futures = client.map(wait_for_file, [tmp_path / "never"] * 4, range(4))
        wait_until(lambda: all(client.processing(timeout=5).values()))
        del futures
    start = time.monotonic()
    cluster.close()
    assert time.monotonic() - start < 2


def test_workers_are_threads_if_asked_for() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=2, processes=False) as cluster:
        assert cluster.scheduler_address.startswith("inproc://")
        with Client(cluster) as client:
            assert set(client.gather(client.map(own_pid, range(4)), timeout=10)) == {os.getpid()}
            value = object()  # is not even pickled on its way from task to task
            future = client.submit(lambda: value)
            assert client.submit(lambda x: type(x).__name__, future).result(timeout=10) == "object"
        assert psutil.Process().children() == []


def test_a_cluster_has_the_shape_that_is_asked_for() -> None:
    with Client(n_workers=1, threads_per_worker=3, memory_limit="1 GiB") as client:
        [worker] = client.scheduler_info(timeout=5)["workers"].values()
        assert worker["nthreads"] == 3
        assert worker["memory_limit"] == 2**30


def test_a_cluster_grows_and_shrinks_with_right_results() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        futures = client.map(increment, range(100))
        wait(futures, timeout=10)
        cluster.scale(3)
        assert len(client.nthreads(timeout=5)) == 3
        more = client.map(increment, range(100, 400))
        wait(more, timeout=10)
        assert len([keys for keys in client.has_what(timeout=5).values() if keys]) == 3
        cluster.scale(1)
        assert len(client.nthreads(timeout=5)) == len(cluster.workers) == 1
        assert client.gather(futures + more, timeout=20) == list(range(1, 401))
        cluster.scale(0)
        late = client.submit(increment, 1, pure=False)
        assert late.status == "pending"
        cluster.scale(1)
        assert late.result(timeout=10) == 2
        with pytest.raises(ValueError, match="-1 workers"):
            cluster.scale(-1)


def test_a_growth_that_takes_too_long_leaves_no_worker_that_nobody_knows() -> None:
    with LocalCluster(n_workers=0, threads_per_worker=1) as cluster, Client(cluster) as client:
        with pytest.raises(TimeoutError):
            cluster.scale(2, timeout=0.05)
        cluster.scale(1, timeout=30)
        assert len(client.nthreads(timeout=5)) == len(cluster.workers) == 1
        pids = {nanny.pid for nanny in cluster.workers.values()}
        wait_until(lambda: {child.pid for child in psutil.Process().children()} == pids)


def test_a_shrinking_cluster_is_not_held_up_by_a_busy_worker(tmp_path: Path) -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        futures = client.map(wait_for_file, [tmp_path / "go"] * 2, range(2))
        wait_until(lambda: all(client.processing(timeout=5).values()))
        start = time.monotonic()
        cluster.scale(1)
        assert time.monotonic() - start < 3
        (tmp_path / "go").touch()
        assert client.gather(futures, timeout=20) == [0, 1]
        # An end that was planned is not held against the task that it hit.
        assert {task.failures for task in cluster.scheduler.state.tasks.values()} == {0}


def test_workers_are_waited_for() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        cluster.wait_for_workers(1, timeout=5)
        with pytest.raises(TimeoutError, match=r"1 of 2 workers have registered within 0\.1 s"):
            cluster.wait_for_workers(2, timeout=0.1)


def test_logs_of_all_parts_can_be_read() -> None:
    def complain() -> str:
        import logging

        logging.getLogger("hpcdask.test").warning("a task complains")
        return get_worker().address

    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        address = client.submit(complain).result(timeout=10)
        logs = cluster.get_logs(timeout=10)
        assert logs.keys() == {"Cluster", "Scheduler", *client.nthreads(timeout=5)}
        assert "a task complains" in logs[address]
        assert "Register worker" in logs["Scheduler"]
        only = cluster.get_logs(cluster=False, scheduler=False, workers=[address], timeout=10)
        assert only.keys() == {address}


def test_several_clusters_live_side_by_side() -> None:
    options = {"n_workers": 1, "threads_per_worker": 1}
    with (
        LocalCluster(**options) as one,
        LocalCluster(**options) as two,
        Client(one) as first,
        Client(two) as second,
    ):
        assert first.submit(own_pid).result(timeout=10) != second.submit(own_pid).result(10)
        first.shutdown()
        assert one.status == "closed"
        assert second.submit(increment, 1).result(timeout=10) == 2


def test_an_interface_is_listened_on_if_named() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, interface="lo") as cluster:
        assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
        with Client(cluster) as client:
            assert client.submit(increment, 1).result(timeout=10) == 2


def client_of(address: str) -> int:
    with Client(address, set_as_default=False) as client:
        return len(client.nthreads())


def test_a_program_reaches_its_own_cluster_by_the_address_alone() -> None:
    options = {"n_workers": 1, "threads_per_worker": 1}
    with LocalCluster(**options) as cluster, Client(cluster.scheduler_address) as client:
        assert client.submit(increment, 1).result(timeout=10) == 2
        address = client.scheduler.address
        assert address == cluster.scheduler_address
        assert client.submit(client_of, address).result(timeout=10) == 1
    with LocalCluster(n_workers=1, processes=False) as cluster, Client(cluster) as client:
        assert client_of(client.scheduler.address) == 1


def test_a_cluster_tells_of_its_scheduler() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=3) as cluster, Client(cluster) as client:
        assert list(cluster.scheduler_info["workers"]) == list(client.nthreads())
        told = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.identity())
        assert told["total_threads"] == cluster.scheduler_info["total_threads"] == 3


def test_programs_may_ask_for_the_link_to_a_dashboard() -> None:
    with LocalCluster(n_workers=0) as cluster, Client(cluster) as client:
        assert (cluster.dashboard_link, client.dashboard_link) == (None, None)
    asked = pytest.warns(UserWarning, match="no dashboard: dashboard_address=':8787'")
    with asked, Client(n_workers=0, dashboard_address=":8787") as client:
        assert client.dashboard_link is None


def test_keywords_that_mean_something_to_distributed_alone_are_accepted() -> None:
    of_cluster = {"security": None, "worker_dashboard_address": None, "service_kwargs": {}}
    of_client = {"security": None, "heartbeat_interval": "5s", "serializers": ["pickle"]}
    with LocalCluster(n_workers=0, **of_cluster) as cluster, Client(cluster, **of_client) as client:
        assert client.status == "running"
    with Client(n_workers=0, connection_limit=512, **of_cluster) as client:
        assert client.status == "running"
    for wants in (LocalCluster, Client):
        with pytest.raises(ConfigError, match="does not encrypt connections; leave security out"):
            wants(n_workers=0, security=True)


def test_settings_that_do_not_exist_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="have an option nthread"):
        LocalCluster(n_workers=1, nthread=2)


@pytest.mark.parametrize(
    ("preload", "what"),
    [("raise RuntimeError('not today')", "not today"), ("import os; os._exit(7)", "code 7")],
)
def test_a_worker_that_dies_at_its_start_tells_why(
    tmp_path: Path, preload: str, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "preloaded.py"
    path.write_text(preload)
    start = time.monotonic()
    with pytest.raises(WorkerStartError, match=what):
        LocalCluster(n_workers=2, threads_per_worker=1, preload=[str(path)])
    assert time.monotonic() - start < 10


def test_what_a_worker_said_last_is_in_its_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "preloaded.py"
    path.write_text("import os, sys\nprint('no licence left', file=sys.stderr, flush=True)\n")
    with path.open("a") as file:
        file.write("os._exit(3)\n")
    with pytest.raises(WorkerStartError, match=r"exited with code 3.*\n.*no licence left"):
        LocalCluster(n_workers=1, threads_per_worker=1, preload=[str(path)])
    assert "no licence left" in capfd.readouterr().err


def test_what_tasks_print_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    with Client(n_workers=1, threads_per_worker=1) as client:
        client.submit(os.write, 1, b"to stdout\n").result(timeout=10)
        client.submit(os.write, 2, b"to stderr\n").result(timeout=10)
    printed = capfd.readouterr()
    assert printed.out == "to stdout\n"
    assert printed.err == "to stderr\n"


def test_many_small_clusters_leave_nothing() -> None:
    for _ in range(10):
        with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
            assert client.submit(increment, 1).result(timeout=10) == 2


def test_a_closed_cluster_cannot_be_scaled() -> None:
    cluster = LocalCluster(n_workers=0)
    cluster.close()
    with pytest.raises(LaunchError, match="closed"):
        cluster.scale(2, timeout=10)


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match="-1 workers"):
        LocalCluster(n_workers=-1)


def test_a_scheduler_file_in_use_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    options = {"scheduler_kwargs": {"scheduler_file": str(path)}, "n_workers": 0}
    with LocalCluster(**options):
        content = path.read_text()
        with pytest.raises(LaunchError, match="scheduler that runs"):
            LocalCluster(**options)
        assert path.read_text() == content
    assert not path.exists()
    path.write_text(content)  # as a killed one leaves it
    path.chmod(0o600)
    with LocalCluster(**options):
        assert path.read_text() != content


@pytest.mark.parametrize("processes", [True, False])
def test_resources_may_be_text(processes: bool) -> None:
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": processes}
    with LocalCluster(resources="GPU=1", **options) as cluster, Client(cluster) as client:
        assert client.submit(abs, -1, resources={"GPU": 1}).result(timeout=20) == 1


def test_each_cluster_numbers_its_workers_from_0() -> None:
    for _ in range(2):
        with LocalCluster(n_workers=2, threads_per_worker=1, processes=False) as cluster:
            assert list(cluster.workers) == ["0", "1"]
            cluster.scale(1)
            cluster.scale(2)
            assert list(cluster.workers) == ["0", "2"]
            with Client(cluster) as client:
                assert client.submit(lambda: get_worker().name, workers=0).result(timeout=10) == "0"


def test_a_cluster_shows_the_workers_that_are_there() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=3) as cluster, Client(cluster) as client:
        assert "workers=2, threads=6, running" in repr(cluster)
        client.retire_workers(["1"], timeout=20)
        assert "workers=1, threads=3, running" in repr(cluster)
    assert "workers=0, threads=0, closed" in repr(cluster)


@pytest.mark.parametrize(("n", "error"), [(1.5, TypeError), ("2", TypeError), (-1, ConfigError)])
def test_a_number_of_workers_is_a_whole_one(n: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="workers"):
        LocalCluster(n_workers=n)
