"""Where a scheduler is looked for: at its address, in its file, and again when it was lost."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from listening import LOCAL
from waiting import on_a_loop

from hpcdask import Scheduler, Worker, config
from hpcdask.comm.options import CommOptions
from hpcdask.dialling import SchedulerPlace, pauses, reach_scheduler, reach_scheduler_again
from hpcdask.errors import CommClosedError, RendezvousTimeoutError
from hpcdask.messages import PROTOCOL_VERSION, RegisterClient


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{taken.getsockname()[1]}"


async def hello(scheduler: str, options: CommOptions) -> RegisterClient:
    return RegisterClient("somebody", PROTOCOL_VERSION, "0")


@on_a_loop
async def test_of_address_and_file_the_address_is_tried_first(tmp_path: Path) -> None:
    missing = tmp_path / "missing.json"
    async with (
        Scheduler(**LOCAL) as scheduler,
        Worker(scheduler.address, scheduler_file=missing, nthreads=1) as worker,
    ):
        assert list(scheduler.workers) == [worker.address]


@on_a_loop
async def test_the_file_is_read_when_nobody_is_at_the_address(tmp_path: Path, nobody: str) -> None:
    path = tmp_path / "scheduler.json"
    async with (
        Scheduler(**LOCAL, scheduler_file=path) as scheduler,
        Worker(nobody, scheduler_file=path, nthreads=1) as worker,
    ):
        assert worker.scheduler_address == scheduler.address


@on_a_loop
async def test_the_files_token_goes_with_the_files_address(tmp_path: Path, nobody: str) -> None:
    path = tmp_path / "scheduler.json"
    async with Scheduler(**LOCAL, token="ab" * 32) as other:
        for address in (nobody, other.address):
            async with (
                Scheduler(**LOCAL, scheduler_file=path, token="cd" * 32) as scheduler,
                Worker(address, scheduler_file=path, nthreads=1, token="ef" * 32) as worker,
            ):
                assert worker.scheduler_address == scheduler.address


@on_a_loop
async def test_a_file_that_never_comes_is_what_is_told_in_the_end(
    tmp_path: Path, nobody: str
) -> None:
    place = SchedulerPlace(nobody, str(tmp_path / "missing.json"))
    with pytest.raises(RendezvousTimeoutError, match=r"missing\.json does not exist"):
        await reach_scheduler(place, hello, 2)


@on_a_loop
async def test_of_many_ranks_each_waits_longer_for_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HPCDASK_RANK", "1")
    monkeypatch.setenv("HPCDASK_SIZE", "100")
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        config.set({"comm.timeouts.handshake": "0.1s"}),
        pytest.raises(CommClosedError, match=r"has not answered within 0\.6 s"),
    ):
        place = SchedulerPlace(f"tcp://127.0.0.1:{silent.getsockname()[1]}", token="ab" * 32)
        await reach_scheduler(place, hello, 5)


@on_a_loop
async def test_a_lost_scheduler_is_found_when_it_listens_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = SchedulerPlace(f"tcp://127.0.0.1:{port}")
    finding = asyncio.ensure_future(reach_scheduler_again(place, hello, 20))
    await asyncio.wait({finding}, timeout=0.2)
    assert not finding.done()
    async with Scheduler(**LOCAL, port=port):
        link = await finding
        link.comm.close()


@on_a_loop
async def test_one_that_accepts_and_hangs_up_is_tried_again() -> None:
    tries = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    start = time.monotonic()
    with pytest.raises((CommClosedError, OSError)):
        await reach_scheduler_again(SchedulerPlace(f"tcp://127.0.0.1:{port}"), hello, 0.8)
    assert tries >= 3
    assert 0.7 < time.monotonic() - start < 5
    server.close()
    await server.wait_closed()


@on_a_loop
async def test_a_stale_file_is_read_again_until_a_scheduler_has_written_it_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, copy = tmp_path / "scheduler.json", tmp_path / "copy.json"
    async with Scheduler(**LOCAL, scheduler_file=path):
        copy.write_bytes(path.read_bytes())
    copy.chmod(0o600)
    copy.rename(path)
    place = SchedulerPlace(None, str(path))
    finding = asyncio.ensure_future(reach_scheduler_again(place, hello, 20))
    await asyncio.wait({finding}, timeout=1.0)
    assert not finding.done()
    assert caplog.text.count("may be stale") == 1
    async with Scheduler(**LOCAL, scheduler_file=path) as scheduler:
        link = await finding
        assert link.registered.scheduler_id == scheduler.id
        link.comm.close()


def test_pauses_grow_from_a_tenth_of_a_second_to_one_and_differ() -> None:
    lengths = [list(islice(pauses(), 8)) for _ in range(2)]
    assert lengths[0] != lengths[1]
    for some in lengths:
        assert 0.05 <= some[0] <= 0.1
        assert all(0.5 <= pause <= 1 for pause in some[4:])
