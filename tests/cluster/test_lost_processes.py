"""Processes that are killed: the answers stay right, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from hpcdask import Client, KilledWorker, LocalCluster, LostDataError, wait


def slow_square(x: int) -> int:
    import time

    time.sleep(0.02)
    return x * x


def add(*values: int) -> int:
    return sum(values)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_costs_time_and_not_answers() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        squares = client.map(slow_square, range(60))
        sums = [client.submit(add, *squares[i : i + 6]) for i in range(0, 60, 6)]
        total = client.submit(add, *sums)
        wait(squares[5], timeout=20)
        victim = next(iter(cluster.workers.values()))
        pid = victim.pid
        os.kill(pid, signal.SIGKILL)
        assert total.result(timeout=30) == sum(x * x for x in range(60))
        assert client.gather(squares, timeout=30) == [x * x for x in range(60)]
        wait_until(lambda: victim.pid != pid and len(client.nthreads(timeout=5)) == 2)
        assert cluster.scheduler.members.last_words[victim.id].exit_code == -signal.SIGKILL


def test_a_worker_that_is_killed_again_and_again_comes_back() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        [nanny] = cluster.workers.values()
        for n in range(3):
            pid = nanny.pid
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: nanny.pid != pid and nanny.process.poll() is None)
            assert client.submit(slow_square, n).result(timeout=20) == n * n


def test_a_task_that_kills_its_workers_is_given_up() -> None:
    kwargs = {"allowed_failures": 1}
    with LocalCluster(1, 1, scheduler_kwargs=kwargs) as cluster, Client(cluster) as client:
        with pytest.raises(KilledWorker, match="was running on 2 workers when they died") as caught:
            client.submit(kill_myself).result(timeout=30)
        assert str(caught.value).endswith("): was killed by SIGKILL; nothing on stderr")
        assert str(caught.value).count("pid") == 1
        assert client.submit(slow_square, 3).result(timeout=20) == 9


def test_scattered_data_that_died_with_its_worker_is_told() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        [data] = client.scatter([7], timeout=10)
        [nanny] = cluster.workers.values()
        os.kill(nanny.pid, signal.SIGKILL)
        with pytest.raises(LostDataError, match="scatter it again"):
            client.submit(slow_square, data, pure=False).result(timeout=20)


def test_a_worker_that_a_task_ends_is_replaced() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        squares = client.map(slow_square, range(40))
        client.submit(os._exit, 3)
        assert client.gather(squares, timeout=30) == [x * x for x in range(40)]
        wait_until(lambda: len(client.nthreads(timeout=5)) == 2)


_NANNY = """
import asyncio, sys
from hpcdask import Nanny

async def main():
    options = {"nthreads": 1, "name": "watched", "reconnect_timeout": "100ms"}
    async with Nanny(scheduler_file=sys.argv[1], **options) as nanny:
        print(nanny.pid, flush=True)
        await nanny.finished()

asyncio.run(main())
"""


def hold_the_interpreter(started: Path) -> None:
    """As C code does that does not give the interpreter's lock back."""
    import ctypes

    usleep = ctypes.PyDLL(None).usleep
    started.touch()
    usleep(100_000_000)


@pytest.mark.parametrize("task", [None, hold_the_interpreter], ids=["idle", "stuck in C"])
def test_a_killed_nanny_takes_its_worker_along(
    tmp_path: Path, task: Callable[[Path], None] | None
) -> None:
    path = tmp_path / "scheduler.json"
    kwargs = {"scheduler_file": path}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _NANNY, path]
    with (
        LocalCluster(n_workers=0, scheduler_kwargs=kwargs) as cluster,
        Client(cluster) as client,
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as nanny,
    ):
        assert nanny.stdout is not None
        worker = psutil.Process(int(nanny.stdout.readline()))
        if task is not None:
            future = client.submit(task, tmp_path / "started")
            wait_until((tmp_path / "started").exists)
        nanny.kill()
        wait_until(lambda: not worker.is_running(), 5)
        wait_until(lambda: not cluster.scheduler.workers and not cluster.scheduler.nannies, 5)
        if task is not None:
            future.cancel()
        # The next worker on this host sweeps up behind one that had no time to.
        cluster.scale(1)


def test_a_nanny_that_loses_its_scheduler_ends_with_its_worker(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    script = textwrap.dedent(
        """
        import asyncio, sys
        from hpcdask import Scheduler

        async def main():
            async with Scheduler(host="127.0.0.1", scheduler_file=sys.argv[1]) as scheduler:
                await scheduler.finished()

        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", script, path]) as scheduler:
        wait_until(path.exists)
        command = [sys.executable, "-c", _NANNY, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as nanny:
            assert nanny.stdout is not None
            worker = psutil.Process(int(nanny.stdout.readline()))
            scheduler.kill()
            wait_until(lambda: not worker.is_running(), 5)
            nanny.wait(5)


def exit_quietly_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os._exit(0)
    return "ran"


def test_a_task_that_exits_with_code_0_does_not_cost_a_worker(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        future = client.submit(exit_quietly_once, tmp_path / "marker")
        assert future.result(timeout=20) == "ran"
        assert len(cluster.workers) == 1
