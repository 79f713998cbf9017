"""Gathering and scattering: containers, errors, ways, and large arrays."""

from __future__ import annotations

import operator
import time
from pathlib import Path

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, FutureCancelledError, LocalCluster, wait
from hpcdask.client import client as calling
from hpcdask.client.future import Future

np = pytest.importorskip("numpy")


def increment(x: int) -> int:
    return x + 1


def fail(x: int) -> None:
    raise ValueError(x)


@pytest.fixture(params=[None, False], ids=["direct", "through the scheduler"])
def way(request: pytest.FixtureRequest) -> bool | None:
    return request.param  # type: ignore[no-any-return]


def test_values_come_in_the_containers_of_their_futures(client: Client) -> None:
    a, b, c = client.map(increment, range(3))
    assert client.gather(a, timeout=10) == 1
    assert client.gather([a, [b, (c,)]], timeout=10) == [1, [2, (3,)]]
    assert client.gather({"a": a, "rest": {b, c}}, timeout=10) == {"a": 1, "rest": {2, 3}}
    assert client.gather(iter([a, b]), timeout=10) == [1, 2]
    assert client.gather([], timeout=10) == []


def test_a_value_that_is_lost_while_it_is_gathered_is_not_missed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures = client.map(increment, range(3))
    wait(futures)
    load = calling.loads_value

    def lose_and_load(blob: bytes) -> object:
        # As the client's own thread does at any time, when a worker is lost.
        futures[-1]._state.status, futures[-1]._state.value = "pending", None
        return load(blob)

    last = futures[-1]._state.value
    assert last is not None  # it came along, and is looked at in this thread
    monkeypatch.setattr(calling, "loads_value", lose_and_load)
    assert client.gather(futures, timeout=10) == [1, 2, 3]
    futures[-1]._state.status, futures[-1]._state.value = "finished", last


def test_a_future_may_be_gathered_twice_at_once(client: Client) -> None:
    a, b = client.map(increment, range(2))
    again = client.submit(increment, 0)
    assert client.gather([a, a, b, again, a], timeout=10) == [1, 1, 2, 1, 1]


def test_other_things_than_futures_are_left_as_they_are(client: Client) -> None:
    a = client.submit(increment, 1)
    assert client.gather([a, 5, None], timeout=10) == [2, 5, None]
    assert client.gather({"of": "me", "is": [a, "x"]}, timeout=10) == {"of": "me", "is": [2, "x"]}
    with pytest.raises(TypeError, match="the string 'x'"):
        client.gather(["x"])


def test_gather_raises_the_first_error_without_waiting_for_the_rest(
    client: Client, gate: Path
) -> None:
    slow, bad = client.submit(wait_for_file, gate), client.submit(fail, 1)
    start = time.monotonic()
    with pytest.raises(ValueError, match="1"):
        client.gather([slow, bad], timeout=20)
    with pytest.raises(ValueError, match="1"):  # which is known before it is asked for
        client.gather([slow, *client.map(wait_for_file, [gate] * 200, range(200)), bad])
    assert time.monotonic() - start < 10


def test_gather_can_leave_out_what_failed(client: Client, way: bool | None, gate: Path) -> None:
    good, bad, lock = client.map(increment, [1, 2]), client.submit(fail, 1), client.submit(_lock)
    cancelled = client.submit(wait_for_file, gate)
    cancelled.cancel()
    futures = [good[0], bad, cancelled, good[1], lock]
    assert client.gather(futures, errors="skip", direct=way, timeout=10) == [2, 3]
    with pytest.raises(ValueError, match="must be 'raise' or 'skip'"):
        client.gather(futures, errors="ignore")


def _lock() -> object:
    import threading

    return threading.Lock()


def test_gather_raises_for_a_cancelled_future(client: Client, gate: Path) -> None:
    future = client.submit(wait_for_file, gate)
    future.cancel(reason="not needed")
    with pytest.raises(FutureCancelledError, match="not needed"):
        client.gather([future, client.submit(increment, 1)], timeout=10)


def test_ten_thousand_values_are_gathered(client: Client) -> None:
    assert client.gather(client.map(increment, range(10_000)), timeout=60) == list(range(1, 10_001))


# -- Scattering ------------------------------------------------------------------------------------


def test_data_is_scattered_in_its_containers(client: Client, way: bool | None) -> None:
    assert client.gather(client.scatter([1, "two"], direct=way, timeout=10)) == [1, "two"]
    assert client.gather(client.scatter((3, 4), direct=way, timeout=10)) == (3, 4)
    assert client.gather(client.scatter({5, 6}, direct=way, timeout=10)) == {5, 6}
    named = client.scatter({"a": 7}, direct=way, timeout=10)
    assert named["a"].key == "a"
    assert client.gather(named) == {"a": 7}
    assert client.gather(client.scatter(8, direct=way, timeout=10)) == 8
    assert client.scatter([], timeout=10) == []
    assert client.gather(client.scatter(range(3), direct=way, timeout=10)) == [0, 1, 2]


def test_scattered_items_of_a_dict_have_its_keys(client: Client) -> None:
    same = client.scatter({"one": 1, "other": 1}, timeout=10)
    assert {name: future.key for name, future in same.items()} == {"one": "one", "other": "other"}
    with pytest.raises(ValueError, match="both named '1'"):
        client.scatter({1: "a", "1": "b"}, timeout=10)


def test_equal_data_is_kept_once_unless_told_otherwise(client: Client) -> None:
    first, second = client.scatter([b"x" * 100] * 2, timeout=10)
    assert first.key == second.key
    third = client.scatter(b"x" * 100, hash=False, timeout=10)
    assert third.key != first.key
    assert third.result(timeout=10) == first.result(timeout=10)


def test_scattered_data_is_there_at_once(client: Client) -> None:
    for _ in range(20):
        assert client.scatter(object()).done()
    futures = client.scatter(list(range(10)), broadcast=True)
    assert {future.status for future in futures} == {"finished"}


def test_scattered_data_is_an_argument(client: Client) -> None:
    data = client.scatter(list(range(100)), timeout=10)
    assert isinstance(data, list)
    assert client.submit(sum, data).result(timeout=10) == 4950
    alone = client.scatter({"k": [1, 2]}, timeout=10)["k"]
    assert client.submit(operator.mul, alone, 2).result(timeout=10) == [1, 2, 1, 2]


def test_data_can_be_put_on_every_worker_or_on_chosen_ones(client: Client) -> None:
    addresses = sorted(client.nthreads(timeout=5))
    everywhere = client.scatter(1, broadcast=True, timeout=10)
    assert sorted(client.who_has(everywhere, timeout=5)[everywhere.key]) == addresses
    for address in addresses:
        chosen = client.scatter([2, 3], workers=address, hash=False, timeout=10)
        holders = client.who_has(chosen, timeout=5)
        assert list(holders.values()) == [[address], [address]]


def test_scattering_without_a_worker_ends_in_time() -> None:
    with LocalCluster(n_workers=0) as cluster, Client(cluster) as client:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="no worker"):
            client.scatter(1, timeout=0.3)
        assert time.monotonic() - start < 2


# -- Large arrays ----------------------------------------------------------------------------------


def double(array: np.ndarray) -> np.ndarray:
    return 2 * array


def test_large_arrays_go_to_the_workers_and_back(client: Client, way: bool | None) -> None:
    array = np.random.default_rng(1).random((1000, 2000))
    future = client.submit(double, array)
    assert np.array_equal(client.gather(future, direct=way, timeout=30), 2 * array)
    scattered = client.scatter(array, direct=way, timeout=30)
    assert np.array_equal(client.gather(scattered, direct=way, timeout=30), array)
    other_order = client.submit(np.asfortranarray, scattered)
    assert np.array_equal(other_order.result(timeout=30), array)


def test_large_arrays_go_from_worker_to_worker(client: Client) -> None:
    array = np.arange(3_000_000)
    one, two = client.nthreads(timeout=5)
    left = client.scatter(array, workers=one, timeout=30)
    right = client.scatter(array[::-1].copy(), workers=two, timeout=30)
    total = client.submit(operator.add, left, right)
    assert (total.result(timeout=30) == 2_999_999).all()
    holders = client.who_has([left, right], timeout=5)
    assert sorted(map(len, holders.values())) == [1, 2], "one of the two was copied"


def test_a_client_may_refuse_to_talk_to_workers(cluster: LocalCluster) -> None:
    array = np.arange(100_000)
    with Client(cluster, direct_to_workers=False) as client:
        future = client.submit(double, client.scatter(array, timeout=10))
        assert np.array_equal(future.result(timeout=10), 2 * array)
        assert not client._peers._peers


def test_bytes_of_all_kinds_arrive_as_they_were(client: Client) -> None:
    for value in (b"x" * 5_000_000, bytearray(b"y" * 100_000), [b"z" * 70_000, bytearray(3)]):
        future = client.submit(lambda x: (type(x).__name__, x), value)
        assert future.result(timeout=10) == (type(value).__name__, value)


# -- What is there ---------------------------------------------------------------------------------


def test_the_client_tells_who_has_what(client: Client) -> None:
    futures = client.map(increment, range(4))
    wait(futures, timeout=10)
    holders = client.who_has(futures, timeout=5)
    held = client.has_what(timeout=5)
    assert holders.keys() == {future.key for future in futures}
    for key, addresses in holders.items():
        assert len(addresses) == 1
        assert key in held[addresses[0]]
    address = next(iter(held))
    assert client.has_what(address, timeout=5) == {address: held[address]}
    assert client.who_has([], timeout=5) == {}
    assert client.who_has(timeout=5).keys() == holders.keys()


def test_a_result_is_computed_anew_when_its_worker_dies(tmp_path: Path) -> None:
    import os
    import signal

    with Client(n_workers=2, threads_per_worker=1, memory_limit=0) as client:
        futures = client.map(np.ones, range(100_000, 100_010))
        wait(futures, timeout=20)
        pid = next(iter(client.cluster.workers.values())).pid
        os.kill(pid, signal.SIGKILL)
        sums = [int(array.sum()) for array in client.gather(futures, timeout=30)]
        assert sums == list(range(100_000, 100_010))
        wait_until(lambda: len(client.nthreads(timeout=5)) == 2)


def test_a_future_of_a_key_can_be_made_by_hand(client: Client) -> None:
    future = client.submit(increment, 41, key="known")
    wait(future, timeout=10)
    assert Future("known", client).result(timeout=10) == 42
    with pytest.raises(FutureCancelledError, match="does not know this key"):
        Future("unknown", client).result(timeout=10)
