"""A cluster that follows its work; see `test_worth` and `test_choice` for what it decides."""

from __future__ import annotations

import asyncio
import threading

import pytest
from waiting import on_a_loop, wait_for_file, wait_until

from hpcdask import Client, LocalCluster
from hpcdask.errors import ConfigError
from hpcdask.launchers.adaptive import Adaptive
from hpcdask.launchers.stock import Assumed, Stock, take_stock


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"minimum": 3, "maximum": 2}, "at least 3 workers and at most 2"),
        ({"maximum": 0}, "would never be a worker"),
        ({"minimum_cores": 5, "maximum_jobs": 2}, "at least 5 cores and at most 2 jobs"),
        ({"minimum_memory": "lots"}, "'lots' is not a size"),
        ({"wait_count": 0}, "wait_count is 0"),
        ({"interval": 0}, "more than 0 s"),
        ({"interval": "soon"}, "'soon' is not a duration"),
        ({"keep_idle": -1}, "a negative duration|not a duration|negative"),
    ],
)
def test_what_cannot_be_is_refused(options, why):
    with (
        LocalCluster(n_workers=0, threads_per_worker=2, processes=False) as cluster,
        pytest.raises(ConfigError, match=why),
    ):
        cluster.adapt(**options)


# -- A cluster that follows -----------------------------------------------------------------------

QUICK = {"interval": "20ms", "wait_count": 3}


def count(cluster: LocalCluster) -> int:
    return len(cluster.scheduler.workers)


def look(cluster: LocalCluster) -> Stock:
    return take_stock(cluster.scheduler)


def test_a_cluster_grows_with_its_work_and_shrinks_without(tmp_path):
    with LocalCluster(n_workers=0, threads_per_worker=1, processes=False) as cluster:
        cluster.adapt(0, 3, target_duration="0.1s", **QUICK)
        with Client(cluster) as client:
            futures = client.map(wait_for_file, [tmp_path / "go"] * 30, range(30))
            wait_until(lambda: count(cluster) == 3)
            (tmp_path / "go").touch()
            assert client.gather(futures, timeout=20) == list(range(30))
            total = client.submit(sum, futures)
            assert total.result(timeout=20) == sum(range(30))
            del futures
            wait_until(lambda: count(cluster) == 1)  # which holds a value
            assert client.submit(abs, total).result(timeout=20) == sum(range(30))
            del total
            wait_until(lambda: count(cluster) == 0)
            assert client.submit(abs, -1).result(timeout=20) == 1


def test_work_without_a_worker_is_seen(tmp_path):
    with LocalCluster(n_workers=0, processes=False) as cluster, Client(cluster) as client:
        futures = client.map(wait_for_file, [tmp_path / "go"] * 3, range(3), resources={"X": 1})
        wait_until(lambda: look(cluster).n_runnable == 3)
        (line,) = look(cluster).waiting
        assert line.seconds == pytest.approx(3 * 0.5, rel=0.1)
        assert line.restriction.resources == (("X", 1.0),)
        assert line.n_able == 0
        cluster.scale(1)
        assert [worker.is_busy for worker in look(cluster).workers] == [False]
        del futures


def test_what_runs_is_seen_with_its_resources(tmp_path):
    with (
        LocalCluster(1, 2, processes=False, resources={"X": 3}) as cluster,
        Client(cluster) as client,
    ):
        future = client.submit(wait_for_file, tmp_path / "go", 7, resources={"X": 2})
        wait_until(lambda: look(cluster).workers[0].is_busy)
        seen = look(cluster)
        assert seen.workers[0].resources == (("X", 3.0),)
        assert seen.workers[0].taken == (("X", 2.0),)
        assert [running.kind for running in seen.unknown] == ["wait_for_file"]
        # Nobody knows how long it takes, but somebody has seen it run.
        assert take_stock(cluster.scheduler, Assumed(0.5, {"wait_for_file": 40.0})).seconds == 40.0
        (tmp_path / "go").touch()
        assert future.result(timeout=10) == 7
        wait_until(lambda: look(cluster) == Stock(look(cluster).workers))


def test_a_task_that_no_worker_can_run_starts_one_and_no_more():
    with LocalCluster(n_workers=0, threads_per_worker=1, processes=False) as cluster:
        adaptive = cluster.adapt(0, 3, **QUICK)
        with Client(cluster) as client:
            future = client.submit(abs, -1, workers="alice", allow_other_workers=False)
            wait_until(lambda: [what["status"] for _, what in adaptive.log] == ["up", "down"])
            wait_until(lambda: count(cluster) == 0)
            looks = adaptive._choice._looks[-1]
            wait_until(lambda: adaptive._choice._looks[-1][0] > looks[0] + 0.2)
            assert [what["status"] for _, what in adaptive.log] == ["up", "down"]
            del future


def test_a_minimum_is_kept_without_work_and_scale_ends_it_all(tmp_path):
    with LocalCluster(n_workers=0, threads_per_worker=1, processes=False) as cluster:
        adaptive = cluster.adapt(minimum=2, **QUICK)
        wait_until(lambda: count(cluster) == 2)
        cluster.scale(1)
        assert count(cluster) == 1
        assert "stopped" in repr(adaptive)
        cluster.adapt(minimum=2, maximum=2, **QUICK)
        wait_until(lambda: count(cluster) == 2)
        again = cluster.adapt(minimum=3, maximum=3, **QUICK)
        wait_until(lambda: count(cluster) == 3)
        again.stop()


def test_a_task_that_runs_is_not_cut_short(tmp_path):
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False) as cluster:
        with Client(cluster) as client:
            future = client.submit(wait_for_file, tmp_path / "go", 7)
            wait_until(lambda: any(client.processing(timeout=5).values()))
            cluster.adapt(0, 2, interval="10ms", wait_count=1)
            wait_until(lambda: count(cluster) == 1)
            (tmp_path / "go").touch()
            assert future.result(timeout=10) == 7
        assert {task.failures for task in cluster.scheduler.state.tasks.values()} <= {0}


@on_a_loop
async def test_an_asynchronous_cluster_adapts():
    async with LocalCluster(n_workers=0, processes=False, asynchronous=True) as cluster:
        cluster.adapt(minimum=1, interval="20ms")
        await cluster.wait_for_workers(1, timeout=10)
    assert cluster.status == "closed"


def test_workers_that_cannot_start_are_tried_for_again_after_a_pause(monkeypatch, caplog):
    with LocalCluster(n_workers=0, threads_per_worker=1, processes=False) as cluster:
        failed = threading.Event()
        start = cluster._start_workers

        async def start_at_last(n: int) -> None:
            if not failed.is_set():
                failed.set()
                await asyncio.sleep(0)
                raise OSError("no host is up")
            await start(n)

        monkeypatch.setattr(cluster, "_start_workers", start_at_last)
        cluster.adapt(minimum=1, **QUICK)
        wait_until(lambda: count(cluster) == 1)
        lines = cluster.get_logs(scheduler=False, workers=False, timeout=5)["Cluster"]
        assert "no host is up; more workers are tried for in 0.04 s" in lines


def test_bounds_may_be_given_in_cores_and_memory():
    with LocalCluster(0, 2, processes=False, memory_limit="1 GiB") as cluster:
        adaptive = cluster.adapt(minimum_cores=3, maximum_memory="5 GiB", maximum=9, **QUICK)
        assert (adaptive.minimum, adaptive.maximum) == (2, 5)
        wait_until(lambda: count(cluster) == 2)
        adaptive.minimum = 1  # they may be changed meanwhile
        wait_until(lambda: count(cluster) == 1)
        assert [what["status"] for _, what in adaptive.log] == ["up", "down"]
        assert adaptive.log[0][1]["n"] == 2
        assert adaptive.state == "running"


def test_workers_are_kept_for_as_long_as_is_said():
    with LocalCluster(2, 1, processes=False) as cluster:
        adaptive = cluster.adapt(keep_idle="1h", interval="5ms", wait_count=1)
        wait_until(lambda: len(adaptive._choice._looks) > 20)
        assert count(cluster) == 2
        adaptive.keep_idle = 0.0
        wait_until(lambda: count(cluster) == 0)


def test_workers_of_one_key_end_together(tmp_path):
    with LocalCluster(4, 1, processes=False) as cluster, Client(cluster) as client:
        future = client.submit(wait_for_file, tmp_path / "go", 7, workers="1")
        wait_until(lambda: any(client.processing(timeout=5).values()))
        adaptive = cluster.adapt(worker_key=lambda worker: int(worker.name) // 2, **QUICK)
        wait_until(lambda: sorted(cluster.workers) == ["0", "1"])
        looks = adaptive._choice._looks[-1][0]
        wait_until(lambda: adaptive._choice._looks[-1][0] > looks + 0.1)
        assert sorted(cluster.workers) == ["0", "1"]
        (tmp_path / "go").touch()
        assert future.result(timeout=10) == 7
        del future
        wait_until(lambda: count(cluster) == 0)


class Steady(Adaptive):
    """One that has as many workers as it was told, and never ends the first."""

    def __init__(self, *args: object, n: int, **options: object) -> None:
        super().__init__(*args, **options)
        self.n = n

    async def target(self) -> int:
        return self.n

    async def workers_to_close(self, target: int) -> list[str]:
        return [name for name in await super().workers_to_close(target) if name != "0"]


def test_a_derived_class_decides():
    with LocalCluster(0, 1, processes=False) as cluster:
        steady = cluster.adapt(Adaptive=Steady, n=3, **QUICK)
        wait_until(lambda: count(cluster) == 3)
        steady.n = 0
        wait_until(lambda: list(cluster.workers) == ["0"])


def test_the_public_name_is_that_of_dask():
    import hpcdask

    assert hpcdask.Adaptive is Adaptive
