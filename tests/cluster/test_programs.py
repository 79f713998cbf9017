"""Programs as people write them: however they end, they end quietly and leave nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from waiting import wait_until


def start(tmp_path: Path, program: str) -> subprocess.Popen[str]:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    return subprocess.Popen(
        [sys.executable, "-X", "dev", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )


def run(tmp_path: Path, program: str) -> tuple[int, str, str]:
    """Run a program; return its code, and what it printed. Nothing may be left of it."""
    with start(tmp_path, program) as process:
        children: set[int] = set()
        out, err = process.communicate(timeout=60)
    for line in out.splitlines():
        if line.startswith("pids"):
            children |= set(map(int, line.split()[1:]))
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in children), 3)
    # What Python's development mode says of a callback that took long is a matter of the machine.
    err = re.sub(r"(?m)^Executing <.*> took [\d.]+ seconds\n", "", err)
    return process.returncode, out, err


HEAD = """
import os, sys, time
from hpcdask import Client, LocalCluster, get_client
client = Client(n_workers=2, threads_per_worker=1)
print("pids", *client.run(os.getpid).values(), flush=True)
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("future = client.submit(abs, -1); print(future.result())", 0),
        ("futures = client.map(time.sleep, [100] * 4); time.sleep(0.2)", 0),
        ("cluster = client.cluster; del client, cluster", 0),
        ("client.close()", 0),
        ("client.shutdown()", 0),
        ("client.cluster.close()", 0),
        ("sys.exit(3)", 3),
        ("import threading; threading.Thread(target=client.submit(abs, -1).result).start()", 0),
        ("another = Client(client.cluster); later = Client(processes=False, n_workers=1)", 0),
        ("client.cluster.scale(1)", 0),
    ],
)
def test_a_program_that_ends_without_closing_ends_quietly(
    tmp_path: Path, ending: str, code: int
) -> None:
    began = time.monotonic()
    returned, _, err = run(tmp_path, HEAD + ending)
    assert returned == code
    assert err == ""
    assert time.monotonic() - began < 10


def test_no_main_guard_is_needed_and_functions_of_the_program_work(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    program = """
        from dataclasses import dataclass
        from hpcdask import Client
        from beside import triple

        @dataclass
        class Point:
            x: int

        def move(point, by):
            return Point(point.x + by)

        client = Client(n_workers=2, threads_per_worker=1)
        print(client.submit(move, Point(1), 2).result(timeout=20))
        print(client.submit(move, Point(1), 2).result(timeout=20) == Point(3))
        print(client.gather(client.map(triple, range(3)), timeout=20))
    """
    assert run(tmp_path, program) == (0, "Point(x=3)\nTrue\n[0, 3, 6]\n", "")


def test_an_error_in_a_program_is_all_that_is_seen(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, HEAD + "raise RuntimeError('mine')")
    assert code == 1
    assert err.splitlines()[-1] == "RuntimeError: mine"
    assert err.count("Traceback") == 1


def test_an_error_of_a_task_ends_a_program_with_its_traceback(tmp_path: Path) -> None:
    program = HEAD + "def divide(x):\n    return 1 / x\n\nclient.submit(divide, 0).result()\n"
    code, _, err = run(tmp_path, program)
    assert code == 1
    assert "return 1 / x" in err
    assert "ZeroDivisionError: division by zero" in err
    assert "Exception ignored" not in err


def test_a_program_on_a_loop_that_does_not_close_ends_quietly(tmp_path: Path) -> None:
    program = """
        import asyncio, os
        from hpcdask import Client

        async def main():
            client = await Client(asynchronous=True, n_workers=2, threads_per_worker=1)
            print("pids", *(await client.run(os.getpid)).values(), flush=True)

        asyncio.run(main())
    """
    code, _, err = run(tmp_path, program)
    assert code == 0
    assert "Traceback" not in err


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_program_that_waits(tmp_path: Path, times: int) -> None:
    program = HEAD + "print('waiting', flush=True); client.gather(client.map(time.sleep, [99, 98]))"
    path = tmp_path / "program.py"
    path.write_text(program)
    with subprocess.Popen(
        [sys.executable, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()[1:]]
        assert process.stdout.readline() == "waiting\n"
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the job
        _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    lines = err.splitlines()
    assert "KeyboardInterrupt" in lines
    # Of another, which comes while the interpreter ends, Python itself has something to say.
    assert times > 1 or lines[-1] == "KeyboardInterrupt"
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 5)


def test_ctrl_c_that_is_caught_leaves_a_cluster_that_works(tmp_path: Path) -> None:
    program = HEAD + textwrap.dedent(
        """
        try:
            print("waiting", flush=True)
            client.submit(time.sleep, 99).result()
        except KeyboardInterrupt:
            print(client.submit(abs, -7).result(timeout=10), len(client.nthreads()), flush=True)
        """
    )
    path = tmp_path / "program.py"
    path.write_text(program)
    with subprocess.Popen(
        [sys.executable, path], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.stdout.readline() == "waiting\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=20)[0] == "7 2\n"


@pytest.mark.parametrize(
    "wait", ["client.submit(time.sleep, 99).result()", "client.wait_for_workers(9)"]
)
def test_ctrl_c_that_does_not_wake_who_waits_is_seen_soon(tmp_path: Path, wait: str) -> None:
    """As when it comes in the moment before Python begins to wait: nothing interrupts that."""
    program = HEAD + textwrap.dedent(
        f"""
        import signal, threading
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who started us may ignore it
        def interrupt():
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)
        other = threading.Thread(target=interrupt)
        other.start()
        # Of the threads of the process only the other one takes it now.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            {wait}
        except KeyboardInterrupt:
            print("seen", flush=True)
        """
    )
    code, out, _ = run(tmp_path, program)
    assert code == 0
    assert out.splitlines()[-1] == "seen"


def test_a_program_that_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    with start(tmp_path, HEAD + "time.sleep(60)") as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()[1:]]
        process.kill()
        process.communicate(timeout=10)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 5)
    run(tmp_path, HEAD)  # whose workers sweep up the scratch folders


def test_in_a_fork_what_is_of_its_parent_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    program = HEAD + textwrap.dedent(
        """
        cluster, pid = client.cluster, os.fork()
        if not pid:
            for call in (lambda: client.submit(abs, -7), client.ncores, cluster.get_logs):
                try:
                    call()
                except (RuntimeError, ConnectionError) as exc:
                    print(exc, flush=True)
            with client, cluster:
                sys.exit(3)
        assert os.waitpid(pid, 0)[1] == 3 << 8
        print(client.submit(abs, -6).result(timeout=10))
        """
    )
    code, out, err = run(tmp_path, program)
    assert code == 0, err
    *refused, result = out.splitlines()[1:]
    assert [" is a fork" in line for line in refused] == [True] * 3
    assert all("make a" in line for line in refused)
    assert result == "6"


def test_a_forked_child_does_not_touch_its_parents_cluster(tmp_path: Path) -> None:
    program = HEAD + textwrap.dedent(
        """
        pid = os.fork()
        if not pid:
            with Client(n_workers=1, threads_per_worker=1, processes=False) as own:
                print(own.submit(abs, -5).result(timeout=10), flush=True)
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        print(client.submit(abs, -6).result(timeout=10))
        """
    )
    code, out, _ = run(tmp_path, program)
    assert code == 0
    assert out.splitlines()[1:] == ["5", "6"]
