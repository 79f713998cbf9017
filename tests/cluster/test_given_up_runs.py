"""Runs that nobody wants any more, and that go on all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import wait_for_file, wait_until

from hpcdask import Client, Future, LocalCluster


def note_and_wait(begun: Path, gate: Path) -> None:
    begun.touch()
    wait_for_file(gate)


@pytest.mark.parametrize("give_up", [Future.cancel, Future.release])
def test_no_task_waits_behind_a_run_that_was_given_up(
    tmp_path: Path, give_up: Callable[[Future], None]
) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        future = client.submit(note_and_wait, begun, gate)
        wait_for_file(begun)
        futures = client.map(abs, range(-20, 0), pure=False)
        give_up(future)
        futures += client.map(abs, range(-20, 0), pure=False)
        assert client.gather(futures, timeout=20) == [*range(20, 0, -1)] * 2
        workers = cluster.scheduler.state.workers.values()
        wait_until(lambda: sorted(worker.nthreads for worker in workers) == [0, 1], 10)
        gate.touch()
        wait_until(lambda: {worker.nthreads for worker in workers} == {1}, 10)
