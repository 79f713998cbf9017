"""Requests about what runs, and what has run: tasks that are left, the stream of runs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

from hpcdask.core.records import Task
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.transitions import TO_RUN
from hpcdask.messages import Reply, TaskErred, TaskFinished
from hpcdask.messages.client import AskTaskStream, CountLeft
from hpcdask.requests.calls import Answers

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler

#: Seconds for which the loop is kept at a time, and tasks between two looks at the clock.
_SLICE, _TASKS = 0.005, 500
#: Runs that are remembered, and runs between two looks at whether anybody cares.
_ROWS, _LOOK = 100_000, 1000


class DiagnosticRequests:
    """Answers requests about runs, as part of `ClientRequests`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._state = scheduler.state
        self._stream = TaskStream(scheduler)
        self.answers: Answers = {CountLeft: self._count, AskTaskStream: self._runs}

    async def _count(self, name: str, msg: CountLeft) -> Reply:
        tasks = self._state.tasks
        asked = [tasks[key] for key in msg.keys if key in tasks]
        return Reply(msg.request, await count_left(asked))

    async def _runs(self, name: str, msg: AskTaskStream) -> Reply:
        self._stream.record_for(name)
        return Reply(msg.request, tuple(self._stream.rows(msg.start, msg.stop, msg.most)))


async def count_left(tasks: list[Task]) -> Counter[str]:
    """Count what is still to run of tasks and of all that they need, by the function's name.

    There may be a million: others get their turn meanwhile, so that the numbers are not exact.
    """
    left: Counter[str] = Counter()
    seen = set(tasks)
    stack = list(tasks)
    end = perf_counter() + _SLICE
    n_done = 0
    while stack:
        task = stack.pop()
        if task.state not in TO_RUN:
            continue
        if task.function is not None:
            left[task.function.prefix.name] += 1
        for dependency in task.dependencies:
            if dependency not in seen:
                seen.add(dependency)
                stack.append(dependency)
        n_done += 1
        if not n_done % _TASKS and perf_counter() > end:
            await asyncio.sleep(0)
            end = perf_counter() + _SLICE
    return left


class TaskStream:
    """The last runs that have ended, noted while a client is there that has asked for them.

    Parameters
    ----------
    scheduler : Scheduler
        What its workers say is dealt with by `worker_events`, in which this takes part.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._watchers: set[str] = set()
        self._rows: deque[tuple[Any, ...]] = deque(maxlen=_ROWS)
        self._n_noted = 0
        self._usual = scheduler.worker_events

    def record_for(self, client: str) -> None:
        """Note runs from now on, until this client leaves and all others that have asked."""
        self._watchers.add(client)
        self._scheduler.worker_events = {
            **self._usual,
            TaskFinished: self._finished,
            TaskErred: self._erred,
        }

    def rows(self, start: float, stop: float, most: int) -> list[tuple[Any, ...]]:
        """Runs that ended after `start` and began before `stop`, the last `most` of them."""
        found = [row for row in self._rows if row[4] >= start and row[3] <= stop]
        return found[len(found) - most :] if most < len(found) else found

    def _finished(self, state: SchedulerState, now: float, address: str, msg: Any) -> None:
        self._note(state, address, msg, msg.duration, msg.nbytes, has_failed=False)
        self._usual[TaskFinished](state, now, address, msg)

    def _erred(self, state: SchedulerState, now: float, address: str, msg: Any) -> None:
        self._note(state, address, msg, 0.0, 0, has_failed=True)
        self._usual[TaskErred](state, now, address, msg)

    def _note(
        self,
        state: SchedulerState,
        address: str,
        msg: TaskFinished | TaskErred,
        duration: float,
        nbytes: int,
        has_failed: bool,
    ) -> None:
        task = state.tasks.get(msg.key)
        if task is None or task.attempt != msg.attempt or task.function is None:
            return
        stop = time.time()
        name = task.function.prefix.name
        row = (msg.key, name, address, stop - duration, stop, nbytes, has_failed)
        self._rows.append(row)
        self._n_noted += 1
        if not self._n_noted % _LOOK:
            self._watchers &= state.clients.keys()
            if not self._watchers:
                self._scheduler.worker_events = self._usual
                self._rows.clear()
