"""How soon a cluster notices who is gone: the dead at once, the silent within worker_ttl."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from chaos_clusters import Cluster, OnHosts, OnThisMachine, children
from chaos_deeds import kill_nanny
from chaos_times import WORKER_TTL
from commands import Home, home, new_home
from hosts import needs_hosts
from waiting import wait_until

from hpcdask import Client, KilledWorker, LocalCluster

__all__ = ["home", "new_home"]

#: Seconds in which a death must be known, and those beyond worker_ttl for a silence.
AT_ONCE, SLACK = 1.0, 2.0

pytestmark = pytest.mark.timeout(120, method="signal")


@pytest.fixture(scope="module")
def on_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnHosts]:
    """One for all tests, each of which leaves it as it was: it takes eight processes."""
    cluster = OnHosts(Home(tmp_path_factory.mktemp("on-hosts") / "home"))
    with cluster.running():
        yield cluster
        cluster.close_clients()
        cluster.end()


@pytest.fixture
def on_this_machine(home: Home) -> Iterator[OnThisMachine]:
    cluster = OnThisMachine(home)
    with cluster.running():
        yield cluster
        cluster.close_clients()
        cluster.end()


def registered(cluster: Cluster) -> list[str]:
    assert cluster.control is not None
    return list(cluster.control.ask("workers"))


def all_there(cluster: Cluster, timeout: float = 30) -> None:
    wait_until(lambda: len(registered(cluster)) == cluster.expected_workers, timeout)


def seconds_until(condition: Callable[[], bool], limit: float) -> float:
    started = time.monotonic()
    wait_until(condition, limit)
    return time.monotonic() - started


def works(cluster: Cluster) -> None:
    """Every client computes something, and all of it is right."""
    for client in cluster.clients:
        client.order("round", seed="does it work?", seconds=0.0)
    for client in cluster.clients:
        assert client.answer(60)["wrong"] == []


def test_a_killed_worker_is_missed_within_a_second() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        victim = next(iter(cluster.workers.values()))
        address, pid = victim.worker_address, victim.pid
        assert address in cluster.scheduler.workers
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        seconds = seconds_until(lambda: address not in cluster.scheduler.workers, 10)
        assert seconds < AT_ONCE


def test_a_killed_nanny_and_its_worker_are_missed_within_a_second(
    on_this_machine: OnThisMachine,
) -> None:
    cluster = on_this_machine
    all_there(cluster)
    scheduler = cluster.cluster.scheduler
    nanny = next(iter(cluster.nannies))
    [worker] = children(nanny.process.pid)
    others = cluster.expected_workers - 1
    nanny.process.kill()
    seconds = seconds_until(
        lambda: len(scheduler.workers) == others and len(scheduler.nannies) == others, 10
    )
    assert seconds < AT_ONCE
    wait_until(lambda: not worker.is_running(), 5)
    nanny.code()
    del cluster.nannies[nanny]
    cluster.start_nanny()  # sweeps up behind the dead, too
    all_there(cluster)


def test_the_scratch_folder_of_a_killed_nannys_worker_goes_with_the_next_job(
    on_this_machine: OnThisMachine,
) -> None:
    cluster = on_this_machine
    all_there(cluster)
    for _ in kill_nanny(cluster, random.Random(0)):
        pass
    all_there(cluster)
    scratch = cluster.home.scratch
    wait_until(lambda: len(list(scratch.rglob("worker-*"))) == cluster.expected_workers)


class TestOnHosts:
    pytestmark = needs_hosts

    def test_a_killed_worker_on_another_host_is_missed_within_a_second(
        self, on_hosts: OnHosts
    ) -> None:
        all_there(on_hosts)
        before = set(registered(on_hosts))
        on_hosts.workers()[0].kill()
        assert seconds_until(lambda: not before <= set(registered(on_hosts)), 10) < AT_ONCE
        all_there(on_hosts)
        works(on_hosts)

    def test_a_host_that_is_cut_off_is_given_up_after_worker_ttl(self, on_hosts: OnHosts) -> None:
        all_there(on_hosts)
        on_hosts.hosts.cut("node2")
        try:
            _is_given_up_in_time(on_hosts)
            works(on_hosts)
        finally:
            on_hosts.hosts.mend("node2")
        all_there(on_hosts)
        works(on_hosts)

    def test_a_stopped_worker_is_given_up_after_worker_ttl_and_comes_back(
        self, on_hosts: OnHosts
    ) -> None:
        all_there(on_hosts)
        victim = on_hosts.workers()[0]
        victim.suspend()
        try:
            _is_given_up_in_time(on_hosts)
            works(on_hosts)
        finally:
            victim.resume()
        all_there(on_hosts)
        works(on_hosts)

    def test_a_host_that_is_cut_off_for_a_moment_is_not_given_up(self, on_hosts: OnHosts) -> None:
        all_there(on_hosts)
        before = registered(on_hosts)
        for client in on_hosts.clients:
            client.order("round", seed="a moment", seconds=WORKER_TTL)
        on_hosts.hosts.cut("node1")
        time.sleep(WORKER_TTL / 4)  # how long the cut lasts is what this is about
        on_hosts.hosts.mend("node1")
        for client in on_hosts.clients:
            assert client.answer(60)["wrong"] == []
        assert registered(on_hosts) == before

    def test_a_scheduler_that_is_killed_and_started_again_has_its_workers_back(
        self, on_hosts: OnHosts
    ) -> None:
        all_there(on_hosts)
        before = registered(on_hosts)
        pids = {worker.pid for worker in on_hosts.workers()}
        for client in on_hosts.clients:
            client.order("round", seed="a new scheduler", seconds=5.0)
        wait_until(lambda: on_hosts.control is not None and on_hosts.control.ask("view")["keys"])
        on_hosts.scheduler.process.kill()
        on_hosts.scheduler.code()
        on_hosts.start_scheduler()
        for client in on_hosts.clients:
            assert client.answer(60)["wrong"] == []
        all_there(on_hosts)
        assert registered(on_hosts) == before
        assert {worker.pid for worker in on_hosts.workers()} == pids

    def test_what_outlives_a_scheduler_is_not_computed_again(self, on_hosts: OnHosts) -> None:
        all_there(on_hosts)
        tasks, folder, client = 200, on_hosts.home.folder / "runs", on_hosts.clients[0]
        folder.mkdir()
        client.order("count_runs", folder=str(folder), tasks=tasks)
        wait_until(lambda: len(list(folder.iterdir())) > tasks / 4, 30)
        on_hosts.scheduler.process.kill()
        on_hosts.scheduler.code()
        on_hosts.start_scheduler()
        assert client.answer(60) == sum(range(tasks))
        runs = [int(path.name.partition("-")[0]) for path in folder.iterdir()]
        assert sorted(runs) == list(range(tasks))


def _is_given_up_in_time(cluster: Cluster) -> None:
    all_but_one = cluster.expected_workers - 1
    limit = WORKER_TTL + SLACK
    seconds = seconds_until(lambda: len(registered(cluster)) == all_but_one, limit)
    # Else it was given up for another reason than its silence.
    assert seconds > WORKER_TTL / 3


def end_my_process() -> None:
    psutil.Process().kill()


def test_a_task_that_kills_its_workers_is_given_up_amid_others(home: Home) -> None:
    """Those that happen to run beside it are not blamed as much, and end well."""
    file = home.folder / "scheduler.json"
    kwargs = {"allowed_failures": 2, "scheduler_file": file}
    with (
        LocalCluster(2, 1, scheduler_kwargs=kwargs, local_directory=str(home.scratch)) as cluster,
        Client(cluster) as client,
    ):
        squares = client.map(pow, range(50), [2] * 50)
        poison = client.submit(end_my_process)
        with pytest.raises(KilledWorker):
            poison.result(timeout=60)
        assert client.gather(squares, timeout=60) == [n * n for n in range(50)]
        after = client.map(pow, range(50), [3] * 50)
        assert client.gather(after, timeout=60) == [n**3 for n in range(50)]
