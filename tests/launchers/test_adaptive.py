"""As many workers as the work is worth: the decision, and a cluster that follows it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from waiting import on_a_loop, wait_for_file, wait_until

from hpcdask import Client, LocalCluster
from hpcdask.errors import ConfigError
from hpcdask.launchers.adaptive import Choice, Stock, take_stock, wanted

GIB = 2**30


def stock(seconds=0.0, n_runnable=0, workers=(), idle=(), nthreads=None, nbytes=0, memory=0):
    nthreads = len(workers) if nthreads is None else nthreads
    return Stock(seconds, n_runnable, nthreads, nbytes, memory, tuple(workers), tuple(idle))


# -- How many -------------------------------------------------------------------------------------


def test_no_work_is_worth_no_worker():
    assert wanted(stock(workers="ab"), 5.0, 1) == 0


def test_known_work_is_to_be_done_in_the_target_duration():
    assert wanted(stock(seconds=50.0, n_runnable=1000, workers="a"), 5.0, 1) == 10
    assert wanted(stock(seconds=50.0, n_runnable=1000, workers="a", nthreads=4), 5.0, 1) == 3
    assert wanted(stock(seconds=0.1, n_runnable=1000, workers="a"), 5.0, 1) == 1


def test_one_long_task_is_not_worth_more_than_one_thread():
    assert wanted(stock(seconds=3600.0, n_runnable=1, workers="a"), 5.0, 1) == 1


def test_without_a_worker_to_look_at_a_cluster_says_what_one_is_worth():
    assert wanted(stock(seconds=50.0, n_runnable=1000), 5.0, 8) == 2


def test_there_are_workers_enough_to_hold_the_values():
    held = stock(workers="abcd", nbytes=6 * GIB, memory=16 * GIB)
    assert wanted(held, 5.0, 1) == 3
    assert wanted(held._replace(memory_limit=0), 5.0, 1) == 1


# -- Which ----------------------------------------------------------------------------------------


def test_workers_are_added_at_once():
    assert Choice(0, 10, 3).make(4, {"a"}, 0, []) == (3, [])


def test_those_that_are_coming_count():
    assert Choice(0, 10, 3).make(4, {"a"}, 3, []) == (0, [])
    assert Choice(0, 10, 3).make(4, {"a"}, 1, []) == (2, [])


def test_there_are_never_fewer_than_the_minimum_nor_more_than_the_maximum():
    assert Choice(2, 4, 1).make(0, set(), 0, []) == (2, [])
    assert Choice(2, 4, 1).make(9, {"a"}, 0, []) == (3, [])
    assert Choice(2, 4, 1).make(0, {"a", "b", "c"}, 0, ["c", "b", "a"]) == (0, ["c"])
    assert Choice(2, 4, 1).make(0, {"a", "b"}, 0, ["b", "a"]) == (0, [])


def test_a_worker_ends_when_it_was_found_idle_several_times_in_a_row():
    choice = Choice(0, 10, 3)
    assert choice.make(0, {"a"}, 0, ["a"]) == (0, [])
    assert choice.make(0, {"a"}, 0, ["a"]) == (0, [])
    assert choice.make(0, {"a"}, 0, ["a"]) == (0, ["a"])


def test_a_wave_of_work_lets_the_count_begin_anew():
    choice = Choice(0, 10, 2)
    assert choice.make(0, {"a"}, 0, ["a"]) == (0, [])
    assert choice.make(0, {"a"}, 0, []) == (0, [])  # it is busy
    assert choice.make(0, {"a"}, 0, ["a"]) == (0, [])
    assert choice.make(1, {"a"}, 0, ["a"]) == (0, [])  # it is wanted
    assert choice.make(0, {"a"}, 0, ["a"]) == (0, [])
    assert choice.make(0, {"a"}, 0, ["a"]) == (0, ["a"])


def test_a_busy_worker_is_never_ended():
    choice = Choice(0, 10, 1)
    for _ in range(5):
        assert choice.make(1, {"a", "b", "c"}, 0, ["b"]) == (0, ["b"])
        assert choice.make(0, {"a"}, 0, []) == (0, [])


def test_while_workers_come_none_ends_that_they_would_have_to_replace():
    assert Choice(0, 10, 1).make(2, {"a", "b"}, 3, ["a", "b"]) == (0, [])
    assert Choice(0, 10, 1).make(1, {"a", "b"}, 3, ["b", "a"]) == (0, ["b"])


def test_workers_that_others_have_added_do_their_part_and_are_left_alone():
    assert Choice(0, 10, 1).make(0, {"a"}, 0, ["stranger"], 1) == (0, [])
    assert Choice(0, 10, 1).make(3, {"a"}, 0, [], 1) == (1, [])
    assert Choice(2, 10, 1).make(3, {"a"}, 0, [], 5) == (1, [])


def test_those_whose_end_costs_least_go_first():
    assert Choice(0, 10, 1).make(1, {"a", "b", "c"}, 0, ["c", "a", "b"]) == (0, ["c", "a"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"minimum": 3, "maximum": 2}, "between 3 and 2 workers"),
        ({"minimum": -1}, "between -1 and"),
        ({"maximum": 0}, "between 0 and 0"),
        ({"wait_count": 0}, "wait_count is 0"),
        ({"interval": 0}, "more than 0 s"),
        ({"interval": "soon"}, "'soon' is not a duration"),
    ],
)
def test_what_cannot_be_is_refused(options, why):
    with (
        LocalCluster(n_workers=0, processes=False) as cluster,
        pytest.raises(ConfigError, match=why),
    ):
        cluster.adapt(**options)


# -- A cluster that follows -----------------------------------------------------------------------

QUICK = {"interval": "20ms", "wait_count": 3}


def count(cluster: LocalCluster) -> int:
    return len(cluster.scheduler.workers)


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
        wait_until(lambda: take_stock(cluster.scheduler).n_runnable == 3)
        seen = take_stock(cluster.scheduler)
        assert seen.seconds == pytest.approx(3 * 0.5, rel=0.1)
        assert seen.workers == seen.idle == ()
        cluster.scale(1)
        # More workers like this one would not help.
        assert take_stock(cluster.scheduler).n_runnable == 0
        assert len(take_stock(cluster.scheduler).idle) == 1
        del futures


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
