"""A cluster on the ranks of an MPI job: until it is ready, and until it has ended."""

import importlib.util
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import psutil

from benchmarks.clusters import TIMEOUT
from benchmarks.figures import PEERS, Figure, Measure, Row, Series, Target
from benchmarks.measuring import seconds

#: As in the Makefile, for who comes without it.
MPIRUN = shlex.split(os.environ.get("MPIRUN", "mpirun --map-by :OVERSUBSCRIBE --bind-to none"))
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
COMMANDS = {
    "hpcdask": [sys.executable, "-m", "hpcdask", "--log-level", "error"],
    "distributed": ["dask-mpi", "--no-dashboard", "--nthreads", "1"],
}
#: dask-mpi is distributed's; tuning distributed does not concern its start.
WITHOUT = PEERS if importlib.util.find_spec("dask_mpi") is None else ("tuned",)


def measure_mpi(nranks: int) -> Measure:
    def measure(module: ModuleType) -> Series:
        ranks = [*MPIRUN, "-np", str(nranks)]
        with TemporaryDirectory() as directory:
            file = str(Path(directory, "scheduler.json"))
            start = time.perf_counter()
            with mpi_job([*ranks, *COMMANDS[module.__name__], "--scheduler-file", file]) as job:
                client = module.Client(scheduler_file=file, timeout=TIMEOUT)
                client.wait_for_workers(nranks - 1, timeout=TIMEOUT)
                ready = time.perf_counter() - start
                shutdown = seconds(partial(shut_down, client, job))
        bare = seconds(partial(subprocess.run, [*ranks, "true"], env=environ(), check=True))
        return {"ready_s": [ready], "shutdown_s": [shutdown], "bare_s": [bare]}

    return measure


def environ() -> dict[str, str]:
    return os.environ | AS_ROOT


@contextmanager
def mpi_job(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """An mpirun, which is killed with its ranks unless it has ended by itself."""
    job = subprocess.Popen(command, env=environ(), stdout=subprocess.DEVNULL)
    try:
        yield job
    finally:
        if job.poll() is None:
            for rank in psutil.Process(job.pid).children(recursive=True):
                rank.kill()
            job.kill()
            job.wait()


def shut_down(client: Any, job: subprocess.Popen[bytes]) -> None:
    client.shutdown()
    job.wait(TIMEOUT)


def mpi_row(nranks: int, recorded_ready: float, recorded_shutdown: float) -> Row:
    label = f"`mpirun -np {nranks}`"
    return Row(
        (
            Figure(
                f"{label} to all workers seen", "ready_s", "s",
                must=(Target(0.6, ("distributed",)),),
                aim=(Target(1, ("hpcdask",), series="bare_s", plus=0.3),),
                recorded={"distributed": recorded_ready},
            ),
            Figure(
                f"{label}: shutdown", "shutdown_s", "s",
                must=(Target(0.5),), recorded={"distributed": recorded_shutdown},
            ),
            Figure(f"{label} true", "bare_s", "s"),
        ),
        measure_mpi(nranks),
        without=WITHOUT,
    )  # fmt: skip


# Recorded with dask-mpi on the same kind of machine: 2 cores, Python 3.11, Open MPI 5.
ROWS = {"mpi4": mpi_row(4, 2.1, 0.5), "mpi16": mpi_row(16, 5.1, 1.4)}
