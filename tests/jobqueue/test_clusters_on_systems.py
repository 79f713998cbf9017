"""Clusters of jobs on real Slurm, real Grid Engine, and PBS commands."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch.bed import Bed
from waiting import wait_until

from hpcdask import Client
from hpcdask.errors import JobError, SubmitError
from hpcdask.jobqueue import JobQueueCluster, PBSCluster, SGECluster, SLURMCluster
from hpcdask.jobqueue.status import Answer

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for anything; a loaded machine is slow.
PATIENCE = 90.0
SYSTEMS = {"slurm": SLURMCluster, "sge": SGECluster, "pbs": PBSCluster}
#: Ids of the members of an array of job 7.
MEMBERS = {
    "slurm": {"7_1", "7_2", "7_3"},
    "sge": {"7.1", "7.2", "7.3"},
    "pbs": {"7[1]", "7[2]", "7[3]"},
}
SMALL = {
    "cores": 1,
    "memory": "1GB",
    # Only Slurm's jobs have our environment.
    "job_script_prologue": [f"export PYTHONPATH={ROOT}"],
}


@pytest.fixture(params=SYSTEMS)
def bed(request: pytest.FixtureRequest, here: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    """A batch system whose commands this process has."""
    return use(request.getfixturevalue(request.param), monkeypatch)


def use(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> Bed:
    for name, value in bed.env.items():
        monkeypatch.setenv(name, value)
    return bed


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder from which jobs are submitted, and below which clusters have theirs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def slurm_here(slurm: Bed, here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    yield use(slurm, monkeypatch)
    # All of them have been cancelled by now; Slurm may still clear up after them.
    assert not ours(slurm, "-t", "pending,running"), "jobs are left"
    wait_until(lambda: not ours(slurm), PATIENCE, "all jobs are out of the queue")


def ours(slurm: Bed, *words: str) -> list[str]:
    """Names of the jobs of clusters that are in the queue."""
    return [line[1] for line in slurm.squeue(*words) if line[1].startswith("hpcdask")]


def running(cluster: JobQueueCluster) -> list[str]:
    return [job.id for job in cluster.jobs() if job.state == "running"]


def test_jobs_come_work_and_go_one_by_one(bed):
    shape = {"cores": 2, "processes": 2}
    with SYSTEMS[bed.name](**{**SMALL, **shape}) as cluster, Client(cluster) as client:
        cluster.scale(jobs=3)
        cluster.wait_for_workers(6, timeout=PATIENCE)
        assert client.gather(client.map(abs, range(-20, 0))) == list(range(20, 0, -1))
        wait_until(lambda: len(running(cluster)) == 3, PATIENCE)
        ids = running(cluster)
        number = ids[0].rstrip("]123")[:-1]
        assert {id.replace(number, "7", 1) for id in ids} == MEMBERS[bed.name]
        assert sorted(cluster.workers) == sorted(f"{id}-{n}" for id in ids for n in (0, 1))
        [log] = {Path(job.log).parent for job in cluster.jobs() if job.log} or [None]
        assert bed.name == "pbs" or (log is not None and len(list(log.iterdir())) == 3)
        # The busy one stays, and what only another holds moves there.
        value = client.submit(os.getpid, workers=f"{ids[0]}-0", key="value")
        pid = value.result(timeout=PATIENCE)
        busy = client.submit(time.sleep, 600, workers=f"{ids[1]}-1", key="busy")
        wait_until(lambda: sum(map(len, client.processing().values())) == 1, PATIENCE)
        cluster.scale(jobs=1)
        wait_until(lambda: list(bed_jobs(bed, ids)) == [ids[1]], PATIENCE, f"{ids[1]} is left")
        assert value.result(timeout=PATIENCE) == pid
        assert busy.status == "pending"
        assert sorted(cluster.workers) == [f"{ids[1]}-0", f"{ids[1]}-1"]
    wait_until(lambda: not bed_jobs(bed, ids), PATIENCE, "nothing is left")


def bed_jobs(bed: Bed, ids: list[str]) -> list[str]:
    """Which of these jobs the system has in its queue."""
    system = SYSTEMS[bed.name].job_cls.system
    done = bed.run(*system.status_command(ids), check=False)
    found = system.parse_status(Answer(done.returncode, done.stdout, done.stderr))
    return [id for id in ids if id in found and found[id].end is None]


def test_twenty_jobs_come_by_one_submission_and_one_that_is_cancelled_is_replaced(slurm_here):
    with SLURMCluster(n_workers=20, nanny=False, **SMALL) as cluster:
        cluster.wait_for_workers(20, timeout=PATIENCE)
        assert len({job.id.partition("_")[0] for job in cluster.jobs()}) == 1
        ids = {job.id for job in cluster.jobs()}
        script = Path(cluster.scheduler_file).with_name("workers-1x20.sbatch")
        system = SLURMCluster.job_cls.system
        done = slurm_here.run(*system.find_command())
        found = system.parse_found(Answer(done.returncode, done.stdout, done.stderr), str(script))
        assert set(found) == ids
        id = cluster.jobs()[7].id
        slurm_here.scancel(id)
        wait_until(
            lambda: len(cluster.workers) == 20 and id not in cluster.workers, PATIENCE, "another"
        )
        ended = {job.id: job.state for job in cluster.jobs() if not job.is_live}
        assert ended == {id: "cancelled"}


def test_adapting_submits_and_ends_whole_jobs(slurm_here, tmp_path):
    """Up with the work, down to the one that is busy, to none, and up again."""

    def after(path, value):  # as workers that do not have our modules get it
        while not path.exists():
            time.sleep(0.01)
        return value

    shape = {**SMALL, "cores": 2, "processes": 2}
    with SLURMCluster(**shape) as cluster, Client(cluster) as client:
        adaptive = cluster.adapt(maximum=7, interval="100ms", target_duration="5s", keep_idle="1s")
        assert (adaptive.minimum, adaptive.maximum) == (0, 6)
        futures = client.map(after, [tmp_path / "go"] * 40, range(40))
        wait_until(lambda: len(cluster.workers) == 6, PATIENCE, "six workers in three jobs")
        name = sorted(cluster.workers)[3]
        last = client.submit(after, tmp_path / "end", 7, workers=name)
        (tmp_path / "go").touch()
        assert client.gather(futures, timeout=PATIENCE) == list(range(40))
        id = name.rpartition("-")[0]
        wait_until(lambda: {f"{id}-0", f"{id}-1"} == set(cluster.workers), PATIENCE, "the busy job")
        assert client.gather(futures, timeout=PATIENCE) == list(range(40))  # they have moved
        (tmp_path / "end").touch()
        assert last.result(timeout=PATIENCE) == 7
        del futures, last
        wait_until(lambda: not cluster.workers and not running(cluster), PATIENCE, "no job")
        assert {job.state for job in cluster.jobs() if not job.is_live} <= {"completed", "retired"}
        assert [what["status"] for _, what in adaptive.log].count("up") == 1
        assert client.submit(abs, -1).result(timeout=PATIENCE) == 1


def test_jobs_that_never_bring_a_worker_are_told_with_the_reason(slurm_here):
    dies = {**SMALL, "job_script_prologue": ["echo no such module >&2", "exit 3"]}
    with SLURMCluster(n_workers=2, **dies) as dying:
        with SLURMCluster(**SMALL, queue="nope") as cluster:
            with pytest.raises(SubmitError) as error:
                cluster.scale(jobs=1)
            assert "invalid partition specified: nope" in str(error.value)
            assert str(error.value).endswith("#SBATCH --partition=nope")
        # This is taken by Slurm, to wait for ever.
        with (
            SLURMCluster(n_workers=1, **SMALL, queue="short", walltime="2:00:00") as cluster,
            pytest.raises(JobError, match="can never run: PartitionTimeLimit"),
        ):
            cluster.wait_for_workers(1, timeout=PATIENCE)
        with pytest.raises(JobError) as error:
            dying.wait_for_workers(2, timeout=PATIENCE)
        assert "failed, exit code 3" in str(error.value)
        assert str(error.value).endswith(".log:\nno such module")


def test_a_pool_has_a_partition_of_its_own_and_comes_with_the_task_that_needs_it(slurm_here):
    with SLURMCluster(n_workers=1, **SMALL) as cluster, Client(cluster) as client:
        cluster.add_pool("gpu", queue="short", walltime="50min", resources={"GPU": 1})
        cluster.adapt(maximum=2, pool="gpu", interval="0.1s", keep_idle="0s")
        there = client.submit(os.getenv, "SLURM_JOB_PARTITION")
        assert there.result(timeout=PATIENCE) == "debug"
        assert ours(slurm_here) == ["hpcdask"]
        there = client.submit(os.getenv, "SLURM_JOB_PARTITION", resources={"GPU": 1}, key="gpu")
        assert there.result(timeout=PATIENCE) == "short"
        [job] = [job for job in cluster.jobs() if job.pool == "gpu"]
        assert Path(job.log).name == f"hpcdask-gpu-{job.id}.log"
        # What is left to do others can do.
        wait_until(lambda: ours(slurm_here) == ["hpcdask"], PATIENCE)
        assert there.result(timeout=PATIENCE) == "short"
        assert running(cluster) == list(cluster.workers)


PROGRAM = """\
import getpass, os, stat
from hpcdask import Client
from hpcdask.jobqueue import SLURMCluster

if __name__ == "__main__":
    with SLURMCluster(n_workers=1, cores=1, memory="1GB") as cluster:
        with Client(cluster) as client:
            client.wait_for_workers(1, timeout=60)
            print("I am", client.submit(getpass.getuser).result(timeout=60))
            print(oct(stat.S_IMODE(os.stat(os.path.dirname(cluster.scheduler_file)).st_mode)))
    print(cluster.status)
"""


def test_an_ordinary_user_has_a_cluster_of_jobs(slurm, ordinary_user):
    folder = ordinary_user.folder("cluster")
    (folder / "program.py").write_text(PROGRAM)
    done = ordinary_user.run(ordinary_user.python, "program.py", cwd=folder, bed=slurm)
    assert done.stdout == f"I am {ordinary_user.name}\n0o700\nclosed\n", done.stderr
    assert done.stderr == ""
