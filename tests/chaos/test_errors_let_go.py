"""An error that a program has caught holds none of the futures that were around it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import pytest
from chaos_ready import READY
from waiting import wait_until

from hpcdask import Client, LocalCluster


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
@pytest.mark.xfail(not READY["errors"], reason="errors are in a cycle with frames", strict=False)
@pytest.mark.parametrize("how", ["gather", "result"])
def test_a_caught_error_lets_go_of_futures(how: str) -> None:
    def use(client: Client) -> None:
        failing, other = client.submit(fail), client.submit(int, 3)
        with contextlib.suppress(RuntimeError):
            if how == "gather":
                client.gather([failing, other])
            else:
                failing.result()

    with LocalCluster(1, 1) as cluster, Client(cluster) as client:
        use(client)
        wait_until(lambda: not cluster.scheduler.state.tasks, 5, "the scheduler forgets all tasks")
