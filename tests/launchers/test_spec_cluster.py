"""Clusters that are specified process by process, of our classes and of a user's own."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import on_a_loop, wait_for_file, wait_until

from hpcdask import Client, LaunchError, LocalCluster, Nanny, ProcessInterface, Scheduler, Worker
from hpcdask import SpecCluster as _SpecCluster
from hpcdask.errors import ConfigError

HERE = {"cls": Scheduler, "options": {"host": "127.0.0.1"}}
ONE_THREAD = {"nthreads": 1, "memory_limit": 0, "host": "127.0.0.1"}
THREAD = {"cls": Worker, "options": ONE_THREAD}


def SpecCluster(*args: Any, **kwargs: Any) -> _SpecCluster:
    return _SpecCluster(*args, **{"scheduler": HERE, "silence_logs": True, **kwargs})


class Commanded(ProcessInterface):
    """Workers that a command starts."""

    def __init__(self, scheduler: str, name: object, nworkers: int = 1) -> None:
        super().__init__(scheduler, name)
        self.nworkers = nworkers

    async def start(self) -> None:
        assert self.token_file is not None
        argv = ["worker", str(self.scheduler), "--token-file", self.token_file]
        argv += ["--name", str(self.name), "--nworkers", str(self.nworkers), "--nthreads", "1"]
        argv += ["--host", "127.0.0.1", "--memory-limit", "0"]
        self.process = await start(argv)
        self.watching = asyncio.ensure_future(self._watch())
        await super().start()

    async def _watch(self) -> None:
        await self.process.wait()
        self.status = "failed"

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        await self.watching
        await super().close()


class CommandedScheduler(ProcessInterface):
    """A scheduler that a command starts."""

    async def start(self) -> None:
        assert self.token_file is not None
        file = Path(self.token_file).with_name("scheduler.json")
        argv = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--token-file", self.token_file]
        self.process = await start([*argv, "--scheduler-file", str(file)])
        while not file.exists():
            assert self.process.returncode is None
            await asyncio.sleep(0.02)
        from hpcdask.rendezvous import Contact

        self.address = Contact.from_json(file.read_text()).address
        await super().start()

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.wait()
        await super().close()


async def start(argv: list[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hpcdask", *argv, stderr=asyncio.subprocess.DEVNULL
    )


# -- Our classes ----------------------------------------------------------------------------------


def test_workers_of_several_kinds_are_specified_one_by_one():
    workers = {
        "big": {"cls": "Nanny", "options": {**ONE_THREAD, "nthreads": 3, "resources": {"X": 1}}},
        "small": THREAD,
    }
    with SpecCluster(workers) as cluster, Client(cluster) as client:
        assert sorted(client.nthreads(timeout=5).values()) == [1, 3]
        assert client.submit(os.getpid, workers="small").result(timeout=10) == os.getpid()
        pid = client.submit(os.getpid, resources={"X": 1}, pure=False).result(timeout=10)
        assert pid == cluster.workers["big"].pid
        assert isinstance(cluster.workers["big"], Nanny)
        assert isinstance(cluster.scheduler, Scheduler)
        with pytest.raises(ConfigError, match="does not know what to add"):
            cluster.scale(3)
        cluster.scale(1)
        assert list(cluster.workers) == list(cluster.worker_spec) == ["big"]
    assert cluster.status == "closed"
    assert cluster.scheduler.status == "closed"


def test_a_specification_is_scaled():
    with SpecCluster({"first": THREAD}, worker=THREAD) as cluster, Client(cluster) as client:
        cluster.scale(3)
        assert list(cluster.worker_spec) == ["first", 0, 1]
        assert sorted(map(str, cluster.workers)) == ["0", "1", "first"]
        futures = client.map(abs, range(-100, 0))
        assert sum(client.gather(futures, timeout=10)) == 5050
        cluster.scale(1)
        assert list(cluster.workers) == ["first"]
        assert sum(client.gather(futures, timeout=10)) == 5050
        cluster.scale(cores=2)
        assert list(cluster.worker_spec) == ["first", 2]  # no name comes twice
        with pytest.raises(ConfigError, match="memory_limit"):
            cluster.scale(memory="1 GiB")


def test_the_specification_may_be_changed_by_hand():
    with SpecCluster({"a": THREAD, "b": THREAD}) as cluster:
        del cluster.worker_spec["a"]
        cluster.worker_spec["c"] = THREAD
        asyncio.run_coroutine_threadsafe(cluster._started(), cluster.loop).result(10)
        assert sorted(cluster.workers) == ["b", "c"]
        assert len(cluster.scheduler.workers) == 2


class Named(_SpecCluster):
    """As a derived class names and specifies its own workers."""

    def _new_worker_name(self, worker_number: int) -> str:
        return f"node-{worker_number}"


@on_a_loop
async def test_a_derived_class_names_its_workers():
    async with Named(scheduler=HERE, worker=THREAD, asynchronous=True) as cluster:
        await cluster.scale(2)
        assert sorted(cluster.workers) == ["node-0", "node-1"]
        names = {record.info.name for record in cluster.scheduler.state.workers.values()}
        assert names == {"node-0", "node-1"}


def test_one_that_the_user_has_named_starts_again_and_another_is_replaced():
    nanny = {"cls": Nanny, "options": ONE_THREAD}
    with SpecCluster({"mine": THREAD}, worker=nanny) as cluster, Client(cluster) as client:
        cluster.scale(2)
        client.retire_workers(names=["mine", "0"], timeout=20)
        wait_until(lambda: all(p.status == "closed" for p in cluster.workers.values()))
        cluster.scale(2)
        assert sorted(map(str, cluster.workers)) == ["1", "mine"]
        assert client.submit(abs, -1, workers="mine").result(timeout=10) == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"workers": {"a": {}}}, "specifies nothing that could be started"),
        ({"workers": {"a": {"cls": "no.such.Class"}}}, "no worker class 'no.such.Class'"),
        (
            {"worker": {"cls": Worker, "option": {}}},
            r"'cls', 'options' and 'group', not \['option'\]",
        ),
        ({"worker": {"cls": Worker, "group": "-0"}}, "list of suffixes"),
    ],
)
def test_what_specifies_nothing_is_refused(given, why):
    with pytest.raises(ConfigError, match=why):
        SpecCluster(**given)


def test_a_worker_that_cannot_start_leaves_nothing_and_is_not_wanted_any_more():
    with SpecCluster(worker={"cls": Worker, "options": {"preload": "no.such"}}) as cluster:
        with pytest.raises(LaunchError, match="cannot preload"):
            cluster.scale(1)
        assert cluster.workers == cluster.worker_spec == {}
    with pytest.raises(LaunchError, match="cannot preload"):
        SpecCluster({"a": {"cls": Worker, "options": {"preload": "no.such"}}, "b": THREAD})
    with SpecCluster(worker={"cls": Worker, "options": {"nthread": 1}}) as cluster:
        with pytest.raises(TypeError, match="nthread"):
            cluster.scale(1)
        assert cluster.worker_spec == {}


def test_a_scheduler_may_outlive_its_cluster():
    with SpecCluster(shutdown_scheduler=False) as cluster:
        scheduler = cluster.scheduler
    assert scheduler.status == "running"
    asyncio.run_coroutine_threadsafe(scheduler.close(), cluster.loop).result(10)


def test_a_local_cluster_is_one():
    with LocalCluster(1, 1, processes=False) as cluster:
        assert isinstance(cluster, _SpecCluster)
        assert list(cluster.worker_spec) == ["0"]
        assert cluster.new_spec["cls"] is Worker


# -- Classes of one's own -------------------------------------------------------------------------


def test_processes_of_ones_own_bring_groups_of_workers():
    worker = {"cls": Commanded, "options": {"nworkers": 2}, "group": ["-0", "-1"]}
    with SpecCluster(worker=worker) as cluster, Client(cluster) as client:
        cluster.scale(2)
        cluster.wait_for_workers(4, timeout=60)
        names = {record.info.name for record in cluster.scheduler.state.workers.values()}
        assert names == {"0-0", "0-1", "1-0", "1-1"}
        assert "workers=2" in repr(cluster)
        assert repr(cluster.workers[0]) == "<Commanded 0: running>"
        token_file = Path(cluster.workers[0].token_file)
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(token_file.parent.stat().st_mode) == 0o700
        pids = [process.process.pid for process in cluster.workers.values()]
        for pid in pids:
            process = psutil.Process(pid)
            said = " ".join([*process.cmdline(), *process.environ().values()])
            assert cluster._token.hex() not in said
        futures = [client.submit(os.getpid, pure=False) for _ in range(40)]
        assert len(set(client.gather(futures, timeout=30))) == 4
        cluster.scale(1)
        assert len(cluster.scheduler.workers) == 2
        assert len(client.gather(futures, timeout=30)) == 40  # they have moved
    assert not token_file.parent.exists()
    assert not any(map(psutil.pid_exists, pids))


def test_a_cluster_adapts_by_groups(tmp_path):
    worker = {"cls": Threads, "options": {"nworkers": 2, "nthreads": 1}, "group": ["-0", "-1"]}
    with SpecCluster(worker=worker) as cluster, Client(cluster) as client:
        adaptive = cluster.adapt(0, 5, interval="20ms", target_duration="0.1s")
        assert adaptive.maximum == 4  # two whole groups
        futures = client.map(wait_for_file, [tmp_path / "go"] * 20, range(20))
        wait_until(lambda: len(cluster.scheduler.workers) == 4)
        long = client.submit(wait_for_file, tmp_path / "end", 7, workers="0-1")
        (tmp_path / "go").touch()
        assert client.gather(futures, timeout=20) == list(range(20))
        del futures
        wait_until(lambda: list(cluster.workers) == [0])
        assert len(cluster.scheduler.workers) == 2  # of which one is busy, so none of them ends
        (tmp_path / "end").touch()
        assert long.result(timeout=20) == 7
        del long
        wait_until(lambda: cluster.workers == cluster.worker_spec == {})


class Threads(ProcessInterface):
    """Two workers in threads of this process."""

    def __init__(self, scheduler: str, name: object, nworkers: int, nthreads: int) -> None:
        super().__init__(scheduler, name)
        self.shape = (nworkers, nthreads)
        self.members: list[Worker] = []

    async def start(self) -> None:
        n, nthreads = self.shape
        options = {**ONE_THREAD, "nthreads": nthreads, "token_file": self.token_file}
        for i in range(n):
            self.members.append(await Worker(self.scheduler, name=f"{self.name}-{i}", **options))
        await super().start()

    async def close(self) -> None:
        await asyncio.gather(*(worker.close() for worker in self.members))
        await super().close()


def test_a_process_that_says_it_has_failed_is_replaced():
    with SpecCluster(worker={"cls": Commanded}) as cluster:
        cluster.adapt(1, 1, interval="50ms")
        cluster.wait_for_workers(1, timeout=60)
        os.kill(cluster.workers[0].process.pid, signal.SIGKILL)
        wait_until(lambda: list(cluster.workers) == [1], timeout=20)
        wait_until(lambda: len(cluster.scheduler.workers) == 1, timeout=30)


def test_a_scheduler_of_ones_own_kind():
    worker = {"cls": Nanny, "options": ONE_THREAD}
    scheduler = {"cls": CommandedScheduler}
    with SpecCluster(worker=worker, scheduler=scheduler) as cluster, Client(cluster) as client:
        cluster.scale(1)
        cluster.wait_for_workers(1, timeout=30)
        assert client.submit(abs, -1).result(timeout=20) == 1
        assert cluster.scheduler.process.pid != os.getpid()
        cluster.scale(0)
        assert client.nthreads(timeout=5) == {}
        assert cluster.scheduler.status == "running"
    assert cluster.scheduler.process.returncode == 0
    with pytest.raises(LaunchError, match="is closed"):
        cluster.scale(1)
