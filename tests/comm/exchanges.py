"""Exchanges of values without the rest of a worker, and a look at how long a loop stands still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from endpoints import TOKEN, eventually

from hpcdask.comm import listen
from hpcdask.comm.options import CommOptions
from hpcdask.core.worker_state import Fetch, WorkerState
from hpcdask.exchange import Exchange
from hpcdask.messages import ComputeTask, DefineFunction, Dependency, Version
from hpcdask.peers import Peers
from hpcdask.sizes import sizeof

OPTIONS = CommOptions(token=TOKEN, stall_timeout=0.5)


class Desk:
    """A worker's state and exchange at a listener."""

    def __init__(self, address: str, options: CommOptions) -> None:
        self.state = WorkerState(address, 1)
        self.state.function_defined(0.0, DefineFunction(b"f", "f", b""))
        self.address = address
        self.tasks: set[asyncio.Task[None]] = set()
        self.exchange = Exchange(
            self,
            address,
            self.state,
            Peers(options, connect_timeout=2),
            self.act,
            self.spawn,
            self.nothing_to_wait_for,
            options.stall_timeout,
        )
        self._n_tasks = 0

    def act(self) -> None:
        instructions, self.state.instructions = self.state.instructions, []
        for instruction in instructions:
            if type(instruction) is Fetch:
                self.spawn(self.exchange.fetch(instruction))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def nothing_to_wait_for(self) -> None:
        pass

    def hold(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            self.state.value_stored(0.0, Version(key, 1), value, sizeof(value))

    def need(self, *keys: str, of: tuple[str, ...]) -> str:
        """Get a task that needs inputs which are held at the addresses `of`; return its key."""
        self._n_tasks += 1
        task = f"task-{self._n_tasks}"
        inputs = tuple(Dependency(key, 1, 100, of) for key in keys)
        self.state.compute_task(
            0.0, ComputeTask(task, self._n_tasks, b"f", b"", inputs, (0.0, 0, 0), False)
        )
        self.act()
        return task

    async def gets(self, *keys: str, of: Desk, timeout: float = 60) -> list[Any]:
        """Need these, and wait until they are here."""
        self.need(*keys, of=(of.address,))
        await eventually(lambda: all(map(self.value_of, keys)), timeout)
        return [self.value_of(key).value for key in keys]

    def value_of(self, key: str) -> Any:
        return self.state.value_of(Version(key, 1))


@asynccontextmanager
async def desk(options: CommOptions = OPTIONS) -> AsyncIterator[Desk]:
    """A desk that listens."""
    made: list[Desk] = []
    listener = await listen("tcp://127.0.0.1:0", lambda comm: made[0].exchange.serve(comm), options)
    made.append(Desk(listener.address, options))
    try:
        yield made[0]
    finally:
        listener.close()
        made[0].exchange.close()
        for task in list(made[0].tasks):
            task.cancel()
        await asyncio.sleep(0)


class Ticking:
    """Within its block, measures the longest time that the loop let a due callback wait.

    In seconds of this process's CPUs: how busy the machine is does not count.
    """

    longest = 0.0

    async def __aenter__(self) -> Ticking:
        self._ticks = asyncio.ensure_future(self._tick())
        return self

    async def _tick(self) -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0.005)
            now = time.process_time()
            self.longest = max(self.longest, now - last)
            last = now

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.01)  # a last tick
        self._ticks.cancel()
