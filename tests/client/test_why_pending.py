"""Tasks that nothing can run are told with the reason, also by waits that took too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, LocalCluster, wait
from hpcdask.errors import WaitTimeoutError


def test_what_cannot_run_is_told_with_its_reason(client: Client) -> None:
    x = client.submit(abs, -1, key="x", resources={"GPU": 1})
    y = client.submit(abs, -2, key="y", resources={"GPU": 1})
    z = client.submit(abs, -3, key="z")
    assert z.result(timeout=10) == 3
    reasons = client.unrunnable(timeout=5)
    assert list(reasons) == [x.key, y.key]
    assert all("GPU" in reason for reason in reasons.values())
    assert list(client.unrunnable([y, z], timeout=5)) == ["y"]


def test_of_no_futures_there_is_nothing_to_tell(client: Client) -> None:
    assert client.unrunnable([], timeout=5) == {}


WAYS: dict[str, Callable[[Client, Any], Any]] = {
    "result": lambda client, future: future.result(timeout=2),
    "exception": lambda client, future: future.exception(timeout=2),
    "gather": lambda client, future: client.gather([future], timeout=2),
    "wait": lambda client, future: wait([future], timeout=2),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_wait_that_took_too_long_tells_the_reason(client: Client, way: str) -> None:
    future = client.submit(abs, -1, key="x", resources={"GPU": 1})
    with pytest.raises(WaitTimeoutError, match=r"x cannot run: .*GPU"):
        WAYS[way](client, future)


@pytest.mark.parametrize("way", WAYS)
def test_awaiting_that_took_too_long_tells_it_too(cluster: LocalCluster, way: str) -> None:
    async def work() -> None:
        place = cluster.place
        async with Client(place.address, token=place.token, asynchronous=True) as client:
            await WAYS[way](client, client.submit(abs, -1, key="x", resources={"GPU": 1}))

    with pytest.raises(WaitTimeoutError, match=r"x cannot run: .*GPU"):
        asyncio.run(work())


def test_of_a_task_that_runs_there_is_no_reason(client: Client, gate: Path) -> None:
    future = client.submit(wait_for_file, gate, key="x")
    with pytest.raises(WaitTimeoutError, match=r"x is not done within 0.5 s$"):
        future.result(timeout=0.5)


def test_who_only_looks_does_not_ask(client: Client) -> None:
    future = client.submit(abs, -1, key="x", resources={"GPU": 1})
    with pytest.raises(WaitTimeoutError, match=r"x is not done within 0 s$"):
        future.result(timeout=0)


# -- Retiring --------------------------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[Client]:
    with Client(n_workers=3, threads_per_worker=1, processes=False) as client:
        yield client


@pytest.mark.parametrize("by_name", [True, False])
def test_workers_are_retired_without_loss(own: Client, by_name: bool) -> None:
    data = own.scatter(list(range(30)))
    first, second, third = own.cluster.workers.values()
    if by_name:
        gone = own.retire_workers(names=[first.name, second.name], timeout=20)
    else:
        gone = own.retire_workers([first.address, second.address], timeout=20)
    assert set(gone) == {first.address, second.address}
    wait_until(lambda: list(own.nthreads(timeout=5)) == [third.address])
    assert own.gather(data, timeout=20) == list(range(30))


def test_nobody_is_retired_by_accident(client: Client) -> None:
    with pytest.raises(ValueError, match="say which workers"):
        client.retire_workers()
    with pytest.raises(ValueError, match="close_workers=False"):
        client.retire_workers("a", close_workers=False)
    assert client.retire_workers([]) == {}
    known = next(iter(client.nthreads(timeout=5)))
    with pytest.raises(ValueError, match="no worker has the address or name 'junk', 'stuff';"):
        client.retire_workers(["junk", known], names="stuff")
    assert len(client.nthreads(timeout=5)) == 2
