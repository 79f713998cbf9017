"""Whole clusters in troubled times: a scheduler, some workers, and whatever may befall them."""

from __future__ import annotations

import pytest
from miniature import live_through

from hpcdask.core import scheduler_state, worker_state
from hpcdask.core.records import Task
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.core.worker_state import HeldTask, WorkerState


@pytest.mark.parametrize("seed", range(100))
def test_every_wanted_task_ends_right_and_nothing_is_left(seed: int) -> None:
    live_through(seed)


def test_a_seed_happens_in_the_same_way_again() -> None:
    first, second = (live_through(17, steps=600) for _ in range(2))
    assert (first.now, first.recipes, first.flaked) == (second.now, second.recipes, second.flaked)
    assert first.random.random() == second.random.random()


@pytest.mark.parametrize(
    ("state_class", "moves", "impossible"),
    [
        (
            SchedulerState,
            scheduler_state.MOVES,
            # A task that is queued with inputs can run at once when it fails; and no worker
            # comes back here.
            {
                *[("queued", state) for state in ("memory", "erred")],
                *[("no-worker", state) for state in ("memory", "erred", "processing")],
                ("waiting", "memory"),
            },
        ),
        (WorkerState, worker_state.MOVES, set()),
    ],
)
def test_each_move_that_the_tables_list_does_happen(
    monkeypatch: pytest.MonkeyPatch,
    state_class: type[SchedulerState] | type[WorkerState],
    moves: dict[str, set[str]],
    impossible: set[tuple[str, str]],
) -> None:
    seen = set()
    move = state_class._move

    def noted(self: object, task: Task | HeldTask, state: str) -> None:
        seen.add((task.state, state))
        move(self, task, state)  # type: ignore[arg-type]

    monkeypatch.setattr(state_class, "_move", noted)
    for seed in range(1000, 1040):
        live_through(seed, steps=500)
    listed = {(old, new) for old, states in moves.items() for new in states}
    assert seen == listed - impossible, seen ^ (listed - impossible)
