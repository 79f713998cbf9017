"""A thousand ranks that start at the same moment."""

import subprocess
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from benchmarks.clusters import cpu_seconds, running, separate_cluster
from benchmarks.figures import PEERS, Figure, Row, Series, Target
from benchmarks.measuring import expect, wait_until
from benchmarks.systems import POOL

RANKS = 1_000

#: What joins and what the scheduler does about it: options of its command, and whether each light
#: worker has a nanny.
VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "bare": (("--no-dial-back",), False),
    "dialled": ((), False),
    "nannies": ((), True),
}


def measure(module: ModuleType) -> Series:
    series: Series = {}
    for name, (options, nannies) in VARIANTS.items():
        for label, value in join(module, options, nannies).items():
            series[f"{name}_{label}"] = [value]
    return series


def join(module: ModuleType, options: tuple[str, ...], nannies: bool) -> dict[str, float]:
    """Seconds from the start signal to the last registration, and what it cost the scheduler."""
    light = ["benchmarks.light_workers", module.__name__, str(RANKS), "--wait"]
    pipe = subprocess.PIPE
    with separate_cluster(module, 0, scheduler_options=options) as cluster:
        command = [*light, *(["--nannies"] if nannies else []), cluster.scheduler_file]
        with running(command, stdin=pipe, stdout=pipe, text=True) as ranks:
            assert ranks.stdin is not None
            assert ranks.stdout is not None
            expect(ranks.stdout.readline(), "ready\n")
            cluster.client.run_on_scheduler(forget_blocks)
            cpu, start = cpu_seconds([cluster.scheduler]), time.perf_counter()
            print(file=ranks.stdin, flush=True)
            cluster.client.wait_for_workers(RANKS, timeout=120)
            if nannies:
                wait_until(lambda: cluster.client.run_on_scheduler(count_nannies) == RANKS)
            wall = time.perf_counter() - start
            cpu = cpu_seconds([cluster.scheduler]) - cpu
            block = cluster.client.scheduler_info()["longest_tick"]
    return {"wall_s": wall, "cpu_s": cpu, "block_ms": 1e3 * block}


def forget_blocks(dask_scheduler: Any) -> None:
    dask_scheduler.longest_tick = 0.0


def count_nannies(dask_scheduler: Any) -> int:
    return len(dask_scheduler.nannies)


LABELS = {
    "bare": "1,000 ranks join",
    "dialled": "1,000 ranks join and are dialled back",
    "nannies": "1,000 ranks join with nannies and are dialled back",
}


def figures() -> Iterator[Figure]:
    for name, label in LABELS.items():
        yield Figure(label, f"{name}_wall_s", "s", must=(Target(10),))
        yield Figure(f"{label}: scheduler CPU", f"{name}_cpu_s", "s", must=(Target(10),))
        yield Figure(f"{label}: longest block", f"{name}_block_ms", "ms", must=(Target(100),))


#: distributed's workers are real ones: a thousand on one event loop would take minutes.
ROWS = {"join1000": Row(tuple(figures()), measure, rounds=1, without=(*PEERS, POOL))}
