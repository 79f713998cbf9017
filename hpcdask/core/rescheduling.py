"""Tasks that want to be run again, elsewhere or later, and rest until then."""

from __future__ import annotations

from hpcdask.core.records import Task, WorkerRecord
from hpcdask.core.transitions import Transitions


class Rescheduling(Transitions):
    """The part of the scheduler that runs such tasks again.

    Each rests until the next tick: one that is refused everywhere would else keep all busy.
    """

    def _rest(self, task: Task, worker: WorkerRecord) -> None:
        """A run of a task ended with the wish for another one."""
        self._leave_worker(task)
        self._move(task, "waiting")
        self._take_back_dependents(task)
        # What it waits for may stand behind it.
        latest = max([self._turn, *(client.turn for client in self.clients.values())])
        task.change_priority((task.priority[0], latest + 1, task.priority[2]))
        self.resting[task] = worker

    def _wake_resting(self) -> None:
        """Some time has passed: run them, and not where they do not want to run."""
        resting, self.resting = self.resting, {}
        for task, worker in resting.items():
            if task.state != "waiting" or task.missing:
                continue  # it was released meanwhile, or an input was lost
            another = task.lane.placement.another(worker)
            if another is None:
                self._place(task)
            else:
                self._assign(task, another)
