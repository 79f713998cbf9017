"""Importing, starting, and doing nothing."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import psutil

from benchmarks.clusters import WORKERS, client_of, cpu_seconds, running, separate_cluster
from benchmarks.figures import Figure, Measure, Row, Series, Target
from benchmarks.measuring import seconds, wait_until


def measure_start(n_workers: int) -> Measure:
    def measure(module: ModuleType) -> Series:
        start = time.perf_counter()
        with client_of(module, n_workers):
            ready = time.perf_counter() - start
        return {"s": [ready], "spawn_s": [seconds(partial(spawn_bare, n_workers))]}

    return measure


def spawn_bare(count: int) -> None:
    """Start so many interpreters that do nothing, at once: the limit of any start."""
    for process in [subprocess.Popen([sys.executable, "-c", "pass"]) for _ in range(count)]:
        process.wait()


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


def measure_worker_start(module: ModuleType) -> Series:
    """System calls that name a file, from the worker's command to its registration."""
    if not shutil.which("strace"):
        print("no strace here: the file-system calls of a worker are not counted", file=sys.stderr)
        return {}
    with separate_cluster(module, 0) as cluster, TemporaryDirectory() as directory:
        command = [*WORKERS[module.__name__].split(), "--scheduler-file", cluster.scheduler_file]
        with running(command):  # makes bytecode, warms caches
            cluster.client.wait_for_workers(1, timeout=60)
        wait_until(lambda: not cluster.client.scheduler_info()["workers"])
        trace = Path(directory, "trace")
        strace = ["strace", "-f", "-qq", "-e", "trace=%file", "-e", "signal=none", "-o", str(trace)]
        with running(command, under=strace):
            cluster.client.wait_for_workers(1, timeout=60)
            # A call that another process interrupts has two lines, the second says "resumed".
            lines = [line for line in trace.read_text().splitlines() if "resumed>" not in line]
    return {"calls": [len(lines)]}


def start_row(n_workers: int) -> Row:
    label = f"start of {n_workers} worker processes"
    half, limit = Target(1 / 2, ("distributed",)), Target(1.5, ("hpcdask",), series="spawn_s")
    return Row(
        (
            Figure(label, "s", "s", must=(half,), aim=(limit,)),
            Figure(f"start of {n_workers} bare interpreters", "spawn_s", "s"),
        ),
        measure_start(n_workers),
    )


#: Seconds for `import`.
IMPORT = (Target(0.12),)

ROWS = {
    "start2": start_row(2),
    "start8": start_row(8),
    "idle": Row(
        (
            Figure(
                "idle, whole system", "cpu_percent", "% of a core",
                must=(Target(1),), aim=(Target(0.3),),
            ),
            Figure("idle, whole system, memory (PSS)", "pss_mb", "MB"),
        ),
        measure_idle,
    ),
    "import": Row(
        (
            Figure("`import`, whole process", "import_s", "s", must=IMPORT),
            Figure("`import` of Client and LocalCluster", "client_s", "s", must=IMPORT),
            Figure("`python -c pass`, contained in both", "bare_s", "s"),
            Figure("`import`, file-system calls", "import_calls", "calls"),
            Figure("`import` of both, file-system calls", "client_calls", "calls"),
        ),
        measure_import,
    ),
    "workerstart": Row(
        (
            Figure(
                "start of one worker with its nanny, file-system calls", "calls", "calls",
                must=(Target(1 / 3, ("distributed",)),), aim=(Target(1 / 4, ("distributed",)),),
            ),
        ),
        measure_worker_start,
        rounds=1,
    ),
}  # fmt: skip
