"""Some hundred ranks that join at once, over the real protocol; see benchmarks.light_workers."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from commands import Command, Home, home, new_home

from hpcdask import Client

__all__ = ["home", "new_home"]

ROOT = Path(__file__).resolve().parents[2]


def start_scheduler(home: Home, limits: str) -> Command:
    command = (sys.executable, "-m", "hpcdask", "scheduler", "--port", "0")
    shell = ("sh", "-c", f'{limits} && exec "$@"', "sh")
    scheduler = home.run(*shell, *command, "--scheduler-file", "s.json")
    scheduler.line("Scheduler at: ")
    return scheduler


def start_ranks(home: Home, count: int) -> Command:
    command = ("-m", "benchmarks.light_workers", "hpcdask", str(count), "--nannies", "s.json")
    return home.run(sys.executable, *command, PYTHONPATH=str(ROOT))


def test_all_ranks_that_start_at_once_are_there_and_work(home: Home) -> None:
    count = 300
    scheduler = start_scheduler(home, "ulimit -Sn 256")
    ranks = start_ranks(home, count)
    with Client(scheduler_file=home.folder / "s.json", timeout=30) as client:
        client.wait_for_workers(count, timeout=60)
        assert len(client.nthreads()) == count
        assert client.gather(client.map(abs, range(3 * count), pure=False), timeout=60) == [
            None  # they claim to have run it
        ] * (3 * count)
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.nannies)) == count
        client.shutdown()
    assert scheduler.code() == 0
    assert ranks.code() == 0
    names = re.findall(r"Register worker (\S+),", scheduler.err)
    assert sorted(names) == sorted(f"light-{n}" for n in range(count))
    assert "WARNING" not in scheduler.err + ranks.err
    assert "ERROR" not in scheduler.err + ranks.err


def test_a_scheduler_that_runs_out_of_connections_says_so_in_time(home: Home) -> None:
    scheduler = start_scheduler(home, "ulimit -n 128")
    start_ranks(home, 60)
    line = scheduler.line(r"WARNING - (\d+ connections are open: .*)")
    assert re.match(
        r"10\d connections are open: this process may have 128 files and connections open, and a "
        r"scheduler of \d+ workers needs about \d+: raise the hard limit to that",
        line,
    )
    scheduler.line("cannot accept connections .*: Too many open files, of which 128 are possible")
