"""What a task costs the scheduler's state: ``python tests/simulation/scale.py [--tasks N]``.

No network and no threads: workers are queues in virtual time, and only the time that the real
SchedulerState takes is measured, placement, stealing and ticks included.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from heapq import heappop, heappush
from random import Random
from typing import Any

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.messages import (
    ComputeTask,
    FreeKeys,
    Function,
    GivenBack,
    RegisterWorker,
    Restriction,
    TakeBack,
    TaskFinished,
    TaskSpec,
    Version,
)
from hpcdask.messages.client import SubmitTasks

#: Seconds that tasks take, by the name of their function.
MIXED = {"tick": 1e-4, "short": 1e-2, "long": 1.0}
RESTRICTIONS = (
    None,
    Restriction(("h0", "h1", "h2"), False, ()),
    Restriction((), False, (("gpu", 1.0),)),
)
#: Tasks in one message of the client.
_CHUNK = 1000
_TICK = 0.1


class QueueWorker:
    """A worker with one thread that does what it is sent in the order of its coming."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.waiting: dict[Version, ComputeTask] = {}
        self.running: ComputeTask | None = None


class Measurement:
    """One simulated cluster, and the seconds that its scheduler's state has taken."""

    def __init__(self, n_workers: int, are_restricted: bool = False, seed: int = 0) -> None:
        self.random = Random(seed)
        self.are_restricted = are_restricted
        self.now = 0.0
        self.cost = 0.0  # real seconds in the state
        self.n_done = self.n_given_back = 0
        self.state = SchedulerState()
        self.workers: dict[str, QueueWorker] = {}
        self._ends: list[tuple[float, int, QueueWorker]] = []
        self._names = list(MIXED)
        self._pushes = self._submissions = 0
        self.state.client_joined(0.0, "c")
        for i in range(n_workers):
            address = f"tcp://10.{i >> 16}.{i >> 8 & 255}.{i & 255}:1"
            gpu = (("gpu", 1.0),) if i % 4 == 0 else ()
            about = (f"h{i % 8}", 1, "/", "", 1, "1", gpu)
            info = RegisterWorker(address, address, 1, 0, *about)
            self.workers[address] = QueueWorker(address)
            self.state.worker_joined(0.0, info)

    def _event(self, event: Any, *args: Any) -> None:
        start = time.process_time()
        event(*args)
        self.cost += time.process_time() - start
        outbox, self.state.outbox = self.state.outbox, {}
        for address, messages in outbox.items():
            if address in self.workers:
                self._receive(self.workers[address], messages)

    def _receive(self, worker: QueueWorker, messages: Sequence[Any]) -> None:
        for message in messages:
            if type(message) is ComputeTask:
                worker.waiting[Version(message.key, message.attempt)] = message
            elif type(message) is FreeKeys:
                for version in message.versions:
                    worker.waiting.pop(version, None)
            elif type(message) is TakeBack:
                back = tuple(v for v in message.versions if worker.waiting.pop(v, None))
                self.n_given_back += len(back)
                if back:
                    self._event(self.state.given_back, self.now, worker.address, GivenBack(back))
        self._start(worker)

    def _start(self, worker: QueueWorker) -> None:
        if worker.running is None and worker.waiting:
            worker.running = worker.waiting.pop(next(iter(worker.waiting)))
            usual = MIXED[worker.running.function_id.decode()]
            self._pushes += 1
            end = self.now + usual * self.random.uniform(0.5, 2.0)
            heappush(self._ends, (end, self._pushes, worker))

    def submit(self, n_tasks: int) -> None:
        """Send a graph: half of the tasks need nothing, the others need two of these.

        If tasks are restricted, a third are to some hosts, and a third to workers with a gpu.
        """
        functions = tuple(Function(name.encode(), name, b"") for name in self._names)
        self._submissions += 1
        for number, first in enumerate(range(0, n_tasks, _CHUNK)):
            specs = tuple(self._spec(i) for i in range(first, min(first + _CHUNK, n_tasks)))
            final = first + _CHUNK >= n_tasks
            where = RESTRICTIONS[number % 3] if self.are_restricted else None
            about = (None, first, 0.0, 0, final, 0, where)
            msg = SubmitTasks(self._submissions, functions, specs, *about)
            self._event(self.state.tasks_submitted, self.now, "c", msg)

    def _spec(self, i: int) -> TaskSpec:
        odd, n = i % 2 and i % _CHUNK > 2, self._submissions
        needs = (f"t{n}-{i - 1}", f"t{n}-{i - 3}") if odd else ()
        function = self.random.choice([0] * 8 + [1] * 3 + [2])
        return TaskSpec(f"t{n}-{i}", function, b"", needs)

    def run(self) -> None:
        """Let all tasks run."""
        next_tick = self.now + _TICK
        while self._ends:
            end, _, worker = heappop(self._ends)
            while next_tick < end:
                self.now = next_tick
                self._event(self.state.tick, self.now)
                next_tick += _TICK
            self.now = end
            run, worker.running = worker.running, None
            assert run is not None
            self.n_done += 1
            duration = MIXED[run.function_id.decode()]
            done = TaskFinished(run.key, run.attempt, 1000, duration, None)
            self._event(self.state.task_finished, self.now, worker.address, done)
            self._start(worker)


def measure(n_workers: int, n_tasks: int, are_restricted: bool = False) -> Measurement:
    """Run so many tasks on so many workers."""
    measurement = Measurement(n_workers, are_restricted)
    measurement.submit(4 * n_workers)
    measurement.run()
    measurement.n_done = measurement.n_given_back = 0
    measurement.cost = 0.0
    gc.collect()
    gc.disable()
    try:
        measurement.submit(n_tasks)
        measurement.run()
    finally:
        gc.enable()
    assert all(task.state == "memory" for task in measurement.state.tasks.values())
    return measurement


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Cost per task of the scheduler's state.")
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 1000, 10_000])
    options = parser.parse_args(arguments)
    print(" workers    tasks  restricted  us/task   given back")
    for are_restricted in (False, True):
        for n_workers in options.workers:
            found = measure(n_workers, options.tasks, are_restricted)
            cost = 1e6 * found.cost / options.tasks
            which = "two thirds" if are_restricted else "none"
            print(
                f"{n_workers:8} {options.tasks:8}  {which:10} {cost:8.1f} {found.n_given_back:12}"
            )


if __name__ == "__main__":
    main()
