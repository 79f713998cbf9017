"""Requests about values: to run failed tasks again, to copy values, to spread them evenly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hpcdask.core.copying import Rebalancing, Replication, Round
from hpcdask.messages import Reply
from hpcdask.messages.client import BalanceKeys, CopyKeys, RetryKeys
from hpcdask.requests.calls import Answers

if TYPE_CHECKING:
    from hpcdask.scheduler import Scheduler

#: Seconds between two looks at whether copies have come: at first, and later.
_FIRST_LOOK, _LAST_LOOK = 0.005, 0.1


class DataRequests:
    """Answers requests about values, as part of `ClientRequests`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._state = scheduler, scheduler.state
        self.answers: Answers = {
            RetryKeys: self._retry,
            CopyKeys: self._copy,
            BalanceKeys: self._balance,
        }

    async def _retry(self, name: str, msg: RetryKeys) -> Reply:
        count = self._state.keys_retried(self._scheduler.now(), msg.keys)
        self._scheduler.flush()
        return Reply(msg.request, count)

    async def _copy(self, name: str, msg: CopyKeys) -> Reply:
        state = self._state
        workers = [w for w in state.named_workers(msg.workers) if not w.is_leaving]
        tasks = [state.tasks[key] for key in msg.keys if key in state.tasks]
        plan = Replication(state.workers, tasks, workers, msg.n, msg.branching_factor)
        last = await self._carry_out(plan, msg.timeout)
        unknown = {key: msg.n or len(workers) for key in msg.keys if key not in state.tasks}
        return Reply(msg.request, {**last.missing, **unknown})

    async def _balance(self, name: str, msg: BalanceKeys) -> Reply:
        workers = [w for w in self._state.named_workers(msg.workers) if not w.is_leaving]
        plan = Rebalancing(self._state.workers, workers, set(msg.keys))
        await self._carry_out(plan, msg.timeout)
        return Reply(msg.request, (plan.n_moved, plan.n_left))

    async def _carry_out(self, plan: Replication | Rebalancing, timeout: float) -> Round:
        """Have copies made and dropped until all is done, nothing goes on, or time is over."""
        loop, state = asyncio.get_running_loop(), self._state
        deadline = loop.time() + timeout
        pause = _FIRST_LOOK
        state.copy_plans.append(plan)
        try:
            while True:
                now = self._scheduler.now()
                result = plan.next_round()
                state.copies_wanted(now, result.wanted)
                state.copies_unwanted(now, result.unwanted)
                self._scheduler.flush()
                if not plan.goes_on or loop.time() >= deadline:
                    return result
                if result.wanted or result.unwanted:  # it gets on
                    pause = _FIRST_LOOK
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_LOOK)
        finally:
            state.copy_plans.remove(plan)
