"""Values that clients put onto workers: planned here, sent there, and told when they are there."""

from __future__ import annotations

from hpcdask.core.records import ClientRecord, Task, WorkerRecord
from hpcdask.core.returning import Returning
from hpcdask.messages import FreeKeys, HeldValue, PlacedValue, Version
from hpcdask.messages.client import DataScattered, PlanScatter, TaskDone


class Scattering(Returning):
    """The part of the scheduler that knows of data without a recipe."""

    def __init__(self, first_attempt: int) -> None:
        super().__init__(first_attempt)
        #: By client, then attempt: where its values may be before it says that they are.
        self._scattering: dict[str, dict[int, PlacedValue]] = {}

    # -- Events -----------------------------------------------------------------------------------

    def scatter_planned(self, now: float, name: str, msg: PlanScatter) -> list[PlacedValue]:
        """Choose workers for values that a client will send; empty if there are none."""
        chosen = self.find_workers(msg.workers)
        planned = []
        for key, nbytes in msg.items:
            if not chosen:
                break
            self._attempt += 1
            # By the attempt, so that values scattered one at a time do not all go to the first.
            targets = chosen if msg.broadcast else [chosen[self._attempt % len(chosen)]]
            addresses = tuple(worker.address for worker in targets)
            planned.append(PlacedValue(key, self._attempt, nbytes, addresses))
        if planned:
            self._scattering.setdefault(name, {}).update({p.attempt: p for p in planned})
        return planned

    def data_scattered(self, now: float, name: str, msg: DataScattered) -> None:
        """The values are on the workers."""
        self._make_way([placed.key for placed in msg.placements if placed.addresses])
        client, planned = self.clients[name], self._scattering.get(name, {})
        for placed in msg.placements:
            plan = planned.pop(placed.attempt, None)
            if plan is None:
                if placed.addresses and self._is_of_another_scheduler(placed.attempt):
                    self._await_announced(now, client, placed)
            elif placed.addresses:
                there = tuple(a for a in placed.addresses if a in plan.addresses)
                self._has_come(client, placed._replace(addresses=there))
            else:  # the client gave up half-way
                self._free_placed(plan)
        self._settle()

    def _has_come(self, client: ClientRecord, placed: PlacedValue) -> None:
        task = self.tasks.get(placed.key)
        if task is None:
            task = self._placeholder(placed.key, placed.attempt - 1)
        holders = [self.workers[a] for a in placed.addresses if a in self.workers]
        if holders and task.state in ("released", "erred"):
            self._scattered_to_memory(task, placed, holders)
        else:  # the key has its value already, or is being computed; or the workers are gone
            self._free_placed(placed)
        self._want_scattered(client, task)

    def _await_announced(self, now: float, client: ClientRecord, placed: PlacedValue) -> None:
        """Values were put where a scheduler before us said: their holders will tell."""
        self._hold(now)
        self._has_predecessor = True
        task = self.tasks.get(placed.key)
        if task is None:
            task = self._placeholder(placed.key, placed.attempt - 1)
            task.nbytes = placed.nbytes
            self.held[task] = None
        self._want_scattered(client, task)

    def _want_scattered(self, client: ClientRecord, task: Task) -> None:
        # A returning client may have let it go meanwhile: what it wants now follows.
        self._want(self._until_told(client) if client.is_returning else client, task)
        if self._hold_until and task.state == "released":
            self.held[task] = None
        self._demand_or_hold(task)

    def _scattered_to_memory(
        self, task: Task, placed: PlacedValue, holders: list[WorkerRecord]
    ) -> None:
        if task.state == "erred":
            self._move(task, "released")
        self._move(task, "memory")
        task.attempt, task.nbytes, task.error = placed.attempt, placed.nbytes, None
        for worker in holders:
            task.add_holder(worker)
        task.drop_client(self._keeper)
        self._tell(task, TaskDone(task.key, task.nbytes, None))

    # -- Plans ------------------------------------------------------------------------------------

    def _leave_plans(self, worker: WorkerRecord, version: Version | None = None) -> None:
        """A worker is gone, or has lost one value: what clients put there is not there."""
        address = worker.address
        for plans in self._scattering.values():
            some = list(plans.values()) if version is None else [plans.get(version.attempt)]
            for plan in some:
                if plan is not None and address in plan.addresses:
                    left = tuple(a for a in plan.addresses if a != address)
                    plans[plan.attempt] = plan._replace(addresses=left)

    def _is_expected(self, worker: WorkerRecord, version: Version) -> bool:
        """Whether a client is about to say that it has put this value there."""
        # A client may have stored what a scheduler before us planned.
        return self._join_plan(worker, version) or self._might_be_claimed(worker, version)

    def _join_plan(self, worker: WorkerRecord, version: Version) -> bool:
        """Note in its plan that a worker has a value, after all if it had come back meanwhile."""
        for plans in self._scattering.values():
            plan = plans.get(version.attempt)
            if plan is not None and plan.key == version.key:
                if worker.address not in plan.addresses:
                    addresses = (*plan.addresses, worker.address)
                    plans[plan.attempt] = plan._replace(addresses=addresses)
                return True
        return False

    def _take_up_value(self, now: float, worker: WorkerRecord, value: HeldValue) -> bool:
        version = Version(value.key, value.attempt)
        return self._join_plan(worker, version) or super()._take_up_value(now, worker, value)

    def _find_scattered(self, client: ClientRecord, key: str) -> Task | None:
        """A value that a client had put onto workers, though we have not been told so.

        It wants a key that it scatters only when the values are there.
        """
        for plan in list(self._scattering.get(client.name, {}).values()):
            if plan.key == key:
                del self._scattering[client.name][plan.attempt]
                self._has_come(client, plan)
        return self.tasks.get(key)

    def _drop_plans(self, name: str) -> None:
        """A client is gone that may have stored values, or not yet."""
        for placed in self._scattering.pop(name, {}).values():
            self._free_placed(placed)

    def _free_placed(self, placed: PlacedValue) -> None:
        for address in placed.addresses:
            if address in self.workers:
                self.send(address, FreeKeys((Version(placed.key, placed.attempt),)))
