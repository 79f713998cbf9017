"""Clusters on real Slurm whose jobs are lost, put back, or reach their walltime.

All are there at the same time, as each waits for Slurm for a minute or two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from batch.bed import Bed
from counted_runs import count_runs, note_and_fill
from waiting import wait_until

from hpcdask import Client
from hpcdask.jobqueue import SLURMCluster

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for anything, beyond the minutes that Slurm takes.
PATIENCE = 180.0
SMALL = {"cores": 1, "memory": "1GB"}
N = 10
VALUES = [bytes([x]) * 10_000 for x in range(N)]

Start = Callable[..., tuple[SLURMCluster, Client]]


@pytest.fixture
def start(slurm: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start clusters, of which at the end no job may be left."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT}/tests")  # which jobs of Slurm inherit
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    clusters = []

    def made(n_jobs: int, **options: object) -> tuple[SLURMCluster, Client]:
        options = {"scheduler_options": {"allowed_failures": 0}, **SMALL, **options}
        cluster = SLURMCluster(n_jobs, **options)
        clusters.append(cluster)
        cluster.wait_for_workers(n_jobs, timeout=PATIENCE)
        return cluster, Client(cluster, set_as_default=False)

    yield made
    for cluster in clusters:
        cluster.close()
    assert slurm.squeue("-t", "pending,running") == []


def states(cluster: SLURMCluster, ids: Collection[str]) -> set[str]:
    """In which states these jobs are."""
    return {job.state for job in cluster.jobs() if job.id in ids}


def n_submissions(cluster: SLURMCluster) -> int:
    return len({job.id.partition("_")[0] for job in cluster.jobs()})


def until(condition: Callable[[], object], cluster: SLURMCluster) -> None:
    """As `wait_until`, and show the jobs and what they have written if it fails."""
    try:
        wait_until(condition, PATIENCE)
    except AssertionError as exc:
        jobs = cluster.jobs()
        logs = [f"{job.log}:\n{Path(job.log).read_text()}" for job in jobs if job.log]
        raise AssertionError("\n".join([f"{exc}; there is\n{jobs!r}", *logs])) from None


def test_nothing_is_lost_by_walltimes_requeues_and_nodes_that_go_down(slurm, start, tmp_path):
    elsewhere = ["--no-requeue", "--exclude=node1,node2"]
    shapes = ({"walltime": "0:02:00"}, {}, {"job_extra_directives": elsewhere})
    made = []
    for name, options in zip(("short", "again", "lost"), shapes, strict=True):
        cluster, client = start(2, **options)
        runs = tmp_path / name
        runs.mkdir()
        futures = client.map(note_and_fill, [runs] * N, range(N), [10_000] * N)
        made.append((cluster, client, futures, set(cluster.workers)))
    (short, ours, in_short, first), (again, theirs, in_again, both), (lost, others, there, gone) = (
        made
    )

    # A node goes down: each job that was on it is replaced, on another one.
    until(lambda: all(job.node for job in lost.jobs()), lost)  # workers may be seen before
    [node] = {job.node for job in lost.jobs()}
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        until(lambda: len(set(lost.workers) - gone) == 2, lost)
        assert states(lost, gone) == {"node failure"}
    finally:  # it may be back by itself
        slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    assert others.gather(there, timeout=PATIENCE) == VALUES

    # One is put back into the queue: it hands over, waits, and comes back as itself.
    [id, _] = sorted(both)
    slurm.run("scontrol", "requeue", id)
    until(lambda: states(again, [id]) == {"pending"}, again)
    # It would be due again two minutes later, since a late word about the end of its first life
    # would be taken for one about the second.
    slurm.run("scontrol", "update", f"JobId={id}", "StartTime=now+15")
    until(lambda: f"{id}r1" in again.workers, again)
    assert theirs.gather(in_again, timeout=PATIENCE) == VALUES
    assert count_runs(tmp_path / "again") == N, "nothing is computed twice"
    assert n_submissions(again) == 1, "none was submitted in its place"

    # Before the walltime is over others have come, and have got all results.
    until(lambda: len(short.workers) == 2 and not first & set(short.workers), short)
    assert ours.gather(in_short, timeout=PATIENCE) == VALUES
    assert count_runs(tmp_path / "short") == N, "nothing is computed twice"
    assert "failed" not in states(short, first)
