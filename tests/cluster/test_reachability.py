"""Workers are let in if others can reach them, and who cannot reach whom is said."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import pytest
from waiting import on_a_loop

from hpcdask import Client, Scheduler, Worker
from hpcdask._version import __version__
from hpcdask.comm import Comm, connect
from hpcdask.comm.addresses import parse_address
from hpcdask.errors import CommClosedError
from hpcdask.messages import (
    PROTOCOL_VERSION,
    DataMissing,
    OutOfReach,
    Registered,
    RegisterWorker,
    Version,
)
from hpcdask.network import hostname
from hpcdask.reachability import _reason


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("hpcdask"), "propagate", True)
    caplog.set_level(logging.WARNING, "hpcdask")


def worker_of(scheduler: Scheduler, **options: object) -> Worker:
    options = {"listen_address": "127.0.0.1:0", "death_timeout": 0.5, "nthreads": 1, **options}
    return Worker(scheduler.address, token=scheduler.token, **options)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def asking_in(
    scheduler: Scheduler, address: str, returns: bool = False, name: str = "odd"
) -> AsyncIterator[Comm]:
    """Somebody who says that it is a worker at this address."""
    comm = await connect(scheduler.address, scheduler.options)
    comm.send(
        RegisterWorker(
            address, name, 1, 0, "afar", 1, "", "", PROTOCOL_VERSION, __version__, returns=returns
        )
    )
    yield comm
    comm.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@on_a_loop
async def test_a_worker_that_advertises_what_nobody_reaches_is_told_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Scheduler("127.0.0.1") as scheduler:
        port = free_port()
        with pytest.raises(CommClosedError) as caught:
            await worker_of(scheduler, name="w", contact_address=f"127.0.0.1:{port}")
        assert str(caught.value) == (
            f"the scheduler on {hostname()} cannot reach worker w on {hostname()} at "
            f"tcp://127.0.0.1:{port}: Connection refused; look for a firewall between the two "
            "hosts, or name another network with --interface (or let it join all the same, with "
            "--no-dial-back of the scheduler)"
        )
        said = [r for r in caplog.records if r.name == "hpcdask.scheduler"]
        assert [record.getMessage() for record in said] == [str(caught.value)], "said once"
        assert not scheduler.workers


@contextlib.asynccontextmanager
async def forwarding(port: int, worker: Worker) -> AsyncIterator[None]:
    """Have a port lead to where a worker listens."""
    pipes: list[asyncio.Task[None]] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert worker._listener is not None
        target = parse_address(worker._listener.address)
        there = await asyncio.open_connection(target.host, target.port)
        pipes.append(asyncio.ensure_future(pipe(reader, there[1])))
        pipes.append(asyncio.ensure_future(pipe(there[0], writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    yield
    server.close()
    await asyncio.gather(*pipes)


@on_a_loop
async def test_a_worker_that_comes_into_reach_is_let_in() -> None:
    async with Scheduler("127.0.0.1") as scheduler:
        port = free_port()
        worker = worker_of(scheduler, contact_address=f"127.0.0.1:{port}", death_timeout=20)
        starting = asyncio.ensure_future(worker.start())
        while not scheduler.members.reach._told:
            await asyncio.sleep(0.01)
        async with forwarding(port, worker):
            await starting
            assert list(scheduler.workers) == [worker.address]
            await worker.close()


@on_a_loop
async def test_who_answers_at_the_address_of_another_does_not_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As at 127.0.0.1, which is every host's own."""
    async with Scheduler("127.0.0.1") as scheduler, worker_of(scheduler, name="true") as worker:
        # localhost is the same place by another name.
        alias = worker.address.replace("127.0.0.1", "localhost")
        async with asking_in(scheduler, alias) as comm:
            answer = await comm.receive()
        assert type(answer) is OutOfReach
        assert f"at {alias}: another process than this worker answers; " in answer.reason


@on_a_loop
async def test_a_worker_may_be_let_in_without_being_dialled() -> None:
    async with Scheduler("127.0.0.1", dial_back=False) as scheduler:
        contact = f"127.0.0.1:{free_port()}"
        async with worker_of(scheduler, contact_address=contact):
            assert list(scheduler.workers) == [f"tcp://{contact}"]


@on_a_loop
async def test_a_worker_that_comes_back_with_values_is_let_in_at_once_and_dialled_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Scheduler("127.0.0.1") as scheduler:
        address = f"tcp://127.0.0.1:{free_port()}"
        async with asking_in(scheduler, address, returns=True) as comm:
            assert type(await comm.receive()) is Registered
            assert address in scheduler.workers
            while "cannot reach worker odd on afar" not in caplog.text:
                await asyncio.sleep(0.01)
            assert address in scheduler.workers


@on_a_loop
async def test_a_worker_that_is_too_busy_to_answer_is_in_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HPCDASK_COMM_HANDSHAKE_TIMEOUT", "100ms")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        async with Scheduler("127.0.0.1") as scheduler:
            port = busy.getsockname()[1]
            async with asking_in(scheduler, f"tcp://127.0.0.1:{port}") as comm:
                assert type(await comm.receive()) is Registered


@on_a_loop
async def test_one_that_has_given_up_meanwhile_is_not_let_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HPCDASK_COMM_HANDSHAKE_TIMEOUT", "300ms")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        async with Scheduler("127.0.0.1") as scheduler:
            async with asking_in(scheduler, f"tcp://127.0.0.1:{busy.getsockname()[1]}"):
                while not scheduler.members.comms:
                    await asyncio.sleep(0.01)
            while scheduler.members.comms:
                await asyncio.sleep(0.01)
            assert not scheduler.workers


@on_a_loop
async def test_workers_that_cannot_reach_each_other_are_told_of_once_and_if_they_live(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcdask.reachability._STILL_THERE", 0.1)
    async with (
        Scheduler("127.0.0.1") as scheduler,
        worker_of(scheduler, name="a") as a,
        worker_of(scheduler, name="b") as b,
    ):
        reason = f"cannot reach {b.address} within 10 s: no answer"
        missing = DataMissing("y", 1, Version("x", 1), b.address, reason)
        gone = missing._replace(address="tcp://127.0.0.1:1")
        for message in (gone, missing._replace(unreachable=""), missing, missing):
            scheduler.worker_said(a.address, message)
        while "could not fetch" not in caplog.text:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # for another sentence, which is not to come
        [record] = [r for r in caplog.records if r.name == "hpcdask.scheduler"]
        assert record.getMessage().startswith(
            f"worker a on {hostname()} could not fetch data from worker b on {hostname()} at "
            f"{b.address}: no answer within 10 s; look for a firewall between the two hosts"
        )


@on_a_loop
async def test_values_are_still_fetched_by_those_who_can() -> None:
    async with (
        Scheduler("127.0.0.1") as scheduler,
        worker_of(scheduler),
        Client(scheduler.address, token=scheduler.token, asynchronous=True) as client,
    ):
        assert len(await client.submit(bytes, 100_000).result()) == 100_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cannot reach tcp://10.1.0.3:9000 within 5 s: no answer", "no answer within 5 s"),
        ("cannot reach tcp://[fe80::1%ib0]:9: Connection refused", "Connection refused"),
        ("cannot connect to tcp://10.1.0.3:9: it holds another token", "it holds another token"),
        ("connection with tcp://a:1: closed", "connection with tcp://a:1: closed"),
    ],
)
def test_a_reason_does_not_repeat_the_address(text: str, reason: str) -> None:
    assert _reason(text) == reason
