"""Plugins on a real cluster: who has them, when, and what happens when they raise."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import (
    Client,
    Environ,
    LocalCluster,
    NannyPlugin,
    SchedulerPlugin,
    WorkerPlugin,
    get_worker,
)
from hpcdask.errors import TaskExitError


class Marks(WorkerPlugin):
    """Notes in a file what happens to it."""

    def __init__(self, path: Path, mark: str = "mark") -> None:
        self.path, self.mark = path, mark

    def setup(self, worker: Any) -> None:
        assert get_worker() is worker
        worker.mark = self.mark
        self._note("setup")

    async def teardown(self, worker: Any) -> None:
        self._note("teardown")

    def _note(self, what: str) -> None:
        with open(self.path, "a") as file:
            file.write(f"{what} {self.mark}\n")


class Records(WorkerPlugin):
    def setup(self, worker: Any) -> None:
        self.moves: list[tuple[str, str, str, str]] = []

    def transition(self, key: str, start: str, finish: str, **kwargs: Any) -> None:
        self.moves.append((key, start, finish, repr(kwargs.get("exception"))))


class Waits(WorkerPlugin):
    """Is set up when a file is there."""

    def __init__(self, go: Path) -> None:
        self.go = go

    async def setup(self, worker: Any) -> None:
        while not self.go.exists():
            await asyncio.sleep(0.01)
        worker.has_waited = True


class Sees(SchedulerPlugin):
    name = "sees"

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    async def start(self, scheduler: Any) -> None:
        self.seen.append(("start", scheduler.address))

    def add_client(self, scheduler: Any, client: str) -> None:
        self.seen.append(("add_client", client))

    def remove_client(self, scheduler: Any, client: str) -> None:
        self.seen.append(("remove_client", client))

    async def add_worker(self, scheduler: Any, worker: str) -> None:
        await asyncio.sleep(0)
        self.seen.append(("add_worker", worker in scheduler.workers))

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        self.seen.append(("remove_worker", worker))

    def update_graph(self, scheduler: Any, *, client: str, keys: Any, **kwargs: Any) -> None:
        told = kwargs["tasks"], kwargs["annotations"], kwargs["dependencies"]
        self.seen.append(("update_graph", keys, *told))

    def transition(self, key: str, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        self.seen.append((key, start, finish, kwargs.get("worker"), kwargs.get("nbytes")))

    def log_event(self, topic: str, msg: Any) -> None:
        if topic == "mine":
            self.seen.append(("log_event", msg))

    def restart(self, scheduler: Any) -> None:
        self.seen.append(("restart",))


def seen(client: Client, *about: str) -> list[tuple[Any, ...]]:
    """What the plugin `Sees` has seen that begins with one of these."""
    found = client.run_on_scheduler(_seen, timeout=10)
    return [each for each in found if each[0] in about]


def _seen(dask_scheduler: Any) -> list[tuple[Any, ...]]:
    return list(dask_scheduler.plugins["sees"].seen)


def mark() -> str:
    return str(get_worker().mark)  # type: ignore[attr-defined]


def moves(dask_worker: Any) -> list[tuple[str, str, str, str]]:
    return dask_worker.plugins["records"].moves  # type: ignore[no-any-return]


def test_workers_have_a_plugin_set_up_and_torn_down(client: Client, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    result = client.register_plugin(Marks(notes), name="marks", timeout=20)
    assert result == {address: {"status": "OK"} for address in client.nthreads()}
    assert client.submit(mark).result(timeout=10) == "mark"
    assert notes.read_text() == 2 * "setup mark\n"

    client.register_plugin(Marks(notes, "other"), name="marks", timeout=20)
    assert client.submit(mark, pure=False).result(timeout=10) == "other"
    lines = notes.read_text().splitlines()[2:]
    assert sorted(lines) == 2 * ["setup other"] + 2 * ["teardown mark"]

    client.register_plugin(Marks(notes, "third"), name="marks", idempotent=True, timeout=20)
    assert client.submit(mark, pure=False).result(timeout=10) == "other"

    gone = client.unregister_worker_plugin("marks", timeout=20)
    assert gone.keys() == result.keys()
    assert notes.read_text().splitlines()[6:] == 2 * ["teardown other"]
    assert not any(client.run(lambda dask_worker: list(dask_worker.plugins)).values())
    with pytest.raises(ValueError, match="no worker plugin 'marks'"):
        client.unregister_worker_plugin("marks", timeout=20)


def test_a_worker_that_comes_later_runs_no_task_before_its_plugins_are_set_up(
    cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    class WaitsThere(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            if worker.name == "2":
                wait_for_file(gate)
            worker.has_waited = True

    client.register_plugin(WaitsThere(), name="waits", timeout=20)
    client.register_plugin(Marks(tmp_path / "notes"), name="marks", timeout=20)
    try:
        cluster.scale(3)
        wait_until(lambda: len(client.nthreads()) == 3, 20)
        future = client.submit(lambda: get_worker().has_waited, workers="2")
        others = client.map(abs, range(50))
        assert client.gather(others, timeout=20) == list(range(50))  # those that are there
        assert client.run(lambda dask_worker: dask_worker.state.executing, workers="2") != {}
        assert not future.done()
        gate.touch()
        assert future.result(timeout=20) is True
        assert client.submit(mark, workers="2", pure=False).result(timeout=10) == "mark"
    finally:
        gate.touch()
        client.retire_workers(names=["2"])
        cluster.scale(2)


@pytest.fixture
def setting_up(tmp_path: Path) -> Iterator[tuple[Client, Path]]:
    """A client whose second worker sets a plugin up until a file is there."""
    go = tmp_path / "go"
    go.touch()
    with LocalCluster(1, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.register_plugin(Waits(go))
        go.unlink()
        cluster.scale(2)
        wait_until(lambda: len(client.nthreads()) == 2, 20)
        yield client, go


def test_who_waits_for_workers_finds_their_plugins_set_up(
    setting_up: tuple[Client, Path],
) -> None:
    def have_waited() -> list[bool]:
        return list(client.run(lambda dask_worker: dask_worker.has_waited).values())

    client, go = setting_up
    with pytest.raises(TimeoutError, match="1 of 2 workers"):
        client.wait_for_workers(2, timeout=0.3)
    go.touch()
    client.wait_for_workers(2, timeout=20)
    assert have_waited() == [True, True]
    client.restart(timeout=30)
    assert have_waited() == [True, True]


def test_a_worker_that_ends_during_a_setup_is_no_failure_of_the_plugin(
    setting_up: tuple[Client, Path], caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = setting_up
    client.retire_workers([1], timeout=20)
    client.close()
    assert "raised in setup" not in caplog.text


def test_a_worker_in_the_place_of_one_that_died_has_the_plugins(
    client: Client, tmp_path: Path
) -> None:
    client.register_plugin(Marks(tmp_path / "notes"), name="marks", timeout=20)
    before = client.run(os.getpid)
    os.kill(next(iter(before.values())), signal.SIGKILL)
    wait_until(lambda: set(client.run(os.getpid, on_error="ignore").values()) - {*before.values()})
    client.wait_for_workers(2, timeout=20)
    for address in client.nthreads():
        assert client.submit(mark, workers=address, pure=False).result(timeout=20) == "mark"


def test_what_setup_raises_reaches_who_registers_and_changes_nothing_else(client: Client) -> None:
    class Fails(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            raise ValueError("no such licence")

    with pytest.raises(ValueError, match="no such licence"):
        client.register_plugin(Fails(), name="fails", timeout=20)
    assert client.submit(abs, -3).result(timeout=10) == 3
    assert not any(client.run(lambda dask_worker: list(dask_worker.plugins)).values())

    class FailsHere(SchedulerPlugin):
        def start(self, scheduler: Any) -> None:
            raise SystemExit("start")

    with pytest.raises(TaskExitError, match="start"):
        client.register_plugin(FailsHere(), name="fails-here", timeout=20)
    assert "fails-here" not in client.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.plugins
    )
    with pytest.raises(ValueError, match="has no plugin 'fails-here'"):
        client.unregister_scheduler_plugin("fails-here", timeout=20)


def test_what_raises_later_is_told_to_who_registered_it_once(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnWorkers(WorkerPlugin):
        def transition(self, *args: Any, **kwargs: Any) -> None:
            raise ValueError("a bad counter")

    class OnScheduler(SchedulerPlugin):
        def transition(self, *args: Any, **kwargs: Any) -> None:
            raise KeyError("a worse one")

    monkeypatch.setattr(logging.getLogger("hpcdask"), "propagate", True)
    client.register_plugin(OnWorkers(), name="on-workers", timeout=20)
    client.register_plugin(OnScheduler(), name="on-scheduler", timeout=20)
    assert client.gather(client.map(abs, range(-20, 0)), timeout=20) == list(range(20, 0, -1))

    def told() -> list[str]:
        records = dict.fromkeys(caplog.records)  # by two handlers
        return [r.getMessage() for r in records if r.name == "hpcdask.client"]

    wait_until(lambda: len(told()) >= 2)
    assert sum("'on-scheduler' raised in transition" in text for text in told()) == 1
    assert any("'on-workers' raised in transition" in text for text in told())
    assert any("ValueError: a bad counter" in text for text in told())


def test_a_worker_tells_its_plugins_how_tasks_go_on(client: Client) -> None:
    client.register_plugin(Records(), name="records", timeout=20)
    here = next(iter(client.nthreads()))
    future = client.submit(abs, -1, key="well", workers=here)
    bad = client.submit(lambda: 1 / 0, key="bad", workers=here)
    assert future.result(timeout=10) == 1
    assert isinstance(bad.exception(timeout=10), ZeroDivisionError)
    del future
    done = ("well", "memory", "released", "None")
    wait_until(lambda: done in client.run(moves)[here])
    found = client.run(moves)[here]
    assert [m for m in found if m[0] == "well"] == [
        ("well", "released", "ready", "None"),
        ("well", "ready", "executing", "None"),
        ("well", "executing", "memory", "None"),
        done,
    ]
    assert [m[1:] for m in found if m[0] == "bad"][-2:] == [
        ("executing", "error", "ZeroDivisionError('division by zero')"),
        ("error", "released", "None"),
    ]
    client.unregister_worker_plugin("records")
    assert not any(client.run(lambda dask_worker: dask_worker.state.moves is not None).values())


def test_the_scheduler_tells_its_plugins_what_happens(
    cluster: LocalCluster, client: Client
) -> None:
    result = client.register_plugin(Sees(), timeout=20)
    address = cluster.scheduler.address
    assert result == {address: {"status": "OK"}}
    assert seen(client, "start") == [("start", address)]

    one = client.submit(abs, -1, key="one", retries=2)
    two = client.submit(abs, one, key="two")
    assert two.result(timeout=10) == 1
    worker = client.who_has([two])["two"][0]
    graphs = seen(client, "update_graph")
    assert graphs[0] == ("update_graph", {"one"}, ["one"], {"retries": {"one": 2}}, {"one": set()})
    assert graphs[1][4] == {"two": {"one"}}
    moves = seen(client, "two")
    assert [move[1:3] for move in moves] == [
        ("released", "waiting"),
        *([("waiting", "processing")] if len(moves) == 3 else []),
        ("processing", "memory"),
    ]
    assert moves[-1][3] == worker
    assert moves[-1][4] > 0

    client.log_event("mine", {"n": 1})
    assert seen(client, "log_event") == [("log_event", {"n": 1})]
    with Client(cluster) as other:
        assert seen(client, "add_client") == [("add_client", other.id)]
    wait_until(lambda: seen(client, "remove_client") == [("remove_client", other.id)])

    client.unregister_scheduler_plugin("sees", timeout=20)
    assert "_move" not in vars(cluster.scheduler.state)  # nobody pays for what nobody is told
    cluster.scheduler.add_plugin(Sees(), name="x")
    cluster.scheduler.add_plugin(Sees(), name="x", idempotent=True)
    with pytest.warns(UserWarning, match="has a plugin 'x' already"):
        cluster.scheduler.add_plugin(Sees(), name="x")
    cluster.scheduler.remove_plugin("x")
    with pytest.raises(ValueError, match="has no plugin 'x'"):
        cluster.scheduler.remove_plugin("x")


def test_variables_reach_workers_that_are_there_and_those_that_come(
    cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    client.register_plugin(Sees(), timeout=20)
    client.register_plugin(Marks(tmp_path / "notes"), name="marks", timeout=20)
    before = set(client.run(os.getpid).values())
    kept = client.scatter(7, broadcast=True)
    done = client.register_plugin(Environ({"OF_ALL_WORKERS": 8}), name="environ", timeout=40)
    assert len(done) == 2
    assert set(client.run(os.getenv, "OF_ALL_WORKERS").values()) == {"8"}
    assert not before & set(client.run(os.getpid).values())
    assert set(client.run(lambda dask_worker: dask_worker.mark).values()) == {"mark"}
    assert len(seen(client, "remove_worker")) == 2
    assert seen(client, "add_worker") == 2 * [("add_worker", True)]
    del kept
    cluster.scale(3)
    try:
        client.wait_for_workers(3, timeout=20)
        assert len(client.run(os.getenv, "OF_ALL_WORKERS")) == 3
        assert set(client.run(os.getenv, "OF_ALL_WORKERS").values()) == {"8"}
    finally:
        cluster.scale(2)
    client.unregister_nanny_plugin("environ", timeout=20)
    assert not any(client.run(lambda dask_nanny: dict(dask_nanny.env), nanny=True).values())
    client.restart(timeout=40)
    assert seen(client, "restart") == [("restart",)]
    assert set(client.run(os.getenv, "OF_ALL_WORKERS").values()) == {None}


def test_the_scheduler_tells_its_plugins_how_long_tasks_ran_and_why_they_failed(
    client: Client,
) -> None:
    class Ends(SchedulerPlugin):
        name = "ends"

        def __init__(self) -> None:
            self.told: dict[str, Any] = {}

        def transition(self, key: str, start: str, finish: str, **kwargs: Any) -> None:
            if finish in ("memory", "erred"):
                self.told[key] = kwargs

    def fail() -> None:
        raise ValueError("no licence")

    client.register_plugin(Ends(), timeout=20)
    before = time.time()
    client.submit(time.sleep, 0.1, key="nap").result(timeout=10)
    client.submit(fail, key="bad").exception(timeout=10)
    told = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["ends"].told)
    [run] = told["nap"]["startstops"]
    assert run["action"] == "compute"
    assert run["stop"] - run["start"] >= 0.1
    assert before <= run["stop"] <= time.time()
    assert "startstops" not in told["bad"]
    assert told["bad"]["exception_text"] == "ValueError: no licence"
    assert "in fail" in told["bad"]["traceback_text"]
    assert "hpcdask" not in told["bad"]["traceback_text"].replace(__file__, "")
    client.unregister_scheduler_plugin("ends", timeout=20)


def test_functions_are_called_on_each_worker(client: Client) -> None:
    def prepare(dask_worker: Any) -> None:
        dask_worker.is_prepared = True

    async def later() -> None:
        os.environ["PREPARED"] = "yes"

    client.register_worker_callbacks(prepare, timeout=20)
    client.register_worker_callbacks(later, timeout=20)
    assert set(client.run(lambda dask_worker: dask_worker.is_prepared).values()) == {True}
    assert set(client.run(os.getenv, "PREPARED").values()) == {"yes"}
    with pytest.raises(TypeError, match="takes a function"):
        client.register_worker_callbacks(3)  # type: ignore[arg-type]


def test_old_names_warn_and_work(client: Client, tmp_path: Path) -> None:
    class Duck:
        def setup(self, worker: Any) -> None:
            worker.says = "quack"

    with pytest.warns(DeprecationWarning, match="register_plugin"):
        client.register_worker_plugin(Duck(), name="duck")
    assert set(client.run(lambda dask_worker: dask_worker.says).values()) == {"quack"}
    with pytest.warns(DeprecationWarning, match="register_plugin"):
        client.register_scheduler_plugin(Sees())
    assert seen(client, "start")
    with pytest.warns(DeprecationWarning, match="register_plugin"):
        client.register_worker_plugin(NannyPlugin(), name="of-nannies")
    client.unregister_worker_plugin("of-nannies", nanny=True)


def test_the_last_lines_of_logs_come_latest_first(client: Client) -> None:
    def log(text: str) -> None:
        logging.getLogger("hpcdask.tests").warning(text)

    client.run(log, "first")
    client.run(log, "second")
    for lines in client.get_worker_logs(2, timeout=10).values():
        assert [level for level, _ in lines] == ["WARNING", "WARNING"]
        assert [line.rpartition(" - ")[2] for _, line in lines] == ["second", "first"]
    client.run_on_scheduler(log, "third")
    (level, line), *_ = client.get_scheduler_logs(1, timeout=10)
    assert (level, line.rpartition(" - ")[2]) == ("WARNING", "third")
    of_nannies = client.get_worker_logs(1, nanny=True, timeout=10)
    assert of_nannies.keys() == client.nthreads().keys()
