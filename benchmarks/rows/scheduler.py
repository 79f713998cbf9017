"""What tasks cost the scheduler: CPU, memory, and its attention when there are a million."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import psutil

from benchmarks.clusters import (
    SeparateCluster,
    count_tasks,
    cpu_seconds,
    peak_rss,
    separate_cluster,
    settled_rss,
)
from benchmarks.figures import PEERS, Figure, Row, Series, Target, p99
from benchmarks.measuring import expect, repeated, wait_until
from benchmarks.systems import POOL
from benchmarks.tasks import after, noop, until_there
from benchmarks.works import run_noops

# -- CPU -------------------------------------------------------------------------------------------

COUNTS = (2, 64, 256)


#: Tasks of one measurement: half a second of the scheduler, or it would take ten minutes.
CPU_TASKS = {"hpcdask": 20_000, "distributed": 2_000}


def measure_cpu(module: ModuleType) -> Series:
    """Scheduler CPU per task of map + gather, until the tasks are forgotten."""
    ntasks = CPU_TASKS[module.__name__]
    series = {f"us_{n}": cpu_per_task(module, n, ntasks) for n in COUNTS}
    typical = [sorted(values)[len(values) // 2] for values in series.values()]
    return series | {"spread": [max(typical) / min(typical)]}


def cpu_per_task(module: ModuleType, n_workers: int, ntasks: int) -> list[float]:
    light = ["benchmarks.light_workers", module.__name__, str(n_workers)]
    with separate_cluster(module, n_workers, light) as cluster:

        def once(count: int = ntasks) -> float:
            before = cpu_seconds([cluster.scheduler])
            run_noops(cluster.client, count)
            wait_until_forgotten(cluster.client)
            return 1e6 * (cpu_seconds([cluster.scheduler]) - before) / count

        once(1_000)
        return repeated(once)


def wait_until_forgotten(client: Any, timeout: float = 120.0) -> None:
    wait_until(lambda: client.run_on_scheduler(count_tasks) == 0, timeout)


# -- Memory ----------------------------------------------------------------------------------------


def measure_memory(module: ModuleType, ntasks: int = 100_000) -> Series:
    """Resident bytes per task while all wait for one, and when all have finished."""
    with separate_cluster(module, 2) as cluster, TemporaryDirectory() as directory:
        client = cluster.client
        run_noops(client, 1_000)
        wait_until_forgotten(client)
        empty = client.run_on_scheduler(settled_rss), settled_rss()
        door = Path(directory, "door")
        gate = client.submit(until_there, str(door), pure=False)
        futures = client.map(after, range(ntasks), [gate] * ntasks, pure=False)
        wait_until(lambda: client.run_on_scheduler(count_tasks) == ntasks + 1)
        waiting = client.run_on_scheduler(settled_rss), settled_rss()
        door.touch()
        module.wait(futures)
        finished = client.run_on_scheduler(settled_rss), settled_rss()
        expect({future.status for future in futures}, {"finished"})
    return {
        "waiting": [(waiting[0] - empty[0]) / ntasks],
        "finished": [(finished[0] - empty[0]) / ntasks],
        "client_waiting": [(waiting[1] - empty[1]) / ntasks],
        "client_finished": [(finished[1] - empty[1]) / ntasks],
    }


# -- A million -------------------------------------------------------------------------------------


def measure_million(module: ModuleType, ntasks: int = 1_000_000) -> Series:
    """One map of a million no-op tasks, with a second client looking on."""
    with separate_cluster(module, 2) as cluster:
        client, myself = cluster.client, psutil.Process()
        run_noops(client, 1_000)
        wait_until_forgotten(client)
        before = client.run_on_scheduler(settled_rss), settled_rss()
        with onlooker(module, cluster) as seen:
            start = time.perf_counter()
            futures = client.map(noop, range(ntasks), pure=False)
            submitted = time.perf_counter() - start
            expect(len(client.gather(futures)), ntasks)
            done = time.perf_counter() - start
            peak = peak_rss(cluster.scheduler.pid), peak_rss(myself.pid)
            del futures
            wait_until_forgotten(client)
            forgotten = time.perf_counter() - start
        block = client.scheduler_info().get("longest_tick")
        released = client.run_on_scheduler(settled_rss), settled_rss()
    series = {
        "submitted_s": [submitted],
        "done_s": [done],
        "forgotten_s": [forgotten],
        "tasks_per_s": [ntasks / done],
        **seen,
    }
    if block is not None:
        series["block_ms"] = [1e3 * block]
    for moment, sizes in (("before", before), ("peak", peak), ("released", released)):
        for process, size in zip(("scheduler", "client"), sizes, strict=True):
            series[f"{process}_{moment}"] = [size / 1e6]
    return series


@contextmanager
def onlooker(module: ModuleType, cluster: SeparateCluster) -> Iterator[Series]:
    """A second client; what it has measured is there when it has ended."""
    command = [sys.executable, "-m", "benchmarks.onlooker", module.__name__, cluster.scheduler_file]
    pipe = subprocess.PIPE
    seen: Series = {}
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        expect(process.stdout.readline(), "ready\n")
        yield seen
        out, _ = process.communicate("", timeout=60)
        seen |= json.loads(out)


# -- Rows ------------------------------------------------------------------------------------------


def cpu_figure(n_workers: int) -> Figure:
    return Figure(
        f"scheduler CPU per no-op task, {n_workers} workers", f"us_{n_workers}", "us",
        must=(Target(25),), aim=(Target(8),),
    )  # fmt: skip


def bytes_figure(label: str, series: str, must: float, aim: float) -> Figure:
    return Figure(label, series, "bytes", must=(Target(must),), aim=(Target(aim),))


def megabytes(process: str) -> Iterator[Figure]:
    for moment, when in (("before", "before"), ("peak", "at peak"), ("released", "afterwards")):
        yield Figure(f"million: memory of the {process} {when}", f"{process}_{moment}", "MB")


ROWS = {
    "schedcpu": Row(
        (
            *map(cpu_figure, COUNTS),
            Figure(
                "scheduler CPU per task, most / least of these", "spread", "", must=(Target(1.5),)
            ),
        ),
        measure_cpu,
        rounds=1,
    ),
    "memory": Row(
        (
            bytes_figure("scheduler memory per waiting task", "waiting", 1000, 600),
            bytes_figure("scheduler memory per finished task", "finished", 1000, 600),
            bytes_figure("client memory per waiting future", "client_waiting", 800, 400),
            bytes_figure("client memory per finished future", "client_finished", 800, 400),
        ),
        measure_memory,
        rounds=1,
    ),
    "million": Row(
        (
            Figure("million tasks, one map: submitted", "submitted_s", "s"),
            Figure("million: all results there", "done_s", "s"),
            Figure("million: forgotten by the scheduler", "forgotten_s", "s"),
            Figure("million", "tasks_per_s", "tasks/s", is_more_better=True),
            Figure("million: the scheduler's longest block", "block_ms", "ms", must=(Target(100),)),
            Figure("million: another client's request p99", "request_ms", "ms", p99),
            Figure("million: another client's request, longest", "request_ms", "ms", max),
            Figure("million: another client's round trip p50", "trip_ms", "ms"),
            Figure("million: another client's round trip, longest", "trip_ms", "ms", max),
            *megabytes("scheduler"),
            *megabytes("client"),
        ),
        measure_million,
        rounds=1,
        # At its rate of no-op tasks distributed would need half an hour and gigabytes.
        without=(*PEERS, POOL),
    ),
}
