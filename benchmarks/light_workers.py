"""Many workers in one process: ``python -m benchmarks.light_workers MODULE N SCHEDULER_FILE``.

Those of hpcdask speak the wire protocol and answer each task at once without running it, so that
the machine's time is the scheduler's. Those of distributed are its real ones, on one event loop.
"""

import abc
import argparse
import asyncio
import os
import sys
from typing import Any


async def join_hpcdask(count: int, file: str, nannies: bool = False) -> None:
    """Have so many ranks join at once, and live until the scheduler ends."""
    from hpcdask.descriptors import raise_limit
    from hpcdask.dialling import SchedulerPlace

    raise_limit()
    place = SchedulerPlace(scheduler_file=file)
    async with Door(place) as door:
        ranks: list[Any] = [LightWorker(n, door.port, nannies) for n in range(count)]
        if nannies:
            ranks += [LightNanny(n) for n in range(count)]
        await asyncio.gather(*(rank.join(place) for rank in ranks))
        await asyncio.wait([asyncio.ensure_future(rank.live()) for rank in ranks])


class Door:
    """Where all light workers are dialled: each has a loopback address of its own."""

    def __init__(self, place: Any) -> None:
        self._place = place
        self._comms: set[Any] = set()

    async def __aenter__(self) -> "Door":
        from hpcdask.comm import listen
        from hpcdask.comm.addresses import parse_address
        from hpcdask.rendezvous import wait_for_contact

        contact = await wait_for_contact(self._place.scheduler_file, 60.0)
        options = self._place.options(contact)
        self._listener = await listen("tcp://0.0.0.0:0", self._on_comm, options)
        self.port = parse_address(self._listener.address).port
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._listener.close()
        for comm in self._comms:
            comm.close()

    def _on_comm(self, comm: Any) -> None:
        from hpcdask.messages import FetchKeys, KeyValues

        def on_batch(batch: list[Any]) -> None:
            for message in batch:
                if type(message) is FetchKeys:  # of nothing, from who finds out whether we live
                    comm.send(KeyValues(message.request, (), (), ()))

        self._comms.add(comm)
        comm.start(on_batch, lambda reason: self._comms.discard(comm))


class LightRank(abc.ABC):
    """Somebody who has registered, and sends a message now and then."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._link: Any = None

    async def join(self, place: Any) -> None:
        from hpcdask.dialling import reach_scheduler

        self._link = await reach_scheduler(place, self._hello, 60.0)
        self._link.comm.start(self._on_batch, lambda reason: None)

    async def live(self) -> None:
        """Send heartbeats until the connection ends."""
        comm, interval = self._link.comm, self._link.registered.heartbeat
        while not comm.closed:
            comm.send(self._heartbeat())
            await asyncio.sleep(interval)

    @abc.abstractmethod
    async def _hello(self, _scheduler: str, _options: Any) -> Any:
        """Make the message by which it registers."""

    @abc.abstractmethod
    def _heartbeat(self) -> Any:
        """Make the message that it sends now and then."""

    def _on_batch(self, batch: list[Any]) -> None:
        from hpcdask.messages import CloseNanny, CloseWorker

        if any(type(message) in (CloseNanny, CloseWorker) for message in batch):
            self._link.comm.close()


class LightNanny(LightRank):
    """Says that it watches the light worker of its number."""

    async def _hello(self, _scheduler: str, _options: Any) -> Any:
        from hpcdask._version import __version__
        from hpcdask.messages import PROTOCOL_VERSION, RegisterNanny

        pid = os.getpid()
        return RegisterNanny(
            f"nanny-{self._number}", "localhost", pid, PROTOCOL_VERSION, __version__
        )

    def _heartbeat(self) -> Any:
        from hpcdask.messages import WorkerLives

        return WorkerLives()


class LightWorker(LightRank):
    """Claims to have one thread, and to have run whatever it is told to."""

    def __init__(self, number: int, port: int, has_nanny: bool) -> None:
        from hpcdask.wire.serialize import dumps

        super().__init__(number)
        self._port, self._has_nanny = port, has_nanny
        self._none = dumps(None)

    async def _hello(self, _scheduler: str, _options: Any) -> Any:
        from hpcdask._version import __version__
        from hpcdask.messages import PROTOCOL_VERSION, RegisterWorker

        high, low = divmod(self._number, 250)
        return RegisterWorker(
            address=f"tcp://127.1.{high}.{low + 1}:{self._port}",
            name=f"light-{self._number}",
            nthreads=1,
            memory_limit=0,
            host="localhost",
            pid=os.getpid(),
            local_directory="",
            nanny=f"nanny-{self._number}" if self._has_nanny else "",
            protocol=PROTOCOL_VERSION,
            version=__version__,
        )

    def _heartbeat(self) -> Any:
        from hpcdask.messages import Heartbeat

        return Heartbeat(0.0, 0, 0, 0, 0)

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
        super()._on_batch(batch)


async def join_distributed(count: int, file: str, nannies: bool = False) -> None:
    from distributed import Worker

    assert not nannies
    workers = [Worker(scheduler_file=file, nthreads=1, dashboard=False) for _ in range(count)]
    await asyncio.gather(*workers)
    endings: list[Any] = [Worker.finished(w) for w in workers]  # type: ignore[no-untyped-call]
    await asyncio.wait(map(asyncio.ensure_future, endings))


JOIN = {"hpcdask": join_hpcdask, "distributed": join_distributed}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module", choices=JOIN)
    parser.add_argument("count", type=int)
    parser.add_argument("--nannies", action="store_true", help="one for each worker, here as well")
    parser.add_argument("--wait", action="store_true", help="for a line on stdin")
    parser.add_argument("file")
    given = parser.parse_args()
    if given.wait:
        import hpcdask.dialling  # noqa: F401  # what follows is to be joining alone

        print("ready", flush=True)
        sys.stdin.readline()
    asyncio.run(JOIN[given.module](given.count, given.file, given.nannies))


if __name__ == "__main__":
    main()
