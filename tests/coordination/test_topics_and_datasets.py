"""Events of topics, metadata, and what is published for others."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest
from losses import cut
from waiting import on_a_loop, wait_until

from hpcdask import Client, LocalCluster, get_client, get_worker

# -- Events ----------------------------------------------------------------------------------------


def test_events_of_programs_tasks_and_the_scheduler_are_kept(
    cluster: LocalCluster, client: Client
) -> None:
    def log(number: int) -> None:
        get_worker().log_event("tasks", {"number": number})
        get_client().log_event(["clients", "both"], number)

    began = time.time()
    client.gather(client.map(log, range(5)), timeout=30)
    cluster.loop.call_soon_threadsafe(cluster.scheduler.log_event, "both", {"deep": [None]})
    wait_until(lambda: len(client.get_events("both")) == 6)
    times = [at for at, _ in client.get_events("tasks")]
    assert times == sorted(times)
    assert began - 60 < times[0] <= times[-1] < time.time() + 60
    assert sorted(msg["number"] for _, msg in client.get_events("tasks")) == list(range(5))
    assert {msg["worker"] for _, msg in client.get_events("tasks")} <= client.nthreads().keys()
    assert client.get_events("both")[-1][1] == {"deep": [None]}
    assert client.get_events("nothing") == ()
    events = client.get_events()
    assert {"all", "tasks", "clients", "both"} <= events.keys()
    assert ("add-client", client.id) in [(m["action"], m.get("client")) for _, m in events["all"]]


def test_of_each_topic_so_many_events_are_kept_as_is_configured(client: Client) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        LocalCluster(0, 1, processes=False) as first,
    ):
        assert first.scheduler.requests.topics.topics._length == 10_000
        patch.setenv("HPCDASK_SCHEDULER__EVENTS_LOG_LENGTH", "3")
        from hpcdask import config

        config.refresh()
        with LocalCluster(0, 1, processes=False) as few, Client(few, set_as_default=False) as here:
            for number in range(5):
                here.log_event("t", number)
            assert [msg for _, msg in here.get_events("t")] == [2, 3, 4]
        patch.undo()
        config.refresh()


def test_handlers_get_events_in_order_whatever_one_raises(
    client: Client, other: Client, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []
    threads = set()

    def plain(event: tuple[float, Any]) -> None:
        threads.add(threading.current_thread().name)
        seen.append(event[1])
        if event[1] == 3:
            raise ZeroDivisionError("in a handler")

    async def slow(event: tuple[float, Any]) -> None:
        await asyncio.sleep(0.001 * (10 - event[1]))
        seen.append(-event[1])
        if event[1] == 4:
            raise SystemExit("in a coroutine")

    client.subscribe_topic("plain", plain)
    client.subscribe_topic("slow", slow)
    for number in range(1, 8):
        other.log_event(["plain", "slow"], number)
    wait_until(lambda: len(seen) == 14)
    assert [n for n in seen if n > 0] == list(range(1, 8))
    assert [-n for n in seen if n < 0] == list(range(1, 8))
    assert not any(name.startswith("hpcdask-io") for name in threads)  # which it could block
    assert caplog.text.count("the handler of topic") == 2
    assert "ZeroDivisionError: in a handler" in caplog.text
    client.subscribe_topic("plain", lambda event: seen.append("another"))
    other.log_event("plain", 8)
    wait_until(lambda: seen[-1] == "another")
    client.unsubscribe_topic("plain")
    other.log_event(["plain", "slow"], 9)
    wait_until(lambda: seen[-1] == -9)
    assert len(seen) == 16
    with pytest.raises(ValueError, match="has not subscribed to a topic 'plain'"):
        client.unsubscribe_topic("plain")
    with pytest.raises(TypeError, match="must be callable"):
        client.subscribe_topic("plain", "no function")  # type: ignore[arg-type]


def test_a_handler_is_there_again_after_a_loss(
    cluster: LocalCluster, client: Client, other: Client
) -> None:
    seen: list[Any] = []
    client.subscribe_topic("t", lambda event: seen.append(event[1]))
    cut(client, cluster)
    client.get_events("t")  # by now the scheduler has heard of it
    other.log_event("t", "after")
    wait_until(lambda: seen == ["after"])


def test_handlers_of_an_asynchronous_client_run_on_its_loop(cluster: LocalCluster) -> None:
    @on_a_loop
    async def check() -> None:
        async with Client(cluster, asynchronous=True) as client:
            heard = asyncio.Event()
            client.subscribe_topic("awaited", lambda event: heard.set())
            await client.log_event("awaited", 1)
            await asyncio.wait_for(heard.wait(), 20)
            assert [msg for _, msg in await client.get_events("awaited")] == [1]

            async def for_ever(event: Any) -> None:
                await asyncio.sleep(300)

            client.subscribe_topic("awaited", for_ever)
            await client.log_event("awaited", 2)

    check()


# -- Metadata --------------------------------------------------------------------------------------


def test_metadata_is_shared_and_nested(client: Client, other: Client) -> None:
    client.set_metadata("run", {"name": "July", "params": {"dx": 0.5, 3: (1, 2)}})
    other.set_metadata(["run", "params", "dt"], None)
    assert client.get_metadata(["run", "params"]) == {"dx": 0.5, 3: (1, 2), "dt": None}
    assert client.get_metadata(("run", "name")) == "July"
    client.set_metadata("odd", {("a", "tuple"): logging.INFO})
    assert other.get_metadata("odd") == {("a", "tuple"): logging.INFO}
    assert client.get_metadata(["run", "nothing"], default=7) == 7
    with pytest.raises(KeyError, match="no metadata at"):
        client.get_metadata(["run", "nothing"])
    with pytest.raises(TypeError, match="is a value and no dict"):
        client.set_metadata(["run", "name", "first"], "J")
    with pytest.raises(TypeError, match="keys of metadata are"):
        client.set_metadata(object(), 1)
    assert client.submit(lambda: get_client().get_metadata(["run", "name"])).result() == "July"


# -- Datasets --------------------------------------------------------------------------------------


def test_what_is_published_outlives_its_client(cluster: LocalCluster, client: Client) -> None:
    with Client(cluster, set_as_default=False) as leaving:
        future = leaving.submit(pow, 3, 4)
        leaving.publish_dataset({"power": future, ("a", 1): [leaving.submit(pow, 2, 2)]}, plain=1)
    assert client.list_datasets() == ("power", ("a", 1), "plain")
    assert client.get_dataset("power").result(timeout=20) == 81
    nested, plain = client.get_dataset([("a", 1), "plain"])
    assert (nested[0].result(timeout=20), plain) == (4, 1)
    task = client.submit(lambda: get_client().get_dataset("power").result())
    assert task.result(timeout=20) == 81
    client.unpublish_dataset(["power", ("a", 1), "plain", "none"])
    assert client.list_datasets() == ()


def test_a_name_is_taken_until_it_is_unpublished_or_overridden(
    client: Client, other: Client
) -> None:
    client.publish_dataset(1, name="x")
    with pytest.raises(KeyError, match="'x' is published already"):
        other.publish_dataset(x=2, y=3)
    assert client.list_datasets() == ("x",)
    other.publish_dataset(x=2, override=True)
    assert client.get_dataset("x") == 2
    assert client.get_dataset("y", default=None) is None
    with pytest.raises(KeyError, match="no dataset 'y' is published"):
        client.get_dataset("y")
    client.publish_dataset(1, 2, name=5)
    assert other.get_dataset(5) == (1, 2)
    for args, name, error in [
        ((1,), None, "give what you publish a name"),
        ((), "x", "nothing to publish"),
        ((1,), b"x", "name is a string"),
    ]:
        with pytest.raises((TypeError, ValueError), match=error):
            client.publish_dataset(*args, name=name)
    client.unpublish_dataset(["x", 5])


def test_datasets_are_a_mapping(client: Client) -> None:
    datasets = client.datasets
    datasets["one"] = client.submit(pow, 2, 3)
    datasets["two"] = "text"
    assert (len(datasets), list(datasets), "one" in datasets) == (2, ["one", "two"], True)
    assert datasets["one"].result(timeout=20) == 8
    assert datasets.get("three", 3) == 3
    with pytest.raises(KeyError):
        datasets["one"] = 1
    with pytest.raises(TypeError, match="for name in"):
        aiter(datasets)
    assert datasets.pop("two") == "text"
    del datasets["one"]
    with pytest.raises(KeyError):
        del datasets["one"]
    assert not datasets


def test_datasets_and_metadata_with_await(cluster: LocalCluster) -> None:
    @on_a_loop
    async def check() -> None:
        async with Client(cluster, asynchronous=True) as client:
            await client.publish_dataset(awaited=client.submit(pow, 2, 9))
            assert await (await client.datasets["awaited"]) == 512
            assert [name async for name in client.datasets] == ["awaited"]
            for use in (len, list, lambda datasets: "awaited" in datasets):
                with pytest.raises(TypeError, match="with an asynchronous client use"):
                    use(client.datasets)
            with pytest.raises(KeyError):
                await client.get_dataset("nothing")
            await client.unpublish_dataset("awaited")
            await client.set_metadata("awaited", 1)
            assert await client.get_metadata("awaited") == 1
            assert await client.get_metadata("nothing", default=2) == 2
            with pytest.raises(KeyError):
                await client.get_metadata("nothing")

    check()
