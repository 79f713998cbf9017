"""Clients, clusters and futures on a running event loop."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from waiting import on_a_loop, wait_for_file

from hpcdask import (
    Client,
    FutureCancelledError,
    LocalCluster,
    Nanny,
    Scheduler,
    Worker,
    as_completed,
    wait,
)
from hpcdask.errors import CommClosedError, WaitTimeoutError


def increment(x: int) -> int:
    return x + 1


def fail(exc: BaseException) -> None:
    raise exc


@on_a_loop
async def test_everything_is_awaited() -> None:
    async with (
        LocalCluster(n_workers=1, processes=False, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        assert client.asynchronous
        future = client.submit(increment, 1)
        assert await future == 2
        assert await future.result(timeout=10) == 2
        assert await future.exception() is None
        assert await future.traceback() is None
        futures = client.map(increment, range(5))
        assert await client.gather(futures) == [1, 2, 3, 4, 5]
        data = await client.scatter([1, 2])
        assert await client.gather({"a": data[0]}) == {"a": 1}
        assert await client.get({"x": 1, "y": (increment, "x")}, "y") == 2
        assert (await wait(futures)).not_done == set()
        assert len(await client.who_has(futures)) == 5
        assert len(await client.has_what()) == 1
        assert len(await client.nthreads()) == 1
        assert (await client.scheduler_info())["address"] == cluster.scheduler_address
        assert list((await client.run(increment, 1)).values()) == [2]
        assert await client.run_on_scheduler(increment, 1) == 2
        await client.wait_for_workers(1, timeout=5)
        values = [v async for _, v in as_completed(futures, with_results=True)]
        assert sorted(values) == [1, 2, 3, 4, 5]


@on_a_loop
async def test_clients_and_services_share_a_loop() -> None:
    async with (
        Scheduler(host="127.0.0.1") as scheduler,
        Worker(scheduler.address, nthreads=1),
        Nanny(scheduler.address, nthreads=1),
        Client(scheduler.address, asynchronous=True) as client,
    ):
        assert len(scheduler.workers) == 2
        futures = client.map(increment, range(100))
        assert await client.submit(sum, futures) == 5050


@on_a_loop
async def test_a_client_alone_makes_a_cluster_and_ends_it() -> None:
    client = await Client(asynchronous=True, n_workers=1, threads_per_worker=1)
    assert await client.submit(increment, 1) == 2
    await client.close()
    assert client.status == "closed"
    assert client.cluster.status == "closed"
    await client.close()


@on_a_loop
async def test_calls_may_come_before_the_connection_stands() -> None:
    async with Scheduler(host="127.0.0.1") as scheduler, Worker(scheduler.address, nthreads=1):
        client = Client(scheduler.address, asynchronous=True)
        future = client.submit(increment, 1)
        assert await future == 2
        await client.close()
        never_awaited = Client(scheduler.address, asynchronous=True)
        await never_awaited.close()
        assert never_awaited.status == "closed"


@on_a_loop
async def test_errors_arrive_as_what_they_are(tmp_path: Path) -> None:
    async with Client(asynchronous=True, n_workers=1, processes=False) as client:
        for exc in (ValueError(1), TimeoutError(2), SyntaxError(3)):
            future = client.submit(fail, exc)
            with pytest.raises(type(exc)) as caught:
                await future
            assert caught.value.args == exc.args
            assert type(await future.exception()) is type(exc)
            with pytest.raises(type(exc)):
                await client.gather([future])
            with pytest.raises(type(exc)):
                await client.run(fail, exc, timeout=5)
            [(_, (kind, given, _))] = [
                pair async for pair in as_completed([future], with_results=True, raise_errors=False)
            ]
            assert (kind, given.args) == (type(exc), exc.args)
            with pytest.raises(type(exc)):
                async for _ in as_completed([future], with_results=True):
                    pass
        slow = client.submit(wait_for_file, tmp_path / "gate")
        await slow.cancel(reason="enough")
        with pytest.raises(FutureCancelledError, match="enough"):
            await slow
        with pytest.raises(FutureCancelledError, match="enough"):
            await wait([slow])
        [(_, given)] = [pair async for pair in as_completed([slow], with_results=True)]
        assert isinstance(given, FutureCancelledError)
        (tmp_path / "gate").touch()


@on_a_loop
async def test_futures_live_while_they_are_moved_or_retried() -> None:
    async with Client(asynchronous=True, n_workers=2, processes=False) as client:
        await client.replicate(client.submit(abs, -1))
        await client.rebalance([client.submit(abs, -2)])
        with pytest.raises(ValueError, match="3"):
            await client.replicate(client.submit(fail, ValueError(3)))


@on_a_loop
async def test_waits_end_in_time(tmp_path: Path) -> None:
    async with Client(asynchronous=True, n_workers=1, processes=False) as client:
        gate = tmp_path / "gate"
        future = client.submit(wait_for_file, gate)
        start = time.monotonic()
        for late in (
            future.result(timeout=0.05),
            future.exception(timeout=0.05),
            client.gather([future], timeout=0.05),
            wait([future], timeout=0.05),
            client.wait_for_workers(9, timeout=0.05),
            client.run(wait_for_file, gate, timeout=0.05),
            as_completed([future], timeout=0.05).__anext__(),
        ):
            with pytest.raises(WaitTimeoutError):
                await late
        assert time.monotonic() - start < 5
        gate.touch()
        await future


@on_a_loop
async def test_a_failed_connection_is_told_to_who_awaits_it() -> None:
    with pytest.raises(CommClosedError, match="cannot reach"):
        await Client("tcp://127.0.0.1:1", asynchronous=True, timeout=0.2, token="ab" * 32)
    client = Client("tcp://127.0.0.1:1", asynchronous=True, timeout=0.2, token="ab" * 32)
    future = client.submit(increment, 1)
    with pytest.raises(FutureCancelledError, match="could not connect"):
        await future
    with pytest.raises(CommClosedError):
        await client
    await client.close()


@on_a_loop
async def test_blocking_use_is_refused_in_words() -> None:
    async with Client(asynchronous=True, n_workers=1, processes=False) as client:
        with pytest.raises(TypeError, match="async with"), client:
            pass


@on_a_loop
async def test_a_blocking_client_can_be_used_in_a_loop_that_is_not_its_own() -> None:
    # As in a notebook, whose cells run on a loop.
    with Client(n_workers=1, processes=False) as client:
        assert not client.asynchronous
        assert client.submit(increment, 1).result(timeout=10) == 2
        assert await asyncio.to_thread(client.submit(increment, 2).result, 10) == 3
