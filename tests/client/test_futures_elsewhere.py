"""Futures in other processes, in forked children, in odd threads, and at the end of a program."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, CommClosedError, Future, FutureCancelledError, LocalCluster, wait


def increment(x: int) -> int:
    return x + 1


@dataclass
class Study:
    name: str
    inputs: list[Future]


class Pair(NamedTuple):
    left: Any
    right: Any


def total(study: Study) -> int:
    return sum(future.result(timeout=10) for future in study.inputs)


def hold(future: Future, n: int) -> int:
    """Let a future be collected by a task's thread, in a circle."""
    circle: list[Any] = [future]
    circle.append(circle)
    del circle
    return n + gc.collect() * 0


def test_futures_are_found_in_containers_and_travel_in_objects(client: Client) -> None:
    one, two = client.map(increment, [0, 1])
    nested = {"a": [one, (two, {one})], "b": Pair(3, 4)}
    assert client.submit(lambda x: x, nested).result(timeout=10) == {
        "a": [1, (2, {1})],
        "b": (3, 4),
    }
    assert client.submit(total, Study("x", [one, two])).result(timeout=10) == 3
    assert client.submit(total, study=Study("x", [two])).result(timeout=10) == 2
    pair = client.submit(lambda pair: pair.left.result(timeout=10), Pair(one, 0))
    assert pair.result(timeout=10) == 1
    graph = {"x": one, "y": [two, "x"], "z": (sum, "y")}
    assert client.get(graph, ["z", "x"], timeout=10) == [3, 1]


def run_program(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_future_is_found_again_by_a_client_in_another_process(
    client: Client, tmp_path: Path
) -> None:
    client.write_scheduler_file(tmp_path / "scheduler.json", timeout=5)
    future = client.submit(increment, 1, key="two")
    wait(future, timeout=10)
    (tmp_path / "future").write_bytes(pickle.dumps(future))
    program = (
        "import pickle, sys; from hpcdask import Client\n"
        "with Client(scheduler_file='scheduler.json') as client:\n"
        "    future = pickle.load(open('future', 'rb'))\n"
        "    assert future.client is client\n"
        "    print(future.key, future.result(timeout=10))\n"
    )
    out = run_program(program, tmp_path)
    assert (out.stdout, out.stderr) == ("two 2\n", "")


def test_a_future_passes_from_client_to_client_by_a_task(cluster: LocalCluster) -> None:
    with Client(cluster) as one, Client(cluster) as two:
        mine = one.submit(increment, 1)
        copy = pickle.loads(pickle.dumps(mine))
        assert copy.client in (one, two)
        passed = two.submit(lambda study: study, Study("x", [mine]))
        got = passed.result(timeout=10).inputs[0]
        assert got.result(timeout=10) == 2


def in_a_fork(check: Any) -> int:
    """Run a check in a forked child; return its exit code, or fail if it hangs."""
    child = os.fork()
    if not child:
        threading.Timer(20, os._exit, (77,)).start()
        try:
            check()
        except BaseException as exc:
            print(repr(exc), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_neither_hangs_nor_takes_anything_from_its_parent(
    client: Client, gate: Path
) -> None:
    done, pending = client.submit(increment, 1), client.submit(wait_for_file, gate, 5)
    large = client.submit(bytes, 10**6)
    wait([done, large], timeout=10)

    def check() -> None:
        for use in (
            lambda: client.submit(increment, 5),
            lambda: client.gather([large], timeout=5),
            lambda: client.nthreads(timeout=5),
            lambda: client.cancel([pending]),
            lambda: client.run(os.getpid, timeout=5),
        ):
            with pytest.raises((CommClosedError, FutureCancelledError), match="process"):
                use()
        with pytest.raises((CommClosedError, FutureCancelledError), match="is a fork"):
            pending.result(timeout=5)
        assert pending.status == "cancelled"
        assert done.result(timeout=5) == 2  # its value came along with the news
        done.release()
        large.release()
        client.close(timeout=5)
        gc.collect()

    held, forked = threading.Event(), threading.Event()

    def hold_the_lock() -> None:
        with client._lock:
            held.set()
            forked.wait(60)

    holder = threading.Thread(target=hold_the_lock)
    holder.start()
    assert held.wait(10)
    assert in_a_fork(check) == 0
    forked.set()
    holder.join(10)
    gate.touch()
    assert pending.result(timeout=10) == 5
    assert len(large.result(timeout=10)) == 10**6
    assert done.result(timeout=10) == 2


def test_futures_are_collected_by_the_threads_of_tasks(client: Client) -> None:
    for _ in range(3):
        futures = [client.submit(increment, n, pure=False) for n in range(10)]
        studies = [client.submit(hold, Pair(f, 0), n, pure=False) for n, f in enumerate(futures)]
        del futures
        assert client.gather(studies, timeout=20) == list(range(10))
    del studies
    client.run(gc.collect)  # a task leaves its own circle to the next, and the last one has none
    wait_until(lambda: not client._futures)


def test_a_program_may_end_with_futures_in_hand(client: Client, tmp_path: Path) -> None:
    """At interpreter exit, in modules that are being torn down, in threads that go on."""
    client.write_scheduler_file(tmp_path / "scheduler.json", timeout=5)
    program = (
        "import threading, time\n"
        "from hpcdask import Client, as_completed\n"
        "client = Client(scheduler_file='scheduler.json')\n"
        "futures = client.map(abs, range(100))\n"
        "circle = [futures]; circle.append(circle)\n"
        "seen = as_completed(futures)\n"
        "next(seen)\n"
        "futures[0].add_done_callback(print)\n"
        "late = client.submit(time.sleep, 60)\n"
        "threading.Thread(target=lambda: late.exception(timeout=30), daemon=True).start()\n"
        "executor = client.get_executor()\n"
        "calls = [executor.submit(time.sleep, 60)]\n"
    )
    out = run_program(program, tmp_path)
    assert out.returncode == 0
    assert out.stderr == ""
