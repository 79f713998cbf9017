"""Nannies and their workers: deaths, lifetimes, leaving, and the loss of the scheduler."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from listening import ListeningScheduler, until
from waiting import on_a_loop, wait_until

from hpcdask import Client, Nanny, Worker, wait
from hpcdask.errors import LaunchError, WorkerStartError
from hpcdask.messages import (
    CloseWorker,
    RegisterNanny,
    RegisterWorker,
    WorkerDied,
    WorkerLeaving,
    WorkerLives,
)
from hpcdask.restarts import MAX_FAILED_STARTS


def write_and_exit(code: int) -> None:
    print("the last line", file=sys.stderr, flush=True)
    os._exit(code)


def touch_and_wait(started: Path, go_on: Path) -> str:
    started.touch()
    wait_until(go_on.exists, 60)
    return "done"


def keep_the_interpreter(started: Path) -> None:
    """Compute in one call of C, which gives the interpreter's lock to nobody."""
    started.touch()
    sum(itertools.repeat(1, 10**9))


# -- Deaths ---------------------------------------------------------------------------------------


@on_a_loop
async def test_a_worker_without_a_network_is_tried_again_until_there_is_one(monkeypatch) -> None:
    monkeypatch.setattr("hpcdask.restarts.MAX_PAUSE_CUT_OFF", 0.05)
    async with (
        ListeningScheduler() as scheduler,
        Nanny(scheduler.address, nthreads=1, name="a", interface="lo") as nanny,
    ):
        first, options = nanny.worker_address, nanny._worker_options
        options["interface"] = "ib0-that-is-down"
        os.kill(nanny.pid, signal.SIGKILL)
        deaths = MAX_FAILED_STARTS + 2  # with the first one
        await until(lambda: len(scheduler.told(WorkerDied)) > deaths, 30)
        assert nanny.status == "running"
        options["interface"] = "lo"
        await until(lambda: nanny.worker_address not in ("", first), 10)


@on_a_loop
async def test_a_death_is_told_with_code_and_last_lines_before_another_worker_starts() -> None:
    async with (
        ListeningScheduler() as scheduler,
        Nanny(scheduler.address, nthreads=1, name="a") as nanny,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        pid = nanny.pid
        future = client.submit(write_and_exit, 7)
        await until(lambda: nanny.pid != pid)
        await future.cancel()
        await until(lambda: len(scheduler.told(RegisterWorker)) == 2)
        events = scheduler.told(RegisterWorker, WorkerDied)
        assert [type(event) for event in events] == [RegisterWorker, WorkerDied, RegisterWorker]
        died = events[1]
        assert (died.name, died.pid, died.exit_code) == ("a", pid, 7)
        assert died.stderr.splitlines()[-1] == "the last line"


@on_a_loop
async def test_a_signal_is_told_as_well() -> None:
    async with (
        ListeningScheduler() as scheduler,
        Nanny(scheduler.address, nthreads=1) as nanny,
    ):
        assert nanny.pid is not None
        os.kill(nanny.pid, signal.SIGKILL)
        await until(lambda: scheduler.told(WorkerDied))
        assert scheduler.told(WorkerDied)[0].exit_code == -signal.SIGKILL
        await until(lambda: len(scheduler.told(RegisterWorker)) == 2)


@on_a_loop
async def test_a_nanny_gives_up_when_no_worker_can_start_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcdask.restarts.MAX_PAUSE", 0.01)
    marker, preload = tmp_path / "started", tmp_path / "preload.py"
    preload.write_text(
        f"import pathlib\nmarker = pathlib.Path({str(marker)!r})\n"
        "if marker.exists():\n    raise OSError('the disk is full')\nmarker.touch()\n"
    )
    async with ListeningScheduler() as scheduler:
        nanny = await Nanny(scheduler.address, nthreads=1, preload=[str(preload)])
        assert nanny.pid is not None
        os.kill(nanny.pid, signal.SIGKILL)
        await asyncio.wait_for(nanny.finished(), 40)
        assert nanny.status == "failed"
        assert nanny.failure.endswith("failed to start 5 times in a row")
        await until(lambda: not scheduler.nannies)
        deaths = scheduler.told(WorkerDied)
        assert [died.exit_code for died in deaths] == [-signal.SIGKILL, 1, 1, 1, 1, 1]
        assert "the disk is full" in deaths[-1].stderr


@on_a_loop
async def test_a_first_worker_that_cannot_start_is_told_too(tmp_path: Path) -> None:
    preload = tmp_path / "preload.py"
    preload.write_text("import os\nos._exit(9)\n")
    path = tmp_path / "scheduler.json"
    async with ListeningScheduler(scheduler_file=path) as scheduler:
        with pytest.raises(WorkerStartError, match="exited with code 9"):
            await Nanny(scheduler_file=path, nthreads=1, preload=[str(preload)])
        await until(lambda: not scheduler.nannies)
        assert [died.exit_code for died in scheduler.told(WorkerDied)] == [9]


@on_a_loop
async def test_ends_that_were_asked_for_are_no_deaths() -> None:
    async with (
        ListeningScheduler() as scheduler,
        Nanny(scheduler.address, nthreads=1) as nanny,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        await client.restart(timeout=20)
        await nanny.close()
        await until(lambda: not scheduler.nannies)
        assert scheduler.told(WorkerDied) == []


# -- Lifetimes ------------------------------------------------------------------------------------


@on_a_loop
async def test_a_worker_leaves_at_the_end_of_its_lifetime() -> None:
    async with ListeningScheduler() as scheduler:
        worker = await Worker(scheduler.address, nthreads=1, lifetime="200ms")
        await asyncio.wait_for(worker.finished(), 10)
        assert (worker.status, worker.failure) == ("closed", "")


@on_a_loop
async def test_a_nanny_ends_with_the_lifetime_of_its_worker() -> None:
    async with ListeningScheduler() as scheduler:
        nanny = await Nanny(
            scheduler.address, nthreads=1, lifetime="300ms", lifetime_stagger="100ms"
        )
        await asyncio.wait_for(nanny.finished(), 10)
        assert (nanny.status, nanny.failure) == ("closed", "")
        assert len(scheduler.told(RegisterWorker)) == 1
        assert scheduler.told(WorkerDied) == []


@on_a_loop
async def test_a_nanny_starts_another_worker_at_the_end_of_a_lifetime_if_asked_to() -> None:
    async with (
        ListeningScheduler() as scheduler,
        Nanny(scheduler.address, nthreads=1, lifetime="200ms", lifetime_restart=True) as nanny,
    ):
        await until(lambda: len(scheduler.told(RegisterWorker)) >= 3)
        assert nanny.status == "running"
        assert scheduler.told(WorkerDied) == []
        assert len({hello.pid for hello in scheduler.told(RegisterWorker)}) >= 3


# -- Leaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Worker, Nanny])
@on_a_loop
async def test_what_has_nothing_to_hand_over_leaves_at_once(kind: type[Worker | Nanny]) -> None:
    async with ListeningScheduler() as scheduler:
        service = await kind(scheduler.address, nthreads=1)
        await asyncio.wait_for(service.leave("enough", waits=True), 5)
        assert (service.status, service.failure) == ("closed", "")
        await until(lambda: not scheduler.workers)
        assert scheduler.told(WorkerDied) == []


@pytest.mark.parametrize("kind", [Worker, Nanny])
@on_a_loop
async def test_a_busy_worker_asks_the_scheduler_and_leaves_when_told_to(
    tmp_path: Path, kind: type[Worker | Nanny]
) -> None:
    started, go_on = tmp_path / "started", tmp_path / "go on"
    async with (
        ListeningScheduler() as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        service = await kind(scheduler.address, nthreads=1, drain_timeout=60)
        future = client.submit(touch_and_wait, started, go_on)
        await until(started.exists)
        leaving = asyncio.ensure_future(service.leave("the batch job ends"))
        await until(lambda: scheduler.told(WorkerLeaving))
        assert set(scheduler.told(WorkerLeaving)) == {WorkerLeaving("the batch job ends")}
        go_on.touch()
        for comm in scheduler.workers.values():
            comm.send(CloseWorker("nothing is lost"))
        await asyncio.wait_for(leaving, 10)
        assert (service.status, service.failure) == ("closed", "")
        await future.cancel()


@pytest.mark.parametrize("kind", [Worker, Nanny])
@on_a_loop
async def test_a_worker_that_cannot_hand_over_all_in_time_ends_all_the_same(
    tmp_path: Path, kind: type[Worker | Nanny]
) -> None:
    started, go_on = tmp_path / "started", tmp_path / "go on"
    async with (
        ListeningScheduler() as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        service = await kind(scheduler.address, nthreads=1, drain_timeout="200ms")
        future = client.submit(touch_and_wait, started, go_on)
        await until(started.exists)
        await asyncio.wait_for(service.leave(), 10)
        assert (service.status, service.failure) == ("closed", "")
        who_says_so = {Worker: 1, Nanny: 2}  # itself, and its nanny
        assert len(scheduler.told(WorkerLeaving)) == who_says_so[kind]
        assert scheduler.told(WorkerDied) == []
        go_on.touch()
        await future.cancel()


@on_a_loop
async def test_a_worker_that_dies_while_it_leaves_is_told_and_not_replaced(tmp_path: Path) -> None:
    started, go_on = tmp_path / "started", tmp_path / "go on"
    async with (
        ListeningScheduler() as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        nanny = await Nanny(scheduler.address, nthreads=1, drain_timeout=60)
        future = client.submit(touch_and_wait, started, go_on)
        await until(started.exists)
        leaving = asyncio.ensure_future(nanny.leave())
        await until(lambda: scheduler.told(WorkerLeaving))
        assert nanny.pid is not None
        os.kill(nanny.pid, signal.SIGKILL)
        await asyncio.wait_for(leaving, 10)
        await until(lambda: not scheduler.nannies)
        assert [died.exit_code for died in scheduler.told(WorkerDied)] == [-signal.SIGKILL]
        assert len(scheduler.told(RegisterWorker)) == 1
        await future.cancel()


@on_a_loop
async def test_a_worker_process_that_gets_sigterm_leaves_and_its_nanny_with_it() -> None:
    async with ListeningScheduler() as scheduler:
        nanny = await Nanny(scheduler.address, nthreads=1)
        assert nanny.pid is not None
        os.kill(nanny.pid, signal.SIGTERM)
        await asyncio.wait_for(nanny.finished(), 10)
        assert (nanny.status, nanny.failure) == ("closed", "")
        assert scheduler.told(WorkerDied) == []


@on_a_loop
async def test_a_second_signal_to_a_worker_process_ends_it_at_once(tmp_path: Path) -> None:
    started, go_on = tmp_path / "started", tmp_path / "go on"
    async with (
        ListeningScheduler() as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        nanny = await Nanny(scheduler.address, nthreads=1, drain_timeout=300)
        future = client.submit(touch_and_wait, started, go_on)
        await until(started.exists)
        assert nanny.pid is not None
        os.kill(nanny.pid, signal.SIGTERM)
        await until(lambda: scheduler.told(WorkerLeaving))
        os.kill(nanny.pid, signal.SIGTERM)
        await asyncio.wait_for(nanny.finished(), 10)
        assert (nanny.status, nanny.failure) == ("closed", "")
        await future.cancel()


# -- Mute workers ---------------------------------------------------------------------------------


@on_a_loop
async def test_a_nanny_vouches_for_a_worker_that_computes_and_cannot_speak(tmp_path: Path) -> None:
    started = tmp_path / "started"
    async with (
        ListeningScheduler() as scheduler,
        Nanny(scheduler.address, nthreads=1) as nanny,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        future = client.submit(keep_the_interpreter, started)
        await until(started.exists)
        before = len(scheduler.told(WorkerLives))
        await until(lambda: len(scheduler.told(WorkerLives)) >= before + 5)
        assert nanny.pid is not None
        os.kill(nanny.pid, signal.SIGKILL)
        await future.cancel()
        await until(lambda: len(scheduler.told(RegisterWorker)) == 2)


# -- The loss of the scheduler --------------------------------------------------------------------


@on_a_loop
async def test_a_nanny_comes_back_after_its_connection_broke_and_keeps_its_worker() -> None:
    async with (
        ListeningScheduler() as scheduler,
        Nanny(scheduler.address, nthreads=1) as nanny,
    ):
        pid = nanny.pid
        [(comm, _)] = scheduler.nannies.values()
        comm.abort("the switch was rebooted")
        await until(lambda: len(scheduler.told(RegisterNanny)) == 2)
        first, second = scheduler.told(RegisterNanny)
        assert first == second
        assert nanny.status == "running"
        assert (nanny.pid, len(scheduler.told(RegisterWorker))) == (pid, 1)
        assert list(scheduler.nannies) == [nanny.id]


@on_a_loop
async def test_a_death_that_happens_meanwhile_is_told_afterwards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, elsewhere = tmp_path / "scheduler.json", tmp_path / "moved.json"
    async with (
        ListeningScheduler(scheduler_file=path) as scheduler,
        Nanny(scheduler_file=path, nthreads=1) as nanny,
    ):
        path.rename(elsewhere)  # so that the nanny cannot come back yet
        [(comm, _)] = scheduler.nannies.values()
        comm.abort("the switch was rebooted")
        await until(lambda: "looking for it" in caplog.text)
        assert nanny.pid is not None
        os.kill(nanny.pid, signal.SIGKILL)
        await until(lambda: "was killed by SIGKILL" in caplog.text)
        elsewhere.rename(path)
        await until(lambda: len(scheduler.told(RegisterWorker)) == 2)
        events = scheduler.told(RegisterNanny, RegisterWorker, WorkerDied)
        kinds = [type(event) for event in events]
        assert kinds == [RegisterNanny, RegisterWorker, RegisterNanny, WorkerDied, RegisterWorker]


@on_a_loop
async def test_workers_take_the_token_of_a_scheduler_that_follows(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    where = {"scheduler_file": path, "host": "127.0.0.1", "nthreads": 1}
    async with (
        ListeningScheduler(scheduler_file=path, token="5a" * 32) as first,
        Worker(**where) as a,
        Worker(**where) as b,
        Client(scheduler_file=path, asynchronous=True) as client,
    ):
        data = client.submit(bytes, 300_000, workers=[a.address])
        await wait(data)
        for listener in first._listeners:
            listener.close()
        async with ListeningScheduler(scheduler_file=path, token="a5" * 32) as second:
            for comm in list(first.members.comms):
                comm.abort("the scheduler was killed")
            assert await client.submit(len, data, workers=[b.address]) == 300_000
            assert len(await data) == 300_000
            assert set(second.workers) == {a.address, b.address}
            await client.close()


@pytest.mark.parametrize("grace", [0, "300ms"])
@on_a_loop
async def test_a_nanny_that_finds_no_scheduler_any_more_ends_with_its_worker(
    grace: float | str,
) -> None:
    async with ListeningScheduler() as scheduler:
        nanny = await Nanny(scheduler.address, nthreads=1, reconnect_timeout=grace)
        assert nanny.pid is not None
        worker = psutil.Process(nanny.pid)
        for listener in scheduler._listeners:
            listener.close()
        [(comm, _)] = scheduler.nannies.values()
        comm.abort("the node of the scheduler is gone")
        await asyncio.wait_for(nanny.finished(), 10)
        assert nanny.status == "failed"
        assert nanny.failure.startswith("lost the scheduler: ")
        await until(lambda: not worker.is_running())


@on_a_loop
async def test_a_planned_end_is_no_loss() -> None:
    scheduler = await ListeningScheduler()
    nanny = await Nanny(scheduler.address, nthreads=1)
    await scheduler.close()
    await asyncio.wait_for(nanny.finished(), 5)
    assert (nanny.status, nanny.failure) == ("closed", "")


@on_a_loop
async def test_a_scheduler_that_is_lost_while_a_worker_starts_ends_the_nanny() -> None:
    async with ListeningScheduler() as scheduler:
        nanny = Nanny(scheduler.address, nthreads=1)
        starting = asyncio.ensure_future(nanny.start())
        await until(lambda: scheduler.nannies)
        [(comm, _)] = scheduler.nannies.values()
        comm.abort("gone")
        with pytest.raises(LaunchError, match="lost the scheduler"):
            await starting
        assert nanny.status == "failed"


@on_a_loop
async def test_with_a_scheduler_file_it_is_looked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    async with ListeningScheduler(scheduler_file=path) as scheduler:
        nanny = Nanny(scheduler_file=path, nthreads=1)
        starting = asyncio.ensure_future(nanny.start())
        await until(lambda: scheduler.nannies)
        [(comm, _)] = scheduler.nannies.values()
        comm.abort("gone")
        await starting
        assert nanny.status == "running"
        await until(lambda: len(scheduler.told(RegisterNanny)) == 2)
        await nanny.close()


# -- What a worker is told ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Worker, Nanny])
@on_a_loop
async def test_a_worker_registers_with_its_resources(kind: type[Worker | Nanny]) -> None:
    resources = {"MEM": 2e9, "GPU": 1}
    async with (
        ListeningScheduler() as scheduler,
        kind(scheduler.address, nthreads=1, resources=resources),
    ):
        [hello] = scheduler.told(RegisterWorker)
        assert hello.resources == (("GPU", 1.0), ("MEM", 2e9))
