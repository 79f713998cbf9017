"""Clusters without an owner, and with a scheduler in a job: on a queue of a few lines of shell."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_queue import Queue, QueueCluster, jobs_of
from waiting import wait_until

from hpcdask import Client
from hpcdask.errors import ConfigError, JobError, LaunchError
from hpcdask.jobqueue import JobQueueCluster, SLURMCluster, known
from hpcdask.jobqueue.cleaning import end
from hpcdask.jobqueue.clearing import clear
from hpcdask.jobqueue.commands import Commands
from hpcdask.jobqueue.folder import (
    ClusterFolder,
    ClusterState,
    Owner,
    PoolState,
    Submission,
    cluster_folders,
)
from hpcdask.jobqueue.guard import Guard
from hpcdask.jobqueue.pacing import Pace
from hpcdask.jobqueue.scheduler_job import SCHEDULER, id_of_job, option_words
from hpcdask.jobqueue.status import JobStatus, Phase
from hpcdask.jobqueue.survey import Condition, KnownCluster, survey
from hpcdask.jobqueue.systems import WORKER_SYSTEMS
from hpcdask.rendezvous import Contact

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for anything; a loaded machine is slow.
PATIENCE = 60.0

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders of clusters are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/hpcdask/clusters"


@pytest.fixture
def queue(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """A queue of its own, which is Slurm's for who asks from outside."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HPCDASK_JOBQUEUE__SLURM__POLL_INTERVAL", "0.2s")
    monkeypatch.setattr("hpcdask.jobqueue.commands.Pace", functools.partial(Pace, burst=10_000))
    folder = tmp_path / "queue"
    folder.mkdir()
    made = Queue(folder)
    monkeypatch.setitem(WORKER_SYSTEMS, "slurm", made)
    yield made
    left = made.end()
    assert left == []


def with_job(queue: Queue, **options: Any) -> QueueCluster:
    """A cluster "mine", whose scheduler is in a job."""
    return QueueCluster(queue, name="mine", scheduler="job", **options)


def attached(queue: Queue, **options: Any) -> JobQueueCluster:
    return JobQueueCluster.attach("mine", job_cls=jobs_of(queue), **options)


def here(name: str = "mine") -> KnownCluster:
    [found] = asyncio.run(survey([ClusterFolder.find(name)]))
    return found


def test_a_program_need_not_know_the_batch_system_of_a_cluster_that_it_finds():
    program = (
        "from hpcdask.jobqueue.attachable import _cluster_class\n"
        "from hpcdask.jobqueue.cluster import JobQueueCluster\n"
        "print(_cluster_class(JobQueueCluster, 'sge').__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("SGECluster\n", "")


# -- A scheduler in a job -------------------------------------------------------------------------


def test_a_cluster_is_left_and_found_again_with_its_workers(queue):
    cluster = with_job(queue, n_workers=2)
    with Client(cluster) as client:
        cluster.wait_for_workers(2, timeout=PATIENCE)
        assert client.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3
        wait_until(lambda: len([job for job in cluster.jobs() if job.workers]) == 3, PATIENCE)
        assert {(job.id, job.pool) for job in cluster.jobs()} == {
            ("1_1", "scheduler"),
            ("2_1", "workers"),
            ("2_2", "workers"),
        }
        with pytest.raises(LaunchError, match=r"mine is kept by process \d+ on .*detach\(\)"):
            attached(queue)
        cluster.detach()
        assert client.submit(sum, [1, 3]).result(timeout=PATIENCE) == 4
    assert cluster.status == "detached"
    found = here()
    assert (found.condition, len(found.workers)) == (Condition.UNATTENDED, 2)
    assert "cluster = SLURMCluster.attach('mine')" in known.description(found, time.time())
    queue.kill("2_1")  # nobody replaces it
    with attached(queue) as cluster, Client(cluster) as client:
        wait_until(lambda: sorted(cluster.workers) == ["2_2", "3_1"], PATIENCE, "it is replaced")
        assert client.submit(sum, [1, 4]).result(timeout=PATIENCE) == 5
        folder = Path(cluster.scheduler_file).parent
        token = (folder / "token").read_text().strip()
        with_token = [
            file.name for file in folder.rglob("*") if file.is_file() and token in file.read_text()
        ]
        assert sorted(with_token) == ["scheduler.json", "token"]
        assert (folder / "token").stat().st_mode & 0o777 == 0o600
    assert queue.groups() == {}
    assert not folder.exists()


def test_pools_are_found_again_with_what_their_jobs_are_like(queue):
    cluster = with_job(queue)
    cluster.add_pool("gpu", cores=2, processes=1, resources={"GPU": 1})
    cluster.scale(1, pool="gpu")
    cluster.wait_for_workers(1, timeout=PATIENCE, pool="gpu")
    script = cluster.job_script(pool="gpu")
    cluster.detach()
    with attached(queue) as cluster, Client(cluster) as client:
        assert list(cluster.pools) == ["workers", "gpu"]
        assert cluster.pools["gpu"].job_name == "hpcdask-gpu"
        assert cluster.job_script(pool="gpu") == script
        assert client.submit(sum, [1, 2], resources={"GPU": 1}).result(timeout=PATIENCE) == 3
        cluster.scale(2, pool="gpu")
        cluster.wait_for_workers(2, timeout=PATIENCE, pool="gpu")
        assert not [job for job in cluster.jobs() if job.pool == "workers"]
        cluster.add_pool("big", memory="2GB")
        assert cluster.pools["big"].memory == 2 * 10**9


def test_a_lost_scheduler_is_replaced_and_workers_go_to_the_new_one(queue):
    with with_job(queue, n_workers=1) as cluster, Client(cluster) as client:
        cluster.wait_for_workers(1, timeout=PATIENCE)
        first = cluster.scheduler_address
        queue.kill("1_1")
        wait_until(lambda: cluster.scheduler_address != first, PATIENCE, "another scheduler")
        assert client.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3
        assert list(cluster.workers) == ["2_1"]
        assert [job.id for job in cluster.jobs() if job.pool == "scheduler"] == ["3_1", "1_1"]


def test_who_shuts_the_scheduler_down_ends_all_jobs(queue):
    cluster = with_job(queue, n_workers=1, shutdown_on_close=False)
    with Client(scheduler_file=cluster.scheduler_file) as client:
        client.wait_for_workers(1, timeout=PATIENCE)
        client.shutdown()
    wait_until(lambda: cluster.status == "closed", PATIENCE)
    assert len(queue.commands("submit")) == 2
    assert list(cluster_folders()) == []


def test_a_scheduler_that_cannot_start_is_told_with_its_log(queue):
    dies = {"job_script_prologue": ["echo no such module >&2", "exit 3"]}
    with pytest.raises(JobError) as error:
        with_job(queue, scheduler_job=dies)
    assert str(error.value).startswith("there is no scheduler: 3 starts in a row have failed")
    assert "exit code 3" in str(error.value)
    assert str(error.value).endswith(".log:\nno such module")
    assert list(cluster_folders()) == []


def test_who_does_not_shut_down_on_close_leaves_all_running(queue):
    with with_job(queue, n_workers=1, shutdown_on_close=False) as cluster:
        cluster.wait_for_workers(1, timeout=PATIENCE)
    assert sorted(queue.groups()) == ["1_1", "2_1"]
    with attached(queue, shutdown_on_close=False) as cluster:
        Client(cluster).shutdown()  # which is meant
    assert cluster.status == "closed"
    assert queue.groups() == {}
    assert list(cluster_folders()) == []


def test_a_keeper_lets_go_when_another_has_taken_over(queue):
    cluster = with_job(queue, n_workers=1)
    cluster.wait_for_workers(1, timeout=PATIENCE)
    folder = ClusterFolder.find("mine")
    state = folder.read_state()
    folder.write_state(replace(state, owner=Owner("elsewhere", 1, 0.0)))
    cluster.scale(jobs=2)  # there is something to write
    wait_until(lambda: cluster.status == "detached", PATIENCE)
    assert folder.read_state().owner == Owner("elsewhere", 1, 0.0)
    assert "1_1" in queue.groups()
    assert here().condition is Condition.UNATTENDED, "its keeper is connected no more"
    asyncio.run(end(here(), PATIENCE))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheduler": "nowhere"}, "in the client or in a job, not in 'nowhere'"),
        ({"scheduler_job": {}}, "are for scheduler='job'"),
        ({"shutdown_on_close": False}, "are for scheduler='job'"),
        ({"scheduler": "job", "scheduler_job": {"nodes_per_job": 2}}, "one process"),
        ({"scheduler": "job", "scheduler_options": {"name": "x"}}, "'name'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(base, options, words):
    with pytest.raises(ConfigError, match=words):
        SLURMCluster(cores=1, memory="1GB", **options)
    assert not base.exists()


def test_a_cluster_of_this_process_cannot_be_left(queue):
    with QueueCluster(queue, name="mine") as cluster:
        with pytest.raises(ConfigError, match="is in this process"):
            cluster.detach()
        with pytest.raises(ConfigError, match=r"it, its workers are there for|workers are there"):
            attached(queue)
        assert here().condition is Condition.KEPT
    with pytest.raises(ConfigError, match="there is no cluster 'mine'"):
        attached(queue)


def test_the_job_of_a_scheduler_is_small_and_waits_where_workers_do(base):
    cluster = SLURMCluster(
        cores=8,
        memory="64GB",
        walltime="4:00:00",
        queue="long",
        job_extra_directives=["--gres=gpu:1"],
        scheduler="job",
        scheduler_job={"account": "physics"},
        scheduler_options={"idle_timeout": "1h", "dial_back": False},
        name="mine",
        loop=asyncio.new_event_loop(),
        asynchronous=True,
    )
    cluster._scheduler_job.token_file = "/f/token"
    script = cluster._scheduler_job.job_script()
    assert [line[8:] for line in script.splitlines() if line.startswith("#SBATCH")] == [
        "--job-name=hpcdask-scheduler",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
        "--mem=4G",
        "--time=04:00:00",
        "--partition=long",
        "--account=physics",
        f"--output={base}/mine/logs/hpcdask-scheduler-%j.log",
    ]
    command = script[script.index("\nexec ") :].replace("\\\n", "").split()
    assert command[2:] == [
        *("-m", "hpcdask", "scheduler", "--scheduler-file", f"{base}/mine/scheduler.json"),
        *("--successor", "--token-file", "/f/token", "--port", "0"),
        *("--idle-timeout", "1h", "--no-dial-back", "--protocol", "tcp"),
    ]
    cluster.loop.close()


def test_options_of_a_scheduler_are_words_of_shell():
    options = {"port": "1:9", "preload": ["a b", "c"], "dial_back": True, "host": None}
    words = ["--port 1:9", "--preload 'a b'", "--preload c", "--dial-back"]
    assert option_words(options) == words
    with pytest.raises(ConfigError, match=r"'loop'.*there are host, port"):
        option_words({"loop": 1})


@pytest.mark.parametrize(
    ("told", "ids", "id"),
    [
        ("slurm:5", ["5"], "5"),
        ("slurm:5", ["4", "5"], "5"),
        ("pbs:19.server", ["19"], "19"),
        ("sge:6", ["5"], None),
        ("", ["5"], "5"),
        ("", ["5", "6"], None),
        ("slurm:5", [], None),
    ],
)
def test_a_scheduler_is_in_the_job_that_it_tells(told, ids, id):
    assert id_of_job(told, ids) == id


# -- Who keeps a cluster --------------------------------------------------------------------------

HERE = Owner.here()
GONE = replace(HERE, started=HERE.started - 1000)
ELSEWHERE = Owner("elsewhere", 1, 0.0)
CONTACT = Contact("Scheduler", "id", "tcp://h:1", "", b"", 0.0, "1", "h", 1, "")


def state(owner: Owner | None = HERE, scheduler: str = "client", **more: Any) -> ClusterState:
    return ClusterState(
        name="mine",
        system="slurm",
        owner=owner,
        started=time.time(),
        scheduler_file="/s.json",
        scheduler=scheduler,
        **more,
    )


@pytest.mark.parametrize(
    ("owner", "scheduler", "more", "condition"),
    [
        (HERE, "client", {}, Condition.KEPT),
        (HERE, "job", {}, Condition.KEPT),
        (GONE, "client", {}, Condition.LEFT),
        (GONE, "client", {"jobs": None}, Condition.LEFT),
        (ELSEWHERE, "client", {}, Condition.UNKNOWN),
        (ELSEWHERE, "client", {"contact": CONTACT}, Condition.KEPT),
        (ELSEWHERE, "job", {"contact": CONTACT}, Condition.UNATTENDED),
        (ELSEWHERE, "job", {"contact": CONTACT, "has_keeper": True}, Condition.KEPT),
        (ELSEWHERE, "job", {}, Condition.UNKNOWN),
        (ELSEWHERE, "job", {"jobs": {"5": None}}, Condition.UNKNOWN),
        (None, "job", {"contact": CONTACT}, Condition.UNATTENDED),
        (None, "job", {"jobs": {"5": None}}, Condition.UNATTENDED),
        (None, "job", {"jobs": None}, Condition.UNATTENDED),
        (None, "job", {"jobs": {"6": None}}, Condition.LEFT),
        (GONE, "job", {}, Condition.LEFT),
    ],
)
def test_who_keeps_a_cluster(owner, scheduler, more, condition):
    pools = {SCHEDULER: PoolState(1, ("5",))}
    folder = ClusterFolder(Path("/nowhere"))
    found = KnownCluster(folder=folder, state=state(owner, scheduler, pools=pools), **more)
    assert found.condition is condition


def test_clusters_are_listed_a_line_for_each():
    jobs = {
        "5": JobStatus(id="5", phase=Phase.RUNNING),
        "6": JobStatus(id="6", phase=Phase.PENDING),
    }
    folder = ClusterFolder(Path("/nowhere"))
    clusters = [
        KnownCluster(folder=folder, state=replace(state(ELSEWHERE), started=0.0), jobs=jobs),
        KnownCluster(folder=folder, state=replace(state(None, "job"), started=7000.0), jobs=None),
    ]
    assert known.table(clusters, 7200.0).splitlines() == [
        "NAME  SYSTEM  STATE        SCHEDULER  WORKERS  RUNNING  PENDING  OWNER        AGE",
        "mine  slurm   unknown      no answer  ?        1        1        1@elsewhere  2 h",
        "mine  slurm   left behind  no answer  ?        ?        ?        nobody       3 min",
    ]
    first = known.as_dict(clusters[0], 7200.0)
    assert (first["jobs"]["6"]["phase"], first["workers"], first["age"]) == ("pending", None, 7200)


def test_of_several_who_take_a_cluster_one_gets_it(base):
    folder = ClusterFolder.create("mine")
    folder.write_state(state(None, "job"))
    (folder.path / "claim").touch()
    with pytest.raises(LaunchError, match=r"takes the cluster .* over just now"):
        folder.own(HERE, lambda now: None)
    os.utime(folder.path / "claim", (1.0, 1.0))  # whoever made it was killed
    assert folder.own(HERE, lambda now: None).owner is None
    assert folder.read_state().owner == HERE
    assert not (folder.path / "claim").exists()
    assert folder.is_anothers(ELSEWHERE)
    assert not folder.is_anothers(HERE)


def test_a_submission_is_known_by_the_name_of_its_script():
    submission = Submission("gpu-big", 12, 3, ".sbatch")
    assert submission.script == "gpu-big-12x3.sbatch"
    assert Submission.of(submission.script) == submission
    for other in ("state.json", "gpu-big-12x3.sbatch.answer", "guard.log", "x-1.sbatch"):
        assert Submission.of(other) is None


# -- What is left of a cluster --------------------------------------------------------------------


def left_behind(queue: Queue, **more: Any) -> tuple[ClusterFolder, ClusterState]:
    """A cluster whose owner was killed, with two jobs in the queue."""
    folder = ClusterFolder.create("mine")
    (queue.folder / "hold").write_text("Priority")
    ids = submit(queue, 2, folder.path / "workers-1x2.sbatch")
    made = state(GONE, pools={"workers": PoolState(2, tuple(ids))}, **more)
    folder.write_state(made)
    return folder, made


def submit(queue: Queue, count: int, script: Path) -> list[str]:
    script.write_text(f"#FAKE --count={count}\nsleep 600\n")
    answer = asyncio.run(Commands().run([*queue.submit_command, str(script)]))
    return queue.elements(queue.job_id(answer.out), count)


def test_jobs_that_were_left_are_cancelled_and_logs_stay(queue):
    folder, _made = left_behind(queue)
    folder.note("a line")
    assert here().condition is Condition.LEFT
    others = submit(queue, 1, queue.folder / "others.sbatch")
    done = asyncio.run(end(here(), PATIENCE))
    assert (done.cancelled, done.left, done.unclear) == (["1_1", "1_2"], [], [])
    assert queue.commands("cancel") == ["1_1 1_2"]
    assert [path.name for path in folder.path.rglob("*")] == ["logs", "cluster.log"]
    assert list(cluster_folders()) == []
    queue.kill(others[0])


def test_jobs_of_which_the_killed_owner_had_not_heard_are_cancelled_too(queue, monkeypatch):
    folder, made = left_behind(queue)
    submit(queue, 3, folder.path / "workers-2x3.sbatch")
    folder.answer_file("workers-2x3.sbatch").write_text("2\n")
    (folder.path / "workers-3x1.sbatch").touch()
    folder.answer_file("workers-3x1.sbatch").touch()  # was never answered
    monkeypatch.setattr("hpcdask.jobqueue.clearing._ANSWER", 0.0)
    monkeypatch.setattr(Queue, "find_command", lambda self: None)
    done = asyncio.run(clear(folder, made, Commands(), PATIENCE))
    assert done.cancelled == ["1_1", "1_2", "2_1", "2_2", "2_3"]
    assert done.unclear == ["workers-3x1.sbatch"]


def test_jobs_that_stay_are_not_forgotten(queue, monkeypatch):
    folder, made = left_behind(queue)
    monkeypatch.setattr(Queue, "cancel_commands", lambda self, ids: [["true"]])
    done = asyncio.run(clear(folder, made, Commands(), 0.5))
    assert done.left == ["1_1", "1_2"]
    assert folder.read_state() == made
    monkeypatch.undo()
    for id in done.left:
        queue.kill(id)


def test_a_queue_that_does_not_answer_has_forgotten_nothing(queue):
    folder, made = left_behind(queue)
    (queue.folder / "broken").touch()
    done = asyncio.run(clear(folder, made, Commands(), 0.5))
    assert done.left == ["1_1", "1_2"]
    assert "the queue is being restarted" in done.trouble
    assert folder.read_state() == made
    assert "the queue is being restarted" in here().trouble


# -- The guard ------------------------------------------------------------------------------------


def test_a_guard_that_is_dismissed_has_done_nothing(base):
    folder = ClusterFolder.create("mine")
    folder.write_state(state())
    guard = Guard(folder)
    guard.dismiss()
    assert guard._process.wait(PATIENCE) == 0
    assert folder.read_state().owner == Owner.here()


def test_a_guard_ends_the_cluster_though_a_fork_of_its_owner_lives(base):
    folder = ClusterFolder.create("mine")
    folder.write_state(state(Owner.here()))
    guard = Guard(folder)
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        guard._let_go()  # as the end of the owner does
        assert guard._process.wait(PATIENCE) == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not folder.state_file.exists()
    assert "left mine behind" in (folder.logs / "cluster.log").read_text()


def test_a_guard_leaves_a_cluster_alone_that_another_keeps(base):
    folder = ClusterFolder.create("mine")
    folder.write_state(state(Owner.here()))
    guard = Guard(folder)
    folder.write_state(state(ELSEWHERE))
    guard._let_go()
    assert guard._process.wait(PATIENCE) == 0
    assert folder.read_state().owner == ELSEWHERE
