"""``mpirun -np N hpc-dask ...``, with a real mpirun."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from hpcdask import Client, host

MPIRUN = shlex.split(os.environ.get("MPIRUN", "mpirun --map-by :OVERSUBSCRIBE --bind-to none"))
MPIRUN[0] = shutil.which(MPIRUN[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
#: Seconds after which all ranks must be gone, when asked and when one was killed.
PROMPT, AFTER_A_CRASH = 5.0, 10.0

pytestmark = [
    pytest.mark.skipif(MPIRUN[0] is None, reason="no mpirun here: pip install 'hpcdask[mpi]'"),
    pytest.mark.usefixtures("mpi4py"),
]


@pytest.fixture(scope="module")
def mpi4py():
    # Not imported: that would make this very process a rank.
    if not any((Path(folder) / "mpi4py").is_dir() for folder in sys.path):
        pytest.skip("no mpi4py here: pip install 'hpcdask[mpi]'")


def mpirun(home, np, *words, **env):
    return home.run(*MPIRUN, "-np", str(np), "hpc-dask", *words, **ROOT, **env)


def ours(command):
    """Its lines on stderr without those that mpirun itself adds about exit codes and signals."""
    text = re.sub(r"(?ms)^-{50,}$.*?^-{50,}$\n?", "", command.err)
    return [line for line in text.splitlines() if line.strip()]


class Cluster:
    """A cluster of ranks that stays up, and a client of it in a second terminal."""

    def __init__(self, home, np, *options):
        self.file = home.folder / "scheduler.json"
        self.command = mpirun(home, np, "--scheduler-file", self.file, *options)
        self.nworkers = max(np - 1, 1)
        wait_until(self.file.exists, 30, f"scheduler file of {self.command}")
        self.contact = json.loads(self.file.read_text())
        self.client = Client(scheduler_file=self.file, set_as_default=False, timeout=30)
        self.client.wait_for_workers(self.nworkers, timeout=30)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.client.close()

    def workers(self):
        return list(self.client.scheduler_info()["workers"].values())

    def ranks(self):
        """Processes of the ranks, rank 0 first."""
        found = {}
        for process in self.command.processes():
            if "hpc-dask" in " ".join(process.cmdline()[:2]):
                found[int(process.environ()["OMPI_COMM_WORLD_RANK"])] = process
        return [found[rank] for rank in sorted(found)]


@pytest.fixture
def cluster(home):
    with Cluster(home, 3) as cluster:
        yield cluster


# -- A script as the client -----------------------------------------------------------------------

SUM = """\
import os, sys
from hpcdask import Client

def square(x):
    return x * x

if __name__ == "__main__":
    with Client() as client:
        client.wait_for_workers(int(sys.argv[1]), timeout=30)
        print(sum(client.gather(client.map(square, range(100)))), len(client.nthreads()))
    print(sys.argv[2:])
"""


@pytest.mark.parametrize(("np", "nworkers"), [(1, 1), (2, 1), (4, 3)])
def test_a_script_computes_on_all_worker_ranks_and_its_output_is_all_there_is(home, np, nworkers):
    home.file("sum.py", SUM)
    command = mpirun(home, np, "run", "sum.py", str(nworkers), "--name", "x y", "-h")
    assert command.code() == 0
    assert command.out.splitlines() == [f"328350 {nworkers}", "['--name', 'x y', '-h']"]
    assert command.err == ""
    command.all_gone(1)
    assert home.left_in_scratch() == []


@pytest.mark.parametrize("np", [1, 3])
@pytest.mark.parametrize(
    ("script", "code", "err"),
    [
        ("raise SystemExit(3)", 3, []),
        ("import os, signal; os.kill(os.getpid(), signal.SIGUSR1)", 128 + signal.SIGUSR1, []),
        ("raise ValueError('boom')", 1, ["ValueError: boom"]),
        # Before a single worker has come.
        ("pass", 0, []),
    ],
)
def test_the_exit_code_is_that_of_the_script(home, np, script, code, err):
    home.file("script.py", script)
    command = mpirun(home, np, "run", "script.py")
    assert command.code(10) == code
    assert ours(command)[-1:] == err
    assert command.out == ""
    command.all_gone(PROMPT)
    assert home.left_in_scratch() == []


def test_modules_beside_the_script_can_be_imported_by_tasks(home):
    (home.folder / "project").mkdir()
    home.file("project/helpers.py", "def double(x):\n    return 2 * x\n")
    home.file(
        "project/script.py",
        "import os\nfrom hpcdask import Client\nfrom helpers import double\n"
        "if __name__ == '__main__':\n"
        "    os.chdir('/')\n"
        "    print(Client().submit(double, 21).result())\n",
    )
    command = mpirun(home, 2, "run", "--scheduler-file", "s.json", "project/script.py")
    assert command.code() == 0
    assert command.out == "42\n"
    assert not (home.folder / "s.json").exists()


def test_a_script_may_shut_the_cluster_down_and_go_on(home):
    home.file(
        "script.py",
        "from hpcdask import Client\nimport sys, time\n"
        "client = Client()\nclient.shutdown()\n"
        "time.sleep(0.5)\nprint('went on')\nsys.exit(5)\n",
    )
    command = mpirun(home, 2, "run", "script.py")
    assert command.code() == 5
    assert command.out == "went on\n"
    assert ours(command) == []


def test_a_script_that_is_missing_ends_all_ranks_with_one_line(home):
    command = mpirun(home, 3, "run", "missing.py")
    assert command.code() == 1
    assert ours(command) == ["hpc-dask: there is no script 'missing.py' to run"]
    command.all_gone(PROMPT)


STUBBORN = """\
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
from hpcdask import Client
client = Client()
future = client.submit(time.sleep, 36000)
print("runs", flush=True)
while True:
    time.sleep(1000)
"""


@pytest.mark.parametrize("np", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_mpirun_ends_even_a_script_that_ignores_it(home, np, number):
    home.file("script.py", STUBBORN)
    command = mpirun(home, np, "run", "script.py")
    command.line("runs")
    assert command.end(number, AFTER_A_CRASH) != 0
    command.all_gone(AFTER_A_CRASH)
    if (
        number == signal.SIGKILL
    ):  # else mpirun kills the ranks, as a rule after they have cleaned up
        assert [path for path in home.left_in_scratch() if "hpc" in path] == []
    else:
        assert "Traceback" not in command.err


def test_a_signal_to_rank_0_ends_the_script_and_the_job(home):
    home.file("script.py", STUBBORN)
    command = mpirun(home, 2, "run", "script.py")
    command.line("runs")
    [rank0] = [
        p
        for p in command.processes()
        if "hpc-dask" in " ".join(p.cmdline()[:2]) and p.environ()["OMPI_COMM_WORLD_RANK"] == "0"
    ]
    rank0.terminate()
    assert command.code(AFTER_A_CRASH) == 128 + signal.SIGKILL
    command.all_gone(AFTER_A_CRASH)
    assert home.left_in_scratch() == []


JOB_SCRIPT = Path(__file__).resolve().parents[2] / "jobscripts/slurm-mpi.sbatch"


@pytest.mark.skipif(
    not (Path(sys.prefix) / "bin/activate").exists(), reason="this Python is in no environment"
)
def test_the_job_script_runs_as_it_stands(home):
    home.file("sum.py", SUM)
    command = home.run("bash", JOB_SCRIPT, "sum.py", "1", "x", HPCDASK_VENV=sys.prefix, **ROOT)
    assert command.code() == 0
    assert command.out.startswith("328350 ")
    assert command.out.endswith("\n['x']\n")


def test_the_job_script_without_a_script_says_how_it_is_used(home):
    command = home.run("bash", JOB_SCRIPT)
    assert command.code() == 2
    assert command.err == "usage: sbatch slurm-mpi.sbatch script.py [arguments]\n"


# -- A cluster for clients elsewhere --------------------------------------------------------------


@pytest.mark.parametrize("np", [1, 2, 4])
def test_a_client_elsewhere_computes_and_its_shutdown_ends_every_rank_with_0(home, np):
    with Cluster(home, np) as cluster:
        assert sum(cluster.client.gather(cluster.client.map(abs, range(-50, 50)))) == 2500
        assert len(cluster.workers()) == cluster.nworkers
        cluster.client.shutdown()
        assert cluster.command.code(PROMPT) == 0
    cluster.command.all_gone(1)
    assert "Traceback" not in cluster.command.err
    assert not cluster.file.exists()
    assert home.left_in_scratch() == []


def test_workers_know_nothing_of_mpi_and_share_the_host(cluster):
    infos = cluster.workers()
    assert {info["name"] for info in infos} == {"rank-1", "rank-2"}
    nthreads = max(1, host.cpu_count() // 2)
    assert {info["nthreads"] for info in infos} == {nthreads}
    assert sum(info["memory_limit"] for info in infos) <= host.memory_limit()
    environs = cluster.client.run(lambda: __import__("os").environ.copy())
    for environ in environs.values():
        assert [k for k in environ if k.startswith(("OMPI_", "PMIX_", "PMI_", "PRTE"))] == []
        assert environ["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", str(nthreads))


def test_the_token_is_in_no_command_line_and_no_environment(cluster):
    token = cluster.contact["token"]
    assert len(token) == 64
    processes = cluster.command.processes()
    assert len(processes) >= 6  # mpirun, three ranks, two workers
    for process in processes:
        for name in ("cmdline", "environ"):
            with open(f"/proc/{process.pid}/{name}", "rb") as file:
                assert token not in file.read().decode(errors="replace")
    cluster.client.shutdown()
    assert cluster.command.code(PROMPT) == 0
    assert token not in cluster.command.err + cluster.command.out


def test_idle_ranks_use_no_cpu(cluster):
    """Ranks that waited in MPI would use a core each."""
    ranks = cluster.ranks()
    assert len(ranks) == 3
    before = [sum(p.cpu_times()[:2]) for p in ranks]
    threading.Event().wait(2)  # the length of the measurement
    shares = [(sum(p.cpu_times()[:2]) - b) / 2 for p, b in zip(ranks, before, strict=True)]
    assert max(shares) < 0.05, shares


def test_a_killed_worker_is_replaced_and_the_results_are_right(cluster):
    client = cluster.client
    futures = client.map(lambda x: (__import__("time").sleep(0.02), x)[1], range(200))
    wait_until(lambda: any(f.done() for f in futures), 20)
    victim = cluster.workers()[0]["pid"]
    psutil.Process(victim).kill()
    assert client.gather(futures) == list(range(200))
    wait_until(
        lambda: len(w := cluster.workers()) == 2 and victim not in {i["pid"] for i in w},
        30,
        "another worker in place of the killed one",
    )
    assert cluster.command.process.poll() is None
    client.shutdown()
    assert cluster.command.code(PROMPT) == 0


def test_workers_have_the_resources_and_lifetimes_asked_for(home):
    options = ("--resources", "GPU=1", "--lifetime", "1s", "--lifetime-restart")
    with Cluster(home, 2, *options) as cluster:
        first = cluster.workers()[0]["pid"]
        [resources] = cluster.client.run(lambda dask_worker: dask_worker.resources).values()
        assert resources == {"GPU": 1}
        wait_until(lambda: [w for w in cluster.workers() if w["pid"] != first], 30)
        cluster.client.shutdown()
        assert cluster.command.code(PROMPT) == 0


@pytest.mark.parametrize("rank", [0, 1], ids=["scheduler", "nanny"])
def test_when_a_rank_is_killed_everything_ends(cluster, rank):
    cluster.ranks()[rank].kill()
    assert cluster.command.code(AFTER_A_CRASH) != 0
    cluster.command.all_gone(AFTER_A_CRASH)
    assert "Traceback" not in cluster.command.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_mpirun_ends_every_rank(home, cluster, number):
    cluster.command.end(number, AFTER_A_CRASH)
    cluster.command.all_gone(AFTER_A_CRASH)
    assert "Traceback" not in cluster.command.err
    assert not cluster.file.exists()
    if (
        number == signal.SIGKILL
    ):  # else mpirun kills the ranks, as a rule after they have cleaned up
        assert [path for path in home.left_in_scratch() if "hpc" in path] == []


def test_mpi_can_be_imported_in_a_task(cluster):
    code = "__import__('mpi4py.MPI').MPI.COMM_WORLD.Get_size()"
    sizes = cluster.client.run(eval, code)
    assert list(sizes.values()) == [1, 1], "a worker is no rank of the job"
    assert cluster.client.submit(pow, 2, 3).result(timeout=20) == 8
    cluster.client.shutdown()
    assert cluster.command.code(PROMPT) == 0


# -- What cannot work -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--scheduler-port PORT", "it is in use; choose another"),
        ("--interface nope0", "no network interface 'nope0'"),
        ("--scheduler-file missing/s.json", "the folder missing does not exist"),
        ("--token-file missing", "there is no token file missing"),
        ("run --scheduler-file missing/s.json script.py", "/missing does not exist"),
    ],
)
def test_an_error_on_rank_0_ends_all_ranks_with_one_line(home, options, expected):
    home.file("script.py", "pass\n")
    with socket.create_server(("", 0)) as taken:
        words = options.replace("PORT", str(taken.getsockname()[1])).split()
        command = mpirun(home, 3, *words)
        assert command.code() == 1
    assert len(ours(command)) == 1, ours(command)
    assert ours(command)[0].startswith("hpc-dask: ")
    assert expected in ours(command)[0]
    command.all_gone(PROMPT)
    assert home.left_in_scratch() == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--worker-ttl soon", "'soon' is not a duration"),
        ("--lifetime soon", "'soon' is not a duration"),
        ("--drain-timeout soon", "'soon' is not a duration"),
        ("--lifetime-restart", "lifetime-restart means nothing without a lifetime"),
        ("--resources GPU", "'GPU' is no resource"),
        ("--memory-limit lots", "'lots' is not a size"),
    ],
)
def test_an_option_with_a_wrong_value_ends_all_ranks_with_one_line(home, options, expected):
    command = mpirun(home, 3, *options.split())
    assert command.code() == 2
    assert len(ours(command)) == 1, ours(command)
    assert ours(command)[0].startswith("hpc-dask: ")
    assert expected in ours(command)[0]
    command.all_gone(PROMPT)


def test_an_option_that_belongs_behind_the_command_is_pointed_out(home):
    command = home.hpc_dask("--nthreads", "2", "run", "script.py")
    assert command.code() == 2
    assert "put --nthreads behind 'run'" in command.err
