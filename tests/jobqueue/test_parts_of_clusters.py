"""Clusters of jobs in parts: commands, the folder, tables, and whose line a refusal is."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from waiting import on_a_loop

from hpcdask.errors import ConfigError, RendezvousError, StatusError, TokenError
from hpcdask.jobqueue.commands import Commands, NoCommandError, environment
from hpcdask.jobqueue.folder import ClusterFolder, ClusterState, Owner, PoolState, cluster_folders
from hpcdask.jobqueue.pacing import next_look
from hpcdask.jobqueue.pbs import PBS
from hpcdask.jobqueue.queue import Queue
from hpcdask.jobqueue.refusal import offending_line
from hpcdask.jobqueue.sge import GridEngine
from hpcdask.jobqueue.slurm import Slurm
from hpcdask.jobqueue.status import Answer, End, Phase
from hpcdask.jobqueue.table import JobRow, JobTable, summary

# -- Commands -------------------------------------------------------------------------------------

PYTHON = sys.executable


def run(*command: str, timeout: float = 30.0, **environ: str):
    return Commands(timeout=timeout, environ={**os.environ, **environ}).run(command)


@on_a_loop
async def test_a_command_answers_with_its_code_and_both_outputs():
    words = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert await run(PYTHON, "-c", words) == (3, "out\n", "err\n")


@on_a_loop
async def test_words_of_a_command_go_through_no_shell():
    words = "$(id) ; `id` * 'x"
    assert await run("echo", words) == (0, f"{words}\n", "")


@on_a_loop
async def test_a_command_that_is_not_here_has_done_nothing():
    with pytest.raises(NoCommandError, match=r"cannot run no-such-command: No such file.*PATH"):
        await run("no-such-command")


@on_a_loop
async def test_a_command_that_takes_too_long_is_ended_with_all_that_it_has_started(tmp_path):
    with pytest.raises(StatusError, match=r"bash gave no answer within 0\.5 s"):
        await run("bash", "-c", f"sleep 600 & echo $! >{tmp_path}/pid; wait", timeout=0.5)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if "zombie" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@on_a_loop
async def test_what_a_command_leaves_behind_does_not_hold_up_its_answer():
    begun = time.monotonic()
    code, out, _ = await run("bash", "-c", "sleep 30 & echo $!")
    os.kill(int(out), signal.SIGKILL)
    assert code == 0
    assert time.monotonic() - begun < 20


@on_a_loop
async def test_a_command_that_does_not_even_die_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("hpcdask.jobqueue.commands._DYING", 0.1)
    spared: list[int] = []  # as a process that waits for a file server is
    monkeypatch.setattr(os, "killpg", lambda group, signal: spared.append(group))
    with pytest.raises(StatusError, match=r"sleep gave no answer within 0\.1 s"):
        await asyncio.wait_for(run("sleep", "600", timeout=0.1), 30)
    os.kill(spared[0], signal.SIGKILL)


@on_a_loop
async def test_without_a_file_for_its_answer_a_command_is_not_run(monkeypatch, tmp_path):
    def refuses():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    with pytest.raises(NoCommandError, match=r"cannot run touch: .*Too many open files.*TMPDIR"):
        await run("touch", f"{tmp_path}/it")
    assert not (tmp_path / "it").exists()


def test_commands_get_no_secret_and_nothing_of_our_own_launch():
    ours = {
        "HOME": "/home/me",
        "HPCDASK_TOKEN": "s",
        "HPCDASK_TOKEN_FILE": "f",
        "OMPI_COMM_WORLD_RANK": "1",
        "PMIX_RANK": "1",
        "SLURM_MEM_PER_CPU": "100",
        "SLURM_JOB_ID": "3",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "physics",
        "SQUEUE_PARTITION": "short",
        "LC_ALL": "de_DE.UTF-8",
    }
    of_jobs = {"HOME", "SLURM_CONF", "SBATCH_ACCOUNT", "SQUEUE_PARTITION", "LC_ALL"}
    assert environment(ours, submits=True).keys() == of_jobs
    asks = environment(ours, submits=False)
    assert asks.keys() == of_jobs - {"SQUEUE_PARTITION"}
    assert asks["LC_ALL"] == "C"


# -- The folder -----------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders of clusters are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/hpcdask/clusters"


def state(name: str, owner: Owner | None = None) -> ClusterState:
    return ClusterState(
        name=name,
        system="slurm",
        owner=owner or Owner.here(),
        started=1.5,
        scheduler_file="/home/me/s.json",
        pools={"workers": PoolState(3, ("5_1", "5_2"), ("4",))},
    )


def gone() -> Owner:
    here = Owner.here()
    return Owner(here.host, here.pid, here.started - 1000)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_folder_is_closed_to_others_whatever_the_umask(base):
    before = os.umask(0)
    try:
        folder = ClusterFolder.create("mine")
        folder.write_state(state("mine"))
        script = folder.write_script("job.sh", "#!/bin/bash\n")
    finally:
        os.umask(before)
    assert folder.path == base / "mine"
    assert mode(folder.path) == mode(base) == 0o700
    assert mode(folder.state_file) == mode(script) == 0o600


def test_a_state_is_read_as_it_was_written(base):
    folder = ClusterFolder.create("mine")
    folder.write_state(state("mine"))
    read = folder.read_state()
    assert read == state("mine")
    assert read.jobs == ("5_1", "5_2", "4")
    assert read.owner.has_ended() is False
    assert gone().has_ended() is True
    assert Owner("elsewhere", 1, 0.0).has_ended() is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 1}', '{"version": 2}', '{"version": "x", "name": 1}'],
)
def test_what_is_no_state_is_refused(base, text):
    folder = ClusterFolder.create("mine")
    folder.write_script("state.json", text)
    with pytest.raises(RendezvousError):
        folder.read_state()


def test_a_state_that_others_can_write_is_not_believed(base):
    folder = ClusterFolder.create("mine")
    folder.write_state(state("mine"))
    folder.state_file.chmod(0o666)
    with pytest.raises(TokenError):
        folder.read_state()


def test_a_name_in_use_is_refused_and_one_left_behind_tells_how_to_clean_up(base):
    folder = ClusterFolder.create("mine")
    folder.write_state(state("mine"))
    with pytest.raises(ConfigError, match="there is a cluster mine already"):
        ClusterFolder.create("mine")
    folder.write_state(state("mine", gone()))
    with pytest.raises(ConfigError, match="hpc-dask clean mine"):
        ClusterFolder.create("mine")
    folder.clear()
    ClusterFolder.create("mine")


def test_of_two_clusters_that_begin_at_once_one_gets_the_name(base):
    first, second = ClusterFolder.create("mine"), ClusterFolder.create("mine")
    first.write_first_state(state("mine"))
    with pytest.raises(ConfigError, match="there is a cluster mine already"):
        second.write_first_state(state("mine", Owner("elsewhere", 1, 0.0)))
    assert first.read_state() == state("mine")
    assert [path.name for path in first.path.iterdir()] == ["state.json"]


def test_a_folder_that_is_full_is_told_with_what_to_do(base, monkeypatch):
    def refuses(*args):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    folder = ClusterFolder.create("mine")
    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(ConfigError, match=r"state\.json: Disk quota exceeded.* shared_temp_dir"):
        folder.write_first_state(state("mine"))
    assert list(folder.path.iterdir()) == []


def test_a_folder_that_others_see_into_is_not_used(base):
    ClusterFolder.create("mine").path.chmod(0o755)
    with pytest.raises(ConfigError, match="open to other users"):
        ClusterFolder.create("mine")


def test_a_link_in_place_of_the_folder_is_not_followed(base, tmp_path):
    ClusterFolder.create("mine")
    (base / "other").symlink_to(base / "mine")
    with pytest.raises(ConfigError, match="no folder of yours"):
        ClusterFolder.create("other")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-x", ".hidden", "a\nb"])
def test_a_name_that_is_no_name_of_a_folder_is_refused(base, name):
    with pytest.raises(ConfigError, match="cannot be the name"):
        ClusterFolder.create(name)


def test_clearing_leaves_logs_and_nothing_else(base):
    folder = ClusterFolder.create("mine")
    folder.write_state(state("mine"))
    folder.write_script("job.sh", "")
    (folder.path / "logs").mkdir()
    (folder.path / "logs/hpcdask-5.log").touch()
    folder.clear(keep_state=True)
    assert sorted(p.name for p in folder.path.iterdir()) == ["logs", "state.json"]
    folder.clear()
    assert [p.name for p in folder.path.rglob("*")] == ["logs", "hpcdask-5.log"]
    (folder.path / "logs/hpcdask-5.log").unlink()
    folder.clear()
    assert not folder.path.exists()


def test_a_folder_elsewhere_is_found_by_its_name_too(base, tmp_path):
    folder = ClusterFolder.create("mine", tmp_path / "shared")
    assert folder.path == tmp_path / "shared/mine"
    folder.write_state(state("mine"))
    ClusterFolder.create("without-state")
    assert [found.read_state().name for found in cluster_folders()] == ["mine"]
    folder.clear()
    assert list(cluster_folders()) == []
    assert not (base / "mine").is_symlink()


# -- When to look at the queue --------------------------------------------------------------------


def test_the_queue_is_looked_at_often_after_something_happened_and_seldom_later():
    assert next_look(0.0, False, 2.0) == 2.0
    assert next_look(100.0, False, 2.0) == 5.0
    assert next_look(3600.0, False, 2.0) == 30.0
    assert next_look(0.0, True, 2.0) == 30.0
    assert next_look(0.0, True, 60.0) == next_look(0.0, False, 60.0) == 60.0


# -- Submissions without an answer -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "stranger", "array"),
    [
        (Slurm(), "7_2", {"7_1", "7_2", "7_3"}),
        (PBS(), "7[2]", {"7[1]", "7[2]", "7[3]"}),
        (GridEngine(), "7.2", {"7.1", "7.2", "7.3"}),
    ],
)
@on_a_loop
async def test_a_worker_of_one_job_tells_of_the_whole_array(base, system, stranger, array):
    queue = Queue(system, Commands(), ClusterFolder.create("mine"))
    assert await queue.find("workers-1", 3, [stranger]) == array


@on_a_loop
async def test_a_worker_that_somebody_has_started_by_hand_is_of_no_submission(base):
    queue = Queue(PBS(), Commands(), ClusterFolder.create("mine"))
    for name in ("big", "node1-4711", "7", "7[4]", ""):
        assert await queue.find("workers-1", 3, [name]) == set()


class Says:
    """In place of commands: one answer to whatever is asked."""

    def __init__(self, out: str) -> None:
        self._answer = Answer(0, out, "")

    async def run(self, command, submits=False):
        return self._answer


@on_a_loop
async def test_an_array_that_was_cancelled_before_it_began_has_ended_job_by_job(base):
    # As squeue of Slurm 22.05 prints it after `scancel 1`.
    widths = (40, 20, 12, 14, 20, 20, 200, 40)
    names = ("JOBID", "STATE", "EXIT_CODE", "RESTART_COUNT", "TIME", "TIME_LEFT", "REASON", "NODE")
    whole = ("1", "CANCELLED", "0", "0", "0:00", "30:00", "None", "")
    other = ("2_1", "PENDING", "0", "0", "0:00", "30:00", "Resources", "")
    rows = (zip(row, widths, strict=True) for row in (names, whole, other))
    listing = "".join("".join(word.ljust(width) for word, width in row) + "\n" for row in rows)
    queue = Queue(Slurm(), Says(listing), ClusterFolder.create("mine"))
    found = await queue.listing(["1_1", "1_2", "2_1", "2_2", "3"])
    assert {found[id].end for id in ("1_1", "1_2")} == {End.CANCELLED}
    assert found["1_2"].id == "1_2"
    assert found["2_1"].phase is Phase.PENDING
    assert found.keys().isdisjoint({"2_2", "3"}), "nothing is known of these"


# -- Refusals -------------------------------------------------------------------------------------

SLURM = """\
#!/bin/bash
#SBATCH --job-name=hpcdask
#SBATCH --nodes=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=999G
#SBATCH --time=01:00:00
#SBATCH --partition=nope
#SBATCH --account=physics
#SBATCH --qos=high
#SBATCH --gres=gpu:9
#SBATCH --frobnicate
"""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("sbatch: error: invalid partition specified: nope", "--partition=nope"),
        ("sbatch: error: Memory specification can not be satisfied", "--mem=999G"),
        ("sbatch: error: Invalid qos specification", "--qos=high"),
        ("sbatch: error: Invalid generic resource (gres) specification", "--gres=gpu:9"),
        ("sbatch: unrecognized option '--frobnicate'", "--frobnicate"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "--time=01:00:00"),
        ("Requested node configuration is not available", "--nodes=1"),
        ("Slurm backup controller in standby mode", ""),
    ],
)
def test_a_refusal_of_slurm_names_its_line(words, line):
    assert offending_line(SLURM, "#SBATCH", words) == (line and f"#SBATCH {line}")


SGE = """\
#$ -S /bin/bash
#$ -N hpcdask
#$ -pe nope 4
#$ -l h_rt=01:00:00
#$ -l nonsense=1
#$ -q nope.q
"""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ('Job was rejected because job requests unknown queue "nope.q".', "-q nope.q"),
        ('Unable to run job: unknown resource "nonsense".', "-l nonsense=1"),
        ('the requested parallel environment "nope" does not exist', "-pe nope 4"),
    ],
)
def test_a_refusal_of_grid_engine_names_its_line(words, line):
    assert offending_line(SGE, "#$", words) == f"#$ {line}"


# -- Tables ---------------------------------------------------------------------------------------


def a_row(id: str, **other: object) -> JobRow:
    known = {
        "pool": "workers",
        "state": "running",
        "reason": "",
        "node": "node1",
        "elapsed": 61.4,
        "left": 3600.0,
        "workers": 1,
        "n_workers": 2,
        "log": "/logs/5.log",
        "is_live": True,
    }
    return JobRow(id=id, **{**known, **other})


PENDING = {"state": "pending", "reason": "Resources", "node": "", "elapsed": None, "left": None}


def test_a_table_shows_a_line_for_each_job():
    table = JobTable([a_row("5_1"), a_row("5_2", **PENDING, workers=0)])
    assert repr(table).splitlines() == [
        "id   state    node   elapsed   left      workers  reason     log",
        "5_1  running  node1  00:01:01  01:00:00  1/2                 /logs/5.log",
        "5_2  pending                             0/2      Resources  /logs/5.log",
    ]
    assert repr(JobTable()) == "no jobs"


def test_a_table_names_pools_where_there_are_several_and_cuts_long_reasons():
    lines = repr(JobTable([a_row("5", reason="x" * 60), a_row("6", pool="gpu")])).splitlines()
    assert lines[0].split()[:2] == ["id", "pool"]
    assert f" {'x' * 39}\N{HORIZONTAL ELLIPSIS} " in lines[1]


def test_a_table_in_a_notebook_shows_a_systems_words_and_runs_none_of_them():
    html = JobTable([a_row("5", reason="<script>alert('x')</script>", log="/a&b")])._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;alert" in html
    assert "/a&amp;b" in html


def test_jobs_are_summed_up_by_state_and_reason():
    pending = {"state": "pending", "workers": 0}
    rows = [
        a_row("1"),
        a_row("2"),
        a_row("3", **pending, reason="Priority"),
        a_row("4", **pending, reason="Resources"),
    ]
    assert summary(rows) == "2 running, 2 pending (Priority; Resources)"
