"""Calls of actors for clients that cannot reach the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcdask.errors import CommClosedError, LostActorError
from hpcdask.messages import ActorReturned, CallActor, Reply, TakeReturned
from hpcdask.messages.client import CallActorThrough, TakeReturnedThrough
from hpcdask.requests.calls import Answers

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler


class ActorRequests:
    """Passes calls and their answers on, as part of `ClientRequests`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.answers: Answers = {CallActorThrough: self._call, TakeReturnedThrough: self._take}

    async def _call(self, name: str, msg: CallActorThrough) -> ActorReturned:
        call = CallActor, msg.actor, msg.name, msg.arguments, msg.callers
        answer: ActorReturned = await self._ask(msg.address, *call)
        return answer._replace(request=msg.request)

    async def _take(self, name: str, msg: TakeReturnedThrough) -> Reply:
        await self._ask(msg.address, TakeReturned, msg.receipt)
        return Reply(msg.request, None)

    async def _ask(self, address: str, make: Any, *fields: Any) -> Any:
        """Ask a worker, after what it was asked before."""
        peers = self._scheduler.actor_peers
        if address not in self._scheduler.workers:
            raise LostActorError(f"the worker {address} is gone, and its actors with it")
        try:
            async with peers.turn(address):
                asked = await peers.begin(address, make, *fields)
            return await asked
        except CommClosedError as exc:
            raise LostActorError(
                f"the worker {address} was lost while its actor was asked for something: {exc}"
            ) from None
