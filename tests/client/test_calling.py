"""Submitting calls: what arrives, under which key, how often and in which order."""

from __future__ import annotations

import operator
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, FutureCancelledError, LocalCluster, SerializationError, get_worker
from hpcdask.client.future import Future


def increment(x: int) -> int:
    return x + 1


def append(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(line + "\n")


def test_a_call_returns_its_value(client: Client) -> None:
    assert client.submit(divmod, 17, 5).result(timeout=10) == (3, 2)


def test_keyword_arguments_reach_the_function(client: Client) -> None:
    assert client.submit(sorted, [1, 3, 2], reverse=True).result(timeout=10) == [3, 2, 1]
    assert client.gather(client.map(int, ["10", "11"], base=2), timeout=10) == [2, 3]


def test_map_takes_several_iterables_and_stops_at_the_shortest(client: Client) -> None:
    assert client.gather(client.map(operator.add, [1, 2, 3], range(10)), timeout=10) == [1, 3, 5]


def test_map_of_nothing_is_nothing(client: Client) -> None:
    assert client.map(increment, []) == []


def test_lambdas_closures_and_local_functions_are_sent_by_value(client: Client) -> None:
    offset = 40

    def local(x: int) -> int:
        return x + offset

    assert client.submit(local, 2).result(timeout=10) == 42
    assert client.gather(client.map(lambda x: x * offset, range(3)), timeout=10) == [0, 40, 80]


@pytest.mark.parametrize(
    "make",
    [
        lambda future: [future, 1],
        lambda future: (future, 1),
        lambda future: {"a": future},
        lambda future: {"a": [{"b": (future,)}]},
        lambda future: [[[future]]],
    ],
)
def test_a_future_in_a_container_stands_for_its_value(client: Client, make) -> None:
    seven = client.submit(increment, 6)
    assert client.submit(lambda x: x, make(seven)).result(timeout=10) == make(7)


def test_futures_in_sets_stand_for_their_values(client: Client) -> None:
    futures = client.map(increment, range(3))
    assert client.submit(sum, set(futures)).result(timeout=10) == 6
    assert client.submit(sorted, frozenset(futures)).result(timeout=10) == [1, 2, 3]


def test_a_future_as_the_key_of_a_dict_arrives_as_a_future(client: Client) -> None:
    seven = client.submit(increment, 6)
    described = client.submit(lambda d: [(type(k).__name__, v) for k, v in d.items()], {seven: 1})
    assert described.result(timeout=10) == [("Future", 1)]


def test_a_chain_of_futures_is_computed_in_order(client: Client) -> None:
    future = client.submit(increment, 0)
    for _ in range(50):
        future = client.submit(increment, future)
    assert future.result(timeout=10) == 51


def test_futures_are_keyword_arguments_of_every_call_of_a_map(client: Client) -> None:
    base = client.submit(increment, 9)
    futures = client.map(lambda x, y: x + y, range(3), y=base)
    assert client.gather(futures, timeout=10) == [10, 11, 12]


def test_equal_pure_calls_are_one_task_that_runs_once(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "ran")
    first, second = client.submit(append, path, "x"), client.submit(append, path, "x")
    client.gather([first, second], timeout=10)
    assert first.key == second.key
    assert Path(path).read_text() == "x\n"


def test_impure_calls_are_tasks_of_their_own(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "ran")
    futures = [client.submit(append, path, "x", pure=False) for _ in range(3)]
    futures += client.map(append, [path] * 2, ["x"] * 2, pure=False)
    client.gather(futures, timeout=10)
    assert len({future.key for future in futures}) == 5
    assert Path(path).read_text() == 5 * "x\n"


def test_tasks_can_be_named(client: Client) -> None:
    assert client.submit(increment, 1, key="my-task").key == "my-task"
    assert [f.key for f in client.map(increment, [1, 2], key=["a", "b"])] == ["a", "b"]
    steps = client.map(increment, [1, 2], key="step")
    assert all(re.fullmatch("step-[0-9a-f]{32}", step.key) for step in steps)
    with pytest.raises(ValueError, match="1 keys for 2 calls"):
        client.map(increment, [1, 2], key=["a"])


def test_a_key_reads_as_the_function_it_runs(client: Client) -> None:
    assert client.submit(increment, 1).key.startswith("increment-")


def test_a_task_is_tried_again_as_often_as_asked(client: Client, tmp_path: Path) -> None:
    def fail_twice(path: str) -> int:
        append(path, "try")
        tries = len(Path(path).read_text().split())
        if tries < 3:
            raise RuntimeError(f"try {tries}")
        return tries

    enough = client.submit(fail_twice, str(tmp_path / "enough"), retries=2)
    assert enough.result(timeout=10) == 3
    [enough] = client.map(fail_twice, [str(tmp_path / "map")], retries=5)
    assert enough.result(timeout=10) == 3
    too_few = client.submit(fail_twice, str(tmp_path / "few"), retries=1)
    with pytest.raises(RuntimeError, match="try 2"):
        too_few.result(timeout=10)


def test_higher_priorities_run_first(tmp_path: Path, gate: Path) -> None:
    path = str(tmp_path / "order")
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        blocker = client.submit(wait_for_file, gate)
        wait_until(lambda: list(client.processing(timeout=5).values()) == [[blocker.key]])
        # One more task is sent ahead to the worker, and runs next whatever comes later.
        ahead = client.submit(append, path, "ahead")
        futures = [client.submit(append, path, str(p), priority=p) for p in (0, -1, 10, 5, 1, 3)]
        wait_until(lambda: len(client.run_on_scheduler(_keys, timeout=5)) == 8)
        gate.touch()
        client.gather([ahead, *futures], timeout=10)
    assert Path(path).read_text().split() == ["ahead", "10", "5", "3", "1", "0", "-1"]


def _keys(dask_scheduler) -> list[str]:
    return list(dask_scheduler.state.tasks)


def test_unpicklable_arguments_are_refused_at_once_and_leave_nothing(client: Client) -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="lock"):
        client.submit(increment, lock)
    with pytest.raises(TypeError, match="lock"):
        client.submit(lambda: lock)


def test_a_map_that_fails_half_way_does_not_spoil_its_keys(client: Client) -> None:
    with pytest.raises(SerializationError) as failed:  # which holds the frames, and they futures
        client.map(increment, [*range(25), threading.Lock()], batch_size=10)
    futures = client.map(increment, range(25))
    assert client.gather(futures, timeout=10) == list(range(1, 26))
    assert failed.value is not None


def test_what_is_no_function_is_refused(client: Client) -> None:
    with pytest.raises(TypeError, match="must be callable"):
        client.submit(7)  # type: ignore[arg-type]


def test_keywords_that_would_steer_a_task_are_not_passed_on(client: Client) -> None:
    with pytest.raises(TypeError, match="no keyword 'actor'"):
        client.get({"x": 1}, "x", actor="x")
    for name in ("actors", "actor"):
        assert client.submit(increment, 1, **{name: False}).result(timeout=10) == 2
    assert client.submit(increment, 1, workers=None, fifo_timeout=60).result(timeout=10) == 2


def test_threads_share_a_client(client: Client) -> None:
    def work(n: int) -> int:
        futures = client.map(operator.add, range(50), [n] * 50)
        total = client.submit(sum, futures)
        assert client.gather(futures, timeout=20) == [n + i for i in range(50)]
        return total.result(timeout=20)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(24))) == [50 * n + 1225 for n in range(24)]


def test_threads_wait_for_one_future(client: Client, tmp_path: Path) -> None:
    for n in range(5):
        go = tmp_path / f"go-{n}"
        future = client.submit(wait_for_file, go, 5)
        with ThreadPoolExecutor(16) as threads:
            results = [threads.submit(future.result, 20) for _ in range(16)]
            wait_until(lambda f=future: len(f._state.waiters or ()) == 16)
            go.touch()
            assert [result.result(20) for result in results] == [5] * 16


def test_values_are_dropped_everywhere_with_their_last_future(
    client: Client, cluster: LocalCluster
) -> None:
    futures = client.map(increment, range(200))
    total = client.submit(sum, futures)
    assert total.result(timeout=10) == 20100
    del futures, total
    wait_until(lambda: not client._futures)
    wait_until(lambda: not cluster.scheduler.state.tasks)
    wait_until(lambda: not any(client.run(_held, timeout=5).values()))


def _held() -> list[str]:
    return list(get_worker().state.tasks)


def test_a_key_can_be_used_again_after_it_was_dropped(client: Client) -> None:
    for n in range(20):
        assert client.submit(increment, n, key="again").result(timeout=10) == n + 1


def test_a_graph_is_computed(client: Client) -> None:
    graph = {"x": 1, "y": (increment, "x"), ("z", 0): (sum, ["x", "y", (increment, "y")])}
    assert client.get(graph, [["x"], "y", ("z", 0)], timeout=10) == [[1], 2, 6]
    future = client.get(graph, ("z", 0), sync=False)
    assert isinstance(future, Future)
    assert future.result(timeout=10) == 6


def test_a_graph_with_a_fault_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="cycle"):
        client.get({"x": (increment, "y"), "y": (increment, "x")}, "x")
    with pytest.raises(ValueError, match="no key 'z'"):
        client.get({"x": 1}, "z")


def test_a_call_on_a_future_that_was_cancelled_is_cancelled(client: Client, gate: Path) -> None:
    future = client.submit(wait_for_file, gate)
    future.cancel()
    with pytest.raises(FutureCancelledError):
        client.submit(increment, future).result(timeout=10)


def test_ctrl_c_while_a_call_is_being_sent_leaves_a_client_that_works(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(client.loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.submit(abs, -1)
    assert client.submit(abs, -7).result(timeout=20) == 7
