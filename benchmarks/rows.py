"""What is measured and what hpcdask must reach: one function and one `Row` for each line of work.

A function gets the module under test (`distributed` or `hpcdask`: the same code runs on both) and
returns its raw series, ``{name: values}``. A `Figure` reduces one series to a number.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import psutil

from .systems import POOL
from .tasks import add, increment, make_rows, noop, pick, total_nbytes

Series = dict[str, list[float]]
Measure = Callable[[ModuleType], Series]


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


@dataclass(frozen=True)
class Target:
    """`factor` times what each system in `of` reaches; without systems, `factor` itself."""

    factor: float
    of: tuple[str, ...] = ()

    def limits(self, medians: dict[str, float]) -> list[float | None]:
        """The numbers to reach; None where a system was not measured."""
        if not self.of:
            return [self.factor]
        return [self.factor * medians[name] if name in medians else None for name in self.of]

    def __str__(self) -> str:
        if not self.of:
            return f"{self.factor:g}"
        factor = f"{self.factor:g}" if self.factor >= 1 else f"1/{1 / self.factor:g}"
        return f"{factor} x {' and '.join(self.of)}"


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    label: str
    series: str
    unit: str
    reduce: Callable[[list[float]], float] = median
    is_more_better: bool = False
    targets: tuple[Target, ...] = ()

    def is_met(self, medians: dict[str, float]) -> bool | None:
        """Whether hpcdask reaches every target; None if a number for the answer is missing."""
        value = medians.get("hpcdask")
        limits = [limit for target in self.targets for limit in target.limits(medians)]
        if value is None or not limits or None in limits:
            return None
        sign = 1 if self.is_more_better else -1
        return all(sign * value >= sign * limit for limit in limits if limit is not None)


@dataclass(frozen=True)
class Row:
    """Work to measure: `measure` runs on modules with distributed's API, `pool` on the pool."""

    figures: tuple[Figure, ...]
    measure: Measure
    pool: Measure | None = None
    is_later: bool = False  # the target is not due yet

    def measure_for(self, system: str) -> Measure | None:
        """What to run for `system`; None where the comparison means nothing."""
        return self.pool if system == POOL else self.measure


@contextmanager
def client_of(module: ModuleType, n_workers: int = 2) -> Iterator[Any]:
    """A client of `n_workers` local processes of one thread each, all of them there."""
    with (
        module.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        module.Client(cluster) as client,
    ):
        client.wait_for_workers(n_workers, timeout=60)
        yield client


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def expect(found: object, expected: object) -> None:
    """Refuse a fast wrong answer."""
    if found != expected:
        raise AssertionError(f"computed {found!r:.80}, expected {expected!r:.80}")


def rates(ntasks: int, work: Callable[[], object], repeats: int = 3) -> Series:
    """Tasks per second of `work`, which runs `ntasks`, several times."""
    found = []
    for _ in range(repeats):
        # The last run's results are still being released: without this pause distributed, tuned,
        # falls from 2,050 to 1,250 tasks/s after the first run, and would be too easy to beat.
        time.sleep(1.0)
        found.append(ntasks / seconds(work))
    return {"tasks_per_s": found}


def measure_noop(module: ModuleType, ntasks: int = 10_000) -> Series:
    with client_of(module) as client:

        def run(count: int = ntasks) -> None:
            results = client.gather(client.map(noop, range(count), pure=False))
            expect(len(results), count)

        run(100)
        return rates(ntasks, run)


def measure_noop_pool(_module: ModuleType, ntasks: int = 10_000) -> Series:
    with ProcessPoolExecutor(max_workers=2) as pool:

        def run(count: int = ntasks) -> None:
            expect(sum(1 for _ in pool.map(noop, range(count), chunksize=1)), count)

        run(100)
        return rates(ntasks, run)


def round_trips(run_one: Callable[[int], object], count: int = 500) -> Series:
    """Microseconds of each of `count` calls, after a warm-up."""
    for i in range(20):
        run_one(i)
    return {"us": [1e6 * seconds(partial(run_one, i)) for i in range(count)]}


def measure_roundtrip(module: ModuleType) -> Series:
    with client_of(module) as client:
        return round_trips(lambda i: client.submit(noop, i, pure=False).result())


def measure_roundtrip_pool(_module: ModuleType) -> Series:
    with ProcessPoolExecutor(max_workers=2) as pool:
        return round_trips(lambda i: pool.submit(noop, i).result())


def measure_start(n_workers: int) -> Measure:
    def measure(module: ModuleType) -> Series:
        start = time.perf_counter()
        with client_of(module, n_workers):
            return {"s": [time.perf_counter() - start]}

    return measure


def measure_idle(module: ModuleType, settle: float = 2.0, window: float = 10.0) -> Series:
    """CPU and memory of this process and all below it, while nobody asks for anything."""
    with client_of(module):
        time.sleep(settle)
        myself = psutil.Process()
        processes = [myself, *myself.children(recursive=True)]
        begin, start = cpu_seconds(processes), time.perf_counter()
        time.sleep(window)
        cpu, wall = cpu_seconds(processes) - begin, time.perf_counter() - start
        # Proportional set size counts a page shared by n processes once, not n times.
        pss = sum(process.memory_full_info().pss for process in processes)
    return {"cpu_percent": [100 * cpu / wall], "pss_mb": [pss / 1e6]}


def cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(t.user + t.system for t in times)


def measure_import(module: ModuleType, repeats: int = 10) -> Series:
    """Wall time of fresh interpreters, bytecode and page cache warm, and their system calls."""
    name = module.__name__
    programs = {
        "bare_s": "pass",
        "import_s": f"import {name}",
        # A module may import its parts when they are first used; this is what a user waits for.
        "client_s": f"from {name} import Client, LocalCluster",
    }
    series: Series = {label: [] for label in programs}
    for repeat in range(repeats + 1):  # the first one warms up
        for label, program in programs.items():
            elapsed = seconds(partial(run_python, program))
            if repeat:
                series[label].append(elapsed)
    if shutil.which("strace"):
        series["import_calls"] = [count_file_calls(programs["import_s"])]
        series["client_calls"] = [count_file_calls(programs["client_s"])]
    return series


def run_python(program: str, *, under: Sequence[str] = ()) -> None:
    """Run a program to its end in a fresh interpreter, `under` a command such as strace."""
    code = subprocess.run([*under, sys.executable, "-c", program]).returncode
    if code:
        raise RuntimeError(f"python -c {program!r} ended with exit code {code}")


def count_file_calls(program: str) -> int:
    """System calls that take a file name (strace's class %file), of a Python program."""
    with TemporaryDirectory() as directory:
        summary = Path(directory, "summary")
        run_python(program, under=["strace", "-fc", "-e", "trace=file", "-o", str(summary)])
        # "% time, seconds, usecs/call, calls, [errors,] total"
        total = re.search(r"^ *100\.00 +\S+ +\S+ +(\d+).*total$", summary.read_text(), re.M)
    if total is None:
        raise ValueError("strace printed no total; is its -c summary of another version?")
    return int(total[1])


def measure_chain(module: ModuleType, length: int = 1_000) -> Series:
    with client_of(module) as client:

        def run(count: int = length) -> None:
            future = client.submit(increment, 0, pure=False)
            for _ in range(count - 1):
                future = client.submit(increment, future, pure=False)
            expect(future.result(), count)

        run(20)
        return rates(length, run)


def measure_tree(module: ModuleType, leaves: int = 4_096) -> Series:
    with client_of(module) as client:

        def run(count: int = leaves) -> None:
            level = client.map(increment, range(count), pure=False)
            while len(level) > 1:
                level = client.map(add, level[::2], level[1::2], pure=False)
            expect(level[0].result(), count * (count + 1) // 2)

        run(32)
        return rates(2 * leaves - 1, run)


def measure_all_to_all(module: ModuleType, width: int = 64, nbytes: int = 16_000) -> Series:
    with client_of(module) as client:

        def run(n: int = width) -> None:
            sources = client.map(make_rows, range(n), count=n, nbytes=nbytes, pure=False)
            picked = [client.map(pick, [s] * n, range(n), pure=False) for s in sources]
            columns = [list(column) for column in zip(*picked, strict=True)]
            sinks = [client.submit(total_nbytes, column, pure=False) for column in columns]
            expect(client.gather(sinks), [n * nbytes] * n)

        run(4)
        return rates(width * width + 2 * width, run)


def throughput(label: str, *targets: Target) -> tuple[Figure, ...]:
    return (Figure(label, "tasks_per_s", "tasks/s", is_more_better=True, targets=targets),)


def start_row(n_workers: int) -> Row:
    half = Target(1 / 2, ("distributed",))
    label = f"start of {n_workers} worker processes"
    return Row((Figure(label, "s", "s", targets=(half,)),), measure_start(n_workers))


PEERS = ("distributed", "tuned")

ROWS = {
    "noop": Row(
        throughput("10,000 no-op tasks, map + gather", Target(10, ("tuned",)), Target(1, (POOL,))),
        measure_noop,
        measure_noop_pool,
    ),
    "roundtrip": Row(
        (
            Figure("round trip p50", "us", "us", targets=(Target(1 / 20, ("distributed",)),)),
            Figure("round trip p99", "us", "us", p99, targets=(Target(1 / 8, ("distributed",)),)),
        ),
        measure_roundtrip,
        measure_roundtrip_pool,
    ),
    "start2": start_row(2),
    "start8": start_row(8),
    "idle": Row(
        (
            Figure("idle, whole system", "cpu_percent", "% of a core", targets=(Target(1),)),
            Figure("idle, whole system, memory (PSS)", "pss_mb", "MB"),
        ),
        measure_idle,
    ),
    "import": Row(
        (
            Figure("`import`, whole process", "import_s", "s", targets=(Target(0.12),)),
            Figure("`import` of Client and LocalCluster", "client_s", "s", targets=(Target(0.12),)),
            Figure("`python -c pass`, contained in both", "bare_s", "s"),
            Figure("`import`, file-system calls", "import_calls", "calls"),
            Figure("`import` of both, file-system calls", "client_calls", "calls"),
        ),
        measure_import,
    ),
    "chain": Row(throughput("chain of 1,000", Target(20, PEERS)), measure_chain, is_later=True),
    "tree": Row(
        throughput("binary tree, 4,096 leaves", Target(8, PEERS)), measure_tree, is_later=True
    ),
    "alltoall": Row(
        throughput("all-to-all 64 x 64, 16 kB rows", Target(4, PEERS)),
        measure_all_to_all,
        is_later=True,
    ),
}
