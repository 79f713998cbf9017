"""Many workers in one process: ``python -m benchmarks.light_workers MODULE N SCHEDULER_FILE``.

Those of hpcdask speak the wire protocol and answer each task at once without running it, so that
the machine's time is the scheduler's. Those of distributed are its real ones, on one event loop.
"""

import asyncio
import sys
from typing import Any


async def join_hpcdask(count: int, file: str) -> None:
    from hpcdask.dialling import SchedulerPlace

    place = SchedulerPlace(scheduler_file=file)
    workers = [LightWorker(number) for number in range(count)]
    for worker in workers:
        await worker.join(place)
    await asyncio.wait([asyncio.ensure_future(w.live()) for w in workers])


class LightWorker:
    """Claims to have one thread, and to have run whatever it is told to."""

    def __init__(self, number: int) -> None:
        from hpcdask.wire.serialize import dumps

        self._number = number
        self._none = dumps(None)
        self._link: Any = None

    async def join(self, place: Any) -> None:
        from hpcdask.dialling import reach_scheduler

        self._link = await reach_scheduler(place, self._hello, 60.0)
        self._link.comm.start(self._on_batch, lambda reason: None)

    async def _hello(self, _scheduler: str, _options: Any) -> Any:
        import os

        from hpcdask._version import __version__
        from hpcdask.messages import PROTOCOL_VERSION, RegisterWorker

        return RegisterWorker(
            address=f"tcp://127.0.0.1:{self._number + 1}",  # nobody will fetch from it
            name=f"light-{self._number}",
            nthreads=1,
            memory_limit=0,
            host="localhost",
            pid=os.getpid(),
            local_directory="",
            nanny="",
            protocol=PROTOCOL_VERSION,
            version=__version__,
        )

    def _on_batch(self, batch: list[Any]) -> None:
        from hpcdask.messages import ComputeTask, GivenBack, TakeBack, TaskFinished

        answers: list[Any] = []
        for message in batch:
            kind = type(message)
            if kind is ComputeTask:
                value = self._none if message.wanted else None
                answers.append(TaskFinished(message.key, message.attempt, 16, 1e-6, value))
            elif kind is TakeBack:  # all of them have run
                answers.append(GivenBack(()))
        self._link.comm.send_now(answers)

    async def live(self) -> None:
        """Send heartbeats until the connection ends."""
        from hpcdask.messages import Heartbeat

        comm, interval = self._link.comm, self._link.registered.heartbeat
        while not comm.closed:
            comm.send(Heartbeat(0.0, 0, 0, 0, 0))
            await asyncio.sleep(interval)


async def join_distributed(count: int, file: str) -> None:
    from distributed import Worker

    workers = [Worker(scheduler_file=file, nthreads=1, dashboard=False) for _ in range(count)]
    await asyncio.gather(*workers)
    endings: list[Any] = [Worker.finished(w) for w in workers]  # type: ignore[no-untyped-call]
    await asyncio.wait(map(asyncio.ensure_future, endings))


JOIN = {"hpcdask": join_hpcdask, "distributed": join_distributed}

if __name__ == "__main__":
    asyncio.run(JOIN[sys.argv[1]](int(sys.argv[2]), sys.argv[3]))
