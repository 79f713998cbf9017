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

    def _drop_copy(self, task: Task, worker: WorkerRecord) -> bool:
        """A worker has a value no more; say whether nobody has."""
        if task in worker.actors:
            self._actor_ends(task)
            for holder in list(task.who_has):
                task.drop_holder(holder)
                if holder is not worker:
                    self.send(holder.address, FreeKeys((Version(task.key, task.attempt),)))
        else:
            task.drop_holder(worker)
        return not task.who_has

    def _err_actors(self, tasks: list[Task], worker: WorkerRecord, how: str) -> None:
        """Tell who wants those of lost values that were actors how they ended."""
        for task in tasks:
            if task.lane.is_actor and task.state == "released":
                self._err(task, lost_actor(task, worker, how))
