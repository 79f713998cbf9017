"""Keys that are used again, futures that travel, and clients that end: nothing old is believed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import (
    Client,
    CommClosedError,
    Future,
    FutureCancelledError,
    LocalCluster,
    as_completed,
    get_client,
    wait,
)
from hpcdask.client.future import FutureState


@pytest.fixture(scope="module")
def cluster() -> Any:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Any:
    with Client(cluster.scheduler_address, token=cluster._token) as client:
        yield client


def constant(value: Any) -> Any:
    return value


def gathered(future: Future) -> Any:
    return future.client.gather([future])


def completed(future: Future) -> Any:
    [same] = as_completed([future])
    return same.result()


def test_a_key_that_is_used_again_has_the_value_of_its_new_task(client: Client) -> None:
    for round_number in range(50):
        future = client.submit(constant, ("old", round_number), key="again")
        del future
        future = client.submit(constant, ("new", round_number), key="again")
        assert future.result(timeout=10) == ("new", round_number)


def test_each_graph_has_its_own_values_although_they_share_keys(client: Client) -> None:
    values = [client.get({"x": n, "y": (constant, "x")}, "y", timeout=10) for n in range(20)]
    assert values == list(range(20))


def leaf(n: int) -> int:
    return n * 10


def make_futures() -> list[Any]:
    return [get_client().submit(leaf, n, pure=False) for n in range(3)]


def large() -> bytes:
    return bytes(20_000_000)


def pass_on(futures: list[Any], ballast: bytes) -> list[Any]:
    return futures


def test_futures_within_a_value_survive_its_move_to_another_worker(client: Client) -> None:
    ballasts = [client.submit(large, pure=False) for _ in range(4)]
    wait(ballasts, timeout=20)
    made = client.submit(make_futures, pure=False)
    wait(made, timeout=20)
    holders = client.who_has([made, *ballasts])
    elsewhere = [b for b in ballasts if holders[b.key] != holders[made.key]]
    # The ballast is what moves least, so the futures do.
    passed = client.submit(pass_on, made, elsewhere[0], pure=False)
    del made
    futures = passed.result(timeout=20)
    assert client.gather(futures, timeout=20) == [0, 10, 20]


def test_a_tuple_may_be_a_key_as_in_graphs(client: Client) -> None:
    assert client.submit(constant, 1, key=("x", 0)).result(timeout=10) == 1


@pytest.mark.parametrize("options", [{"retries": "many"}, {"priority": "high"}])
def test_an_option_that_cannot_be_is_refused_and_the_client_lives_on(
    client: Client, options: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError)):
        client.submit(constant, 1, pure=False, **options)
    assert client.submit(constant, 2, retries=None, pure=False).result(timeout=10) == 2


def test_a_closed_client_gives_out_no_future(cluster: LocalCluster) -> None:
    client = Client(cluster.scheduler_address, token=cluster._token)
    client.close()
    for _ in range(2):
        with pytest.raises(CommClosedError):
            client.submit(constant, 1)


def test_a_gather_under_way_ends_when_its_client_is_closed(cluster: LocalCluster) -> None:
    client = Client(cluster.scheduler_address, token=cluster._token)
    futures = [client.submit(large, pure=False) for _ in range(6)]
    wait(futures, timeout=20)
    ends = []

    def gather() -> None:
        try:
            ends.append(client.gather(futures))
        except Exception as exc:
            ends.append(exc)

    thread = threading.Thread(target=gather)
    thread.start()
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(ends) == 1


def test_a_waiter_is_called_once_if_the_end_comes_while_it_registers() -> None:
    state, calls = FutureState("x"), []

    def first(_: FutureState) -> None:
        # As another thread would that registers while `end` is under way.
        state.when_done(calls.append)

    state.when_done(first)
    state.when_done(calls.append)
    state.end("finished")
    assert len(calls) == 2


@pytest.mark.parametrize("wait_for", [Future.result, Future.exception, wait, gathered, completed])
def test_who_waits_for_a_future_that_another_thread_releases_is_told(
    client: Client, gate: Path, wait_for: Any
) -> None:
    future = client.submit(wait_for_file, gate)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for, future)
        wait_until(lambda: future._state.waiters)
        future.release()
        told = waiting.exception(timeout=10) or waiting.result()
    assert isinstance(told, FutureCancelledError)
    assert "released" in str(told)
    gate.touch()


def test_a_fetch_ends_when_another_thread_releases_the_future(client: Client) -> None:
    future = client.submit(bytes, 1_000_000)
    wait(future, timeout=10)
    state = future._state
    future.release()
    wait_until(lambda: future.key not in client._futures)
    with pytest.raises(FutureCancelledError, match="released"):
        client._sync(client._blobs([state], "raise", 10, None))


def test_as_completed_forgets_what_it_was_told_to_clear(client: Client) -> None:
    old = client.submit(constant, "old", pure=False)
    iterator = as_completed([old])
    old.result(timeout=10)
    iterator.clear()
    new = client.submit(constant, "new", pure=False)
    iterator.add(new)
    assert [future.key for future in iterator] == [new.key]


def leave() -> None:
    raise SystemExit(1)


def test_a_callback_that_exits_does_not_keep_the_next_from_being_called(client: Client) -> None:
    called = threading.Event()
    future = client.submit(constant, 1, pure=False)
    future.add_done_callback(lambda _: leave())
    future.add_done_callback(lambda _: called.set())
    assert called.wait(10)


class Boastful:
    nbytes = 2**70


def test_a_value_that_claims_an_absurd_size_costs_no_worker(client: Client) -> None:
    future = client.submit(Boastful, pure=False)
    wait(future, timeout=10)
    assert future.status == "finished"
    assert len(client.nthreads()) == 2


def test_no_time_is_enough_for_workers_that_are_there(cluster: LocalCluster) -> None:
    cluster.wait_for_workers(2, timeout=0)


def test_get_refuses_a_keyword_that_it_does_not_know(client: Client) -> None:
    with pytest.raises(TypeError, match="retires"):
        client.get({"x": 1}, "x", retires=3)
