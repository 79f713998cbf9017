"""What clients ask the scheduler for, and the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from hpcdask.calls import call
from hpcdask.comm import Comm
from hpcdask.errors import CommClosedError, WaitTimeoutError
from hpcdask.gathering import gather_values
from hpcdask.messages import (
    AwaitWorkers,
    Blob,
    CallFunction,
    CallOutcomes,
    CloseWorker,
    Failure,
    GatherKeys,
    Inspect,
    KeyValues,
    LocateKeys,
    Locations,
    Message,
    PlanScatter,
    Reply,
    RestartWorker,
    RestartWorkers,
    RetireWorkers,
    RunOnScheduler,
    RunOnWorkers,
    ScatterPlan,
    StoreForClient,
    TaskError,
)
from hpcdask.peers import RequestFailedError, Requests
from hpcdask.snapshots import INSPECTIONS, identity
from hpcdask.tracebacks import to_task_error

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler


class ClientRequests:
    """Answers requests of a scheduler's clients.

    Parameters
    ----------
    scheduler : Scheduler
        Whose state and connections it uses.
    spawn : callable
        Runs a coroutine that ends with the scheduler at the latest.
    """

    def __init__(
        self, scheduler: Scheduler, spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
    ) -> None:
        self._scheduler, self._spawn = scheduler, spawn
        self._calls = Requests()  # of workers and nannies

    def call_answered(self, message: Message) -> None:
        """A worker or a nanny has returned from a call."""
        self._calls.answered(message)

    async def answer(self, name: str, message: Any) -> Message:
        """Answer a request; whatever goes wrong is the answer, too."""
        try:
            return await REQUESTS[type(message)](self, name, message)
        except RequestFailedError as exc:
            return Failure(message.request, exc.error)
        except Exception as exc:
            return Failure(message.request, to_task_error(exc))

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
            about = identity(self._scheduler.state, self._scheduler.about())
            return Reply(msg.request, about)
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
        return _outcomes(msg.request, [(self._scheduler.address, await work)])

    async def _run_on_workers(self, name: str, msg: RunOnWorkers) -> CallOutcomes:
        chosen = self._scheduler.state.find_workers(msg.workers)
        comms = [(worker.address, self._scheduler.workers[worker.address]) for worker in chosen]
        if msg.nanny:
            comms = [
                (worker.info.nanny, self._scheduler.nannies[worker.info.nanny][0])
                for worker in chosen
                if worker.info.nanny in self._scheduler.nannies
            ]
        asked = [
            (address, await self._call(comm, msg.function, msg.wait)) for address, comm in comms
        ]
        if not msg.wait:
            return CallOutcomes(msg.request, (), ())
        answers = [(address, await _result_or_error(address, future)) for address, future in asked]
        return _outcomes(msg.request, answers)

    async def _call(self, comm: Comm, function: Any, wait: bool) -> asyncio.Future[Any]:
        """Send a call; its future fails if the connection ends before the answer."""
        number, future = self._calls.new()
        comm.send(CallFunction(number, function))
        if not wait:
            future.cancel()
            return future

        async def watch() -> None:
            await comm.wait_closed()
            if not future.done():
                future.set_exception(CommClosedError(f"{comm.peer} ended before it answered"))

        watcher = self._spawn(watch())
        future.add_done_callback(lambda _: watcher.cancel())
        return future

    async def _retire(self, name: str, msg: RetireWorkers) -> Reply:
        chosen = self._scheduler.state.find_workers(msg.workers) if msg.workers else []
        retired = await self._scheduler.retire([w.address for w in chosen], msg.timeout)
        return Reply(msg.request, tuple(retired))

    async def call_worker(self, address: str, function: Blob) -> Blob | TaskError:
        """Call a pickled (function, args, kwargs) on one worker, and return its pickled result."""
        asked = await self._call(self._scheduler.workers[address], function, True)
        answer: Blob | TaskError = await _result_or_error(address, asked)
        return answer

    async def _await_workers(self, name: str, msg: AwaitWorkers) -> Reply:
        await self._scheduler.members.until(
            lambda: len(self._scheduler.workers) >= msg.n_workers, msg.timeout
        )
        return Reply(msg.request, len(self._scheduler.workers))

    async def _restart(self, name: str, msg: RestartWorkers) -> Reply:
        """Forget all tasks, and give every nanny's worker a new process."""
        self._scheduler.state.restarted(self._scheduler.now(), "the cluster was restarted")
        self._scheduler.flush()
        old = {worker.address: worker.info for worker in self._scheduler.state.workers.values()}
        expected = {info.nanny for info in old.values() if info.nanny in self._scheduler.nannies}
        for nanny in expected:
            self._scheduler.nannies[nanny][0].send(RestartWorker())
        for address, info in old.items():
            if info.nanny not in expected:
                self._scheduler.workers[address].send(CloseWorker("the cluster was restarted"))

        # By process, since one that listens on a fixed port has the address of the last.
        ended = {(info.nanny, info.pid) for info in old.values()}

        def missing() -> set[str]:
            present = (worker.info for worker in self._scheduler.state.workers.values())
            return expected - {w.nanny for w in present if (w.nanny, w.pid) not in ended}

        if not await self._scheduler.members.until(lambda: not missing(), msg.timeout):
            raise WaitTimeoutError(
                f"{len(missing())} of {len(expected)} workers were not back within "
                f"{msg.timeout:g} s after a restart: {sorted(missing())}"
            )
        return Reply(msg.request, None)


async def _result_or_error(address: str, future: asyncio.Future[Any]) -> Any:
    try:
        return (await future).value
    except RequestFailedError as exc:
        return exc.error
    except Exception as exc:
        return to_task_error(exc, worker=address)


def _outcomes(request: int, answers: list[tuple[str, Any]]) -> CallOutcomes:
    returned = tuple((a, value) for a, value in answers if type(value) is not TaskError)
    raised = tuple((a, value) for a, value in answers if type(value) is TaskError)
    return CallOutcomes(request, returned, raised)


#: How each request is answered.
REQUESTS: dict[type[Any], Any] = {
    LocateKeys: ClientRequests._locate,
    GatherKeys: ClientRequests._gather,
    PlanScatter: ClientRequests._plan_scatter,
    StoreForClient: ClientRequests._store,
    Inspect: ClientRequests._inspect,
    RunOnWorkers: ClientRequests._run_on_workers,
    RunOnScheduler: ClientRequests._run_on_scheduler,
    RetireWorkers: ClientRequests._retire,
    RestartWorkers: ClientRequests._restart,
    AwaitWorkers: ClientRequests._await_workers,
}
