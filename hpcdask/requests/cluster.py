"""Requests about the cluster: where values are, who is there, calls on all, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from hpcdask.calls import call
from hpcdask.core.records import WorkerRecord
from hpcdask.errors import WaitTimeoutError
from hpcdask.gathering import gather_values
from hpcdask.messages import CloseWorker, KeyValues, RegisterWorker, Reply, RestartWorker
from hpcdask.messages.client import (
    AwaitWorkers,
    CallOutcomes,
    GatherKeys,
    Inspect,
    LocateKeys,
    Locations,
    PlanScatter,
    RestartChosen,
    RestartWorkers,
    RetireWorkers,
    RunOnScheduler,
    RunOnWorkers,
    ScatterPlan,
    StoreForClient,
)
from hpcdask.requests.calls import Answers, Calls, outcomes
from hpcdask.snapshots import INSPECTIONS

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler


class ClusterRequests:
    """Answers requests about values and workers, as part of `ClientRequests`."""

    def __init__(
        self,
        scheduler: Scheduler,
        calls: Calls,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self._scheduler, self._calls, self._spawn = scheduler, calls, spawn
        self.answers: Answers = {
            LocateKeys: self._locate,
            GatherKeys: self._gather,
            PlanScatter: self._plan_scatter,
            StoreForClient: self._store,
            Inspect: self._inspect,
            RunOnWorkers: self._run_on_workers,
            RunOnScheduler: self._run_on_scheduler,
            RetireWorkers: self._retire,
            RestartWorkers: self._restart,
            RestartChosen: self._restart_chosen,
            AwaitWorkers: self._await_workers,
        }

    async def _locate(self, name: str, msg: LocateKeys) -> Locations:
        return Locations(msg.request, tuple(map(self._scheduler.state.locate, msg.keys)))

    async def _gather(self, name: str, msg: GatherKeys) -> KeyValues:
        """Fetch for a client that cannot reach the workers itself."""
        located = map(self._scheduler.state.locate, msg.keys)
        gathered = await gather_values(self._scheduler.peers, located)
        return gathered.as_answer(msg.request)

    async def _plan_scatter(self, name: str, msg: PlanScatter) -> ScatterPlan:
        planned = self._scheduler.state.scatter_planned(self._scheduler.now(), name, msg)
        return ScatterPlan(msg.request, tuple(planned))

    async def _store(self, name: str, msg: StoreForClient) -> Reply:
        await self._scheduler.peers.store(msg.address, msg.values)
        return Reply(msg.request, None)

    async def _inspect(self, name: str, msg: Inspect) -> Reply:
        if msg.what == "identity":
            return Reply(msg.request, self._scheduler.identity())
        if msg.what == "story":
            steps = self._scheduler.story.of(msg.names)
            return Reply(msg.request, (self._scheduler.story.is_kept, tuple(map(tuple, steps))))
        return Reply(msg.request, INSPECTIONS[msg.what](self._scheduler.state, msg.names))

    async def _run_on_scheduler(self, name: str, msg: RunOnScheduler) -> CallOutcomes:
        work = call(
            msg.function,
            self._scheduler.address,
            {"dask_scheduler": self._scheduler},
            threaded=False,
        )
        if not msg.wait:
            self._spawn(work)
            return CallOutcomes(msg.request, (), ())
        return outcomes(msg.request, [(self._scheduler.address, await work)])

    async def _run_on_workers(self, name: str, msg: RunOnWorkers) -> CallOutcomes:
        chosen = self._scheduler.state.named_workers(msg.workers)
        if msg.nanny:
            if msg.workers:
                self._refuse_without_nanny(chosen)
            comms = [
                (worker.info.nanny, self._scheduler.nannies[worker.info.nanny][0])
                for worker in chosen
                if worker.info.nanny in self._scheduler.nannies
            ]
        else:
            comms = [(w.address, self._scheduler.workers[w.address]) for w in chosen]
        return outcomes(msg.request, await self._calls.call_all(comms, msg.function, msg.wait))

    async def _retire(self, name: str, msg: RetireWorkers) -> Reply:
        chosen = self._scheduler.state.find_workers(msg.workers) if msg.workers else []
        retired = await self._scheduler.retire([w.address for w in chosen], msg.timeout)
        return Reply(msg.request, tuple(retired))

    async def _await_workers(self, name: str, msg: AwaitWorkers) -> Reply:
        members = self._scheduler.members
        await members.until(lambda: members.n_ready >= msg.n_workers, msg.timeout)
        return Reply(msg.request, members.n_ready)

    async def _restart(self, name: str, msg: RestartWorkers) -> Reply:
        """Forget all tasks, and give every nanny's worker a new process."""
        self._scheduler.state.restarted(self._scheduler.now(), "the cluster was restarted")
        self._scheduler.flush()
        self._scheduler.hooks.call("restart", self._scheduler)
        old = {worker.address: worker.info for worker in self._scheduler.state.workers.values()}
        expected = {info.nanny for info in old.values() if info.nanny in self._scheduler.nannies}
        for nanny in expected:
            self._scheduler.nannies[nanny][0].send(RestartWorker())
        for address, info in old.items():
            if info.nanny not in expected:
                self._scheduler.workers[address].send(CloseWorker("the cluster was restarted"))

        missing = await self._await_back(old.values(), expected, msg.timeout)
        if missing:
            raise WaitTimeoutError(
                f"{len(missing)} of {len(expected)} workers were not back within "
                f"{msg.timeout:g} s after a restart: {sorted(missing)}"
            )
        return Reply(msg.request, None)

    async def _restart_chosen(self, name: str, msg: RestartChosen) -> Reply:
        """Give workers new processes; what they had is computed anew, and no task is blamed."""
        chosen = self._scheduler.state.named_workers(msg.workers) if msg.workers else []
        self._refuse_without_nanny(chosen)
        for worker in chosen:
            self._scheduler.members.ending.add(worker.address)
            self._scheduler.nannies[worker.info.nanny][0].send(RestartWorker())
        old = [worker.info for worker in chosen]
        missing = await self._await_back(old, {info.nanny for info in old}, msg.timeout)
        return Reply(msg.request, {info.address: info.nanny not in missing for info in old})

    async def _await_back(
        self, old: Iterable[RegisterWorker], nannies: set[str], timeout: float
    ) -> set[str]:
        """Wait until nannies have workers that are none of the old ones; return who has not."""
        # By process, since one that listens on a fixed port has the address of the last.
        ended = {(info.nanny, info.pid) for info in old}

        def missing() -> set[str]:
            workers = self._scheduler.state.workers.values()
            equipping = self._scheduler.requests.plugins.equipping
            present = (worker.info for worker in workers if worker.address not in equipping)
            return nannies - {w.nanny for w in present if (w.nanny, w.pid) not in ended}

        await self._scheduler.members.until(lambda: not missing(), timeout)
        return missing()

    def _refuse_without_nanny(self, workers: Iterable[WorkerRecord]) -> None:
        alone = [w.address for w in workers if w.info.nanny not in self._scheduler.nannies]
        if alone:
            raise ValueError(f"no nanny is there for {', '.join(alone)}: it was started without")
