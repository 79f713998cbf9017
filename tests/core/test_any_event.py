"""Any event in any order, sensible or not: the scheduler never contradicts itself."""

from __future__ import annotations

from random import Random

import pytest
from core_helpers import BOOM, A, B, C, cancel, plan, release, sent, started, submit, worker_info

from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.messages import (
    DataMissing,
    Heartbeat,
    KeysAdded,
    PlacedValue,
    TaskErred,
    TaskFinished,
    Version,
)
from hpcdask.messages.client import DataScattered, KeepUntilDone, WantKeys

KEYS = [f"k{i}" for i in range(8)]


def some_keys(random: Random) -> tuple[str, ...]:
    return tuple(random.choices(KEYS, k=random.randint(0, 3)))


def some_attempt(state: SchedulerState, random: Random, key: str) -> int:
    """Mostly the right one."""
    task = state.tasks.get(key)
    return task.attempt if task and random.random() < 0.8 else random.randint(0, 50)


def any_event(state: SchedulerState, random: Random) -> None:
    address = random.choice([A, B, C])
    client = random.choice("cd")
    key, other = random.choices(KEYS, k=2)
    task = state.tasks.get(key)
    if task is not None and task.worker is not None and random.random() < 0.8:
        address = task.worker.address
    attempt = some_attempt(state, random, key)
    missing = Version(other, some_attempt(state, random, other))
    is_sure = random.random() < 0.5
    event = random.randrange(18)
    if event < 5:
        graph = {k: some_keys(random) for k in some_keys(random)}
        wanted = random.choice([None, some_keys(random)])
        submission = random.randint(1, 3)
        retries = random.randint(0, 1)
        final = random.random() < 0.7
        submit(
            state,
            graph,
            client=client,
            wanted=wanted,
            submission=submission,
            retries=retries,
            final=final,
        )
    elif event < 9:
        duration = random.choice([1e-6, 1.0])
        state.task_finished(1.0, address, TaskFinished(key, attempt, 8, duration, None))
    elif event == 9:
        state.task_erred(1.0, address, TaskErred(key, attempt, BOOM))
    elif event == 10:
        state.keys_added(1.0, address, KeysAdded((Version(key, attempt), missing)))
    elif event == 11:
        source = random.choice([A, B, C])
        state.data_missing(1.0, address, DataMissing(key, attempt, missing, source))
    elif event == 12:
        state.worker_joined(1.0, worker_info(address, nthreads=random.randint(1, 2)))
    elif event == 13:
        state.worker_lost(1.0, address, planned=is_sure)
    elif event == 14:
        release(state, *some_keys(random), client=client)
    elif event == 15:
        state.keys_wanted(1.0, client, WantKeys(some_keys(random)))
        state.kept_until_done(1.0, KeepUntilDone(some_keys(random)[:1]))
    elif event == 16:
        cancel(state, *some_keys(random)[:1], client=client, force=is_sure)
        state.heartbeat(1.0, address, Heartbeat(0.0, 0, 0, 0, 0))
    else:
        placements = plan(state, *some_keys(random), client=client, broadcast=is_sure)
        placements.append(PlacedValue(key, attempt, 8, (address,)))
        state.data_scattered(1.0, client, DataScattered(tuple(placements)))


@pytest.mark.parametrize("seed", range(30))
def test_no_order_of_events_confuses_the_scheduler(seed: int) -> None:
    random = Random(seed)
    state = started(A, clients="cd", allowed_failures=1)
    for _ in range(300):
        any_event(state, random)
        sent(state)  # validates, and tries the wire
        if random.random() < 0.01:
            state.client_lost(1.0, "d")
            state.client_joined(1.0, "d")
            sent(state)
    state.client_lost(1.0, "c")
    state.client_lost(1.0, "d")
    state.restarted(2.0, "the end")
    sent(state)
    assert not state.tasks
