"""What a task costs the scheduler's state: ``python tests/simulation/scale.py [--tasks N]``.

No network and no threads: workers are queues in virtual time, and only the time that the real
SchedulerState takes is measured, placement, stealing and ticks included.
"""

from __future__ import annotations

import argparse
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
    SubmitTasks,
    TakeBack,
    TaskFinished,
    TaskSpec,
    Version,
)

#: Seconds that tasks take, by the name of their function.
MIXED = {"tick": 1e-4, "short": 1e-2, "long": 1.0}
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

    def __init__(self, n_workers: int, seed: int = 0) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.cost = 0.0  # real seconds in the state
        self.n_done = self.n_given_back = 0
        self.state = SchedulerState()
        self.workers: dict[str, QueueWorker] = {}
        self._ends: list[tuple[float, int, QueueWorker]] = []
        self._names = list(MIXED)
        self._pushes = 0
        self.state.client_joined(0.0, "c")
        for i in range(n_workers):
            address = f"tcp://10.{i >> 16}.{i >> 8 & 255}.{i & 255}:1"
            info = RegisterWorker(address, address, 1, 0, f"h{i // 64}", 1, "/", "", 1, "1")
            self.workers[address] = QueueWorker(address)
            self.state.worker_joined(0.0, info)

    def _event(self, event: Any, *args: Any) -> None:
        start = time.perf_counter()
        event(*args)
        self.cost += time.perf_counter() - start
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
        """Send a graph: half of the tasks need nothing, the others need two of these."""
        functions = tuple(Function(name.encode(), name, b"") for name in self._names)
        for first in range(0, n_tasks, _CHUNK):
            specs = tuple(self._spec(i) for i in range(first, min(first + _CHUNK, n_tasks)))
            final = first + _CHUNK >= n_tasks
            msg = SubmitTasks(1, functions, specs, None, first, 0.0, 0, final)
            self._event(self.state.tasks_submitted, self.now, "c", msg)

    def _spec(self, i: int) -> TaskSpec:
        odd = i % 2 and i > 2
        needs = (f"t{i - 1}", f"t{i - 3 if i > 3 else 0}") if odd else ()
        return TaskSpec(f"t{i}", self.random.choice([0] * 8 + [1] * 3 + [2]), b"", needs)

    def run(self) -> None:
        """Let all tasks run."""
        next_tick = _TICK
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


def measure(n_workers: int, n_tasks: int) -> Measurement:
    """Run so many tasks on so many workers."""
    measurement = Measurement(n_workers)
    measurement.cost = 0.0  # joining is not what is asked
    measurement.submit(n_tasks)
    measurement.run()
    assert all(task.state == "memory" for task in measurement.state.tasks.values())
    return measurement


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Cost per task of the scheduler's state.")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 1000, 10_000])
    options = parser.parse_args(arguments)
    print(" workers    tasks  us/task   given back  virtual s")
    for n_workers in options.workers:
        found = measure(n_workers, options.tasks)
        cost = 1e6 * found.cost / options.tasks
        print(
            f"{n_workers:8} {options.tasks:8} {cost:8.1f} {found.n_given_back:12} {found.now:10.2f}"
        )


if __name__ == "__main__":
    main()
