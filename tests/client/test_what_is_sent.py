"""What reaches the scheduler of submissions and releases, and when."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from waiting import wait_until

from hpcdask import Client, LocalCluster
from hpcdask.client import graphs
from hpcdask.errors import SerializationError
from hpcdask.messages import Message, Restriction
from hpcdask.messages.client import ReleaseKeys, SubmitTasks


@pytest.fixture(scope="module")
def lonely() -> Iterator[LocalCluster]:
    """A scheduler without workers: what is submitted stays."""
    with LocalCluster(n_workers=0) as cluster:
        yield cluster


class Heard:
    """The messages of all clients, as they are read."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.messages if type(message) is kind]


@pytest.fixture
def heard(lonely: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Heard:
    heard = Heard()
    read = lonely.scheduler.client_said

    def note_and_read(name: str, comm: Any, what: Message | list[Message]) -> None:
        read(name, comm, what)
        heard.messages += what if isinstance(what, list) else [what]

    monkeypatch.setattr(lonely.scheduler, "client_said", note_and_read)
    return heard


@pytest.fixture
def client(lonely: LocalCluster, heard: Heard) -> Iterator[Client]:
    with Client(lonely) as client:
        yield client
    wait_until(lambda: not lonely.scheduler.state.tasks, 20, "the scheduler forgets all tasks")


WAYS: dict[str, Callable[..., Any]] = {
    "submit": lambda client, **how: client.submit(abs, -1, **how),
    "map": lambda client, **how: client.map(abs, range(2500), **how),
    "get": lambda client, **how: client.get(
        {f"n{i}": (abs, -i) for i in range(60)}, [f"n{i}" for i in range(60)], sync=False, **how
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_restrictions_come_with_every_chunk(client: Client, heard: Heard, way: str) -> None:
    wish = {"workers": {"b", "a"}, "allow_other_workers": True, "resources": {"GPU": 1}}
    futures = WAYS[way](client, **wish)
    wait_until(lambda: any(m.final for m in heard.of(SubmitTasks)))
    sent = heard.of(SubmitTasks)
    assert {m.restriction for m in sent} == {Restriction(("a", "b"), True, (("GPU", 1.0),))}
    assert len(sent) == {"submit": 1, "map": 3, "get": 2}[way]
    assert futures


@pytest.mark.parametrize("way", WAYS)
def test_without_a_wish_there_is_no_restriction(client: Client, heard: Heard, way: str) -> None:
    futures = WAYS[way](client)
    wait_until(lambda: any(m.final for m in heard.of(SubmitTasks)))
    assert {m.restriction for m in heard.of(SubmitTasks)} == {None}
    assert futures


def test_the_chunks_of_a_map_tell_its_order(client: Client, heard: Heard) -> None:
    futures = client.map(abs, range(25), batch_size=10)
    wait_until(lambda: len(heard.of(SubmitTasks)) == 3)
    sent = heard.of(SubmitTasks)
    assert [(m.first, len(m.tasks), m.final) for m in sent] == [
        (0, 10, False),
        (10, 10, False),
        (20, 5, True),
    ]
    assert [task.key for m in sent for task in m.tasks] == [future.key for future in futures]


def test_tasks_that_need_not_be_sent_keep_their_place(client: Client, heard: Heard) -> None:
    held = client.map(abs, range(5))
    wait_until(lambda: heard.of(SubmitTasks))
    heard.messages.clear()
    futures = client.map(abs, range(30), batch_size=10)
    wait_until(lambda: len(heard.of(SubmitTasks)) == 3)
    sent = heard.of(SubmitTasks)
    assert [(m.first, len(m.tasks)) for m in sent] == [(0, 5), (10, 10), (20, 10)]
    assert [future.key for future in held] == [future.key for future in futures[:5]]


def test_a_map_of_a_full_chunk_ends_with_it(client: Client, heard: Heard) -> None:
    futures = client.map(abs, range(20), batch_size=10)
    wait_until(lambda: any(m.final for m in heard.of(SubmitTasks)))
    assert [len(m.tasks) for m in heard.of(SubmitTasks)] == [10, 10]
    assert futures


def test_a_map_of_nothing_is_nothing(client: Client) -> None:
    assert client.map(abs, []) == []


def arguments(heard: Heard) -> Iterator[int]:
    """Numbers, the last of which come when the scheduler has read the first."""
    yield from range(60)
    wait_until(lambda: heard.of(SubmitTasks), what="the first chunk has arrived")
    yield from range(60, 100)


def test_the_beginning_of_a_map_leaves_before_its_end_is_known(
    client: Client, heard: Heard
) -> None:
    futures = client.map(abs, arguments(heard), batch_size=50)
    assert len(futures) == 100


def test_the_beginning_of_a_map_leaves_from_an_event_loop_too(
    lonely: LocalCluster, heard: Heard
) -> None:
    async def connected() -> int:
        place = lonely.place
        async with Client(place.address, token=place.token, asynchronous=True) as client:
            return len(client.map(abs, arguments(heard), batch_size=50))

    assert asyncio.run(connected()) == 100


def test_a_map_that_fails_half_way_is_ended(
    client: Client, lonely: LocalCluster, heard: Heard
) -> None:
    def numbers() -> Iterator[int]:
        yield from range(25)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.map(abs, numbers(), batch_size=10)
    wait_until(lambda: any(m.final for m in heard.of(SubmitTasks)))
    assert heard.of(SubmitTasks)[-1].tasks == ()
    wait_until(lambda: not lonely.scheduler.state.tasks)


# -- Graphs ----------------------------------------------------------------------------------------


class PickledWhen:
    """Something that can be pickled once a condition holds."""

    def __init__(self, condition: Callable[[], object]) -> None:
        self._condition = condition

    def __reduce__(self) -> Any:
        wait_until(self._condition, what="the first chunk has arrived")
        return int, ()


def chain(length: int) -> dict[Any, Any]:
    steps = {f"n{i}": (operator.add, f"n{i - 1}", 1) for i in range(1, length)}
    return {"n0": 0, **steps}


def test_the_beginning_of_a_graph_leaves_before_the_rest_is_packed(
    client: Client, heard: Heard
) -> None:
    dsk = chain(200)
    dsk["n100"] = (max, "n99", PickledWhen(lambda: heard.of(SubmitTasks)))
    future = client.get(dsk, "n199", sync=False)
    wait_until(lambda: any(m.final for m in heard.of(SubmitTasks)))
    first, rest = heard.of(SubmitTasks)
    assert (first.first, len(first.tasks), first.wanted, first.final) == (0, 50, (), False)
    assert (rest.first, len(rest.tasks), rest.wanted, rest.final) == (50, 150, ("n199",), True)
    assert future.key == "n199"


def test_keys_of_a_graph_are_wanted_with_their_chunks(client: Client, heard: Heard) -> None:
    dsk: dict[Any, Any] = {f"n{i}": (abs, -i) for i in range(2500)}
    futures = client.get(dsk, list(dsk), sync=False)
    wait_until(lambda: any(m.final for m in heard.of(SubmitTasks)))
    messages = heard.of(SubmitTasks)
    assert [len(m.wanted) for m in messages] == [len(m.tasks) for m in messages]
    assert max(len(m.wanted) for m in messages) <= 1000
    assert [m.want for m in messages] == sorted({m.want for m in messages})
    heard.messages.clear()
    again = client.get({f"o{i}": (abs, -i) for i in range(3)}, ["o1"], sync=False)
    wait_until(lambda: any(m.final for m in heard.of(SubmitTasks)))
    assert [m.wanted for m in heard.of(SubmitTasks)] == [("o1",)]
    assert [future.key for future in futures] == list(dsk)
    assert [future.key for future in again] == ["o1"]


@pytest.mark.parametrize(
    ("text", "keys"), [("a cycle", ["n5", "n199"]), ("no key 'n200'", ["n5", "n200"])]
)
def test_of_a_graph_that_is_none_nothing_leaves(
    client: Client, heard: Heard, text: str, keys: list[str]
) -> None:
    dsk = {**chain(200), "n150": (abs, "n199")}
    with pytest.raises(ValueError, match=f"the graph has {text}"):
        client.get(dsk, keys)
    assert client.submit(abs, -1).status == "pending"
    wait_until(lambda: heard.of(SubmitTasks))
    assert [m.tasks[0].key[:3] for m in heard.of(SubmitTasks)] == ["abs"]


def test_a_graph_that_cannot_be_packed_is_ended(
    client: Client, lonely: LocalCluster, heard: Heard
) -> None:
    def fail() -> object:
        raise SerializationError("never")

    dsk = chain(200)
    dsk["n100"] = (max, "n99", PickledWhen(fail))
    with pytest.raises(SerializationError):
        client.get(dsk, ["n10", "n199"])
    wait_until(lambda: any(m.final for m in heard.of(SubmitTasks)))
    wait_until(lambda: not lonely.scheduler.state.tasks)
    assert not client._futures
    future = client.get(chain(200), "n199", sync=False)
    wait_until(lambda: len(lonely.scheduler.state.tasks) == 200)
    assert future.status == "pending"


# -- Releases --------------------------------------------------------------------------------------


def test_many_keys_are_released_by_many_messages(
    client: Client, lonely: LocalCluster, heard: Heard
) -> None:
    futures = client.map(abs, range(12_000))
    wait_until(lambda: len(lonely.scheduler.state.tasks) == 12_000)
    keys = {future.key for future in futures}
    del futures
    wait_until(lambda: not lonely.scheduler.state.tasks)
    sizes = [len(message.keys) for message in heard.of(ReleaseKeys)]
    assert max(sizes) <= 5000
    assert {key for message in heard.of(ReleaseKeys) for key in message.keys} == keys


def test_a_key_that_was_let_go_among_many_can_be_used_again_at_once(
    client: Client, lonely: LocalCluster, heard: Heard
) -> None:
    futures = client.map(abs, range(12_000), key=[f"k{i}" for i in range(12_000)])
    del futures
    future = client.submit(abs, -7, key="k11999")
    wait_until(lambda: len(lonely.scheduler.state.tasks) == 1)
    assert list(lonely.scheduler.state.tasks) == [future.key]
    told = [m for m in heard.messages if type(m) in (ReleaseKeys, SubmitTasks)]
    kinds = [type(m) for m in told if type(m) is ReleaseKeys or len(m.tasks) == 1]
    assert kinds == [*[ReleaseKeys] * (len(kinds) - 1), SubmitTasks]


def test_two_keys_of_a_graph_that_would_have_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="both named '1'"):
        graphs.Graph({1: 5, "1": 7}, [1, "1"])
