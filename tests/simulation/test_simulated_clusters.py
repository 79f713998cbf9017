"""Whole clusters in troubled times: a scheduler, some workers, and whatever may befall them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import replay
from calm import replace_the_scheduler, take_turns
from faults import Deed, deeds
from mutations import seeds_for, the_next_holder_is_never_asked
from simulator import SeedFailed, Simulation, live_through

from hpcdask.core import scheduler_state, worker_state
from hpcdask.core.records import Task
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.worker_state import HeldTask, WorkerState


@pytest.mark.parametrize("part", range(2))
def test_every_wanted_task_ends_right_and_nothing_is_left(part: int) -> None:
    for seed in range(25 * part, 25 * part + 25):
        live_through(seed)


def test_what_survives_a_scheduler_is_neither_lost_nor_done_again() -> None:
    for seed in range(20):
        replace_the_scheduler(seed)


def test_no_client_waits_for_all_tasks_of_another() -> None:
    for seed in range(5):
        take_turns(seed)


def test_a_seed_happens_in_the_same_way_again() -> None:
    first, second = (live_through(17, n_deeds=100) for _ in range(2))
    assert first.trace.lines() == second.trace.lines()
    assert first.random.random() == second.random.random()


def test_a_seed_happens_in_the_same_way_in_another_process() -> None:
    """Whose strings have other hashes, in the order of which a table has its tasks."""
    program = "from simulator import live_through; print(live_through(18).trace.lines())"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    lives = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**env, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in "012"
    }
    assert len(lives) == 1


@pytest.mark.parametrize("deed", deeds(), ids=lambda deed: deed.name)
def test_each_deed_does_something(deed: Deed) -> None:
    """It draws from the seed, or changes what happens, in some cluster that has lived a while."""
    for seed in range(20):
        simulation = Simulation(seed)
        simulation.live(20)
        before = (simulation.random.getstate(), simulation.clock.pushes, len(simulation.trace))
        deed(simulation)
        after = (simulation.random.getstate(), simulation.clock.pushes, len(simulation.trace))
        if before[1:] != after[1:]:
            return
    pytest.fail(f"{deed.name} does nothing")


def test_a_seed_that_fails_says_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    the_next_holder_is_never_asked(monkeypatch)
    with pytest.raises(SeedFailed, match=r"python tests/simulation/replay\.py") as caught:
        for seed in seeds_for(the_next_holder_is_never_asked):
            live_through(seed)
    assert f"replay.py {seed} --trace" in str(caught.value)
    assert replay.main([str(seed), "--trace"]) == 1
    printed = capsys.readouterr().out
    assert str(caught.value).splitlines()[0] in printed
    assert "scheduler -> w1  ComputeTask(key=" in printed


def test_each_move_that_the_tables_list_does_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[type, set[tuple[str, str]]] = {SchedulerState: set(), WorkerState: set()}
    for state_class in seen:
        move = state_class._move  # type: ignore[attr-defined]

        def noted(
            self: object,
            task: Task | HeldTask,
            state: str,
            move: Any = move,
            kind: type = state_class,
        ) -> None:
            seen[kind].add((task.state, state))
            move(self, task, state)

        monkeypatch.setattr(state_class, "_move", noted)
    # A task that can run does not fail before it does.
    impossible = {("queued", "erred"), ("no-worker", "erred")}
    listed = {
        SchedulerState: moves_of(scheduler_state.MOVES) - impossible,
        WorkerState: moves_of(worker_state.MOVES),
    }
    for seed in range(1000, 1100):
        live_through(seed, n_deeds=120)
        if seen == listed:
            break
    assert seen == listed


def moves_of(table: dict[str, set[str]]) -> set[tuple[str, str]]:
    return {(old, new) for old, states in table.items() for new in states}
