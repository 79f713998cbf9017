"""Tables of many small dicts behave as the one dict that they stand for."""

from __future__ import annotations

import pytest

from hpcdask.core.lanes import Lane
from hpcdask.core.records import ClientRecord, Task
from hpcdask.core.tables import TaskTable, Wants


def task(turn: int) -> Task:
    return Task(f"x{turn}", None, b"", (), (0.0, turn, 1), 0, Lane(None), 0)


TASKS = [task(turn) for turn in range(0, 100_000, 97)]


def test_a_table_of_tasks_is_a_mapping() -> None:
    table = TaskTable()
    assert not table
    table.update({task.key: task for task in TASKS})
    assert len(table) == len(TASKS)
    assert {*table} == {task.key for task in TASKS}
    assert all(table[task.key] is task is table.get(task.key) for task in TASKS)
    assert table.get("y") is None
    assert "y" not in table
    with pytest.raises(KeyError):
        table["y"]
    for one in TASKS:
        del table[one.key]
    assert not table


def test_wants_hold_what_was_added_and_not_discarded() -> None:
    wants = Wants()
    assert not wants
    for one in [*TASKS, *TASKS]:
        wants.add(one)
    assert list(wants) == TASKS
    assert len(wants) == len(TASKS)
    assert wants.take_latest() is TASKS[-1]
    assert list(wants) == TASKS[:-1]
    for one in [*TASKS[10:], *TASKS[10:]]:
        wants.discard(one)
    assert list(wants) == TASKS[:10]
    assert TASKS[9] in wants
    assert TASKS[10] not in wants
    for one in TASKS[:10]:
        wants.discard(one)
    assert not wants


def test_a_task_of_another_priority_is_still_found_among_the_wants() -> None:
    one, client = task(1), ClientRecord("c")
    one.add_client(client)
    one.change_priority((0.0, 1_000_000, 2))
    assert one in client.wants
    one.drop_client(client)
    assert not client.wants
