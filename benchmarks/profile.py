"""Where each microsecond of a task goes: ``python -m benchmarks.profile noop``.

Runs one of the graphs of small tasks over and over on a scheduler, two workers and a client in a
process each, while py-spy samples them. Prints for each process its CPU time per task, and the
functions in which it passes, by their own time and with what they call.
"""

import argparse
import importlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from .clusters import cpu_seconds, separate_cluster
from .figures import PEERS
from .systems import SYSTEMS, System
from .works import WORKS, Work

RATE = 200  # samples a second
#: A thread that has been woken and waits for a core still stands in the call it waited in.
WAITING = ("select (selectors.py", "wait (threading.py", "_worker (concurrent/futures/thread.py")
#: Frames that contain more of all samples than this are the way into the program.
OUTERMOST = 0.95

Samples = Counter[tuple[str, ...]]


@contextmanager
def sampled(pid: int, output: Path) -> Iterator[None]:
    """Let py-spy write the stacks of a process that were on a CPU meanwhile to `output`."""
    command = ["py-spy", "record", "--pid", str(pid), "--rate", str(RATE), "--duration", "3600"]
    command += ["--format", "raw", "--output", str(output), "--nonblocking"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as sampler:
        time.sleep(0.5)  # it reads the symbols first
        yield
        sampler.send_signal(signal.SIGINT)  # it writes, and ends


def read_samples(path: Path) -> Samples:
    """Stacks, outermost frame first, with how often each was seen."""
    samples: Samples = Counter()
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = tuple(stack.split(";"))
        if not any(place in frames[-1] for place in WAITING):
            samples[frames] += int(count)
    return samples


def run_for(work: Work, client: Any, duration: float) -> int:
    """Run it again and again; return the number of tasks."""
    ntasks, start = 0, time.perf_counter()
    while time.perf_counter() - start < duration:
        work.run(client, work.size)
        ntasks += work.ntasks
    return ntasks


def describe(title: str, us_per_task: float, samples: Samples, package: str, limit: int) -> str:
    """Two lists of functions, in microseconds per task; the second of `package` only."""
    total = sum(samples.values()) or 1
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    for frames, count in samples.items():
        own[frames[-1]] += count
        for frame in set(frames):
            inclusive[frame] += count
    lines = [f"\n## {title}: {us_per_task:.1f} us of CPU per task ({total} samples)\n"]
    inner = Counter(
        {f: n for f, n in inclusive.items() if f"({package}/" in f and n < OUTERMOST * total}
    )
    for heading, counts in (("own time", own), ("with what it calls", inner)):
        lines += [f"| us | {heading} |", "|---|---|"]
        for frame, count in counts.most_common(limit):
            lines.append(f"| {us_per_task * count / total:.2f} | `{frame}` |")
        lines.append("")
    return "\n".join(lines)


def by_function(samples: Samples) -> Samples:
    """The same without line numbers: ``name (file.py:12)`` becomes ``name (file.py)``."""
    merged: Samples = Counter()
    for frames, count in samples.items():
        merged[tuple(frame.rpartition(":")[0] + ")" for frame in frames)] += count
    return merged


def profile(system: System, name: str, duration: float) -> Iterator[tuple[str, float, Samples]]:
    """Title, CPU microseconds per task and samples of each process."""
    work = WORKS[name]
    module = importlib.import_module(system.module)
    with separate_cluster(module, 2) as cluster, TemporaryDirectory() as directory:
        processes = {"scheduler": cluster.scheduler, "client": psutil.Process()}
        for number, worker in enumerate(cluster.workers(), 1):
            processes[f"worker {number}"] = worker
        work.run(cluster.client, work.warm_up)
        work.run(cluster.client, work.size)
        files = {title: Path(directory, title) for title in processes}
        with ExitStack() as stack:
            for title, process in processes.items():
                stack.enter_context(sampled(process.pid, files[title]))
            before = {title: cpu_seconds([process]) for title, process in processes.items()}
            start = time.perf_counter()
            ntasks = run_for(work, cluster.client, duration)
            wall = time.perf_counter() - start
            cpu = {title: cpu_seconds([p]) - before[title] for title, p in processes.items()}
        print(f"{ntasks} tasks of {name} in {wall:.1f} s: {ntasks / wall:.0f} a second, sampled")
        for title in processes:
            yield title, 1e6 * cpu[title] / ntasks, read_samples(files[title])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("row", choices=WORKS)
    parser.add_argument("--system", choices=("hpcdask", *PEERS), default="hpcdask")
    parser.add_argument("--seconds", type=float, default=15.0, help="default: %(default)s")
    parser.add_argument("--top", type=int, default=25, help="functions to show of each process")
    parser.add_argument("--lines", action="store_true", help="tell the lines of a function apart")
    arguments = parser.parse_args()
    system = SYSTEMS[arguments.system]
    os.environ.update(system.environ())  # for what is imported from here on, and started
    for title, us_per_task, samples in profile(system, arguments.row, arguments.seconds):
        seen = samples if arguments.lines else by_function(samples)
        print(describe(title, us_per_task, seen, system.module, arguments.top))


if __name__ == "__main__":
    main()
