"""The controller of a queue: events in, actions out, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from hpcdask.errors import ConfigError, LaunchError
from hpcdask.jobqueue.controller import (
    Action,
    AskEnds,
    Cancel,
    Controller,
    Find,
    Limits,
    Retire,
    Shape,
    Submit,
)
from hpcdask.jobqueue.status import End, JobStatus, Phase

WALLTIME = 3600.0


class Queue:
    """A controller of a pool "cpu", which is told what happens, each event with its time."""

    def __init__(
        self,
        n_workers: int = 1,
        walltime: float = WALLTIME,
        margin: float = 0.0,
        **limits: Any,
    ) -> None:
        shape = Shape(n_workers=n_workers, walltime=walltime, margin=margin)
        self.controller = Controller(Limits(**limits))
        self.controller.add_pool("cpu", shape)

    def __getattr__(self, event: str) -> Any:
        def happens(now: float, *args: Any, **options: Any) -> list[Action]:
            getattr(self.controller, event)(now, *args, **options)
            self.controller.validate()
            actions, self.controller.outbox = self.controller.outbox, []
            return actions

        return happens

    def scale(self, now: float, n_jobs: int, **options: Any) -> list[Action]:
        actions: list[Action] = self.__getattr__("scale")(now, "cpu", n_jobs, **options)
        return actions

    def list(self, now: float, text: str, **options: Any) -> list[Action]:
        """A listing like "5_0 running, 5_1 pending"."""
        words = [entry.split() for entry in text.split(", ") if entry]
        actions: list[Action] = self.listed(
            now, {id: status(id, phase) for id, phase in words}, **options
        )
        return actions

    def ends(self, now: float, id: str, end: End, **details: Any) -> list[Action]:
        actions: list[Action] = self.listed(
            now,
            {**self._as_it_was(), id: status(id, "ended", end=end, **details)},
        )
        return actions

    def _as_it_was(self) -> dict[str, JobStatus]:
        return {id: job.status for id, job in self.controller.jobs.items()}

    def has(self, ids: Sequence[str], now: float = 0.0) -> None:
        """Bring these jobs, with a worker each."""
        [submit] = self.scale(now, len(ids))
        self.submitted(now, submit.request, ids)
        self.list(now, ", ".join(f"{id} running" for id in ids))
        for id in ids:
            self.worker_joined(now, id)


def status(id: str, phase: str, **details: Any) -> JobStatus:
    return JobStatus(id=id, phase=Phase(phase), **details)


# -- What is wanted -------------------------------------------------------------------------------


def test_all_jobs_that_are_missing_are_submitted_as_one_array() -> None:
    queue = Queue()
    assert queue.scale(0, 10) == [Submit(1, "cpu", 10)]


def test_a_larger_number_than_an_array_may_have_takes_several_one_after_the_other() -> None:
    queue = Queue(max_array=4)
    assert queue.scale(0, 6) == [Submit(1, "cpu", 4)]
    assert queue.submitted(1, 1, ["5_0", "5_1", "5_2", "5_3"]) == [Submit(2, "cpu", 2)]
    assert queue.submitted(2, 2, ["6_0", "6_1"]) == []


def test_what_is_under_way_is_not_submitted_again() -> None:
    queue = Queue()
    queue.scale(0, 2)
    assert queue.tick(10) == []
    assert queue.scale(20, 5) == []  # the answer comes first
    assert queue.submitted(30, 1, ["5_0", "5_1"]) == [Submit(2, "cpu", 3)]
    assert queue.list(40, "5_0 pending, 5_1 pending") == []


def test_scaling_down_takes_the_youngest_that_wait_first() -> None:
    queue = Queue()
    queue.has(["5"])
    queue.scale(1, 3)
    queue.submitted(1, 2, ["6_0", "6_1"])
    assert queue.scale(2, 2) == [Cancel(("6_1",))]
    assert queue.scale(3, 1) == [Cancel(("6_0",))]


def test_then_those_that_run_and_have_brought_no_worker() -> None:
    queue = Queue()
    queue.has(["5"])
    queue.scale(1, 3)
    queue.submitted(1, 2, ["6_0", "6_1"])
    queue.list(2, "5 running, 6_0 running, 6_1 running")
    queue.worker_joined(3, "6_1")
    assert queue.scale(4, 2, idle=["5"]) == [Cancel(("6_0",))]


def test_then_those_that_are_said_to_be_idle_after_their_workers_have_retired() -> None:
    queue = Queue()
    queue.has(["5_0", "5_1", "5_2"])
    assert queue.scale(1, 2, idle=["5_1"]) == [Retire("5_1", ("5_1",))]
    assert queue.list(2, "5_0 running, 5_1 running, 5_2 running") == []
    assert queue.retired(3, "5_1") == [Cancel(("5_1",))]


def test_then_those_that_end_soonest() -> None:
    queue = Queue()
    queue.has(["5"])
    queue.scale(100, 2)
    queue.submitted(100, 2, ["6"])
    queue.list(100, "5 running, 6 running")
    queue.worker_joined(100, "6")
    assert queue.scale(101, 1) == [Retire("5", ("5",))]


def test_all_workers_of_a_job_retire_before_it_is_cancelled() -> None:
    queue = Queue(n_workers=2)
    queue.has(["5"])
    queue.worker_left(1, "5")
    queue.worker_joined(1, "5-0")
    queue.worker_joined(1, "5-1")
    assert queue.scale(2, 0) == [Retire("5", ("5-0", "5-1"))]
    queue.worker_left(3, "5-0")
    # One that comes back meanwhile has something to hand over, too.
    assert queue.worker_joined(4, "5-0") == [Retire("5", ("5-0",))]
    assert queue.retired(5, "5") == []
    assert queue.retired(6, "5") == [Cancel(("5",))]


def test_a_job_whose_last_worker_has_left_in_retiring_is_cancelled_at_once() -> None:
    queue = Queue()
    queue.has(["5"])
    queue.scale(1, 0)
    assert queue.worker_left(2, "5") == [Cancel(("5",))]
    assert queue.retired(3, "5") == []


def test_scaling_up_while_a_job_retires_submits_another() -> None:
    queue = Queue()
    queue.has(["5"])
    queue.scale(1, 0)
    assert queue.scale(2, 1) == [Submit(2, "cpu", 1)]


def test_what_is_released_is_not_replaced() -> None:
    queue = Queue()
    queue.has(["5_0", "5_1", "5_2"])
    assert queue.release(1, ["5_1", "5_1", "unknown"]) == [Retire("5_1", ("5_1",))]
    assert queue.controller.wanted("cpu") == 2
    assert queue.release(2, ["5_1"]) == []
    assert queue.controller.wanted("cpu") == 2


def test_pools_are_scaled_apart() -> None:
    queue = Queue()
    queue.controller.add_pool("gpu", Shape(n_workers=4, walltime=60.0))
    assert queue.scale(0, 1) == [Submit(1, "cpu", 1)]
    queue.controller.scale(0, "gpu", 2)
    assert queue.tick(0) == [Submit(2, "gpu", 2)]
    queue.submitted(1, 2, ["5_0", "5_1"])
    assert [row.pool for row in queue.controller.rows(1)] == ["gpu", "gpu"]
    with pytest.raises(ValueError, match="jobs of a pool 'gpu' still"):
        queue.controller.add_pool("gpu", Shape(n_workers=1, walltime=60.0))


def test_what_makes_no_sense_is_refused() -> None:
    queue = Queue()
    with pytest.raises(ValueError, match="cannot be -1 jobs"):
        queue.scale(0, -1)
    queue.close(0)
    with pytest.raises(LaunchError, match="closed"):
        queue.scale(0, 1)


# -- What is lost is replaced ---------------------------------------------------------------------


@pytest.mark.parametrize("end", [End.TIMEOUT, End.PREEMPTED, End.NODE_FAIL])
def test_an_end_that_is_nobodys_fault_never_counts(end: End) -> None:
    queue, now = Queue(), 0.0
    [submit] = queue.scale(now, 1)
    for n in range(10):
        now += 10
        queue.submitted(now, submit.request, [str(n)])
        queue.list(now, f"{n} running")
        actions = queue.ends(now + 1, str(n), end)
        now = queue.controller.wake_at() or now
        [submit] = actions or queue.tick(now)
    assert queue.controller.why_not(now, 1) == ""


@pytest.mark.parametrize("end", [End.FAILED, End.LAUNCH_FAILED, End.COMPLETED, End.UNKNOWN])
def test_jobs_that_bring_no_worker_are_tried_again_more_and_more_slowly_and_then_no_more(
    end: End,
) -> None:
    queue = Queue(first_pause=4.0)
    queue.scale(0, 1)
    queue.submitted(0, 1, ["5"])
    queue.ends(10, "5", end)
    assert queue.controller.wake_at() == 14
    assert queue.tick(13.9) == []
    assert queue.tick(14) == [Submit(2, "cpu", 1)]
    queue.submitted(14, 2, ["6"])
    queue.ends(20, "6", end)
    assert queue.controller.wake_at() == 28
    assert queue.tick(28) == [Submit(3, "cpu", 1)]
    assert queue.controller.why_not(28, 1) == ""
    queue.submitted(28, 3, ["7"])
    queue.ends(30, "7", end, exit_code=2, reason="NonZeroExitCode")
    assert queue.tick(1e6) == []
    why = queue.controller.why_not(1e6, 1)
    assert "3 starts in a row have failed" in why
    assert f"job 7: {end.value}, exit code 2 (NonZeroExitCode)" in why
    # Somebody has repaired it, and says so.
    assert queue.scale(1e6, 1) == [Submit(4, "cpu", 1)]
    assert queue.controller.why_not(1e6, 1) == ""


def test_an_adaptive_cluster_does_not_forgive() -> None:
    queue = Queue(max_failures=1)
    queue.scale(0, 1)
    queue.submit_failed(1, 1, "sbatch: error: Invalid qos specification")
    assert queue.scale(1000, 2, forgives=False) == []
    assert queue.scale(1000, 2) == [Submit(2, "cpu", 2)]


def test_the_longest_pause_is_bounded() -> None:
    queue, now = Queue(max_failures=100, longest_pause=50.0), 0.0
    [submit] = queue.scale(now, 1)
    for _ in range(20):
        queue.submit_failed(now, submit.request, "no")
        at = queue.controller.wake_at()
        assert at is not None
        pause, now = at - now, at
        [submit] = queue.tick(now)
    assert pause == 50


def test_a_refused_submission_is_quoted() -> None:
    queue = Queue(max_failures=1)
    queue.scale(0, 1)
    queue.submit_failed(1, 1, "sbatch: error: invalid partition specified: nope")
    assert "invalid partition specified: nope" in queue.controller.why_not(1, 1)


def test_an_array_that_fails_bit_by_bit_has_failed_once() -> None:
    queue = Queue(first_pause=100.0)
    queue.scale(0, 3)
    queue.submitted(0, 1, ["5_0", "5_1", "5_2"])
    for now, id in enumerate(["5_0", "5_1", "5_2"], start=10):
        queue.ends(now, id, End.FAILED)
    assert queue.controller.wake_at() == 110


def test_while_it_is_open_whether_any_job_can_start_one_is_tried() -> None:
    queue = Queue()
    queue.scale(0, 8)
    queue.submitted(0, 1, [f"5_{n}" for n in range(8)])
    queue.listed(1, {f"5_{n}": status(f"5_{n}", "ended", end=End.FAILED) for n in range(8)})
    assert queue.tick(2) == [Submit(2, "cpu", 1)]
    assert queue.submitted(3, 2, ["6"]) == []
    queue.list(4, "6 running")
    assert queue.worker_joined(5, "6") == [Submit(3, "cpu", 7)]


def test_a_job_that_has_brought_a_worker_clears_the_count() -> None:
    queue = Queue(max_failures=2)
    [submit] = queue.scale(0, 1)
    for n in range(6):
        queue.submitted(100 * n, submit.request, [str(n)])
        if n % 2:
            queue.list(100 * n + 1, f"{n} running")
            queue.worker_joined(100 * n + 2, str(n))
            queue.worker_left(100 * n + 3, str(n))
        queue.ends(100 * n + 4, str(n), End.FAILED)
        at = queue.controller.wake_at()
        assert at is not None
        [submit] = queue.tick(at)


def test_a_job_that_ends_right_after_it_has_brought_a_worker_is_not_replaced_at_once() -> None:
    queue = Queue(first_pause=5.0)
    queue.has(["5"])
    assert queue.ends(10, "5", End.OUT_OF_MEMORY) == []
    assert queue.tick(15) == [Submit(2, "cpu", 1)]


def test_one_that_has_run_for_long_is_replaced_after_the_shortest_pause() -> None:
    queue = Queue(first_pause=5.0, longest_pause=60.0)
    queue.has(["5_0", "5_1"])
    queue.ends(100, "5_0", End.FAILED)
    queue.tick(105)
    queue.submitted(106, 2, ["6"])
    queue.ends(200, "5_1", End.FAILED)
    assert queue.tick(205) == [Submit(3, "cpu", 1)]


def test_who_cancels_what_replaces_what_he_has_cancelled_is_heard_at_last() -> None:
    queue, now = Queue(), 0.0
    actions = queue.scale(now, 2)
    for n in range(3):
        assert actions == [Submit(n + 1, "cpu", 2)]
        assert queue.controller.why_not(now, 2) == ""
        ids = [f"{n}_0", f"{n}_1"]
        queue.submitted(now, n + 1, ids)
        for id in ids:
            queue.worker_joined(now, id)
        queue.listed(now + 1, {id: status(id, "ended", end=End.CANCELLED) for id in ids})
        now += 100
        actions = queue.tick(now)
    assert actions == []
    why = queue.controller.why_not(now, 2)
    assert "cancelled by somebody else 3 times in a row" in why


def test_jobs_cancelled_by_others_now_and_then_are_replaced_for_ever() -> None:
    queue, now = Queue(forget_cancels=1000.0), 0.0
    [submit] = queue.scale(now, 1)
    for n in range(10):
        queue.submitted(now, submit.request, [str(n)])
        queue.worker_joined(now, str(n))
        queue.ends(now + 1, str(n), End.CANCELLED)
        now += 1001
        [submit] = queue.tick(now)


def test_a_job_that_runs_and_brings_no_worker_is_given_up() -> None:
    queue = Queue(start_timeout=100.0)
    queue.scale(0, 1)
    queue.submitted(0, 1, ["5"])
    queue.listed(50, {"5": status("5", "running", elapsed=10.0)})
    assert queue.controller.wake_at() == 140
    assert queue.tick(140) == [Cancel(("5",))]
    assert queue.tick(141) == [Submit(2, "cpu", 1)]
    assert queue.controller.pools["cpu"].troubles.starts.n == 1


def test_so_is_one_that_is_started_again_and_again() -> None:
    """Grid Engine does that with a job that exits with 99."""
    queue = Queue()
    queue.scale(0, 1)
    queue.submitted(0, 1, ["5"])
    for n in range(3):
        assert queue.listed(10 * n, {"5": status("5", "running", restarts=n)}) == []
    assert queue.listed(30, {"5": status("5", "pending", restarts=3)}) == [Cancel(("5",))]


def test_a_job_that_has_lost_all_its_workers_and_runs_on_is_lost() -> None:
    queue = Queue(start_timeout=300.0, max_failures=1)
    queue.has(["5"])
    queue.worker_left(1000, "5")
    assert queue.tick(1299) == []
    assert queue.tick(1300) == [Cancel(("5",))]
    # It could start once, so another may as well.
    assert queue.tick(1301) == [Submit(2, "cpu", 1)]


def test_also_where_only_the_first_restart_is_counted() -> None:
    queue = Queue()
    queue.scale(0, 1)
    queue.submitted(0, 1, ["6.1"])
    queue.listed(10, {"6.1": status("6.1", "running")})
    for now in (20, 40):
        assert queue.listed(now, {"6.1": status("6.1", "pending", restarts=1)}) == []
        assert queue.listed(now + 10, {"6.1": status("6.1", "running", restarts=1)}) == []
    assert queue.listed(60, {"6.1": status("6.1", "pending", restarts=1)}) == [Cancel(("6.1",))]


def test_a_job_that_stays_in_the_queue_after_its_failed_launch_is_deleted_there() -> None:
    queue = Queue()
    queue.scale(0, 1)
    queue.submitted(0, 1, ["5"])
    assert queue.ends(1, "5", End.LAUNCH_FAILED) == [Cancel(("5",))]


def test_a_job_that_takes_long_to_end_is_replaced_meanwhile() -> None:
    queue = Queue(ending=60.0)
    queue.has(["5"])
    assert queue.list(10, "5 ending") == []
    assert queue.controller.wake_at() == 70
    assert queue.tick(70) == [Submit(2, "cpu", 1)]


# -- Former lives ---------------------------------------------------------------------------------


def test_a_job_that_is_put_back_into_the_queue_is_not_replaced() -> None:
    queue = Queue()
    queue.has(["5"])
    assert queue.listed(10, {"5": status("5", "pending", restarts=1)}) == []
    assert queue.worker_left(11, "5") == []
    queue.listed(20, {"5": status("5", "running", restarts=1)})
    queue.worker_joined(21, "5r1")
    [row] = queue.controller.rows(21)
    assert (row.id, row.state, row.workers) == ("5", "running", 1)


def test_its_former_workers_are_let_go_when_the_new_ones_are_here() -> None:
    queue = Queue(grace=30.0)
    queue.has(["5"])
    queue.listed(10, {"5": status("5", "pending", restarts=1)})
    assert queue.tick(100) == []  # they work until then
    queue.listed(110, {"5": status("5", "running", restarts=1)})
    assert queue.worker_joined(111, "5r1") == [Retire("5", ("5",))]
    queue.worker_left(112, "5")
    assert queue.worker_joined(113, "5") == [Retire("5", ("5",))]  # back again
    assert queue.retired(114, "5") == []
    assert queue.retired(115, "5") == []  # the job itself stays
    assert queue.controller.jobs["5"].is_wanted


def test_workers_tell_of_a_new_life_before_a_listing_does() -> None:
    queue = Queue()
    queue.has(["5"])
    queue.worker_joined(10, "5r1")
    assert queue.controller.jobs["5"].workers == {"5r1"}
    # This listing was made before.
    queue.listed(11, {"5": status("5", "pending", restarts=1)})
    assert queue.controller.jobs["5"].workers == {"5r1"}
    assert queue.controller.jobs["5"].phase is Phase.RUNNING


def test_an_older_listing_does_not_take_away_the_first_worker_of_a_life() -> None:
    queue = Queue()
    queue.has(["5"])
    queue.listed(10, {"5": status("5", "ending", restarts=1)})
    queue.worker_joined(20, "5r1")
    queue.listed(21, {"5": status("5", "pending", restarts=1)})
    assert queue.controller.jobs["5"].workers == {"5r1"}


def test_a_system_that_does_not_count_them_shows_lives_by_what_comes_after_what() -> None:
    queue = Queue()
    queue.has(["5"])
    queue.list(5, "5 running")
    queue.list(10, "5 pending")
    assert queue.controller.jobs["5"].workers == set()
    assert queue.controller.jobs["5"].started is None


def test_a_worker_of_a_new_life_may_have_the_name_of_a_former_one() -> None:
    queue = Queue()
    queue.has(["6.1"])
    queue.listed(10, {"6.1": status("6.1", "running", restarts=1)})
    queue.worker_joined(20, "6.1r1")
    queue.listed(25, {"6.1": status("6.1", "running", restarts=1)})
    queue.listed(30, {"6.1": status("6.1", "pending", restarts=1)})
    assert queue.controller.jobs["6.1"].workers == set()
    queue.worker_joined(40, "6.1r1")
    assert queue.controller.jobs["6.1"].workers == {"6.1r1"}
    queue.worker_left(50, "6.1r1")
    assert queue.controller.jobs["6.1"].workers == set()


def test_a_node_that_comes_back_with_workers_already_replaced_does_no_harm() -> None:
    queue = Queue(grace=30.0, first_pause=1.0)
    queue.has(["5_0", "5_1"])
    queue.ends(10, "5_1", End.NODE_FAIL)
    assert queue.tick(11) == [Submit(2, "cpu", 1)]
    queue.submitted(12, 2, ["6"])
    queue.worker_left(13, "5_1")
    assert queue.worker_joined(14, "5_1") == []
    assert queue.tick(100) == []  # its work is welcome until the replacement is here
    queue.list(110, "5_0 running, 6 running")
    assert queue.worker_joined(111, "6") == [Retire("5_1", ("5_1",))]
    assert queue.retired(112, "5_1") == []
    assert queue.tick(200) == []
    assert sorted(queue.controller.jobs) == ["5_0", "6"]
    queue.worker_left(201, "5_1")
    assert not queue.controller.leftovers.by_job


def test_the_workers_of_a_job_that_has_just_ended_are_left_to_end_by_themselves() -> None:
    queue = Queue(grace=30.0)
    queue.has(["5_0", "5_1"])
    queue.scale(10, 1)
    queue.retired(11, "5_1")
    assert queue.ends(12, "5_1", End.CANCELLED) == []
    assert queue.tick(41) == []
    assert queue.controller.wake_at() == 42
    assert queue.tick(42) == [Retire("5_1", ("5_1",))]


# -- Walltimes ------------------------------------------------------------------------------------


def test_a_successor_is_submitted_ahead_of_the_end_and_relieves_its_predecessor() -> None:
    queue = Queue(lead=60.0)
    queue.has(["5"])
    assert queue.controller.wake_at() == WALLTIME - 60
    assert queue.tick(3540) == [Submit(2, "cpu", 1)]
    assert queue.submitted(3541, 2, ["6"]) == []
    queue.list(3545, "5 running, 6 running")
    assert queue.worker_joined(3550, "6") == [Retire("5", ("5",))]
    assert queue.retired(3555, "5") == [Cancel(("5",))]
    assert queue.ends(3560, "5", End.CANCELLED) == []
    assert queue.controller.why_not(3560, 1) == ""


def test_what_the_batch_system_says_of_the_end_counts() -> None:
    queue = Queue(lead=60.0)
    queue.has(["5"])
    queue.listed(1000, {"5": status("5", "running", elapsed=900.0, left=100.0)})
    assert queue.tick(1039) == []
    assert queue.tick(1040) == [Submit(2, "cpu", 1)]


def test_a_successor_is_submitted_as_early_as_jobs_usually_wait() -> None:
    queue = Queue(lead=60.0)
    queue.scale(0, 4)
    queue.submitted(0, 1, ["5_0", "5_1", "5_2", "5_3"])
    for n, now in enumerate([100, 200, 900, 900]):
        queue.worker_joined(now, f"5_{n}")
    assert queue.controller.wake_at() == 100 + WALLTIME - 900


def test_workers_that_leave_before_the_walltime_is_over_are_succeeded_before_they_do() -> None:
    queue = Queue(lead=60.0, margin=180.0)
    queue.has(["5"])
    assert queue.controller.wake_at() == WALLTIME - 180 - 60
    assert queue.tick(WALLTIME - 240) == [Submit(2, "cpu", 1)]
    queue.submitted(WALLTIME - 239, 2, ["6"])
    # It has ended as was planned, so the next one need not wait.
    assert queue.ends(WALLTIME - 150, "5", End.COMPLETED) == []
    assert queue.controller.pools["cpu"].troubles.losses.n == 0


def test_but_not_before_half_of_the_walltime() -> None:
    queue = Queue(lead=60.0)
    queue.scale(0, 1)
    queue.submitted(0, 1, ["5"])
    queue.list(7200, "5 running")
    queue.worker_joined(7200, "5")
    assert queue.controller.wake_at() == 7200 + WALLTIME / 2


def test_an_end_that_seems_to_move_a_little_does_not_cancel_the_successor() -> None:
    queue = Queue(lead=60.0)
    queue.has(["5"])
    queue.tick(3540)
    queue.submitted(3541, 2, ["6"])
    both = {"6": status("6", "pending")}
    assert queue.listed(3545, {"5": status("5", "running", left=75.0), **both}) == []
    # A longer walltime does.
    actions = queue.listed(3550, {"5": status("5", "running", left=999.0), **both})
    assert actions == [Cancel(("6",))]


def test_scaling_down_ends_jobs_near_their_end_and_the_successors_that_are_too_many() -> None:
    queue = Queue(lead=60.0)
    queue.has(["5_0", "5_1"])
    queue.tick(3540)
    queue.submitted(3541, 2, ["6_0", "6_1"])
    assert queue.scale(3542, 1) == [Cancel(("6_1",)), Retire("5_0", ("5_0",))]
    assert queue.scale(3543, 0) == [Cancel(("6_0",)), Retire("5_1", ("5_1",))]


def test_jobs_without_a_walltime_have_no_successors() -> None:
    queue = Queue(walltime=float("inf"))
    queue.has(["5"])
    assert queue.controller.wake_at() is None
    [row] = queue.controller.rows(10)
    assert row.left is None


# -- Listings -------------------------------------------------------------------------------------


def test_a_listing_that_fails_tells_nothing() -> None:
    queue = Queue()
    queue.has(["5"])
    for now in range(0, 10000, 100):
        assert queue.listing_failed(now if now < 3000 else 3000, "timed out") == []
    assert list(queue.controller.jobs) == ["5"]
    assert queue.controller.queue_trouble == "timed out"
    queue.list(3000, "5 running")
    assert queue.controller.queue_trouble == ""


def test_of_a_missing_job_the_end_is_asked_for() -> None:
    queue = Queue()
    queue.has(["5_0", "5_1"])
    assert queue.list(10, "5_0 running") == [AskEnds(("5_1",))]
    queue.ends_known(11, {"5_1": status("5_1", "ended", end=End.TIMEOUT)})
    assert list(queue.controller.jobs) == ["5_0"]
    [ended] = queue.controller.history
    assert (ended.status.end, ended.is_presumed) == (End.TIMEOUT, False)


def test_it_is_there_after_all_if_that_is_the_answer() -> None:
    queue = Queue()
    queue.has(["5"])
    queue.worker_left(5, "5")
    for now in range(10, 200, 10):
        assert queue.list(now, "9 running") == [AskEnds(("5",))]
        assert queue.ends_known(now + 1, {"5": status("5", "running")}) == []
    assert list(queue.controller.jobs) == ["5"]


def test_without_an_answer_it_is_gone_after_some_listings_and_some_time() -> None:
    queue = Queue(max_missed=3, missing=20.0)
    queue.has(["5_0", "5_1"])
    queue.worker_left(5, "5_1")
    queue.list(10, "5_0 running")
    queue.list(20, "5_0 running")
    queue.list(29, "5_0 running")
    assert "5_1" in queue.controller.jobs
    queue.list(30, "5_0 running")
    assert "5_1" not in queue.controller.jobs
    assert queue.controller.history[-1].status.end is End.UNKNOWN


def test_a_listing_of_nothing_at_all_counts_for_less() -> None:
    queue = Queue(missing_with_all=300.0)
    queue.has(["5_0", "5_1"])
    for name in ("5_0", "5_1"):
        queue.worker_left(5, name)
    for now in range(10, 310, 10):
        queue.list(now, "")
    assert len(queue.controller.jobs) == 2
    queue.list(310, "")
    assert queue.controller.jobs == {}


def test_a_job_whose_workers_are_here_is_not_gone() -> None:
    queue = Queue()
    queue.has(["5_0", "5_1"])
    asked = [bool(queue.list(now, "5_0 running")) for now in range(10, 400, 10)]
    assert "5_1" in queue.controller.jobs
    assert asked[:3] == [True, True, True]
    assert sum(asked) < 8  # not each time for ever


def test_a_job_submitted_after_a_listing_was_begun_is_not_missing() -> None:
    queue = Queue()
    queue.has(["5"])
    asked = queue.controller.to_list
    queue.scale(1, 2)
    queue.submitted(2, 2, ["6"])
    assert queue.list(3, "5 running", asked=asked) == []
    assert queue.list(4, "5 running", asked=queue.controller.to_list) == [AskEnds(("6",))]


def test_no_such_job_is_not_believed_of_one_that_may_only_be_too_new() -> None:
    queue = Queue()
    queue.has(["5"])
    queue.scale(1, 2)
    queue.submitted(2, 2, ["6"])
    queue.list(3, "5 running")
    queue.ends_known(4, {"6": status("6", "ended", end=End.UNKNOWN)})
    assert "6" in queue.controller.jobs
    queue.list(5, "5 running, 6 pending")
    queue.list(6, "5 running")
    queue.ends_known(7, {"6": status("6", "ended", end=End.UNKNOWN)})
    assert "6" not in queue.controller.jobs


def test_a_job_that_shows_up_again_is_one_again_and_its_replacement_too_many() -> None:
    queue = Queue(missing=20.0)
    queue.has(["5_0", "5_1"])
    queue.worker_left(5, "5_1")
    for now in (10, 20, 30, 40):
        actions = queue.list(now, "5_0 running")
    [submit] = actions or queue.tick(50)
    queue.submitted(51, submit.request, ["6"])
    assert "5_1" in queue.controller.to_list
    assert queue.list(60, "5_0 running, 5_1 running, 6 pending") == [Cancel(("6",))]
    assert "5_1" in queue.controller.jobs


def test_one_that_waits_again_keeps_its_turn() -> None:
    queue = Queue(missing=20.0)
    queue.has(["5"])
    queue.scale(1, 2)
    queue.submitted(1, 2, ["6"])
    for now in (10, 20, 30, 40):
        actions = queue.list(now, "5 running")
    [submit] = actions or queue.tick(50)
    queue.submitted(51, submit.request, ["7"])
    assert queue.list(60, "5 running, 6 pending, 7 pending") == [Cancel(("7",))]


def test_a_job_that_seemed_to_be_gone_is_there_if_it_brings_a_worker() -> None:
    queue = Queue(missing=20.0)
    queue.has(["5"])
    queue.scale(1, 2)
    queue.submitted(1, 2, ["6"])
    for now in (10, 20, 30, 40):
        queue.list(now, "5 running")
    assert "6" not in queue.controller.jobs
    queue.worker_joined(40.5, "6")
    assert queue.controller.jobs["6"].workers == {"6"}
    assert queue.tick(50) == []


def test_the_end_of_a_job_that_seemed_to_be_gone_may_be_known_later() -> None:
    queue = Queue()
    queue.scale(0, 1)
    queue.submitted(0, 1, ["5"])
    for now in (0, 10, 20, 30):
        queue.list(now, "9 running")
    queue.ends_known(40, {"5": status("5", "ended", end=End.NODE_FAIL)})
    [ended] = queue.controller.history
    assert (ended.status.end, ended.is_presumed) == (End.NODE_FAIL, False)


def test_jobs_of_others_are_nothing_to_it() -> None:
    queue = Queue()
    assert queue.list(0, "77 running, 78 pending") == []
    assert queue.ends_known(1, {"77": status("77", "ended", end=End.FAILED)}) == []
    assert queue.controller.rows(1) == []


def test_history_is_bounded() -> None:
    queue, now = Queue(max_history=3), 0.0
    [submit] = queue.scale(0, 1)
    for n in range(5):
        queue.submitted(now, submit.request, [str(n)])
        queue.ends(now, str(n), End.PREEMPTED)
        now = queue.controller.wake_at() or now
        [submit] = queue.tick(now)
    assert [job.id for job in queue.controller.history] == ["2", "3", "4"]
    assert [row.id for row in queue.controller.rows(now, n_ended=2)] == ["4", "3"]


# -- Submissions of which nobody knows ------------------------------------------------------------


def test_an_unclear_submission_is_looked_for_and_not_repeated() -> None:
    queue = Queue()
    queue.scale(0, 2)
    assert queue.submit_unclear(30, 1, "sbatch has not answered within 30 s") == [Find(1, "cpu", 2)]
    assert queue.found(31, 1, ["5_0", "5_1"]) == []
    assert list(queue.controller.jobs) == ["5_0", "5_1"]


def test_one_that_is_not_found_has_failed_after_a_while() -> None:
    queue = Queue(unclear=60.0, max_missed=3)
    queue.scale(0, 2)
    now, n_looks = 30.0, 0
    actions = queue.submit_unclear(now, 1, "sbatch has not answered within 30 s")
    while not any(isinstance(action, Submit) for action in actions):
        if Find(1, "cpu", 2) in actions:
            n_looks += 1
            actions = queue.found(now, 1, [])
        else:
            now = queue.controller.wake_at() or now
            actions = queue.tick(now)
    assert now >= 90
    assert 3 <= n_looks <= 6
    assert actions == [Submit(2, "cpu", 1)]
    assert queue.controller.pools["cpu"].troubles.starts.why.startswith("sbatch has not")


def test_looks_that_fail_are_repeated_and_prove_nothing() -> None:
    queue = Queue()
    queue.scale(0, 1)
    looks = queue.submit_unclear(0, 1, "timed out")
    for now in range(5, 3000, 5):
        actions = queue.tick(now)
        assert set(actions) <= {Find(1, "cpu", 1)}
        looks += actions
    assert 10 < len(looks) < 100


def test_an_answer_without_a_job_is_none() -> None:
    queue = Queue()
    queue.scale(0, 1)
    assert queue.submitted(1, 1, []) == [Find(1, "cpu", 1)]


def test_a_late_answer_is_as_good() -> None:
    queue = Queue()
    queue.scale(0, 1)
    queue.submit_unclear(30, 1, "timed out")
    queue.submitted(40, 1, ["5"])
    assert queue.found(41, 1, ["5"]) == []
    assert queue.tick(42) == []
    assert list(queue.controller.jobs) == ["5"]


def test_a_worker_of_no_known_job_is_a_reason_to_look_again() -> None:
    queue = Queue(unclear=60.0, max_missed=1)
    queue.scale(0, 1)
    queue.submit_unclear(0, 1, "timed out")
    queue.found(100, 1, [])
    *_, submit = queue.tick(200)
    queue.submitted(200, submit.request, ["6"])
    assert queue.worker_joined(300, "5") == [Find(1, "cpu", 1)]
    # It is too many now, unless the other has not started yet.
    assert queue.found(301, 1, ["5"]) == [Cancel(("6",))]
    assert queue.controller.jobs["5"].workers == {"5"}


def test_what_was_not_found_in_time_is_still_looked_for_now_and_then() -> None:
    queue = Queue(unclear=60.0, max_missed=1, max_failures=1)
    queue.scale(0, 1)
    queue.submit_unclear(0, 1, "timed out")
    queue.found(100, 1, [])
    n_looks, now = 0, 100.0
    while (at := queue.controller.wake_at()) is not None:
        now = at
        n_looks += queue.tick(now) == [Find(1, "cpu", 1)]
        queue.found(now, 1, [])
    assert 3600 < now < 4200
    assert 5 < n_looks < 20
    assert queue.found(5000, 1, ["5"]) == []
    assert list(queue.controller.jobs) == ["5"]


def test_a_worker_may_come_before_the_answer_to_the_submission() -> None:
    queue = Queue()
    queue.scale(0, 2)
    queue.worker_joined(1, "5_1")
    assert queue.submitted(2, 1, ["5_0", "5_1"]) == []
    assert queue.controller.jobs["5_1"].workers == {"5_1"}
    assert queue.controller.jobs["5_1"].phase is Phase.RUNNING


def test_workers_that_somebody_has_started_by_hand_are_left_alone() -> None:
    queue = Queue()
    queue.has(["5"])
    for name in ("alice", "tcp://10.0.0.1:4711", ""):
        assert queue.worker_joined(1, name) == []
        assert queue.worker_left(2, name) == []


# -- The end --------------------------------------------------------------------------------------


def test_closing_cancels_everything_at_once() -> None:
    queue = Queue()
    queue.has(["5_0", "5_1"])
    queue.scale(1, 3)
    assert queue.close(2) == [Cancel(("5_0", "5_1"))]
    # What was under way follows.
    assert queue.submitted(3, 2, ["6"]) == [Cancel(("6",))]
    assert not queue.controller.is_over
    queue.list(4, "5_0 ending")
    queue.ends_known(5, {id: status(id, "ended", end=End.CANCELLED) for id in ("5_1", "6")})
    queue.list(6, "")
    assert queue.list(7, "") == []
    assert queue.controller.is_over
    assert "closed" in queue.controller.why_not(8, 1)


def test_what_was_missing_before_it_was_cancelled_is_no_proof_of_its_end() -> None:
    queue = Queue()
    queue.scale(0, 1)
    queue.submitted(0, 1, ["5"])
    queue.list(1, "")
    queue.list(2, "")
    queue.close(3)
    queue.list(3.1, "")  # begun before
    assert not queue.controller.is_over
    queue.list(4, "")
    assert queue.controller.is_over


def test_a_job_that_does_not_go_is_cancelled_again() -> None:
    queue = Queue(cancel_again=10.0, cancel_again_at_end=2.0)
    queue.scale(0, 1)
    queue.submitted(0, 1, ["5"])
    assert queue.scale(0, 0) == [Cancel(("5",))]
    assert queue.list(9, "5 running") == []
    assert queue.list(10, "5 running") == [Cancel(("5",))]
    assert queue.list(29, "5 running") == []
    assert queue.list(31, "5 ending") == []  # it needs its time
    assert queue.list(32, "5 running") == [Cancel(("5",))]


def test_at_the_end_a_job_that_does_not_go_is_cancelled_again_soon() -> None:
    queue = Queue(cancel_again=10.0, cancel_again_at_end=2.0)
    queue.has(["5"])
    queue.close(0)
    assert queue.list(1, "5 running") == []
    assert queue.list(2, "5 running") == [Cancel(("5",))]


def test_closing_looks_once_more_for_what_was_never_found() -> None:
    queue = Queue(max_missed=1, max_failures=1)
    queue.scale(0, 1)
    queue.submit_unclear(0, 1, "timed out")
    queue.found(100, 1, [])
    assert queue.close(200) == [Find(1, "cpu", 1)]
    assert not queue.controller.is_over
    assert queue.found(201, 1, ["5"]) == [Cancel(("5",))]


def test_closing_nothing_is_over_at_once() -> None:
    queue = Queue()
    queue.close(0)
    assert queue.controller.is_over


# -- Taking over ----------------------------------------------------------------------------------


def test_jobs_of_an_earlier_session_are_taken_over() -> None:
    queue = Queue()
    queue.worker_joined(0, "5_0")
    assert queue.adopt(1, "cpu", ["5_0", "5_1", "5_2"]) == []
    assert queue.controller.wanted("cpu") == 3
    assert queue.list(2, "5_0 running, 5_2 pending") == [AskEnds(("5_1",))]
    assert queue.scale(3, 2) == [Cancel(("5_2",))]
    assert queue.adopt(4, "cpu", ["5_0"]) == []


def test_workers_of_several_lives_of_an_adopted_job_are_told_apart() -> None:
    queue = Queue(n_workers=3)
    for name in ("5-0", "5-1", "5-2", "5r1-0", "5r1-1", "5r1-2"):
        queue.worker_joined(0, name)
    queue.adopt(1, "cpu", ["5"])
    assert queue.controller.jobs["5"].workers == {"5r1-0", "5r1-1", "5r1-2"}
    assert queue.tick(100) == [Retire("5", ("5-0", "5-1", "5-2"))]


def test_those_that_it_was_giving_back_are_given_back() -> None:
    queue = Queue()
    queue.worker_joined(0, "5_1")
    actions = queue.adopt(1, "cpu", ["5_0"], leaving=["5_1", "5_2"])
    assert actions == [Retire("5_1", ("5_1",)), Cancel(("5_2",))]
    assert queue.controller.wanted("cpu") == 1


def test_an_adopted_job_that_has_run_for_long_has_time_to_show_its_workers() -> None:
    queue = Queue(start_timeout=300.0)
    queue.adopt(1000, "cpu", ["5"])
    assert queue.listed(1001, {"5": status("5", "running", elapsed=900.0)}) == []
    assert queue.controller.wake_at() == 1300
    queue.worker_joined(1010, "5")
    assert queue.tick(1300) == []


# -- What it says ---------------------------------------------------------------------------------


def test_a_job_that_can_never_run_is_named() -> None:
    queue = Queue(n_workers=2)
    queue.scale(0, 5)
    queue.submitted(0, 1, [f"5_{n}" for n in range(5)])
    stuck = {f"5_{n}": status(f"5_{n}", "pending", reason="PartitionTimeLimit") for n in range(5)}
    queue.listed(1, stuck, never=list(stuck))
    why = queue.controller.why_not(1, 2)
    assert "jobs 5_0, 5_1, 5_2 and 2 more can never run: PartitionTimeLimit" in why
    queue.listed(2, stuck, never=["5_0"])
    assert queue.controller.why_not(2, 8) == ""
    assert "job 5_0 can never run" in queue.controller.why_not(2, 9)


def test_more_workers_than_anybody_has_asked_for_may_still_come() -> None:
    queue = Queue()
    queue.has(["5"])
    assert queue.controller.why_not(1, 1000) == ""


def test_of_several_pools_the_one_with_the_trouble_is_named() -> None:
    queue = Queue(max_failures=1)
    queue.controller.add_pool("gpu", Shape(n_workers=1, walltime=60.0))
    queue.scale(0, 1)
    queue.submit_failed(1, 1, "no such queue")
    assert queue.controller.why_not(1, 1).startswith("pool 'cpu': ")


def test_the_table_of_jobs_says_where_each_is() -> None:
    queue = Queue()
    queue.has(["5_0", "5_1", "5_2"])
    queue.scale(10, 4)
    queue.submitted(10, 2, ["6"])
    queue.listed(
        20,
        {
            "5_0": status("5_0", "running", nodes="n1", elapsed=20.0, left=3580.0),
            "5_1": status("5_1", "ended", end=End.NODE_FAIL, reason="NodeDown"),
            "5_2": status("5_2", "running", nodes="n2"),
            "6": status("6", "pending", reason="Resources"),
        },
    )
    queue.release(30, ["5_2"])
    rows = {row.id: row for row in queue.controller.rows(30)}
    assert list(rows) == ["5_0", "5_2", "6", "5_1"]
    assert rows["5_0"]._asdict() == {
        "id": "5_0",
        "pool": "cpu",
        "state": "running",
        "reason": "",
        "nodes": "n1",
        "elapsed": 30.0,
        "left": 3570.0,
        "workers": 1,
    }
    assert (rows["5_2"].state, rows["5_2"].nodes) == ("retiring", "n2")
    assert (rows["6"].state, rows["6"].reason, rows["6"].elapsed) == ("pending", "Resources", None)
    assert (rows["5_1"].state, rows["5_1"].reason) == ("node failure", "NodeDown")
    assert (rows["5_1"].elapsed, rows["5_1"].left, rows["5_1"].workers) == (20.0, None, 0)


def test_a_thousand_jobs_are_no_burden() -> None:
    """Steps that grow with the number of jobs are taken once for each listing, not for each job."""
    n_looked_at = 0
    queue = Queue(n_workers=4)
    queue.scale(0, 1000)
    ids = [f"5_{n}" for n in range(1000)]
    queue.submitted(0, 1, ids)
    queue.list(1, ", ".join(f"{id} running" for id in ids))
    staying = type(queue.controller.pools["cpu"]).staying

    def counted(self: Any, now: float) -> Any:
        nonlocal n_looked_at
        n_looked_at += 1
        return staying(self, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(queue.controller.pools["cpu"]), "staying", counted)
        for id in ids:
            for n in range(4):
                queue.controller.worker_joined(2, f"{id}-{n}")
    assert n_looked_at < 20


# -- Services, and pools that wait for one --------------------------------------------------------


def over(id: str, end: End) -> JobStatus:
    return status(id, "ended", end=end)


def service() -> Queue:
    """A controller of a pool "cpu" and of a service "one", of which job 1 has begun."""
    queue = Queue()
    queue.controller.add_pool("one", Shape(n_workers=0, walltime=WALLTIME, is_service=True))
    assert queue.__getattr__("scale")(0.0, "one", 1) == [Submit(1, "one", 1)]
    assert queue.submitted(1.0, 1, ["1"]) == []
    assert queue.list(2.0, "1 running") == []
    assert queue.worker_joined(3.0, "1") == []
    return queue


def test_a_service_has_no_successor_before_its_end() -> None:
    queue = service()
    running = status("1", "running", elapsed=WALLTIME - 1, left=1.0)
    assert queue.listed(WALLTIME, {"1": running}) == []
    assert queue.ends_known(WALLTIME + 2, {"1": over("1", End.TIMEOUT)}) == [Submit(2, "one", 1)]


def test_a_service_that_has_ended_of_its_own_accord_is_not_wanted_any_more() -> None:
    queue = service()
    assert queue.ends_known(10.0, {"1": over("1", End.COMPLETED)}) == []
    assert queue.controller.wanted("one") == 0


def test_a_service_that_ends_before_it_has_answered_has_failed() -> None:
    queue = Queue()
    queue.controller.add_pool("one", Shape(n_workers=0, walltime=WALLTIME, is_service=True))
    queue.__getattr__("scale")(0.0, "one", 1)
    queue.submitted(1.0, 1, ["1"])
    queue.ends_known(10.0, {"1": over("1", End.COMPLETED)})
    assert queue.tick(20.0) == [Submit(2, "one", 1)]


def test_a_service_that_cannot_be_reached_is_not_cancelled_while_it_runs() -> None:
    queue = service()
    assert queue.worker_left(10.0, "1") == []
    assert queue.list(2000.0, "1 running") == []
    assert queue.worker_joined(2001.0, "1") == []


def test_a_service_that_never_answers_is_replaced() -> None:
    queue = Queue()
    queue.controller.add_pool("one", Shape(n_workers=0, walltime=WALLTIME, is_service=True))
    queue.__getattr__("scale")(0.0, "one", 1)
    queue.submitted(1.0, 1, ["1"])
    queue.list(2.0, "1 running")
    assert Cancel(("1",)) in queue.tick(1000.0)
    assert "without an answer" in queue.controller.pools["one"].troubles.starts.why


def test_without_a_service_that_cannot_start_no_worker_comes() -> None:
    queue = service()
    queue.scale(4.0, 5)
    assert queue.controller.why_not(5.0, 5) == ""
    queue.ends_known(1000.0, {"1": over("1", End.FAILED)})
    for n in range(2, 5):  # those in its place never answer
        queue.tick(1000.0 * n)
        queue.submitted(1000.0 * n + 1.0, n + 1, [str(n)])
        queue.ends_known(1000.0 * n + 2.0, {str(n): over(str(n), End.FAILED)})
    assert "3 starts in a row have failed" in queue.controller.why_not(9000.0, 5)


def test_while_a_pool_is_held_nothing_is_submitted_and_nothing_has_failed() -> None:
    queue = Queue()
    queue.hold(0.0, "cpu", True)
    assert queue.scale(1.0, 2) == []
    assert queue.hold(2.0, "cpu", False) == [Submit(1, "cpu", 2)]
    queue.submitted(3.0, 1, ["1_1", "1_2"])
    queue.list(4.0, "1_1 running, 1_2 running")
    queue.hold(5.0, "cpu", True)
    failed = {"1_1": over("1_1", End.FAILED)}
    assert queue.ends_known(6.0, failed) == []
    assert queue.tick(2000.0) == [], "the other is not missed either"
    assert queue.hold(2001.0, "cpu", False) == [Submit(2, "cpu", 1)]
    assert Cancel(("1_2",)) in queue.tick(2400.0)


def test_a_pool_takes_the_place_of_one_of_which_there_are_no_jobs():
    queue = Queue()
    queue.has(["5_0"])
    other = Shape(n_workers=4, walltime=60.0)
    for now, what_is_left in [(1.0, "a wanted job"), (2.0, "one that ends")]:
        with pytest.raises(ConfigError, match="jobs of a pool 'cpu' still"):
            queue.controller.add_pool("cpu", other)
        queue.scale(now, 0)
        assert queue.controller.jobs, what_is_left
    queue.ends(3.0, "5_0", End.CANCELLED)
    queue.controller.add_pool("cpu", other)
    [submit] = queue.scale(4.0, 1)
    assert queue.controller.pools["cpu"].shape == other
    assert submit.count == 1
    assert [row.pool for row in queue.controller.rows(5.0)] == ["cpu"], "one that has ended"
