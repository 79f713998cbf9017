"""``mpirun -np N hpc-dask ...``, with a real mpirun."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading

import psutil
import pytest
from commands import Home
from mpiruns import AFTER_A_CRASH, MPICH, OPEN_MPI, PROMPT, ROOT, mpirun, needs_mpi, ours
from waiting import wait_until

from hpcdask import Client, host

pytestmark = needs_mpi


def hpc_dask(home, np, *words, **env):
    return mpirun(home, np, "hpc-dask", *words, **env)


class Cluster:
    """A cluster of ranks that stays up, and a client of it in a second terminal."""

    def __init__(self, home, np, *options, nworkers=None):
        self.file = home.folder / "scheduler.json"
        self.command = hpc_dask(home, np, "--scheduler-file", self.file, *options)
        self.nworkers = nworkers or max(np - 1, 1)
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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One of three ranks, for tests that look at it, or that leave it as it was."""
    home = Home(tmp_path_factory.mktemp("cluster") / "home")
    with Cluster(home, 3) as cluster:
        yield cluster
        token, command = cluster.contact["token"], cluster.command
        cluster.client.shutdown()
        assert command.code(PROMPT) == 0
        assert token not in command.err + command.out
        command.all_gone(PROMPT)


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
    command = hpc_dask(home, np, "run", "sum.py", str(nworkers), "--name", "x y", "-h")
    assert command.code() == 0
    assert command.out.splitlines() == [f"328350 {nworkers}", "['--name', 'x y', '-h']"]
    assert command.err == ""
    command.all_gone(1)
    assert home.left_in_scratch() == []


@pytest.mark.parametrize(
    ("np", "script", "code", "err"),
    [
        (1, "raise ValueError('boom')", 1, ["ValueError: boom"]),
        # Before a single worker has come.
        (1, "pass", 0, []),
        (4, "pass", 0, []),
    ],
)
def test_a_script_without_a_client_ends_as_it_does(home, np, script, code, err):
    home.file("script.py", script)
    command = hpc_dask(home, np, "run", "script.py")
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
    command = hpc_dask(home, 2, "run", "--scheduler-file", "s.json", "project/script.py")
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
    command = hpc_dask(home, 2, "run", "script.py")
    assert command.code() == 5
    assert command.out == "went on\n"
    assert ours(command) == []


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


def test_a_signal_to_the_mpirun_of_one_rank_ends_even_a_script_that_ignores_it(home):
    home.file("script.py", STUBBORN)
    command = hpc_dask(home, 1, "run", "script.py")
    command.line("runs")
    assert command.end(signal.SIGTERM, AFTER_A_CRASH) != 0
    command.all_gone(AFTER_A_CRASH)
    assert "Traceback" not in command.err


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


def test_workers_may_be_let_in_without_being_dialled(home):
    with Cluster(home, 2, "--no-dial-back") as cluster:
        dials = cluster.client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.dial_back)
        cluster.client.shutdown()
    assert dials is False


def test_the_token_is_in_no_command_line_and_no_environment(cluster):
    token = cluster.contact["token"]
    assert len(token) == 64
    processes = cluster.command.processes()
    assert len(processes) >= 6  # mpirun, three ranks, two workers
    for process in processes:
        for name in ("cmdline", "environ"):
            with open(f"/proc/{process.pid}/{name}", "rb") as file:
                assert token not in file.read().decode(errors="replace")


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


def test_workers_have_the_resources_and_lifetimes_asked_for(home):
    options = ("--resources", "GPU=1", "--lifetime", "1s", "--lifetime-restart")
    with Cluster(home, 2, *options) as cluster:
        first = cluster.workers()[0]["pid"]
        [resources] = cluster.client.run(lambda dask_worker: dask_worker.resources).values()
        assert resources == {"GPU": 1}
        wait_until(lambda: [w for w in cluster.workers() if w["pid"] != first], 30)
        cluster.client.shutdown()
        assert cluster.command.code(PROMPT) == 0


def test_mpi_can_be_imported_in_a_task(cluster):
    code = "__import__('mpi4py.MPI').MPI.COMM_WORLD.Get_size()"
    sizes = cluster.client.run(eval, code)
    assert list(sizes.values()) == [1, 1], "a worker is no rank of the job"
    assert cluster.client.submit(pow, 2, 3).result(timeout=20) == 8


# -- Other shapes ---------------------------------------------------------------------------------


def test_a_dry_run_shows_what_each_rank_would_be_and_starts_nothing(home):
    words = ("--dry-run", "--nworkers", "2", "--scheduler-rank", "1", "--nthreads", "3")
    command = hpc_dask(home, 3, *words, "--memory-limit", "1 GiB")
    assert command.code() == 0
    assert command.out.startswith("started by Open MPI; the ranks meet by MPI (Open MPI ")
    _, titles, *rows = [line.split() for line in command.out.splitlines()]
    assert titles == ["RANK", "HOST", "ROLE", "ADDRESS", "INTERFACE", "CPUS", "MEMORY", "SCRATCH"]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [" ".join(row[2:4]) for row in rows[::2]] == ["2 workers"] * 2
    assert rows[1][2] == "scheduler"
    assert [" ".join(row[-8:-1]) for row in rows[::2]] == ["2 x 3 2 x 1.00 GiB"] * 2
    assert home.left_in_scratch() == []


def test_a_dry_run_fails_where_a_rank_could_not_do_its_part(home):
    command = hpc_dask(home, 2, "--dry-run", "--interface", "nope0", "--no-mpi")
    assert command.code() == 1
    assert re.findall(r"rank \d: no network interface 'nope0'", command.err) == [
        "rank 0: no network interface 'nope0'",
        "rank 1: no network interface 'nope0'",
    ]
    assert not list((home.folder / ".cache").rglob("ranks-*"))


def test_without_mpi_ranks_meet_through_files(home):
    home.file("sum.py", SUM)
    command = hpc_dask(home, 3, "run", "--no-mpi", "sum.py", "2")
    assert command.code() == 0
    assert command.out.splitlines()[0] == "328350 2"
    assert command.err == ""
    assert not list((home.folder / ".cache").rglob("ranks-*"))


@pytest.mark.skipif(MPICH is None, reason="no MPICH here: make test installs it into .venv/mpich")
def test_an_mpi_in_which_each_rank_is_alone_is_noticed_and_named(home):
    home.file("sum.py", SUM)
    # Its mpirun, and the other MPI: what 'srun' with the wrong --mpi gives as well.
    words = ("hpc-dask", "run", "sum.py", "2")
    command = MPICH.start(home, 3, *words, MPI4PY_MPIABI="openmpi", **ROOT)
    assert command.code() == 0
    assert command.out.splitlines()[0] == "328350 2"
    assert "MPICH has started 3 ranks, but each of them is rank 0 of 1 for MPI" in command.err
    assert "use the mpirun of the MPI that mpi4py is built with" in command.err


def test_more_ranks_join_a_cluster_that_runs_and_its_scheduler_ends_them(home):
    with Cluster(home, 2) as cluster:
        words = ("--no-scheduler", "--scheduler-file", cluster.file, "--name", "w")
        joined = hpc_dask(home, 2, *words)
        cluster.client.wait_for_workers(3, timeout=30)
        assert {info["name"] for info in cluster.workers()} == {"rank-1", "w-0", "w-1"}
        address = cluster.contact["address"]
        again = hpc_dask(home, 1, address, "--no-scheduler", HPCDASK_TOKEN=cluster.contact["token"])
        cluster.client.wait_for_workers(4, timeout=30)
        cluster.client.shutdown()
        assert [c.code(AFTER_A_CRASH) for c in (cluster.command, joined, again)] == [0, 0, 0]


def test_a_rank_may_have_several_workers_and_the_schedulers_one_too(home):
    with Cluster(home, 2, "--nworkers", "2", "--inclusive-workers", nworkers=4) as cluster:
        names = {info["name"] for info in cluster.workers()}
        assert names == {"rank-0-0", "rank-0-1", "rank-1-0", "rank-1-1"}
        assert sum(info["memory_limit"] for info in cluster.workers()) <= host.memory_limit()
        cluster.client.shutdown()
        assert cluster.command.code(PROMPT) == 0


MINE = """\
import hpcdask
class Mine(hpcdask.Worker):
    def __init__(self, *args, greeting="", **kwargs):
        super().__init__(*args, **kwargs)
        self.greeting = greeting
"""


@pytest.mark.parametrize("how", ["--nanny", "--no-nanny"])
def test_workers_may_be_of_a_class_of_ones_own(home, how):
    home.file("mine.py", MINE)
    words = ("--worker-class", "mine.Mine", "--worker-options", '{"greeting": "hi"}', how)
    with Cluster(home, 2, *words) as cluster:
        [told] = cluster.client.run(lambda dask_worker: dask_worker.greeting).values()
        [parent] = cluster.client.run(os.getppid).values()
        assert told == "hi"
        assert (parent in [rank.pid for rank in cluster.ranks()]) == (how == "--nanny")
        cluster.client.shutdown()
        assert cluster.command.code(PROMPT) == 0


def test_where_mpirun_lets_it_a_job_survives_the_loss_of_a_rank(home):
    home.file(
        "script.py",
        "import os, signal\nfrom hpcdask import Client\n"
        "client = Client()\nclient.wait_for_workers(2, timeout=30)\n"
        "os.kill(min(client.run(os.getppid).values()), signal.SIGKILL)\n"
        "while len(client.nthreads()) == 2:\n    client.submit(abs, 1).result()\n"
        "print(sum(client.gather(client.map(abs, range(10)))))\n",
    )
    argv = (*OPEN_MPI.argv, "--enable-recovery", "-np", "3", "hpc-dask", "run", "script.py")
    command = home.run(*argv, **ROOT)
    command.line("45")
    command.code(AFTER_A_CRASH)
    command.all_gone(PROMPT)


def test_all_that_listens_does_so_in_the_range_given(home):
    with Cluster(home, 2, "--port-range", "23450:23480") as cluster:
        [worker] = cluster.client.scheduler_info()["workers"]
        ports = [int(a.rpartition(":")[2]) for a in (worker, cluster.contact["address"])]
        assert all(23450 <= port <= 23480 for port in ports)
        cluster.client.shutdown()
        assert cluster.command.code(PROMPT) == 0


@pytest.mark.parametrize("name", ["sum.py", "program"])
def test_python_m_hpcdask_runs_a_script(home, name):
    home.file(name, SUM)
    command = mpirun(home, 2, "python", "-m", "hpcdask", name, "1", "x")
    assert command.code() == 0
    assert command.out.splitlines() == ["328350 1", "['x']"]


# -- What cannot work -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--scheduler-file missing/s.json", "/missing does not exist"),
        ("--token-file missing", "there is no token file missing"),
        ("run --scheduler-file missing/s.json script.py", "/missing does not exist"),
    ],
)
def test_an_error_on_rank_0_ends_all_ranks_with_one_line(home, options, expected):
    home.file("script.py", "pass\n")
    with socket.create_server(("", 0)) as taken:
        words = options.replace("PORT", str(taken.getsockname()[1])).split()
        command = hpc_dask(home, 3, *words)
        assert command.code() == 1
    assert len(ours(command)) == 1, ours(command)
    assert ours(command)[0].startswith("hpc-dask: ")
    assert expected in ours(command)[0]
    command.all_gone(PROMPT)
    assert home.left_in_scratch() == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--worker-options [1]", "is no JSON object"),
        ("--lifetime-restart", "lifetime-restart means nothing without a lifetime"),
        ("--bogus", "No such option"),
    ],
)
def test_an_option_with_a_wrong_value_ends_all_ranks_with_one_line(home, options, expected):
    command = hpc_dask(home, 3, *options.split())
    assert command.code() == 2
    assert command.err.count(expected) == 1
    command.all_gone(PROMPT)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--worker-ttl soon", "'soon' is not a duration"),
        ("--shutdown-timeout 0s", "'0s' is no time at all"),
        ("--resources GPU", "'GPU' is no resource"),
        ("--memory-limit lots", "'lots' is not a size"),
        ("--worker-class nope.Nope", "no worker class 'nope.Nope'"),
        ('--worker-options {"bogus":1}', "a Nanny has no option bogus"),
        ("--dashboard-address :8787", "this version has no dashboard"),
    ],
)
def test_an_option_with_a_wrong_value_is_named_by_a_rank_alone_too(home, options, expected):
    command = home.hpc_dask(*options.split())
    assert command.code() == 2
    assert command.err.count(expected) == 1
    assert len(command.err.splitlines()) == 1


def test_an_option_that_belongs_behind_the_command_is_pointed_out(home):
    command = home.hpc_dask("--nthreads", "2", "run", "script.py")
    assert command.code() == 2
    assert "put --nthreads behind 'run'" in command.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--no-scheduler",), "--no-scheduler needs SCHEDULER_ADDRESS or --scheduler-file"),
        (("--no-scheduler", "--worker-ttl", "3s", "h:1"), "--worker-ttl is the scheduler's"),
        (("h:1", "x"), "there is no use for 'x'"),
        (("h:1",), "the address of a running scheduler goes with --no-scheduler"),
    ],
)
def test_what_does_not_go_together_is_refused(home, words, expected):
    command = home.hpc_dask(*words)
    assert command.code() == 2
    assert expected in command.err


def test_who_leaves_the_other_hosts_of_a_job_idle_is_told(home):
    home.file("script.py", "pass\n")
    command = home.hpc_dask("run", "script.py", SLURM_JOB_NUM_NODES="3")
    assert command.code() == 0
    [line] = ours(command)
    assert "this job has 3 hosts, and only" in line
    assert "start this with mpirun or srun" in line


def test_a_word_of_the_script_is_no_option_of_ours(home):
    home.file("ok.py", "import sys\nprint(sys.argv[1:])\n")
    command = home.hpc_dask("ok.py", "--no-scheduler", "a:b")
    assert command.code() == 0
    assert command.out == "['--no-scheduler', 'a:b']\n"
