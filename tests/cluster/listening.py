"""A scheduler that notes what workers and nannies tell it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hpcdask import Scheduler
from hpcdask.comm import Comm
from hpcdask.membership import Membership
from hpcdask.messages import Message, Registered, RegisterNanny, RegisterWorker

LOCAL = {"host": "127.0.0.1"}


class ListeningScheduler(Scheduler):
    """A scheduler like any other, with a note of what it heard and quicker heartbeats."""

    def __init__(self, heartbeat: float = 0.1, **options: Any) -> None:
        super().__init__(**LOCAL, **options)
        self.heard: list[Message] = []
        self.answers: dict[type, Callable[[Comm], None]] = {}  # by what is heard
        self.members = ListeningMembership(self, heartbeat)

    def told(self, *kinds: type) -> list[Message]:
        """What it heard of these kinds, in order."""
        return [message for message in self.heard if type(message) in kinds]


class ListeningMembership(Membership):
    """Notes what members say."""

    def __init__(self, scheduler: ListeningScheduler, heartbeat: float) -> None:
        super().__init__(scheduler, scheduler._spawn, scheduler.state.unclaimed)
        self._heartbeat = heartbeat
        self._heard, self._answers = scheduler.heard, scheduler.answers

    def _registered(self) -> Registered:
        return super()._registered()._replace(heartbeat=self._heartbeat)

    def _worker_joins(self, comm: Comm, hello: RegisterWorker) -> None:
        self._note(comm, hello)
        super()._worker_joins(comm, hello)

    def _nanny_joins(self, comm: Comm, hello: RegisterNanny) -> None:
        self._note(comm, hello)
        super()._nanny_joins(comm, hello)

    def _note(self, comm: Comm, hello: Message) -> None:
        self._heard.append(hello)
        start = comm.start

        def noting(on_batch: Any, on_closed: Any) -> None:
            def on_noted(batch: list[Message]) -> None:
                self._heard.extend(batch)
                for message in batch:
                    if type(message) in self._answers:
                        self._answers[type(message)](comm)
                on_batch(batch)

            start(on_noted, on_closed)

        comm.start = noting  # type: ignore[method-assign]


async def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    """Return when `condition` holds; fail if it does not within `timeout` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        assert loop.time() < deadline, f"not within {timeout:g} s: {condition}"
        await asyncio.sleep(0.01)
