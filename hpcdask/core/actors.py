"""Actors: values that live on the one worker which has made them, and end with it.

Others have copies of an actor as of any value, but all that a copy knows is where the actor is.
"""

from __future__ import annotations

from hpcdask.core.records import Task, WorkerRecord
from hpcdask.core.task_errors import lost_actor
from hpcdask.core.transitions import Transitions
from hpcdask.messages import FreeKeys, Version


class Actors(Transitions):
    """The part of the scheduler that knows what becomes of actors without their worker."""

    def actors_of(self, worker: WorkerRecord) -> list[Task]:
        """The actors that live on a worker."""
        return [task for task in worker.has_what if _lives_on(task, worker)]

    def _drop_copy(self, task: Task, worker: WorkerRecord) -> bool:
        """A worker has a value no more; say whether nobody has."""
        is_end = _lives_on(task, worker)
        task.drop_holder(worker)
        if is_end:
            self._forget_recipe(task)
            for holder in list(task.who_has):
                task.drop_holder(holder)
                self.send(holder.address, FreeKeys((Version(task.key, task.attempt),)))
        return not task.who_has

    def _err_actors(self, tasks: list[Task], worker: WorkerRecord, how: str) -> None:
        """Tell who wants those of lost values that were actors how they ended."""
        for task in tasks:
            if task.lane.is_actor and task.state == "released":
                self._err(task, lost_actor(task, worker, how))


def _lives_on(task: Task, worker: WorkerRecord) -> bool:
    # Who has made it is the first holder: all others have theirs from there.
    return task.lane.is_actor and next(iter(task.who_has), None) is worker
