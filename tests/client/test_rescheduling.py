"""Tasks that raise `Reschedule`, on a real cluster."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from waiting import wait_until

from hpcdask import Client, Reschedule, get_worker


def run_on(address: str, path: Path) -> int:
    """Note each run, and refuse all workers but one."""
    with path.open("a") as log:
        log.write(get_worker().address + "\n")
    if get_worker().address != address:
        raise Reschedule
    return 1


def test_a_task_finds_the_worker_that_it_wants(client: Client, tmp_path: Path) -> None:
    addresses = sorted(client.nthreads(timeout=5))
    futures = [
        client.submit(run_on, address, tmp_path / str(n), pure=False)
        for n, address in enumerate(addresses)
    ]
    assert client.gather(futures, timeout=20) == [1, 1]
    for log in tmp_path.iterdir():
        places = log.read_text().split()
        assert all(a != b for a, b in itertools.pairwise(places)), places


def test_what_a_task_waits_for_may_have_been_submitted_after_it(client: Client, gate: Path) -> None:
    def until_there(path: Path) -> str:
        if not path.exists():
            raise Reschedule
        return "there"

    async def until_there_too(path: Path) -> str:
        await asyncio.sleep(0)
        return until_there(path)

    [where, _] = sorted(client.nthreads(timeout=5))
    on_one = {"workers": where, "pure": False}
    waiting = [client.submit(f, gate, **on_one) for f in [until_there] * 20 + [until_there_too]]
    after = client.submit(str.upper, waiting[0])
    client.submit(gate.touch, **on_one).result(timeout=20)
    assert client.gather([*waiting, after], timeout=30) == ["there"] * 21 + ["THERE"]


def test_a_task_that_rests_may_be_cancelled(client: Client) -> None:
    def never() -> None:
        raise Reschedule

    future = client.submit(never)
    wait_until(lambda: any(client.run_on_scheduler(_resting, timeout=5)))
    client.cancel(future, timeout=5)
    assert future.cancelled()


def _resting(dask_scheduler) -> list[str]:
    return [task.key for task in dask_scheduler.state.resting]


def test_elsewhere_it_is_an_error_as_any_other(client: Client) -> None:
    def call() -> None:
        raise Reschedule("not here")

    with pytest.raises(Reschedule, match="not here"):
        client.run(call, timeout=10)
