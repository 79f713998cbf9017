"""Waiting for some, for all, or one by one."""

from __future__ import annotations

import threading
import time
import traceback
from pathlib import Path

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import (
    FIRST_COMPLETED,
    Client,
    FutureCancelledError,
    LocalCluster,
    SerializationError,
    as_completed,
    fire_and_forget,
    wait,
)
from hpcdask.errors import WaitTimeoutError


def increment(x: int) -> int:
    return x + 1


def fail(x: object) -> None:
    raise ValueError(x)


def touch(path: str | Path) -> None:
    Path(path).touch()


def test_futures_come_as_they_complete(client: Client, gate: Path) -> None:
    slow = client.submit(wait_for_file, gate, "slow")
    quick = client.map(increment, range(3))
    seen = as_completed([slow, *quick])
    first = {next(seen) for _ in range(3)}
    assert first == set(quick)
    assert seen.count() == 1
    assert not seen.has_ready()
    gate.touch()
    assert next(seen) is slow
    assert seen.is_empty()
    with pytest.raises(StopIteration):
        next(seen)


def test_futures_may_be_added_while_it_runs(client: Client) -> None:
    seen = as_completed([client.submit(increment, 0)])
    values = []
    for future in seen:
        values.append(future.result())
        if len(values) < 5:
            seen.add(client.submit(increment, values[-1]))
        elif len(values) == 5:
            seen.update(client.map(increment, [10, 20]))
    assert values[:5] == [1, 2, 3, 4, 5]
    assert sorted(values[5:]) == [11, 21]


def test_values_come_along_if_asked_for(client: Client) -> None:
    pairs = as_completed(client.map(increment, range(5)), with_results=True)
    assert sorted(value for _, value in pairs) == [1, 2, 3, 4, 5]
    large = as_completed(client.map(bytes, [100_000, 200_000]), with_results=True)
    assert sorted(len(value) for _, value in large) == [100_000, 200_000]


def test_errors_are_raised_or_given_as_asked(client: Client, gate: Path) -> None:
    bad = client.submit(fail, 1)
    assert [future.status for future in as_completed([bad])] == ["error"]
    with pytest.raises(ValueError, match="1"):
        list(as_completed([bad], with_results=True))
    with pytest.raises(ValueError, match="1"):
        as_completed([bad], with_results=True).next_batch()
    [(future, (kind, exc, tb))] = as_completed([bad], with_results=True, raise_errors=False)
    assert future is bad
    assert kind is type(exc) is ValueError
    assert "in fail" in "".join(traceback.format_tb(tb))


def test_of_a_value_that_cannot_be_sent_the_error_is_given(client: Client) -> None:
    stays = client.submit(threading.Lock)
    [(_, (kind, *_))] = as_completed([stays], with_results=True, raise_errors=False)
    assert kind is SerializationError


def test_who_cancels_the_rest_goes_on_with_the_loop(client: Client, gate: Path) -> None:
    cancelled = client.submit(wait_for_file, gate)
    cancelled.cancel()
    for raise_errors in (True, False):
        pairs = as_completed([cancelled], with_results=True, raise_errors=raise_errors)
        [(_, exc)] = pairs
        assert isinstance(exc, FutureCancelledError)


def test_batches_are_what_has_come_since(client: Client, gate: Path) -> None:
    quick, slow = client.map(increment, range(20)), client.submit(wait_for_file, gate)
    wait(quick, timeout=10)
    batches = as_completed([slow, *quick]).batches()
    assert set(next(batches)) == set(quick)
    gate.touch()
    assert next(batches) == [slow]
    assert list(batches) == []
    assert as_completed(quick).next_batch(block=False) == quick
    with_values = list(as_completed(quick, with_results=True).batches())
    assert sorted(value for batch in with_values for _, value in batch) == list(range(1, 21))


def test_as_completed_ends_in_time(client: Client, gate: Path) -> None:
    start = time.monotonic()
    seen = as_completed([client.submit(wait_for_file, gate)], timeout=0.1)
    with pytest.raises(WaitTimeoutError, match=r"1 futures are not done within 0\.1 s"):
        next(seen)
    with pytest.raises(TimeoutError):
        next(seen)
    assert time.monotonic() - start < 2


def test_as_completed_can_be_cleared(client: Client, gate: Path) -> None:
    seen = as_completed([client.submit(wait_for_file, gate), client.submit(increment, 1)])
    seen.clear()
    assert list(seen) == []
    assert [f.result() for f in as_completed([client.submit(increment, 2)])] == [3]


def test_as_completed_of_nothing_is_empty() -> None:
    assert list(as_completed([])) == []
    assert list(as_completed()) == []


def test_wait_sorts_what_is_done_from_what_is_not(client: Client, gate: Path) -> None:
    good, bad, slow = (
        client.submit(increment, 1),
        client.submit(fail, 1),
        client.submit(wait_for_file, gate),
    )
    done, not_done = wait([slow, good], return_when=FIRST_COMPLETED, timeout=10)
    assert (done, not_done) == ({good}, {slow})
    assert wait({"a": [good, bad]}, timeout=10).done == {good, bad}
    with pytest.raises(WaitTimeoutError, match=r"1 of 3 futures are not done within 0\.1 s"):
        wait([good, bad, slow], timeout=0.1)
    gate.touch()
    assert wait([good, bad, slow], timeout=10).not_done == set()
    assert wait([], timeout=1) == (set(), set())
    with pytest.raises(ValueError, match="return_when"):
        wait([good], return_when="SOME")


def test_wait_complains_of_what_was_cancelled(client: Client, gate: Path) -> None:
    good, cancelled = client.submit(increment, 1), client.submit(wait_for_file, gate)
    cancelled.cancel(reason="no more time")
    with pytest.raises(FutureCancelledError, match=r"1 futures .*wait_for_file.*no more time"):
        wait([good, cancelled], timeout=10)


def test_a_task_that_is_fired_and_forgotten_runs_without_its_future(
    cluster: LocalCluster, gate: Path, tmp_path: Path
) -> None:
    made = [tmp_path / "a", tmp_path / "b"]
    with Client(cluster) as client:
        held = client.submit(wait_for_file, gate)
        futures = [client.submit(lambda _, p: touch(p), held, path) for path in made]
        fire_and_forget(futures)
        del held, futures
    assert not any(path.exists() for path in made)
    gate.touch()
    wait_until(lambda: all(path.exists() for path in made))
    wait_until(lambda: not cluster.scheduler.state.tasks, 20)


class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self, n: int) -> int:
        self.n += n
        return self.n

    def fail(self) -> None:
        raise ValueError(self.n)


def test_calls_of_actors_come_as_they_complete_among_others(client: Client) -> None:
    counter = client.submit(Counter, actor=True).result(timeout=10)
    calls = [counter.add(1), counter.add(1), client.submit(increment, 4)]
    assert set(as_completed(calls)) == set(calls)
    pairs = list(as_completed([counter.add(1), *calls[2:]], with_results=True))
    assert sorted(value for _, value in pairs) == [3, 5]
    with pytest.raises(ValueError, match="3"):
        list(as_completed([counter.fail()], with_results=True))
    [[(_, exc)]] = as_completed([counter.fail()], with_results=True, raise_errors=False).batches()
    assert isinstance(exc, ValueError)
