"""Scheduler, worker and nanny by themselves: their lives, their files, their preloads."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import sys
import textwrap
from pathlib import Path

import pytest
from waiting import on_a_loop

from hpcdask import Client, Nanny, Scheduler, Worker
from hpcdask.errors import (
    AuthenticationError,
    CommClosedError,
    ConfigError,
    HpcdaskError,
    LaunchError,
    WorkerStartError,
)

LOCAL = {"host": "127.0.0.1"}


def increment(x: int) -> int:
    return x + 1


@on_a_loop
async def test_services_live_in_their_blocks() -> None:
    async with Scheduler(**LOCAL) as scheduler:
        assert scheduler.status == "running"
        assert scheduler.address.startswith("tcp://127.0.0.1:")
        async with Worker(scheduler.address, nthreads=1, name="w") as worker:
            assert worker.status == "running"
            assert worker.scheduler_address == scheduler.address
            assert Path(worker.local_directory).is_dir()
            assert list(scheduler.workers) == [worker.address]
        assert worker.status == "closed"
        assert not Path(worker.local_directory).exists()
        async with Nanny(scheduler.address, nthreads=1) as nanny:
            assert nanny.status == "running"
            assert nanny.worker_address in scheduler.workers
            pid = nanny.pid
        assert nanny.status == "closed"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert scheduler.status == "closed"


@on_a_loop
async def test_a_service_can_be_awaited_and_closed_more_than_once() -> None:
    scheduler = await Scheduler(**LOCAL)
    worker = await Worker(scheduler.address, nthreads=1)
    assert await worker is worker
    finished = asyncio.ensure_future(worker.finished())
    await asyncio.gather(worker.close(), worker.close())
    await asyncio.wait_for(finished, 5)
    await worker.finished()
    await scheduler.close()
    await scheduler.close()
    never_started = Worker(scheduler.address, nthreads=1)
    await never_started.close()
    await never_started.finished()


@on_a_loop
async def test_workers_and_nannies_end_with_their_scheduler() -> None:
    scheduler = await Scheduler(**LOCAL)
    worker = await Worker(scheduler.address, nthreads=1)
    nanny = await Nanny(scheduler.address, nthreads=1)
    loop = asyncio.get_running_loop()
    start = loop.time()
    await scheduler.close()
    await asyncio.wait_for(worker.finished(), 5)
    await asyncio.wait_for(nanny.finished(), 5)
    assert loop.time() - start < 1
    assert worker.status == nanny.status == "closed"


@on_a_loop
async def test_a_scheduler_that_is_not_there_ends_the_wait_in_time() -> None:
    loop = asyncio.get_running_loop()
    for kind, error in ((Worker, CommClosedError), (Nanny, (CommClosedError, WorkerStartError))):
        start = loop.time()
        service = kind("tcp://127.0.0.1:1", nthreads=1, death_timeout=0.3)
        with pytest.raises(error, match="cannot reach"):
            await service
        assert loop.time() - start < 4
        assert service.status == "failed"


@on_a_loop
async def test_another_token_is_refused() -> None:
    async with Scheduler(**LOCAL, token="ab" * 32) as scheduler:
        with pytest.raises(AuthenticationError):
            await Worker(scheduler.address, nthreads=1, token="cd" * 32)
        with pytest.raises((AuthenticationError, WorkerStartError), match="token"):
            await Nanny(scheduler.address, nthreads=1, token="cd" * 32)
        assert not scheduler.workers


@on_a_loop
async def test_without_authentication_the_scheduler_warns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="hpcdask"):
        async with (
            Scheduler(**LOCAL, auth=False) as scheduler,
            Worker(scheduler.address, nthreads=1, auth=False),
            Nanny(scheduler.address, nthreads=1, auth=False),
            Client(scheduler.address, auth=False, asynchronous=True) as client,
        ):
            assert len(await client.run(increment, 1)) == 2
    assert "authentication is off" in caplog.text


@on_a_loop
async def test_a_port_may_be_a_range() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match="it is in use"):
            await Scheduler(**LOCAL, port=port)
        async with Scheduler(**LOCAL, port=f"{port}:{port + 20}") as scheduler:
            assert port < int(scheduler.address.rpartition(":")[2]) <= port + 20


@on_a_loop
async def test_the_scheduler_file_is_private_and_goes_with_its_scheduler(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    async with Scheduler(**LOCAL, scheduler_file=path) as scheduler:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with Worker(scheduler_file=path, nthreads=1), Nanny(scheduler_file=path, nthreads=1):
            assert len(scheduler.workers) == 2
    assert not path.exists()


@on_a_loop
async def test_an_idle_scheduler_ends_itself() -> None:
    async with (
        Scheduler(**LOCAL, idle_timeout="0.2s") as scheduler,
        Worker(scheduler.address, nthreads=1) as worker,
    ):
        await asyncio.wait_for(scheduler.finished(), 10)
        await asyncio.wait_for(worker.finished(), 10)


@on_a_loop
async def test_worker_names_need_not_be_unique() -> None:
    async with (
        Scheduler(**LOCAL) as scheduler,
        Nanny(scheduler.address, nthreads=1, name="same") as one,
        Nanny(scheduler.address, nthreads=1, name="same") as two,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        assert len(scheduler.nannies) == 2
        pids = {one.pid, two.pid}
        assert (
            set((await client.run(lambda dask_nanny: dask_nanny.pid, nanny=True)).values()) == pids
        )
        await client.restart(timeout=20)
        assert not pids & {one.pid, two.pid}


@on_a_loop
async def test_a_nanny_sets_its_workers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    async with (
        Scheduler(**LOCAL) as scheduler,
        Nanny(scheduler.address, nthreads=3, env={"MINE": "yes"}),
        Client(scheduler.address, asynchronous=True) as client,
    ):
        [environment] = (await client.run(lambda: dict(os.environ))).values()
        assert environment["MINE"] == "yes"
        assert environment["OMP_NUM_THREADS"] == "1", "for each of its task threads"


# -- Preloads --------------------------------------------------------------------------------------

PRELOAD = """
import os

async def dask_setup(service):
    note("setup", service)

def dask_teardown(service):
    note("teardown", service)

def note(what, service):
    with open({path!r}, "a") as file:
        file.write(f"{{what}} {{type(service).__name__}} {{service.status}}\\n")
"""


@on_a_loop
async def test_preloads_are_set_up_and_torn_down(tmp_path: Path) -> None:
    notes, module = tmp_path / "notes", tmp_path / "preloaded.py"
    module.write_text(PRELOAD.format(path=str(notes)))
    async with Scheduler(**LOCAL, preload=[str(module)]) as scheduler:
        async with Worker(scheduler.address, nthreads=1, preload=[str(module)]):
            pass
        both = {"preload": [str(module)], "preload_nanny": [str(module)]}
        async with Nanny(scheduler.address, nthreads=1, **both):
            pass
    lines = notes.read_text().splitlines()
    assert lines[:3] == [
        "setup Scheduler starting",
        "setup Worker starting",
        "teardown Worker closing",
    ]
    assert sorted(lines[3:7]) == [
        "setup Nanny starting",
        "setup Worker starting",
        "teardown Nanny closing",
        "teardown Worker closing",
    ]
    assert lines[7:] == ["teardown Scheduler closing"]


@on_a_loop
async def test_a_preload_may_be_a_module_or_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "preloaded_command.py").write_text(
        textwrap.dedent(
            """
            import click

            @click.command()
            @click.option("--colour")
            def dask_setup(service, colour):
                service.colour = colour
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"preload": ["preloaded_command"], "preload_argv": ["--colour", "red"]}
    async with Scheduler(**LOCAL, **options) as scheduler:
        assert scheduler.colour == "red"  # type: ignore[attr-defined]
    del sys.modules["preloaded_command"]


@on_a_loop
async def test_a_preload_that_fails_stops_the_start() -> None:
    for name in ("no_such_module", "/no/such/file.py"):
        scheduler = Scheduler(**LOCAL, preload=[name])
        with pytest.raises(HpcdaskError, match=name):
            await scheduler
        assert scheduler.status == "failed"


def test_contradicting_addresses_are_refused() -> None:
    with pytest.raises(ConfigError, match="--listen-address"):
        Worker("tcp://127.0.0.1:1", contact_address="tcp://10.0.0.1:9000")
