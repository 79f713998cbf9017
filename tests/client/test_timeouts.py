"""Every wait of a client ends when its time is over, whoever has stopped answering."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, FutureCancelledError, LocalCluster, as_completed, wait
from hpcdask.errors import CommClosedError


def increment(x: int) -> int:
    return x + 1


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """As a process on a node that hangs: its connections stand, and it answers nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def assert_late(call: Callable[[], Any], within: float = 2.0) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        call()
    assert time.monotonic() - start < within


def test_a_worker_that_hangs_keeps_nobody_beyond_the_timeout() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        [worker] = cluster.workers.values()
        large = client.submit(bytes, 200_000)
        wait(large, timeout=10)
        with stopped(worker.pid):
            pending = client.submit(increment, 1)
            for call in (
                lambda: large.result(timeout=0.2),
                lambda: client.gather([large], timeout=0.2),
                lambda: client.gather([large], direct=False, timeout=0.2),
                lambda: pending.result(timeout=0.2),
                lambda: pending.exception(timeout=0.2),
                lambda: wait(pending, timeout=0.2),
                lambda: list(as_completed([pending], timeout=0.2)),
                lambda: client.scatter([b"x"], timeout=0.2),
                lambda: client.scatter([b"y"], direct=False, timeout=0.2),
                lambda: client.get({"x": (increment, 5)}, "x", timeout=0.2),
                lambda: client.run(increment, 1, timeout=0.2),
                lambda: cluster.get_logs(timeout=0.2),
            ):
                assert_late(call)
            # The scheduler answers all the same.
            assert len(client.nthreads(timeout=5)) == 1
        assert len(large.result(timeout=20)) == 200_000
        assert pending.result(timeout=10) == 2


def test_a_cluster_with_a_worker_that_hangs_closes_soon() -> None:
    cluster = LocalCluster(n_workers=2, threads_per_worker=1)
    client = Client(cluster)
    os.kill(next(iter(cluster.workers.values())).pid, signal.SIGSTOP)
    start = time.monotonic()
    client.close()
    cluster.close(timeout=10)
    assert time.monotonic() - start < 5


_SCHEDULER = """
import asyncio, sys
from hpcdask import Scheduler, Worker

async def main():
    async with Scheduler(host="127.0.0.1", scheduler_file=sys.argv[1]) as scheduler:
        async with Worker(scheduler.address, nthreads=1):
            await scheduler.finished()

asyncio.run(main())
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A scheduler with a worker in a process of its own."""
    path = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", _SCHEDULER, path], env=environment)
    wait_until(path.exists)
    yield path, process
    process.kill()
    process.wait(10)


def test_an_asynchronous_client_of_a_scheduler_that_hangs_closes_in_time(
    elsewhere: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    path, process = elsewhere

    async def use() -> None:
        client = await Client(scheduler_file=path, asynchronous=True, timeout=20)
        with stopped(process.pid):
            await client.close(timeout=1)  # raises if it takes longer

    asyncio.run(use())


def test_a_scheduler_that_hangs_keeps_nobody_beyond_the_timeout(
    elsewhere: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    path, process = elsewhere
    with Client(scheduler_file=path, timeout=5) as client:
        client.wait_for_workers(1, timeout=10)
        done = client.submit(increment, 1)
        assert done.result(timeout=10) == 2
        with stopped(process.pid):
            pending = client.submit(increment, 2)
            for call in (
                lambda: pending.result(timeout=0.2),
                lambda: client.gather([pending], timeout=0.2),
                lambda: client.scatter([1], timeout=0.2),
                lambda: client.cancel(pending, timeout=0.2),
                lambda: client.who_has(timeout=0.2),
                lambda: client.has_what(timeout=0.2),
                lambda: client.nthreads(timeout=0.2),
                lambda: client.processing(timeout=0.2),
                lambda: client.scheduler_info(timeout=0.2),
                lambda: client.run(increment, 1, timeout=0.2),
                lambda: client.run_on_scheduler(increment, 1, timeout=0.2),
                lambda: client.wait_for_workers(2, timeout=0.2),
                lambda: client.restart(timeout=0.2),
                lambda: Client(scheduler_file=path, timeout=0.3),
            ):
                assert_late(call)
            start = time.monotonic()
            with pytest.raises(CommClosedError):
                Client(client.scheduler_address, timeout=0.3, token=client._options.token)
            assert time.monotonic() - start < 2
            assert done.result(timeout=1) == 2
            start = time.monotonic()
            client.close(timeout=1)
            assert time.monotonic() - start < 2


def test_a_scheduler_that_hangs_does_not_keep_shutdown(
    elsewhere: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    path, process = elsewhere
    client = Client(scheduler_file=path, timeout=5)
    client.wait_for_workers(1, timeout=10)  # one that is just registering would end with an error
    with stopped(process.pid):
        assert_late(lambda: client.shutdown(timeout=0.3))
    client.close()
    assert process.wait(10) == 0


def test_shutdown_ends_a_cluster_elsewhere(
    elsewhere: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    path, process = elsewhere
    client = Client(scheduler_file=path, timeout=5)
    client.wait_for_workers(1, timeout=10)
    start = time.monotonic()
    client.shutdown()
    assert client.status == "closed"
    assert process.wait(10) == 0
    assert time.monotonic() - start < 3
    assert not path.exists()
    client.close()


@pytest.mark.parametrize("end", ["close", "kill"])
def test_futures_of_a_scheduler_that_ends_are_over(
    elsewhere: tuple[Path, subprocess.Popen[bytes]], end: str, gate: Path
) -> None:
    path, process = elsewhere
    patience = 0 if end == "kill" else 60  # one that says that it ends is not looked for
    with Client(scheduler_file=path, timeout=5, reconnect_timeout=patience) as client:
        pending, large = client.submit(wait_for_file, gate), client.submit(bytes, 200_000)
        wait_until(lambda: any(client.processing(timeout=5).values()))
        errors: list[BaseException | None] = []
        asked = (
            pending.result,
            lambda: client.gather([pending, large]),
            lambda: wait([pending]).done.pop().result(),
            lambda: [future.result() for future in as_completed([pending])],
            lambda: client.run(wait_for_file, gate),
            lambda: client.wait_for_workers(5),
        )
        threads = [threading.Thread(target=lambda f=f: errors.append(_error(f))) for f in asked]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(pending._state.waiters or ()) == 4)
        if end == "kill":
            process.kill()
        else:
            client.run_on_scheduler(_close_soon, timeout=5)
        for thread in threads:
            thread.join(10)
        assert len(errors) == len(asked), "someone still waits"
        assert {type(exc) for exc in errors} == {FutureCancelledError, CommClosedError}
        gone = [str(exc) for exc in errors if "the scheduler is gone" in str(exc)]
        # A scheduler that closes ends its worker first, and tells who has called a function there.
        assert len(gone) >= len(asked) - (end == "close"), errors
        with pytest.raises(CommClosedError, match="the scheduler is gone"):
            client.submit(increment, 5)


def _error(ask: Callable[[], object]) -> BaseException | None:
    try:
        ask()
    except BaseException as exc:
        return exc
    return None


def _close_soon(dask_scheduler) -> None:
    dask_scheduler.loop.create_task(dask_scheduler.close("for a test"))


def test_a_wait_can_be_interrupted(client: Client, gate: Path) -> None:
    future = client.submit(wait_for_file, gate)
    for ask in (
        future.result,
        future.exception,
        lambda: client.gather([future]),
        lambda: wait([future]),
        lambda: next(as_completed([future])),
        lambda: client.wait_for_workers(99),
    ):
        interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            ask()
        assert time.monotonic() - start < 2
        interrupt.join()
    # Only as_completed goes on listening, since it may be asked again.
    wait_until(lambda: len(future._state.waiters or ()) <= 1, 2)
    gate.touch()
    assert future.result(timeout=10) is None
