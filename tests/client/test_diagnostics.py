"""What a client tells of a cluster: why tasks wait, what they do, what has run, its versions."""

from __future__ import annotations

import asyncio
import gzip
import io
import logging
import math
import re
import time
from pathlib import Path

import msgpack
import pytest
from waiting import on_a_loop, wait_for_file, wait_until

import hpcdask
from hpcdask import (
    Client,
    LocalCluster,
    as_completed,
    config,
    fire_and_forget,
    get_task_stream,
    progress,
    wait,
)
from hpcdask.client import progress as bars
from hpcdask.errors import WaitTimeoutError
from hpcdask.versions import in_words, mismatches


def increment(x: int) -> int:
    return x + 1


def fail(x: object) -> None:
    raise ValueError(x)


async def wait_in_vain(seconds: float) -> None:
    await asyncio.sleep(seconds)


def compute(gate: Path) -> int:
    count = 0
    while not gate.exists():
        count += sum(range(1000))
    return count


# -- One task --------------------------------------------------------------------------------------


def test_a_task_is_explained_by_scheduler_and_worker(client: Client, gate: Path) -> None:
    running = client.map(wait_for_file, [gate] * 4, range(4))
    wait_until(lambda: len(client.call_stack(timeout=5)) == 2)
    text = client.explain(running[0], timeout=5)
    assert re.search(r"It was sent to worker '[01]' \(tcp://127", text)
    assert re.search(r"It has been running there for \S+ s, in wait_until \(\S+, line \d+\)", text)
    waiting = client.submit(sum, running)
    assert "It waits for 4 of its 4 inputs" in client.explain(waiting.key, timeout=5)
    behind = [client.submit(increment, n, workers=["0"]) for n in range(9)]
    wait_until(lambda: "queued task" in client.explain(behind[-1], timeout=5))
    text = client.explain(behind[0], timeout=5)
    assert "It waits there for a thread. 2 runs keep its 2 threads" in text
    failed = client.submit(fail, "why")
    gate.touch()
    wait([failed, waiting], timeout=10)
    assert client.explain(failed, timeout=5).endswith("The error was ValueError('why').")
    assert "is done" in client.explain(waiting, timeout=5)
    assert "does not know 'nonsense'" in client.explain("nonsense", timeout=5)


def test_call_stacks_show_the_tasks_own_lines(client: Client, gate: Path) -> None:
    future = client.submit(wait_for_file, gate)
    coroutine = client.submit(wait_in_vain, 30)
    wait_until(lambda: client.call_stack([future, coroutine], timeout=5))
    wait_until(lambda: sum(map(len, client.call_stack(timeout=5).values())) == 2)
    found = {k: v for stacks in client.call_stack(timeout=5).values() for k, v in stacks.items()}
    assert "in wait_for_file" in found[future.key][0]
    assert "in wait_until" in found[future.key][1]
    assert "in wait_in_vain" in found[coroutine.key][0]
    [stacks] = client.call_stack(keys=[future.key], timeout=5).values()
    assert list(stacks) == [future.key]
    assert client.call_stack([], timeout=5) == client.call_stack(keys="x", timeout=5) == {}
    coroutine.cancel()


def test_a_story_tells_states_and_if_it_is_kept_all_moves(client: Client) -> None:
    future = client.submit(increment, 1)
    future.result(timeout=10)
    [step] = client.story(future, timeout=5)
    assert (step.key, step.finish, step.time) == (future.key, "memory", 0.0)
    with (
        config.set({"scheduler.transition-log-length": 1000}),
        Client(n_workers=1, processes=False) as keeping,
    ):
        future = keeping.submit(increment, 1)
        future.result(timeout=10)
        steps = keeping.story(future.key, timeout=5)
        assert [step.finish for step in steps] == ["waiting", "processing", "memory"]
        assert abs(steps[-1].time - time.time()) < 60


def test_a_scheduler_that_cannot_be_asked_has_no_story_if_one_likes(cluster: LocalCluster) -> None:
    client = Client(cluster)
    client.close()
    assert client.story(on_error="ignore") == []
    with pytest.raises(ConnectionError):
        client.story()
    with pytest.raises(ValueError, match="on_error"):
        client.story(on_error="return")


def test_an_error_of_what_was_fired_and_forgotten_is_said(
    cluster: LocalCluster, gate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(cluster) as client:
        fire_and_forget(client.submit(fail, "nobody asks"))
        text = "which was fired and forgotten, failed: ValueError('nobody asks')"
        wait_until(lambda: text in caplog.text)
        assert caplog.records[-1].levelno == logging.WARNING
        fire_and_forget(client.submit(lambda path: fail(wait_for_file(path)), gate))
    gate.touch()  # when its client has gone
    wait_until(lambda: "which was fired and forgotten, failed on tcp://" in caplog.text)
    assert "in fail (" in caplog.text
    wait_until(lambda: not cluster.scheduler.state.tasks)


# -- All tasks -------------------------------------------------------------------------------------


def functions_of(tree: dict) -> set[str]:
    names = {child["description"]["name"] for child in tree["children"].values()}
    return names.union(*map(functions_of, tree["children"].values()))


def test_a_profile_shows_where_tasks_spend_their_time(
    client: Client, gate: Path, tmp_path: Path
) -> None:
    future = client.submit(compute, gate)
    wait_until(lambda: client.profile("compute", timeout=5)["count"] > 5)
    before = time.time()
    tree = client.profile("compute", timeout=5)
    assert {child["description"]["name"] for child in tree["children"].values()} == {"compute"}
    assert tree["identifier"] == "root"
    by_worker = client.profile("compute", merge_workers=False, timeout=5)
    assert by_worker.keys() == client.nthreads(timeout=5).keys()
    assert sorted(tree["count"] > 0 for tree in by_worker.values()) == [False, True]
    assert client.profile("nothing", timeout=5)["count"] == 0
    assert client.profile(stop=before - 3600, timeout=5)["count"] == 0
    assert client.profile(start=before + 3600, timeout=5)["count"] == 0
    tree, figure = client.profile(filename=tmp_path / "flames.html", timeout=5)
    assert "compute (" in (tmp_path / "flames.html").read_text()
    assert f"{tree['count']} looks" in figure._repr_html_()
    gate.touch()
    assert future.result(timeout=10) >= 0


def test_event_loops_are_watched_when_asked(client: Client) -> None:
    assert "select" in functions_of(client.profile(scheduler=True, timeout=9))
    trees = client.profile(server=True, merge_workers=False, workers=["0"], timeout=9)
    assert [functions_of(tree) >= {"run_forever"} for tree in trees.values()] == [True]
    with pytest.raises(ValueError, match="from now on"):
        client.profile(scheduler=True, start=1.0)
    with pytest.raises(ValueError, match="no worker has the address or name 'x'"):
        client.profile(workers="x", timeout=5)


def test_a_cluster_may_keep_no_profile(gate: Path) -> None:
    with (
        config.set({"worker.profile.enabled": False}),
        Client(n_workers=1, processes=False) as client,
    ):
        future = client.submit(compute, gate)
        wait_until(lambda: client.call_stack(timeout=5))
        assert client.profile(timeout=5)["count"] == 0
        gate.touch()
        future.result(timeout=10)


def test_the_stream_of_tasks_tells_what_ran_where_and_when(
    client: Client, cluster: LocalCluster, tmp_path: Path
) -> None:
    before = time.time()
    with get_task_stream(client, plot="save", filename=tmp_path / "stream.html") as stream:
        good = client.submit(increment, 1)
        assert good.result(timeout=10) == 2
        wait(client.submit(fail, 1), timeout=10)
    assert [(run["key"], run["name"], run["status"]) for run in stream.data] == [
        (good.key, "increment", "OK"),
        (stream.data[1]["key"], "fail", "error"),
    ]
    [span] = stream.data[0]["startstops"]
    assert before - 1 < span["start"] <= span["stop"] < time.time() + 1
    assert stream.data[0]["worker"] in client.nthreads(timeout=5)
    assert good.key in (tmp_path / "stream.html").read_text()
    with get_task_stream() as stream:
        pass
    assert stream.data == []
    client.gather(client.map(increment, range(10, 15)), timeout=10)
    runs, figure = client.get_task_stream(count=3, plot=True, timeout=5)
    assert len(runs) == 3
    assert "3 tasks within" in figure.body
    assert len(client.get_task_stream(start="1h", timeout=5)) == 7
    assert client.get_task_stream(stop=before - 1, timeout=5) == []


def test_runs_are_noted_only_while_somebody_has_asked(cluster: LocalCluster) -> None:
    scheduler = cluster.scheduler
    from hpcdask.requests import diagnostics
    from hpcdask.scheduler import _WORKER_EVENTS

    with Client(cluster) as client:
        client.get_task_stream(timeout=5)
        assert scheduler.worker_events is not _WORKER_EVENTS
    with Client(cluster) as client:
        wait_until(lambda: len(scheduler.clients) == 1)
        client.gather(client.map(increment, range(diagnostics._LOOK + 1)), timeout=20)
        assert scheduler.worker_events is _WORKER_EVENTS


# -- Progress --------------------------------------------------------------------------------------


def test_a_bar_counts_the_work_for_its_futures(client: Client, gate: Path) -> None:
    first = client.map(wait_for_file, [gate] * 3, range(3))
    total = client.submit(sum, first)
    del first
    file = io.StringIO()
    looks: list[tuple[int, int]] = []
    show = bars.TextBar.show

    def noted(self: bars.TextBar, count: bars.Count) -> None:
        looks.append((count.n_done, count.n_all))
        gate.touch()
        show(self, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bars.TextBar, "show", noted)
        assert progress(total, interval="20ms", file=file) is None
    assert looks[0] == (0, 4)
    assert looks[-1] == (4, 4)
    assert re.fullmatch(r"\[#{40}\] \| 100% \| 4/4 \| \d\.\ds\n", file.getvalue())


def test_a_bar_draws_itself_in_a_terminal_and_tells_what_failed(client: Client) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    bad = client.submit(fail, "why")
    progress([client.submit(increment, 1), bad], width=4, file=file)
    assert file.getvalue().startswith("\r[")
    last = "\r[####] | 100% | 2/2 | "
    assert last in file.getvalue()
    assert file.getvalue().endswith(f"1 of 2 failed, {bad.key}: ValueError('why')\n")
    assert progress([]) is None
    with pytest.raises(TypeError, match="expected a future"):
        progress(3)


def test_a_bar_in_a_notebook_has_a_row_for_each_function() -> None:
    count = bars.Count()
    count.update({"<lambda>": 4, "sum": 1})
    count.update({"<lambda>": 1, "sum": 1})
    assert (count.n_done, count.n_all) == (3, 5)
    rows = bars.as_html(count, multi=True)
    assert "<progress value='3' max='4'></progress> &lt;lambda&gt;: 3 of 4" in rows
    assert "sum: 0 of 1" in rows
    assert "all: 3 of 5" in bars.as_html(count, multi=False)


# -- The cluster -----------------------------------------------------------------------------------


def test_versions_are_told_and_compared(client: Client) -> None:
    found = client.get_versions(check=True, packages=["pytest", "no-such-package"], timeout=20)
    assert found["client"]["packages"]["hpcdask"] == hpcdask.__version__
    assert found["scheduler"]["packages"]["pytest"] == pytest.__version__
    assert found["workers"].keys() == client.nthreads(timeout=5).keys()
    assert found["client"]["packages"]["no-such-package"] is None


def test_versions_that_differ_are_told_with_where() -> None:
    def here(**packages: str | None) -> dict:
        return {"packages": packages}

    same = here(python="3.11.7", numpy="1.26")
    found = {"client": same, "a": here(python="3.11.9", numpy=None), "b": same, "c": same}
    differ = mismatches(found)
    assert differ == {"numpy": {"1.26": ["client", "b", "c"], "none": ["a"]}}
    assert in_words(differ) == "numpy: 1.26 on client, b and 1 more; none on a"
    assert mismatches({"a": here(python="3.11.1"), "b": here(python="3.12.1")}) == {
        "python": {"3.11": ["a"], "3.12": ["b"]}
    }


@pytest.mark.parametrize("by_scheduler", [False, True])
def test_the_state_of_all_is_written_to_a_file(
    client: Client, tmp_path: Path, by_scheduler: bool
) -> None:
    future = client.submit(increment, 1)
    future.result(timeout=10)
    target = tmp_path / "dump"
    client.dump_cluster_state(target, by_scheduler, exclude={"dependencies"}, timeout=20)
    with gzip.open(f"{target}.msgpack.gz") as file:
        found = msgpack.unpackb(file.read())
    task = found["scheduler"]["tasks"][future.key]
    assert (task["state"], task["function"]) == ("memory", "increment")
    assert "dependencies" not in task
    [there] = [w for w in found["workers"].values() if future.key in w["tasks"]]
    assert there["tasks"][future.key]["state"] == "memory"
    assert client._link.options.token.hex() not in repr(found)


def test_the_state_may_be_yaml_and_what_is_wrong_is_said_first(
    client: Client, tmp_path: Path
) -> None:
    yaml = pytest.importorskip("yaml")
    client.dump_cluster_state(tmp_path / "dump.yaml", format="yaml", timeout=20)
    assert yaml.safe_load((tmp_path / "dump.yaml").read_text())["scheduler"]["type"] == "Scheduler"
    with pytest.raises(ValueError, match="format must be"):
        client.dump_cluster_state(tmp_path / "x", format="xml", timeout=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="anon= is an option for URLs"):
        client.dump_cluster_state(tmp_path / "x", anon=True, timeout=5)


def test_hardware_is_measured(client: Client) -> None:
    found = client.benchmark_hardware(duration=0, timeout=60)
    assert found.keys() == {"memory", "disk", "network"}
    for rates in found.values():
        assert len(rates) == 5
        assert all(0 < rate < math.inf for rate in rates.values())


def test_a_scheduler_file_lets_others_in(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    client.write_scheduler_file(path, timeout=5)
    assert path.stat().st_mode & 0o777 == 0o600
    with Client(scheduler_file=path) as other:
        assert other.scheduler_id == client.scheduler_id


def test_as_completed_gives_values_of_batches_together(client: Client, gate: Path) -> None:
    futures = client.map(bytes, [10, 100_000, 200_000])
    wait(futures, timeout=10)
    [batch] = as_completed(futures, with_results=True).batches()
    assert sorted(len(value) for _, value in batch) == [10, 100_000, 200_000]
    bad = client.submit(fail, 1)
    wait(bad, timeout=10)
    [batch] = as_completed([bad, futures[0]], with_results=True, raise_errors=False).batches()
    assert {type(value) for _, value in batch} == {tuple, bytes}  # as of sys.exc_info
    with pytest.raises(TypeError, match="expected a future"):
        as_completed([1])
    late = as_completed([client.submit(wait_for_file, gate)], timeout=0.1).batches()
    with pytest.raises(WaitTimeoutError):
        next(late)


# -- On an event loop ------------------------------------------------------------------------------


@on_a_loop
async def test_all_of_it_is_there_for_asynchronous_clients() -> None:
    async with (
        LocalCluster(n_workers=2, processes=False, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        async with get_task_stream(client) as stream:
            futures = client.map(increment, range(3))
            batches = [b async for b in as_completed(futures, with_results=True).batches()]
        assert sorted(value for batch in batches for _, value in batch) == [1, 2, 3]
        assert len(stream.data) == 3
        await progress(futures, file=io.StringIO())
        await client.replicate(futures)
        await client.rebalance()
        assert (await client.nbytes())["increment"] > 0
        assert "is done" in await client.explain(futures[0])
        assert await client.call_stack() == {}
        assert [step.finish for step in await client.story(futures[0])] == ["memory"]
        assert (await client.profile())["identifier"] == "root"
        assert "workers" in await client.get_versions(check=True)
        bad = client.submit(fail, 1)
        await wait([bad])
        await bad.retry()
        assert isinstance(await bad.exception(), ValueError)
        await bad.cancel(reason="no more")
        assert bad.cancelled()
        with client.as_current():
            assert Client.current(allow_global=False) is client
