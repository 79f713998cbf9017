"""What a future tells, and what can be done with one."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, Future, FutureCancelledError, LocalCluster, get_client, wait
from hpcdask.errors import CommClosedError, WaitTimeoutError


def increment(x: int) -> int:
    return x + 1


def fail(x: object) -> None:
    raise ValueError(x)


def test_a_future_tells_how_far_it_is(client: Client, gate: Path) -> None:
    future = client.submit(wait_for_file, gate, 7)
    assert future.status == "pending"
    assert not future.done()
    assert not future.cancelled()
    assert repr(future) == f"<Future: pending, key: {future.key}>"
    gate.touch()
    assert future.result(timeout=10) == 7
    assert future.status == "finished"
    assert future.done()
    assert future.exception(timeout=1) is None
    assert future.traceback(timeout=1) is None


def test_a_failed_future_tells_why(client: Client) -> None:
    future = client.submit(fail, "why")
    assert isinstance(future.exception(timeout=10), ValueError)
    assert future.status == "error"
    assert future.done()
    lines = "".join(traceback.format_tb(future.traceback(timeout=10)))
    assert "in fail" in lines
    assert "raise ValueError(x)" in lines


def test_a_cancelled_future_says_so(client: Client, gate: Path) -> None:
    future = client.submit(wait_for_file, gate)
    dependent = client.submit(increment, future)
    future.cancel(reason="no more money")
    assert future.status == "cancelled"
    assert future.cancelled()
    assert future.done()
    assert isinstance(future.exception(timeout=1), FutureCancelledError)
    with pytest.raises(FutureCancelledError, match="no more money"):
        future.result(timeout=1)
    with pytest.raises(FutureCancelledError):
        dependent.result(timeout=10)


def test_a_cancelled_call_can_be_submitted_again(client: Client, gate: Path) -> None:
    future = client.submit(wait_for_file, gate, 1)
    future.cancel()
    again = client.submit(wait_for_file, gate, 1)
    assert again.key == future.key
    gate.touch()
    assert again.result(timeout=10) == 1


def _n_clients_that_want(future: Future, cluster: LocalCluster) -> int:
    task = cluster.scheduler.state.tasks.get(future.key)
    return 0 if task is None else len(task.wanted_by)


def test_cancelling_spares_what_another_client_wants(cluster: LocalCluster, gate: Path) -> None:
    with Client(cluster) as one, Client(cluster) as two:
        mine, theirs = one.submit(wait_for_file, gate, 1), two.submit(wait_for_file, gate, 1)
        wait_until(lambda: _n_clients_that_want(mine, cluster) == 2)
        one.cancel(mine)
        assert mine.cancelled()
        gate.touch()
        assert theirs.result(timeout=10) == 1


def test_a_future_may_be_cancelled_by_force_too(cluster: LocalCluster, gate: Path) -> None:
    with Client(cluster) as one, Client(cluster) as two:
        mine, theirs = one.submit(wait_for_file, gate, 1), two.submit(wait_for_file, gate, 1)
        wait_until(lambda: _n_clients_that_want(mine, cluster) == 2)
        mine.cancel(force=True)
        with pytest.raises(FutureCancelledError):
            theirs.result(timeout=10)
        gate.touch()


def test_cancelling_by_force_spares_nobody(cluster: LocalCluster, gate: Path) -> None:
    with Client(cluster) as one, Client(cluster) as two:
        mine, theirs = one.submit(wait_for_file, gate, 1), two.submit(wait_for_file, gate, 1)
        wait_until(lambda: _n_clients_that_want(mine, cluster) == 2)
        one.cancel([mine], force=True)
        with pytest.raises(FutureCancelledError):
            theirs.result(timeout=10)


def test_waiting_for_a_future_ends_in_time_and_leaves_nothing(client: Client, gate: Path) -> None:
    future = client.submit(wait_for_file, gate)
    start = time.monotonic()
    for ask in (future.result, future.exception, future.traceback):
        for limit in (0, 0.05, "50ms"):
            with pytest.raises(WaitTimeoutError, match="not done within"):
                ask(timeout=limit)
    with pytest.raises(TimeoutError):
        client.gather([future], timeout=0.05)
    with pytest.raises(TimeoutError):
        wait([future], timeout=0.05)
    assert time.monotonic() - start < 3
    wait_until(lambda: not future._state.waiters, 2)


def test_callbacks_are_called_in_turn_and_in_a_thread(client: Client, gate: Path) -> None:
    seen: list[tuple[int, str]] = []
    future = client.submit(wait_for_file, gate, 7)
    for n in range(5):
        future.add_done_callback(
            lambda f, n=n: seen.append((n + f.result(), threading.current_thread().name))
        )
    gate.touch()
    wait_until(lambda: len(seen) == 5)
    future.add_done_callback(lambda f: seen.append((f.result(), "")))  # although it is done
    wait_until(lambda: len(seen) == 6)
    assert [n for n, _ in seen] == [7, 8, 9, 10, 11, 7]
    assert {name for _, name in seen[:5]} == {"hpcdask-callbacks"}


def test_a_callback_that_fails_is_logged_and_harms_no_other(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []
    future = client.submit(fail, 1)
    future.add_done_callback(lambda f: f.result())
    future.add_done_callback(lambda f: seen.append(f.status))
    wait_until(lambda: seen == ["error"])
    assert any("a callback of" in record.getMessage() for record in caplog.records)


def test_a_released_future_is_of_no_use(client: Client) -> None:
    future = client.submit(increment, 1)
    other = client.submit(increment, 1)
    wait(future, timeout=10)
    future.release()
    future.release()
    with pytest.raises(FutureCancelledError, match="released"):
        future.result(timeout=1)
    assert other.result(timeout=10) == 2


def test_a_copied_future_holds_its_value_too(client: Client) -> None:
    future = client.submit(increment, 1)
    copies = [copy.copy(future), pickle.loads(pickle.dumps(future)), copy.deepcopy([future])[0]]
    assert all(other.client is client for other in copies)
    del future
    assert [other.result(timeout=10) for other in copies] == [2, 2, 2]


def test_a_future_is_unpickled_for_a_client_of_its_own_cluster(cluster: LocalCluster) -> None:
    with Client(cluster) as first, Client(processes=False, n_workers=1) as other:
        future = first.submit(increment, 1)
        again = pickle.loads(pickle.dumps(future))
        assert again.client is first
        assert pickle.loads(pickle.dumps(other.submit(increment, 2))).client is other


class Holder:
    def __init__(self, future: Future) -> None:
        self.future = future


def test_a_future_within_an_object_arrives_as_a_future(client: Client) -> None:
    holder = Holder(client.submit(increment, 1))
    got = client.submit(lambda h: (type(h.future).__name__, h.future.result(timeout=10)), holder)
    assert got.result(timeout=20) == ("Future", 2)
    # The task may have been sent ahead: what is in its arguments must be kept until it ran.
    holders = [Holder(client.submit(increment, n)) for n in range(20)]
    futures = client.map(lambda h: h.future.result(timeout=10), holders)
    del holders
    assert client.gather(futures, timeout=20) == list(range(1, 21))


def test_a_task_may_return_futures(client: Client) -> None:
    def start(n: int) -> dict[str, Future]:
        return {"all": get_client().submit(sum, get_client().map(increment, range(n)))}

    future = client.submit(start, 3)
    total = future.result(timeout=10)["all"]
    assert total.client is client
    del future
    gc.collect()
    assert total.result(timeout=10) == 6


def test_values_that_hold_futures_travel_between_workers(client: Client) -> None:
    one, two = client.nthreads(timeout=5)
    inner = client.submit(increment, 1)
    wait(inner, timeout=10)
    there = client.scatter([Holder(inner)], workers=one, hash=False, timeout=10)
    large = client.scatter([b"x" * 3_000_000], workers=two, hash=False, timeout=10)
    got = client.submit(lambda h, b: (h.future.result(timeout=10), len(b)), there[0], large[0])
    assert got.result(timeout=20) == (2, 3_000_000)


def test_futures_are_dropped_from_any_thread_and_by_the_garbage_collector(client: Client) -> None:
    def make_cycles(n: int) -> None:
        for i in range(n):
            cycle: list[Any] = [client.submit(increment, i, pure=False)]
            cycle.append(cycle)
        gc.collect()

    threads = [threading.Thread(target=make_cycles, args=(200,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Again and again: while another thread collects, a collection returns at once.
    wait_until(lambda: gc.collect() >= 0 and not client._futures, 60)


def test_a_closed_client_says_that_it_is_closed(cluster: LocalCluster, gate: Path) -> None:
    client = Client(cluster)
    done, pending = client.submit(increment, 1), client.submit(wait_for_file, gate)
    assert done.result(timeout=10) == 2
    client.close()
    client.close()
    assert client.status == "closed"
    for use in (
        lambda: client.submit(increment, 5),
        lambda: client.map(increment, [5, 6]),
        lambda: client.get({"x": 1}, "x"),
        lambda: client.nthreads(timeout=5),
        lambda: client.scatter([1], timeout=5),
        lambda: client.run(increment, 1, timeout=5),
        lambda: client.cancel(pending),
        lambda: client.restart(timeout=5),
        lambda: client.wait_for_workers(1, timeout=5),
    ):
        with pytest.raises(CommClosedError, match="is closed; make a new"):
            use()
    with pytest.raises(FutureCancelledError, match="the client was closed"):
        pending.result(timeout=5)


@pytest.mark.parametrize("kind", ["computed", "scattered"])
def test_a_future_that_passes_through_a_task_is_kept_all_the_way(kind: str) -> None:
    with Client(n_workers=2, threads_per_worker=1) as client:
        for start in range(0, 200, 50):
            values = list(range(start + 1, start + 51))
            if kind == "computed":
                holders = [Holder(client.submit(increment, n - 1)) for n in values]
            else:  # which cannot be computed again
                holders = [Holder(future) for future in client.scatter(values, timeout=10)]
            passed = client.map(lambda holder: holder, holders)
            del holders
            got = client.gather(passed, timeout=20)
            del passed
            assert [holder.future.result(timeout=10) for holder in got] == values
