"""Clusters in a batch system in troubled times: a user, a controller, and whatever may go wrong."""

from __future__ import annotations

from collections import Counter

import pytest
import replay_queue
from queue_faults import DEEDS, QueueDeed
from queue_mutations import BREAKAGES, FIRST_SEEDS, Breakage
from queue_simulator import QueueSeedFailed, QueueSimulation, live_through

from hpcdask.jobqueue.controller import AskEnds, Cancel, Controller, Find, Retire, Submit

#: Seeds within which each breakage is noticed.
MAX_SEEDS = 150


@pytest.mark.parametrize("part", range(4))
def test_there_is_what_is_wanted_never_more_and_nothing_in_the_end(part: int) -> None:
    for seed in range(50 * part, 50 * part + 50):
        live_through(seed)


def test_a_seed_happens_in_the_same_way_again() -> None:
    first, second = (live_through(17) for _ in range(2))
    assert first.trace.lines() == second.trace.lines()


def test_everything_a_controller_can_ask_for_is_asked_for() -> None:
    n_acts: Counter[type] = Counter()
    for seed in range(10):
        n_acts += live_through(seed).checks.n_acts
    assert n_acts.keys() == {AskEnds, Cancel, Find, Retire, Submit}


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.name)
def test_each_deed_does_something(deed: QueueDeed) -> None:
    """It draws from the seed, or changes what happens, in some cluster that has lived a while."""
    for seed in range(20):
        simulation = QueueSimulation(seed)
        simulation.tell("scale", "cpu", 4)
        simulation.pass_time(400.0)
        before = simulation.random.getstate(), simulation.clock.pushes
        deed(simulation)
        if before != (simulation.random.getstate(), simulation.clock.pushes):
            return
    pytest.fail(f"{deed.name} does nothing")


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_a_breakage_of_the_controller_is_noticed(
    breakage: Breakage, monkeypatch: pytest.MonkeyPatch
) -> None:
    breakage(monkeypatch)
    for seed in [FIRST_SEEDS.get(breakage.__name__, 0), *range(MAX_SEEDS)]:
        try:
            live_through(seed)
        except QueueSeedFailed:
            return
    pytest.fail(f"{MAX_SEEDS} seeds did not notice that {breakage.__name__.replace('_', ' ')}")


def test_a_seed_that_fails_says_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Controller, "retired", lambda self, now, id: None)
    with pytest.raises(
        QueueSeedFailed, match=r"python tests/simulation/replay_queue\.py"
    ) as caught:
        for seed in range(MAX_SEEDS):
            live_through(seed)
    assert f"replay_queue.py {seed} --trace" in str(caught.value)
    assert replay_queue.main([str(seed), "--trace"]) == 1
    assert "controller -> shell  Submit(request=1" in capsys.readouterr().out
    assert replay_queue.main([str(seed), "--deeds", "0"]) == 0
