"""What a worker tells of the tasks that it has: called on it when somebody asks.

Nothing is noted for this while tasks run. Which task a thread runs, and since when, is read from
the frames of the thread.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from time import perf_counter
from types import CodeType, FrameType
from typing import Any, NamedTuple

from hpcdask.execution import TaskThreads

#: The frame that has a run's `task`, `start` and threads (`self`), and the one of a coroutine task.
_OUTCOME: CodeType = TaskThreads._outcome.__code__
_FINISH: CodeType = TaskThreads._finish.__code__


class Run(NamedTuple):
    """A task that a thread runs in this moment."""

    key: str
    function: str
    start: float  # on `perf_counter`
    frames: list[FrameType]  # of the task's own code, the innermost first


def runs(threads: TaskThreads) -> Iterator[Run]:
    """Look at what the threads run."""
    for frame in sys._current_frames().values():
        found = run_of(frame, threads)
        if found is not None:
            yield found


def run_of(innermost: FrameType, threads: TaskThreads) -> Run | None:
    """The run that a thread with this frame is in, or None."""
    frames = []
    frame: FrameType | None = innermost
    while frame is not None and frame.f_code is not _OUTCOME:
        frames.append(frame)
        frame = frame.f_back
    if frame is None:
        return None
    found = frame.f_locals
    if found.get("self") is not threads:
        return None
    if frames and frames[-1].f_code is _FINISH:  # a coroutine, which runs on the loop
        frames = _frames_of_coroutine(frames[-1].f_locals.get("coroutine"))
    task = found["task"]
    return Run(task.key, task.function.name, found.get("start", perf_counter()), frames)


def _frames_of_coroutine(coroutine: Any) -> list[FrameType]:
    frames: list[FrameType] = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        frames.insert(0, frame)
        coroutine = coroutine.cr_await
    return frames


def call_stacks(keys: tuple[str, ...], dask_worker: Any) -> dict[str, list[str]]:
    """Stacks of the tasks that run, by key, as lines of a traceback; of `keys`, or of all."""
    return {
        run.key: _lines(run.frames)
        for run in runs(dask_worker._threads)
        if not keys or run.key in keys
    }


def _lines(frames: list[FrameType]) -> list[str]:
    pairs = ((frame, frame.f_lineno) for frame in reversed(frames))
    return traceback.StackSummary.extract(pairs).format()


async def account(key: str, dask_worker: Any) -> str:
    """Say in a sentence or two what has become of a task that was sent to this worker.

    A coroutine, so that it runs on the event loop, where nothing changes meanwhile.
    """
    state = dask_worker.state
    held = state.tasks.get(key)
    running = list(runs(dask_worker._threads))
    if held is None:
        return "The worker does not know it: it has not come there yet, or has ended just now."
    if held.state == "executing":
        run = next((run for run in running if run.key == key), None)
        if run is None:
            return f"It is the next for a thread there. {_busy(running, dask_worker)}"
        where = ""
        if run.frames:
            code = run.frames[0].f_code
            line = run.frames[0].f_lineno
            where = f", in {code.co_name} ({code.co_filename}, line {line})"
        return f"It has been running there for {_seconds(perf_counter() - run.start)}{where}."
    if held.state == "ready":
        lacks = [n for n, amount in held.resources if state.resources.get(n, 0.0) < amount]
        if lacks:
            return f"It waits there for {', '.join(lacks)}, which other runs have taken."
        return f"It waits there for a thread. {_busy(running, dask_worker)}"
    if held.state == "waiting":
        inputs = [state.tasks[k] for k in held.dependencies if k in state.tasks]
        return "There it waits for inputs: " + "; ".join(_inputs(inputs)) + "."
    return f"There it is {held.state}."


def _inputs(inputs: list[Any]) -> Iterator[str]:
    states = Counter(each.state for each in inputs if each.state != "memory")
    words = {"fetch": "to be fetched", "flight": "being fetched"}
    for state, count in states.items():
        some = next(each for each in inputs if each.state == state)
        source = f" from {some.asked}" if state == "flight" else ""
        tried = f", after {len(some.tried)} vain attempts" if some.tried else ""
        yield f"{count} {words.get(state, state)}, as {some.key!r}{source}{tried}"


def _busy(running: list[Run], worker: Any) -> str:
    if not running:
        return f"None of its {worker.nthreads} threads runs a task in this moment."
    longest = min(running, key=lambda run: run.start)
    return (
        f"{len(running)} runs keep its {worker.nthreads} threads, {longest.key!r} the longest, "
        f"for {_seconds(perf_counter() - longest.start)}; {worker.state.n_ready} tasks are ready."
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


async def dump(dask_worker: Any) -> dict[str, Any]:
    """The worker's state as plain data, for `Client.dump_cluster_state`."""
    state = dask_worker.state
    tasks = {
        key: {
            "state": task.state,
            "attempt": task.attempt,
            "nbytes": task.nbytes,
            "dependencies": list(task.dependencies),
            "waiting_for": task.missing,
            "asked": task.asked,
        }
        for key, task in state.tasks.items()
    }
    return {
        "address": dask_worker.address,
        "name": dask_worker.name,
        "status": dask_worker.status,
        "nthreads": dask_worker.nthreads,
        "nbytes": state.nbytes,
        "executing": state.executing,
        "ready": state.n_ready,
        "resources": dict(state.resources),
        "abandoned": [key for key, _ in state.abandoned],
        "tasks": tasks,
        "running": [run.key for run in runs(dask_worker._threads)],
    }
