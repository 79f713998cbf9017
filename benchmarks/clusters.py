"""Clusters to measure on: LocalCluster, or one of separate processes; and what these consume."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import psutil

TIMEOUT = 60  # seconds for a cluster to come up


@contextmanager
def client_of(module: ModuleType, n_workers: int = 2) -> Iterator[Any]:
    """A client of `n_workers` local processes of one thread each, all of them there."""
    with (
        module.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        module.Client(cluster) as client,
    ):
        client.wait_for_workers(n_workers, timeout=TIMEOUT)
        yield client


# -- Separate processes ----------------------------------------------------------------------------


#: What follows ``python -m``.
SCHEDULERS = {
    "hpcdask": "hpcdask scheduler --port 0 --log-level error",
    "distributed": "distributed.cli.dask_scheduler --port 0 --no-dashboard",
}
WORKERS = {
    "hpcdask": "hpcdask worker --nthreads 1 --log-level error",
    "distributed": "distributed.cli.dask_worker --nthreads 1 --no-dashboard",
}


@dataclass(frozen=True)
class SeparateCluster:
    """A scheduler in a process of its own, and a client in this one."""

    scheduler: psutil.Process
    scheduler_file: str
    client: Any

    def workers(self) -> list[psutil.Process]:
        """The processes that run tasks."""
        return [psutil.Process(pid) for pid in self.client.run(os.getpid).values()]


@contextmanager
def separate_cluster(
    module: ModuleType,
    n_workers: int,
    workers: Sequence[str] | None = None,
    scheduler_options: Sequence[str] = (),
) -> Iterator[SeparateCluster]:
    """A cluster as started by hand from a shell.

    Parameters
    ----------
    workers : sequence of str, optional
        What follows ``python -m`` to get the workers; the scheduler file's path is appended. By
        default the command line's own.
    scheduler_options : sequence of str
        Further options of the scheduler's command.
    """
    name = module.__name__
    with ExitStack() as stack:
        file = str(Path(stack.enter_context(TemporaryDirectory()), "scheduler.json"))
        scheduler = [*SCHEDULERS[name].split(), *scheduler_options, "--scheduler-file", file]
        process = stack.enter_context(running(scheduler))
        if workers is None:
            workers = [*WORKERS[name].split(), "--nworkers", str(n_workers), "--scheduler-file"]
        if n_workers:
            stack.enter_context(running([*workers, file]))
        client = stack.enter_context(module.Client(scheduler_file=file, timeout=TIMEOUT))
        if n_workers:
            # 256 of distributed's, on one event loop, take more than a minute on a busy machine.
            client.wait_for_workers(n_workers, timeout=TIMEOUT + n_workers)
        yield SeparateCluster(psutil.Process(process.pid), file, client)


@contextmanager
def running(
    arguments: Sequence[str], *, under: Sequence[str] = (), **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """``python -m`` with `arguments`, `under` a command such as strace, asked to end at the end."""
    if any("distributed" in word for word in arguments):  # it logs its whole life on stderr
        options.setdefault("stderr", subprocess.DEVNULL)
    process = subprocess.Popen([*under, sys.executable, "-m", *arguments], **options)
    try:
        yield process
    finally:
        # strace would end and leave what it traces to run on.
        for target in psutil.Process(process.pid).children() if under else [process]:
            target.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# -- What processes consume ------------------------------------------------------------------------


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """CPU time that they have used, their children's not included."""
    times = [process.cpu_times() for process in processes]
    return sum(t.user + t.system for t in times)


def settled_rss() -> int:
    """Resident bytes of the calling process, after what is free has gone back to the system."""
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def peak_rss(pid: int) -> int:
    """Highest resident bytes of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib) * 1024


def count_tasks(dask_scheduler: Any) -> int:
    """How many tasks a scheduler knows; to be run on it."""
    holder = dask_scheduler if hasattr(dask_scheduler, "tasks") else dask_scheduler.state
    return len(holder.tasks)
