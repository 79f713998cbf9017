"""Programs as they were written for the first versions of dask.distributed."""

from __future__ import annotations

import asyncio
import os
import threading

import psutil
import pytest
from tornado.ioloop import IOLoop
from waiting import wait_until

from hpcdask import Client, LocalCluster, Nanny, Scheduler, Worker, rpc
from hpcdask.errors import AuthenticationError, CommClosedError, ConfigError


@pytest.fixture
def loop():
    """A tornado loop in a thread of its own, as these programs have it."""
    made = []

    def run():
        async def forever():
            made.append(IOLoop.current())
            await stop.wait()

        stop = asyncio.Event()
        stops.append(stop)
        asyncio.run(forever())

    stops = []
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: made, 10)
    yield made[0]
    made[0].add_callback(stops[0].set)
    thread.join(10)


def on(loop, work):
    return asyncio.run_coroutine_threadsafe(work, loop.asyncio_loop).result(20)


@pytest.mark.parametrize("kind", [Worker, Nanny])
def test_start_returns_when_the_service_has_started_on_a_loop_elsewhere(loop, kind):
    scheduler = Scheduler(loop=loop)
    assert scheduler.start(0) is scheduler
    port = scheduler._listeners[-1].address.rpartition(":")[2]
    worker = kind("127.0.0.1", int(port), loop=loop, nthreads=1)
    worker.start(0)
    try:
        with Client(f"127.0.0.1:{port}") as client:
            assert client.submit(pow, 2, 10).result(timeout=20) == 1024
            assert rpc("127.0.0.1", int(port)).terminate() == "OK"
    finally:
        on(loop, worker.close())
        on(loop, scheduler.close())


def test_start_takes_an_address(loop):
    scheduler = Scheduler(loop=loop)
    scheduler.start("tcp://127.0.0.1:0")
    assert scheduler.address.startswith("tcp://127.0.0.1:")
    worker = Worker(scheduler.address, loop=loop, nthreads=1)
    worker.start("tcp://127.0.0.1:0")
    assert worker.address.startswith("tcp://127.0.0.1:")
    on(loop, worker.close())
    on(loop, scheduler.close())


def test_a_loop_that_does_not_run_is_said():
    idle = asyncio.new_event_loop()
    with pytest.raises(RuntimeError, match="does not run: start it in a thread"):
        Scheduler(loop=idle).start(0)
    idle.close()


def test_an_error_at_the_start_is_raised_there(loop):
    with pytest.raises(ConfigError, match="no address"):
        Scheduler(loop=loop).start("tcp://one two:3")


def test_a_local_cluster_without_nannies_runs_in_this_process():
    with LocalCluster(nanny=False, n_workers=2, threads_per_worker=1) as cluster:
        with Client(cluster) as client:
            assert set(client.run(os.getpid).values()) == {os.getpid()}
        assert len(cluster.workers) == 2
        assert cluster.scheduler.address


def test_rpc_terminates_a_worker_with_its_nanny(home):
    scheduler = home.hpc_dask("scheduler", "--port", "0", "--scheduler-file", "s.json")
    scheduler.line("Scheduler at")
    commands = [
        home.hpc_dask("worker", "--scheduler-file", "s.json", option)
        for option in ("--nanny", "--no-nanny")
    ]
    with Client(scheduler_file=home.folder / "s.json") as client:
        client.wait_for_workers(2, timeout=30)
        for worker in client.scheduler_info()["workers"]:
            assert rpc(worker, token=home.token).terminate() == "OK"
        assert [command.code() for command in commands] == [0, 0]
        with pytest.raises(AuthenticationError):
            rpc(client.scheduler_address, token=b"x" * 32).terminate()
        assert scheduler.process.poll() is None
        address = client.scheduler_address
    assert rpc(ip=address, token=home.token).terminate() == "OK"
    assert scheduler.code() == 0
    with pytest.raises(CommClosedError):
        rpc(address, token=home.token, timeout=1).terminate()


def test_rpc_is_awaited_on_a_loop(home):
    scheduler = home.hpc_dask("scheduler", "--port", "0", "--scheduler-file", "s.json")
    address = scheduler.line(r"Scheduler at: (\S+)")

    async def end():
        async with rpc(address, token=home.token) as remote:
            return await remote.terminate()

    assert asyncio.run(end()) == "OK"
    assert scheduler.code() == 0
    assert not psutil.pid_exists(scheduler.process.pid)
