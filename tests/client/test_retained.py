"""What a client keeps of its submissions: as little as possible, and none of it for too long."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from hpcdask.client.future import FutureState
from hpcdask.client.retained import Recipe, Retained
from hpcdask.messages import Frames, Function, TaskSpec
from hpcdask.messages.client import SubmitTasks

FUNCTION = Function(b"id", "f", b"code of f")


class Client:
    """As much of a client as is needed to hold futures."""

    def __init__(self) -> None:
        self.futures: dict[str, FutureState] = {}
        self.retained = Retained(self.futures)
        self.number = 0

    def submit(self, key: str, *dependencies: str, arguments: Any = b"") -> FutureState:
        self.number += 1
        state = self.futures[key] = FutureState(key)
        spec = TaskSpec(key, 0, arguments, dependencies)
        self.retained.keep(message(self.number, spec))
        return state

    def graph(self, *chunks: list[TaskSpec], wanted: str) -> None:
        self.number += 1
        for position, chunk in enumerate(chunks, 1):
            final = position == len(chunks)
            if final:
                self.futures[wanted] = FutureState(wanted)
            keys = (wanted,) if final else ()
            self.retained.keep(
                message(self.number, *chunk, wanted=keys, first=position, final=final)
            )

    def keys(self) -> list[list[str]]:
        return [[spec.key for spec in recipe.tasks] for recipe in self.retained.recipes()]


def message(number: int, *tasks: TaskSpec, **fields: Any) -> SubmitTasks:
    how = {"wanted": None, "first": 0, "priority": 0.0, "retries": 0, "final": True, **fields}
    return SubmitTasks(number, (FUNCTION,), tasks, **how)


def task(key: str, *dependencies: str) -> TaskSpec:
    return TaskSpec(key, 0, b"", dependencies)


def test_what_is_pending_is_kept_with_what_it_needs_in_the_order_of_submission() -> None:
    client = Client()
    for key, *dependencies in (["a"], ["b", "a"], ["c"], ["d", "b", "a"], ["e"]):
        client.submit(key, *dependencies)
    del client.futures["a"], client.futures["b"]  # released, but d needs them
    del client.futures["c"]
    client.futures["e"].end("finished")
    assert client.keys() == [["a"], ["b"], ["d"]]


def test_what_was_done_at_the_time_of_submission_is_not_kept() -> None:
    client = Client()
    client.submit("a").end("finished")
    client.submit("b", "a")
    assert client.keys() == [["b"]]


def test_a_chunk_is_kept_until_the_last_of_its_futures_is_done() -> None:
    client = Client()
    for key in "abc":
        client.futures[key] = FutureState(key)
    client.retained.keep(message(1, *map(task, "abc")))
    for key, status in (("a", "finished"), ("b", "error")):
        client.futures[key].end(status)
        assert client.keys() == [["a", "b", "c"]]
    client.futures["c"].end("cancelled")
    assert client.keys() == []


def test_all_chunks_of_a_graph_are_kept_for_the_key_that_was_wanted() -> None:
    client = Client()
    client.graph([task("x"), task("y", "x")], [task("z", "y")], wanted="z")
    later = client.submit("later", "z")
    assert client.keys() == [["x", "y"], ["z"], ["later"]]
    client.futures["z"].end("finished")
    later.end("finished")
    assert client.keys() == []


def test_a_graph_that_is_still_being_sent_is_kept_although_it_has_no_future_yet() -> None:
    client = Client()
    client.retained.keep(message(7, task("x"), wanted=(), final=False))
    assert client.keys() == [["x"]]
    assert client.retained.is_unfinished(7)
    client.retained.keep(message(7, wanted=(), first=1))  # the client could not go on
    assert client.keys() == []


def test_a_pipeline_that_never_runs_dry_keeps_only_its_end() -> None:
    client, living = Client(), weakref.WeakSet[Any]()
    client.submit("0")
    for n in range(1, 50):
        living.add(client.submit(f"{n}", f"{n - 1}").recipe)
        client.futures.pop(f"{n - 1}").end("finished")
    assert len(living) <= 2


def test_a_long_chain_of_released_keys_is_kept_and_freed_without_recursion() -> None:
    client = Client()
    client.submit("0")
    for n in range(1, 50_000):
        client.submit(f"{n}", f"{n - 1}")
        del client.futures[f"{n - 1}"]
    assert len(client.keys()) == 50_000
    client.futures["49999"].end("finished")
    client.futures.clear()
    assert client.keys() == []
    assert not [each for each in gc.get_objects() if type(each) is Recipe]


def test_one_function_is_kept_once_for_all_its_tasks() -> None:
    client = Client()
    for key in "abc":
        client.futures[key] = FutureState(key)
        function = Function(b"id", "f", bytes(bytearray(b"code")))
        client.retained.keep(message(1, task(key))._replace(functions=(function,)))
    assert len({id(recipe.functions) for recipe in client.retained.recipes()}) == 1


def test_a_function_is_kept_no_longer_than_its_tasks() -> None:
    client, mine = Client(), bytearray(b"much data")
    function = Function(b"id", "f", Frames([memoryview(mine)]))
    client.futures["a"] = FutureState("a")
    sent = client.retained.keep(message(1, task("a"))._replace(functions=(function,)))
    mine[:] = b"changed!!"
    assert bytes(sent.functions[0].code.parts[0]) == b"much data"
    copy = weakref.ref(client.retained.recipes()[0])
    client.futures["a"].end("finished")
    assert copy() is None
    assert not client.retained._with_function


def test_buffers_that_the_program_may_change_are_copied() -> None:
    client, mine, constant = Client(), bytearray(b"before"), b"constant"
    client.futures["a"] = FutureState("a")
    blob = Frames([constant, memoryview(mine)])
    sent = client.retained.keep(message(1, TaskSpec("a", 0, blob, ())))
    mine[:] = b"after!"
    [recipe] = client.retained.recipes()
    for each in (sent.tasks[0].arguments, recipe.tasks[0].arguments):
        assert bytes(each.parts[1]) == b"before"
        assert each.parts[0] is constant
