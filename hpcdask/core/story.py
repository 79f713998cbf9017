"""The last moves of tasks, for who wants to know how a task got where it is.

A scheduler that keeps no story pays nothing for that: `watch_moves` puts itself in the place of the
method that makes all moves, and only when it is called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from hpcdask.core.records import Task, WorkerRecord
from hpcdask.core.transitions import Transitions
from hpcdask.messages import TaskFinished


class Step(NamedTuple):
    """One move of a task."""

    key: str
    start: str  # the state before; empty if that is not known
    finish: str
    worker: str  # address, of a task that a worker has; else empty
    attempt: int  # of the run or the value; 0 if there is none
    time: float  # seconds since the epoch; 0 if that is not known


class Story:
    """The last moves of a scheduler's tasks.

    Parameters
    ----------
    state : SchedulerState
    length : int
        Moves that are kept; with 0 none is, and only present states are known.
    clock : callable
        Gives seconds since the epoch.
    """

    def __init__(self, state: Transitions, length: int, clock: Callable[[], float]) -> None:
        self._state, self._clock = state, clock
        self._steps: deque[Step] = deque(maxlen=length)
        self.is_kept = length > 0
        if self.is_kept:
            watch_moves(state, self._note)

    def _note(self, task: Task, start: str) -> None:
        worker = "" if task.worker is None else task.worker.address
        step = Step(task.key, start, task.state, worker, task.attempt, self._clock())
        self._steps.append(step)

    def of(self, keys: Iterable[str]) -> list[Step]:
        """What is known of tasks, the oldest first; without keys of all.

        Without a story these are the states in which they are.
        """
        wanted = set(keys)
        if self.is_kept:
            return [step for step in self._steps if not wanted or step.key in wanted]
        tasks = (self._state.tasks.get(key) for key in wanted or list(self._state.tasks))
        return [_as_it_is(task) for task in tasks if task is not None]


def _as_it_is(task: Task) -> Step:
    at = [task.worker] if task.worker is not None else list(task.who_has)[:1]
    worker = at[0].address if at else ""
    return Step(task.key, "", task.state, worker, task.attempt if at else 0, 0.0)


def watch_moves(state: Transitions, watcher: Callable[[Task, str], None]) -> Callable[[], None]:
    """Have a function called after each move of a task, with the task and its state before.

    Returns
    -------
    callable
        Ends that. Who has begun last has to end first.
    """
    move, before = state._move, vars(state).get("_move")

    def watched(task: Task, to: str) -> None:
        start = task.state
        move(task, to)
        watcher(task, start)

    def end() -> None:
        if before is None:
            del state._move
        else:
            state._move = before  # type: ignore[method-assign]

    state._move = watched  # type: ignore[method-assign, assignment]
    return end


def watch_runs(state: Transitions, watcher: Callable[[Task, float], None]) -> Callable[[], None]:
    """Have a function called before each move to "memory" of a task that has run.

    It gets the task and how many seconds it ran.

    Returns
    -------
    callable
        Ends that.
    """
    finish = state._processing_to_memory

    def watched(task: Task, worker: WorkerRecord, msg: TaskFinished) -> None:
        watcher(task, msg.duration)
        finish(task, worker, msg)

    def end() -> None:
        del state._processing_to_memory

    state._processing_to_memory = watched  # type: ignore[method-assign]
    return end
