"""Clusters of jobs on a batch system of a few lines of shell, which does what a test wants."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_queue import Queue, QueueCluster
from waiting import on_a_loop, wait_until

from hpcdask import Client
from hpcdask.errors import (
    ConfigError,
    InterfaceNotFoundError,
    JobError,
    LaunchError,
    SubmitError,
    WaitTimeoutError,
)
from hpcdask.jobqueue import SLURMCluster, keeper
from hpcdask.jobqueue.folder import ClusterFolder
from hpcdask.jobqueue.pacing import Pace

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for anything; a loaded machine is slow.
PATIENCE = 60.0

pytestmark = pytest.mark.timeout(180)


def ids(cluster: QueueCluster, state: str = "running") -> list[str]:
    return [job.id for job in cluster.jobs() if job.state == state]


def test_jobs_come_as_one_array_and_their_workers_bear_their_names(queue):
    with QueueCluster(queue, cores=2, processes=2) as cluster, Client(cluster) as client:
        cluster.scale(3)
        cluster.wait_for_workers(4, timeout=PATIENCE)
        assert client.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3
        assert [Path(path).suffix for path in queue.commands("submit")] == [".sbatch"]
        assert sorted(cluster.workers) == ["1_1-0", "1_1-1", "1_2-0", "1_2-1"]
        wait_until(lambda: ids(cluster) == ["1_1", "1_2"], PATIENCE)
        assert [(job.workers, job.n_workers) for job in cluster.jobs()] == [(2, 2), (2, 2)]
        assert "Start Nanny" in cluster.get_logs()["job 1_1"]
        folder = Path(cluster.scheduler_file).parent
        state = ClusterFolder(folder).read_state()
        assert (state.name, state.jobs) == (cluster.name, ("1_1", "1_2"))
        with Client(scheduler_file=cluster.scheduler_file, set_as_default=False) as another:
            assert len(another.scheduler_info()["workers"]) == 4
        token = cluster.place.token.hex()
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert [path.name for path in files if token in path.read_text()] == ["scheduler.json"]
        html, text = cluster._repr_html_(), repr(cluster)
        assert repr(cluster.place.token) not in repr(cluster.place)
    assert "jobs=2 (2 running)" in text
    assert "<td>2 (2 running)</td>" in html
    assert not folder.exists(), queue.logs()
    assert queue.groups() == {}


def test_a_cluster_is_scaled_in_jobs_cores_and_memory(queue):
    (queue.folder / "hold").write_text("Priority")
    with QueueCluster(queue, cores=4, memory="8GB", processes=2) as cluster:
        for how, n_jobs in [
            ({"n": 5}, 3),
            ({"jobs": 1}, 1),
            ({"cores": 9}, 3),
            ({"memory": "16 GB"}, 2),
            ({"jobs": 1, "cores": 8}, 2),
            ({"n": 0}, 0),
        ]:
            cluster.scale(**how)
            wait_until(lambda n=n_jobs: len(ids(cluster, "pending")) == n, PATIENCE, f"{how}")
        with pytest.raises(TypeError, match="needs a number"):
            cluster.scale()
        with pytest.raises(ValueError, match="-1"):
            cluster.scale(-1)
    with pytest.raises(LaunchError, match="is closed"):
        cluster.scale(1)


def test_a_lost_job_is_replaced_and_one_too_many_hands_over(queue):
    with QueueCluster(queue, n_workers=2) as cluster, Client(cluster) as client:
        cluster.wait_for_workers(2, timeout=PATIENCE)
        queue.kill("1_1")
        wait_until(lambda: sorted(cluster.workers) == ["1_2", "2_1"], PATIENCE)
        assert [job.state for job in cluster.jobs() if job.id == "1_1"] == ["cancelled"]
        only_there = client.submit(os.getpid, workers="2_1")
        pid = only_there.result(timeout=PATIENCE)
        busy = client.submit(time.sleep, 600, workers="1_2")
        wait_until(lambda: sum(map(len, client.processing().values())) == 1, PATIENCE)
        cluster.scale(1)  # the idle one ends
        wait_until(lambda: ids(cluster) == ["1_2"], PATIENCE)
        wait_until(lambda: queue.commands("cancel") == ["1_1", "2_1"], PATIENCE)
        wait_until(lambda: ids(cluster, "retired") == ["2_1"], PATIENCE)
        assert ids(cluster, "cancelled") == ["1_1"], "which somebody else has ended"
        assert only_there.result(timeout=PATIENCE) == pid
        assert not busy.done()


def test_a_refusal_is_raised_with_the_systems_words_and_the_line(queue):
    (queue.folder / "refuse").write_text('unknown queue "nope"')
    with QueueCluster(queue, queue="nope") as cluster:
        with pytest.raises(SubmitError) as error:
            cluster.scale(1)
        assert 'refused the jobs:\nunknown queue "nope"' in str(error.value)
        assert str(error.value).endswith("#FAKE --queue=nope")
    with pytest.raises(SubmitError):
        QueueCluster(queue, n_workers=1, queue="nope")
    assert not list(queue.folder.glob("*.job"))


def test_a_job_script_that_cannot_be_made_is_told_and_not_waited_for(queue, monkeypatch):
    (queue.folder / "hold").write_text("Priority")
    with QueueCluster(queue) as cluster:
        with monkeypatch.context() as patch:
            patch.setattr(type(cluster._job), "job_script", lambda job: 1 / 0)
            with pytest.raises(SubmitError, match=r"gives no job script: ZeroDivisionError"):
                cluster.scale(1)
        cluster.scale(1)
        wait_until(lambda: queue.commands("submit"), PATIENCE)


def test_waiting_for_jobs_that_die_at_once_fails_soon_with_the_end_of_the_log(queue, monkeypatch):
    prologue = ["echo the disk is full >&2", "exit 3"]
    with QueueCluster(queue, n_workers=1, job_script_prologue=prologue) as cluster:
        kind, late = type(cluster._job), [[], []]  # as logs of PBS, whose names are found
        logs = kind.log_paths
        finds = lambda job, id: late.pop() if late else logs(job, id)  # noqa: E731
        monkeypatch.setattr(kind, "log_paths", finds)
        with pytest.raises(JobError) as error:
            cluster.wait_for_workers(1, timeout=PATIENCE)
        assert "exit code 3" in str(error.value)
        assert str(error.value).endswith(".log:\nthe disk is full")
        with Client(cluster) as client, pytest.raises(JobError, match="the disk is full"):
            client.wait_for_workers(1, timeout=PATIENCE)
        assert {job.state for job in cluster.jobs()} == {"failed"}


def test_a_cluster_shows_without_a_look_for_logs(queue, monkeypatch):
    (queue.folder / "hold").write_text("Priority")
    with QueueCluster(queue, n_workers=2) as cluster:
        monkeypatch.setattr(type(cluster._job), "log_paths", None)  # of slow file systems
        assert "jobs=2 (2 pending" in repr(cluster)


def test_waiting_for_jobs_that_can_never_run_fails_and_for_others_tells_why_they_wait(queue):
    (queue.folder / "hold").write_text("Never")
    with (
        QueueCluster(queue, n_workers=1) as cluster,
        pytest.raises(JobError, match="can never run: Never"),
    ):
        cluster.wait_for_workers(1, timeout=PATIENCE)
    (queue.folder / "hold").write_text("Resources")
    with QueueCluster(queue, n_workers=1) as cluster:
        wait_until(lambda: cluster.jobs()[0].reason == "Resources", PATIENCE)
        with pytest.raises(WaitTimeoutError, match=r"0 of 1 workers .* 1 pending \(Resources\)"):
            cluster.wait_for_workers(1, timeout=0.3)
        cluster.scale(0)
        wait_until(lambda: queue.commands("cancel") == ["1_1", "2_1"], PATIENCE)


def test_a_queue_that_does_not_answer_has_lost_no_job(queue):
    with QueueCluster(queue, n_workers=1) as cluster:
        cluster.wait_for_workers(1, timeout=PATIENCE)
        (queue.folder / "broken").touch()
        n = len(queue.commands("list"))
        cluster._jobs._last_event = float("inf")
        wait_until(lambda: cluster._jobs._look_within(0) or _looks(queue) > n + 5, PATIENCE)
        with pytest.raises(WaitTimeoutError, match=r"may have changed, since .* being restarted"):
            cluster.wait_for_workers(2, timeout=0)
        assert list(cluster.workers) == ["1_1"]
        assert len(queue.commands("submit")) == 1
        (queue.folder / "broken").unlink()


def test_a_fault_in_reading_a_listing_is_not_the_end_of_looking(queue, monkeypatch):
    stumbled = []

    def stumbles(system, answer):
        stumbled.append(answer)
        raise KeyError("state")

    with QueueCluster(queue, n_workers=1) as cluster:
        cluster.wait_for_workers(1, timeout=PATIENCE)
        with monkeypatch.context() as patch:
            patch.setattr(Queue, "parse_status", stumbles)
            wait_until(lambda: cluster._jobs._look_within(0) or len(stumbled) > 1, PATIENCE)
        queue.kill("1_1")
        wait_until(lambda: list(cluster.workers) == ["2_1"], PATIENCE)


def _looks(queue: Queue) -> int:
    return len(queue.commands("list"))


@on_a_loop
async def test_a_cluster_works_on_the_loop_of_its_maker(queue):
    async with QueueCluster(queue, asynchronous=True) as cluster:
        cluster.scale(1)  # acts, awaited or not
        await cluster.wait_for_workers(1, timeout=PATIENCE)
        async with Client(cluster, asynchronous=True) as client:
            assert await client.submit(sum, [1, 2]) == 3
        assert "Scheduler at" in (await cluster.get_logs())["Scheduler"]
    assert queue.groups() == {}


def test_jobs_end_when_a_client_shuts_the_cluster_down(queue):
    cluster = QueueCluster(queue, n_workers=1)
    with Client(cluster) as client:
        cluster.wait_for_workers(1, timeout=PATIENCE)
        client.shutdown()
    wait_until(lambda: cluster.status == "closed", PATIENCE)
    wait_until(lambda: not queue.groups(), PATIENCE)
    assert len(queue.commands("submit")) == 1


PROGRAM = """\
import sys
from pathlib import Path
from fake_queue import Queue, QueueCluster

cluster = QueueCluster(Queue(Path(sys.argv[1])), n_workers=2)
if sys.argv[2] == "fails":
    raise RuntimeError("the program's own")
if sys.argv[2] == "hurries":  # as with a second Ctrl-C
    cluster.close(timeout=0)
"""


@pytest.mark.parametrize("how", ["ends", "fails", "hurries"])
def test_jobs_are_cancelled_when_the_program_ends_without_closing(queue, tmp_path, how):
    (queue.folder / "hold").write_text("Priority")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    tests = ROOT / "tests"
    path = os.pathsep.join(map(str, [ROOT, tests, tests / "jobqueue"]))
    done = subprocess.run(
        [sys.executable, program, queue.folder, how],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert queue.commands("cancel") == ["1_1 1_2"], done.stderr
    assert ("the program's own" in done.stderr) == (how == "fails")
    assert not list((tmp_path / "state").rglob("*.json"))


def test_at_the_end_jobs_are_cancelled_though_it_is_no_commands_turn(queue, monkeypatch):
    slow = functools.partial(Pace, burst=2, rate=1e-3)
    monkeypatch.setattr("hpcdask.jobqueue.commands.Pace", slow)
    (queue.folder / "hold").write_text("Priority")
    with QueueCluster(queue, n_workers=3) as cluster:
        wait_until(lambda: len(ids(cluster, "pending")) == 3, PATIENCE)
    assert queue.commands("cancel") == ["1_1 1_2 1_3"]
    assert not list(Path(cluster.scheduler_file).parents[1].glob("*/state.json"))


def test_failed_starts_are_told_and_adapting_anew_tries_again(queue, caplog):
    broken = queue.folder / "broken node"
    broken.touch()
    options = {"job_script_prologue": [f"[[ ! -e '{broken}' ]] || exit 7"]}
    with QueueCluster(queue, **options) as cluster, Client(cluster) as client:
        with caplog.at_level("WARNING", "hpcdask"):
            cluster.adapt(maximum=1, interval="50ms")
            future = client.submit(abs, -1)
            told = "3 starts in a row have failed, so no more are tried until .* adapt"
            wait_until(lambda: re.search(told, caplog.text), PATIENCE)
        assert "a start has failed, number 1 in a row of at most 3: job 1_1" in caplog.text
        broken.unlink()
        cluster.adapt(maximum=1, interval="50ms")
        assert future.result(timeout=PATIENCE) == 1


def test_what_an_adaptive_cluster_is_refused_is_told_once_for_each_try(queue, caplog):
    (queue.folder / "refuse").write_text('unknown queue "nope"')
    with QueueCluster(queue, queue="nope") as cluster, caplog.at_level("WARNING", "hpcdask"):
        cluster.adapt(minimum=1, interval="50ms")
        wait_until(lambda: "3 starts in a row have failed" in caplog.text, PATIENCE)
    assert len(queue.commands("submit")) == caplog.text.count('unknown queue "nope"') == 3


def test_more_jobs_than_an_array_may_have_are_several(queue, monkeypatch):
    monkeypatch.setenv("HPCDASK_JOBQUEUE__SLURM__MAX_ARRAY", "2")
    (queue.folder / "hold").write_text("Priority")
    with QueueCluster(queue) as cluster:
        cluster.scale(jobs=5)
        wait_until(lambda: len(ids(cluster, "pending")) == 5, PATIENCE)
        names = [Path(path).stem for path in queue.commands("submit")]
        assert names == ["workers-1x2", "workers-2x2", "workers-3x1"]


def test_scripts_of_jobs_that_have_ended_are_removed_while_the_cluster_goes_on(queue):
    with QueueCluster(queue) as cluster:
        folder = Path(cluster.scheduler_file).parent

        def scripts() -> list[str]:
            return sorted(path.name for path in folder.glob("*.sbatch"))

        for _ in range(3):
            cluster.scale(2)
            wait_until(lambda: len(ids(cluster)) == 2, PATIENCE)
            cluster.scale(1)
            wait_until(lambda: len(ids(cluster)) == 1, PATIENCE)
        # Of the first array a job is left, the last one tells the number of the next.
        wait_until(lambda: scripts() == ["workers-1x2.sbatch", "workers-3x1.sbatch"], PATIENCE)


def test_adapting_submits_jobs_for_the_work_and_cancels_them_after_it(queue):
    with QueueCluster(queue) as cluster, Client(cluster) as client:
        cluster.adapt(maximum_jobs=2, interval="50ms", target_duration="1s", keep_idle="0s")
        results = client.map(lambda x: time.sleep(0.2) or x, range(20))
        assert client.gather(results, timeout=PATIENCE) == list(range(20))
        del results
        wait_until(lambda: not cluster.workers and not queue.groups(), PATIENCE)
        assert 1 <= len(cluster.jobs()) <= 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"security": True}, "leave security out"),
        ({"dashboard_address": ":8787"}, "no dashboard"),
        ({"scheduler_options": {"token": b"x"}}, "token cannot be among scheduler_options"),
        ({"protocol": "tls"}, "tls"),
        ({"name": "a/b"}, "cannot be the name"),
        ({"log_directory": "/dev/null/logs"}, "cannot make the folder /dev/null/logs"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(queue, options, words):
    with pytest.raises(ConfigError, match=words):
        QueueCluster(queue, **options)


def test_a_state_that_could_not_be_written_is_written_later(queue, monkeypatch):
    def refuses(folder, state):
        refused.append(state.jobs)
        raise OSError(28, "No space left on device", f"x-{len(refused)}")

    refused, warnings = [], []
    monkeypatch.setattr("hpcdask.jobqueue.state_writer._WRITE_AGAIN", 0.01)
    monkeypatch.setattr(keeper.log, "warning", lambda *words: warnings.append(words[-1]))
    (queue.folder / "hold").write_text("Priority")
    with QueueCluster(queue) as cluster:
        folder = ClusterFolder(Path(cluster.scheduler_file).parent)
        with monkeypatch.context() as patch:
            patch.setattr(ClusterFolder, "write_state", refuses)
            cluster.scale(1)
            wait_until(lambda: refused[-3:] == [("1_1",)] * 3, PATIENCE)
        wait_until(lambda: folder.read_state().jobs == ("1_1",), PATIENCE)
    assert warnings == ["No space left on device"]


def test_a_folder_with_a_blank_is_refused_before_a_job_is_wanted(queue, tmp_path):
    with pytest.raises(ConfigError, match=r"has a blank in it; choose another log_directory"):
        SLURMCluster(cores=1, memory="1GB", shared_temp_directory=tmp_path / "a b")


def test_a_submission_without_an_answer_is_found_by_its_workers(queue):
    (queue.folder / "mute").touch()
    waits = f"while [[ -e {queue.folder}/mute ]]; do sleep 0.05; done"
    with QueueCluster(queue, job_script_prologue=[waits]) as cluster:
        with pytest.raises(SubmitError, match="may be in the queue nevertheless"):
            cluster.scale(2)
        with pytest.raises(WaitTimeoutError, match="jobs: none, and 2 being submitted"):
            cluster.wait_for_workers(9, timeout=0)
        (queue.folder / "mute").unlink()
        cluster.wait_for_workers(2, timeout=PATIENCE)
        wait_until(lambda: sorted(cluster.workers) == ["1_1", "1_2"], PATIENCE)
        assert len(queue.commands("submit")) == 1


def test_an_interface_that_only_compute_nodes_have_is_no_end(queue):
    with pytest.raises(InterfaceNotFoundError, match=r"only compute nodes have it, .* another one"):
        QueueCluster(queue, host=None, interface="nope0")
    own = {"interface": "lo"}
    with QueueCluster(queue, host=None, interface="nope0", scheduler_options=own) as cluster:
        assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
        assert "--interface nope0" in cluster.job_script()


def test_a_second_cluster_of_a_name_is_refused_and_leaves_the_first_alone(queue):
    (queue.folder / "hold").write_text("Priority")
    with QueueCluster(queue, n_workers=1, name="mine") as cluster:
        with pytest.raises(ConfigError, match="there is a cluster mine already"):
            QueueCluster(queue, name="mine")
        assert Path(cluster.scheduler_file).exists()
        assert ClusterFolder(Path(cluster.scheduler_file).parent).read_state().name == "mine"
