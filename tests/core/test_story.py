"""A scheduler that keeps a story knows how tasks got where they are; others know where they are."""

from __future__ import annotations

from core_helpers import A, finish, release, started, submit

from hpcdask.core.story import Step, Story, watch_moves


def test_a_story_has_each_move_with_its_worker_and_its_time() -> None:
    state = started(A)
    times = iter(range(1, 99))
    story = Story(state, 100, lambda: float(next(times)))
    submit(state, {"x": [], "y": []})
    x = state.tasks["x"]
    finish(state, A, "x")
    release(state, "x")
    assert story.of(["x"]) == [
        Step("x", "released", "waiting", "", 0, 1.0),
        Step("x", "waiting", "processing", A, x.attempt, 2.0),
        Step("x", "processing", "memory", "", x.attempt, 5.0),
        Step("x", "memory", "released", "", x.attempt, 6.0),
        Step("x", "released", "forgotten", "", x.attempt, 7.0),
    ]
    assert {step.key for step in story.of([])} == {"x", "y"}


def test_a_story_has_a_bounded_length() -> None:
    state = started(A)
    story = Story(state, 4, lambda: 0.0)
    submit(state, {f"x{i}": [] for i in range(9)})
    assert len(story.of([])) == 4


def test_without_a_story_the_present_states_are_told_and_nothing_is_in_the_way() -> None:
    state = started(A)
    story = Story(state, 0, lambda: 0.0)
    assert "_move" not in vars(state)
    submit(state, {"x": [], "y": ["x"]})
    assert story.of(["y", "nonsense"]) == [
        Step("y", "", "processing", A, state.tasks["y"].attempt, 0.0)
    ]
    finish(state, A, "x")
    assert {(step.key, step.finish) for step in story.of([])} == {
        ("x", "memory"),
        ("y", "processing"),
    }


def test_several_may_watch() -> None:
    state = started(A)
    seen: list[tuple[str, str, str]] = []
    for name in ("one", "two"):
        watch_moves(state, lambda task, start, name=name: seen.append((name, start, task.state)))
    submit(state, {"x": []})
    assert seen == [
        ("one", "released", "waiting"),
        ("two", "released", "waiting"),
        ("one", "waiting", "processing"),
        ("two", "waiting", "processing"),
    ]
