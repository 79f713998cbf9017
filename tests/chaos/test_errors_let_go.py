"""An error that a program has caught holds none of the futures that were around it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator

import pytest
from waiting import wait_until

from hpcdask import Client, FutureCancelledError, LocalCluster


def fail() -> None:
    raise RuntimeError("on purpose")


@pytest.fixture
def no_cyclic_collection() -> Iterator[None]:
    """In an idle program nothing starts a collection: what is in a cycle stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_cyclic_collection")
@pytest.mark.parametrize("how", ["gather", "result", "timeout", "cancelled", "call"])
def test_a_caught_error_lets_go_of_futures(how: str) -> None:
    def use(client: Client) -> None:
        failing, other = client.submit(fail), client.submit(int, 3)
        with contextlib.suppress(RuntimeError, TimeoutError, FutureCancelledError):
            if how == "gather":
                client.gather([failing, other])
            elif how == "timeout":
                client.gather([client.submit(time.sleep, 0.5), other], timeout=0.1)
            elif how == "call":
                client.run_on_scheduler(fail)
            elif how == "cancelled":
                failing.cancel()
                failing.result()
            else:
                failing.result()

    with LocalCluster(1, 1) as cluster, Client(cluster) as client:
        use(client)
        wait_until(lambda: not cluster.scheduler.state.tasks, 5, "the scheduler forgets all tasks")


@pytest.mark.usefixtures("no_cyclic_collection")
@pytest.mark.parametrize("how", ["gather", "result"])
def test_so_does_one_that_was_awaited(how: str) -> None:
    async def use(client: Client) -> None:
        failing, other = client.submit(fail), client.submit(int, 3)
        with contextlib.suppress(RuntimeError):
            await (client.gather([failing, other]) if how == "gather" else failing)

    async def main() -> None:
        async with (
            LocalCluster(1, 1, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            await use(client)
            deadline = time.monotonic() + 5
            while cluster.scheduler.state.tasks:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    asyncio.run(main())
