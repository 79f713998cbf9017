"""Tasks that nothing can run: asked for, and named by the errors of waits that took too long.

The scheduler's half is a stand-in here, which gives a reason to every key that is asked about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from hpcdask import Client, LocalCluster, wait
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.errors import WaitTimeoutError
from hpcdask.messages import Reply, RetireWorkers
from hpcdask.scheduler import _REQUESTS
from hpcdask.snapshots import INSPECTIONS


@pytest.fixture(scope="module")
def lonely() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=0) as cluster:
        yield cluster


@pytest.fixture
def client(lonely: LocalCluster) -> Iterator[Client]:
    with Client(lonely) as client:
        yield client


def no_gpu(state: SchedulerState, keys: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(keys or state.tasks, "no worker has GPU")


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INSPECTIONS, "no-worker", no_gpu)


@pytest.mark.usefixtures("knowing")
def test_what_cannot_run_is_told_with_its_reason(client: Client) -> None:
    x, y = client.submit(abs, -1, key="x"), client.submit(abs, -2, key="y")
    assert client.unrunnable(timeout=5) == dict.fromkeys("xy", "no worker has GPU")
    assert client.unrunnable([y], timeout=5) == {"y": "no worker has GPU"}
    assert client.unrunnable([], timeout=5) == {}
    assert x.status == "pending"


WAYS: dict[str, Callable[[Client, Any], Any]] = {
    "result": lambda client, future: future.result(timeout=0.5),
    "exception": lambda client, future: future.exception(timeout=0.5),
    "gather": lambda client, future: client.gather([future], timeout=0.5),
    "wait": lambda client, future: wait([future], timeout=0.5),
}


@pytest.mark.usefixtures("knowing")
@pytest.mark.parametrize("way", WAYS)
def test_a_wait_that_took_too_long_tells_the_reason(client: Client, way: str) -> None:
    future = client.submit(abs, -1, key="x")
    with pytest.raises(WaitTimeoutError, match="x cannot run: no worker has GPU"):
        WAYS[way](client, future)


@pytest.mark.usefixtures("knowing")
@pytest.mark.parametrize("way", WAYS)
def test_awaiting_that_took_too_long_tells_it_too(lonely: LocalCluster, way: str) -> None:
    async def work() -> None:
        place = lonely.place
        async with Client(place.address, token=place.token, asynchronous=True) as client:
            await WAYS[way](client, client.submit(abs, -1, key="x"))

    with pytest.raises(WaitTimeoutError, match="x cannot run: no worker has GPU"):
        asyncio.run(work())


def test_without_a_reason_the_error_is_as_ever(client: Client) -> None:
    with pytest.raises(WaitTimeoutError, match=r"x is not done within 0.2 s$"):
        client.submit(abs, -1, key="x").result(timeout=0.2)


@pytest.mark.usefixtures("knowing")
def test_who_only_looks_does_not_ask(client: Client) -> None:
    with pytest.raises(WaitTimeoutError, match=r"x is not done within 0 s$"):
        client.submit(abs, -1, key="x").result(timeout=0)


# -- Retiring --------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RetireWorkers]:
    asked: list[RetireWorkers] = []

    async def retire(scheduler: Any, name: str, msg: RetireWorkers) -> Reply:
        asked.append(msg)
        return Reply(msg.request, tuple(f"tcp://{worker}" for worker in msg.workers))

    monkeypatch.setitem(_REQUESTS, RetireWorkers, retire)
    return asked


def test_workers_are_retired_by_address_and_name(
    client: Client, asked: list[RetireWorkers]
) -> None:
    assert client.retire_workers(["a", "b"], names="c", timeout="7s") == [
        "tcp://a",
        "tcp://b",
        "tcp://c",
    ]
    assert [(msg.workers, msg.timeout) for msg in asked] == [(("a", "b", "c"), 7.0)]


def test_nobody_is_retired_by_accident(client: Client, asked: list[RetireWorkers]) -> None:
    with pytest.raises(ValueError, match="say which workers"):
        client.retire_workers()
    with pytest.raises(ValueError, match="close_workers=False"):
        client.retire_workers("a", close_workers=False)
    assert client.retire_workers([]) == []
    assert asked == []
