"""Clusters of which workers are told to go."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from commands import Command, Home
from counted_runs import count_runs

from hpcdask import Client

#: Seconds that leaving may take.
LIMIT = 20


class DrainedCluster:
    """A scheduler, workers that are each a command of its own, and a client."""

    def __init__(
        self,
        home: Home,
        nanny: str = "--nanny",
        limit: float = LIMIT,
        names: Sequence[str] = ("a", "b"),
        options: Sequence[str] = (),
    ) -> None:
        self._home, self._nanny, self._limit = home, nanny, limit
        self.scheduler = home.hpc_dask("scheduler", "--port", "0", *options)
        self.address = self.scheduler.line(r"Scheduler at: +(tcp://\S+)")
        self.workers: dict[str, Command] = {}
        for name in names:
            self.start(name)
        self.client = Client(self.address, token=home.token, set_as_default=False, timeout=20)
        self.client.wait_for_workers(len(names), timeout=30)
        self.runs = home.folder / "runs"
        self.runs.mkdir()

    def start(self, name: str, *more: str) -> Command:
        """Start another worker."""
        options = ("--name", name, "--nthreads", "1", "--drain-timeout", f"{self._limit}s")
        # With what the tests can import, as the functions of the tasks.
        path = os.pathsep.join(sys.path)
        command = self._home.hpc_dask(
            *("worker", self.address, *options, self._nanny, *more), PYTHONPATH=path
        )
        self.workers[name] = command
        return command

    def address_of(self, name: str) -> str:
        workers = self.client.scheduler_info()["workers"]
        [address] = [address for address, about in workers.items() if about["name"] == name]
        return address

    def signal(self, name: str, *numbers: signal.Signals) -> None:
        """Send signals to all processes of a worker's command, as batch systems do to a job."""
        processes = self.workers[name].processes()
        for number in numbers:
            for process in processes:
                process.send_signal(number)

    @property
    def n_runs(self) -> int:
        """How often tasks have begun."""
        return count_runs(self.runs)

    def __enter__(self) -> DrainedCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
