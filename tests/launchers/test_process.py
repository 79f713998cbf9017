"""Services in the main thread of a process: how they start, live and end together."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest

from hpcdask.errors import LaunchError
from hpcdask.launchers.process import WARNINGS, event_loop, live, pid_file, serve, stop_signals
from hpcdask.service import Service


class Pretender(Service):
    """A service that notes what happens to it."""

    def __init__(self, error=None, slow=False):
        super().__init__()
        self.error, self.slow = error, slow
        self.closed_because = self.left_because = self.waits = None
        self.may_leave = asyncio.Event()

    async def leave(self, reason="asked to leave", limit=None, waits=False):
        self.left_because, self.waits = reason, waits
        await self.may_leave.wait()
        await self.close(reason)

    async def _start(self):
        if self.slow:
            await asyncio.sleep(3600)
        if self.error is not None:
            raise self.error

    async def _close(self, reason):
        self.closed_because = reason


def run(main):
    with event_loop() as loop:
        return loop.run_until_complete(main)


def test_one_that_cannot_start_ends_all_and_its_error_is_raised():
    fine, broken = Pretender(), Pretender(LaunchError("no port is free"))
    with pytest.raises(LaunchError, match="no port is free"):
        run(serve([fine, broken]))
    assert fine.status == "closed"
    assert broken.status == "failed"


def test_they_live_until_the_last_has_ended():
    first, second = Pretender(), Pretender()

    async def main():
        living = asyncio.ensure_future(live([first, second]))
        await asyncio.sleep(0)
        await first.close("enough")
        await asyncio.wait({living}, timeout=0.05)
        assert not living.done()
        await second.close("enough")
        await asyncio.wait_for(living, 5)

    run(main())


def test_one_that_could_not_go_on_makes_the_end_an_error():
    service = Pretender()

    async def main():
        living = asyncio.ensure_future(serve([service]))
        while service.status != "running":
            await asyncio.sleep(0)
        await service._fail("lost the scheduler")
        await asyncio.wait_for(living, 5)

    with pytest.raises(LaunchError, match="lost the scheduler"):
        run(main())
    assert service.status == "failed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("slow", [False, True], ids=["running", "starting"])
def test_a_signal_ends_them_in_order_whether_running_or_starting(number, slow):
    service = Pretender(slow=slow)

    async def main():
        living = asyncio.ensure_future(serve([service]))
        while service.status != ("starting" if slow else "running"):
            await asyncio.sleep(0)
        os.kill(os.getpid(), number)
        await asyncio.wait_for(living, 5)

    run(main())
    assert service.closed_because is not None


async def signalled(service, number):
    """Serve, and get a signal; return what is still living then."""
    living = asyncio.ensure_future(serve([service], leaves=True))
    while service.status != "running":
        await asyncio.sleep(0)
    os.kill(os.getpid(), number)
    return living


async def leaving(service, number):
    """Serve, and get a signal that lets them leave; return what is still living then."""
    living = await signalled(service, number)
    while service.left_because is None:
        await asyncio.sleep(0)
    return living


def test_at_sigterm_they_may_leave_in_peace():
    service = Pretender()

    async def main():
        living = await leaving(service, signal.SIGTERM)
        await asyncio.wait({living}, timeout=0.05)
        assert service.status == "running"
        service.may_leave.set()
        await asyncio.wait_for(living, 5)

    run(main())
    assert service.status == "closed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_them_while_they_leave(number):
    service = Pretender()

    async def main():
        living = await leaving(service, signal.SIGTERM)
        os.kill(os.getpid(), number)
        await asyncio.wait_for(living, 5)

    run(main())
    assert service.status == "closed"


def test_in_a_batch_job_a_second_sigterm_changes_nothing(monkeypatch):
    """Slurm sends one itself to what srun has started, and srun hands another one on."""
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    service = Pretender()

    async def main():
        living = await leaving(service, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait({living}, timeout=0.05)
        assert service.status == "running"
        service.may_leave.set()
        await asyncio.wait_for(living, 5)

    run(main())
    assert service.status == "closed"


@pytest.mark.parametrize("number", WARNINGS)
def test_at_a_warning_they_leave_and_one_more_changes_nothing(number):
    service = Pretender()

    async def main():
        living = await leaving(service, number)
        for again in (*WARNINGS, signal.SIGCONT, signal.SIGTERM, number):
            os.kill(os.getpid(), again)
        await asyncio.wait({living}, timeout=0.05)
        assert service.status == "running"
        service.may_leave.set()
        await asyncio.wait_for(living, 5)

    run(main())
    assert service.left_because == f"its job is to end soon, as {number.name} says"
    assert service.waits
    assert service.status == "closed"


def test_after_a_warning_the_second_sigterm_ends_them():
    service = Pretender()

    async def main():
        living = await leaving(service, signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait({living}, timeout=0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(living, 5)

    run(main())
    assert service.status == "closed"


def test_a_warning_does_not_end_who_cannot_leave():
    service = Pretender()

    async def main():
        living = asyncio.ensure_future(serve([service]))
        while service.status != "running":
            await asyncio.sleep(0)
        for number in WARNINGS:
            os.kill(os.getpid(), number)
        await asyncio.wait({living}, timeout=0.05)
        assert service.status == "running"
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(living, 5)

    run(main())
    assert service.left_because is None


def test_what_runs_beside_them_begins_when_all_have_started_and_ends_with_them():
    services, seen = [Pretender(), Pretender()], []

    async def beside():
        seen.append([service.status for service in services])
        try:
            await asyncio.sleep(3600)
        finally:
            seen.append("ended")

    async def main():
        living = asyncio.ensure_future(serve(services, beside=beside))
        while not seen:
            await asyncio.sleep(0)
        for service in services:
            await service.close("enough")
        await asyncio.wait_for(living, 5)

    run(main())
    assert seen == [["running", "running"], "ended"]


def test_what_goes_wrong_beside_them_is_logged_and_does_not_end_them(caplog):
    service = Pretender()

    async def beside():
        raise ZeroDivisionError("of all things")

    async def main():
        living = asyncio.ensure_future(serve([service], beside=beside))
        await asyncio.wait({living}, timeout=0.05)
        assert service.status == "running"
        await service.close("enough")
        await asyncio.wait_for(living, 5)

    run(main())
    assert "of all things" in caplog.text


def test_at_sigint_they_end_at_once():
    service = Pretender()

    async def main():
        await asyncio.wait_for(await signalled(service, signal.SIGINT), 5)

    run(main())
    assert (service.status, service.left_because) == ("closed", None)


def test_who_is_not_allowed_to_leave_ends_at_sigterm_at_once():
    service = Pretender()

    async def main():
        living = asyncio.ensure_future(serve([service]))
        while service.status != "running":
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(living, 5)

    run(main())
    assert (service.status, service.left_because) == ("closed", None)


def test_a_service_that_is_closed_while_it_starts_is_no_error():
    class ClosedMeanwhile(Pretender):
        async def _start(self):
            closing = asyncio.ensure_future(self.close("the scheduler says so"))
            await asyncio.sleep(0)
            await closing
            raise LaunchError("the worker was killed before it had started")

    service = ClosedMeanwhile()
    run(serve([service]))
    assert service.status == "closed"
    assert service.closed_because == "the scheduler says so"


def test_the_loop_does_not_wait_for_a_thread_that_never_returns():
    release = threading.Event()

    async def main():
        asyncio.get_running_loop().run_in_executor(None, release.wait)
        return "ended"

    try:
        assert run(main()) == "ended"
    finally:
        release.set()


def test_the_end_of_the_parent_process_counts_as_sigterm(tmp_path):
    program = tmp_path / "child.py"
    program.write_text(
        "import asyncio, os\n"
        "from hpcdask.launchers.process import stop_signals\n"
        "async def main():\n"
        "    with stop_signals(with_parent=True) as stopped:\n"
        "        print(os.getpid(), flush=True)\n"
        "        print((await stopped).name, flush=True)\n"
        "asyncio.run(main())\n"
    )
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {str(program)!r}])\n"
        "time.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline().strip().isdigit()
        parent.kill()
        assert parent.stdout.read() == b"SIGTERM\n"


def test_a_signal_handler_is_removed_at_the_end():
    before = signal.getsignal(signal.SIGTERM)

    async def main():
        with stop_signals():
            assert signal.getsignal(signal.SIGTERM) != before

    run(main())
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_comes_after_all_has_ended_does_not_change_the_exit_code(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, os, signal, sys\n"
        "from hpcdask.launchers.process import stop_signals\n"
        "async def main():\n"
        "    with stop_signals(for_good=True):\n"
        "        pass\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "asyncio.run(main())\n"
        "sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, program]).returncode == 7


def test_a_pid_file_goes_even_after_an_error(tmp_path):
    path = tmp_path / "pid"
    with pytest.raises(ZeroDivisionError), pid_file(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
        raise ZeroDivisionError
    assert not path.exists()
