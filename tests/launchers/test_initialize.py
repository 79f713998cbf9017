"""`initialize` and `execute` in programs that are started on all ranks."""

from __future__ import annotations

import signal

import pytest
from mpiruns import AFTER_A_CRASH, PROMPT, mpirun, needs_mpi, ours
from waiting import wait_until

pytestmark = needs_mpi

INITIALIZE = """\
import os, sys
from hpcdask import Client, initialize
initialize(nthreads=1)
with Client() as client:
    client.wait_for_workers(int(sys.argv[1]), timeout=30)
    names = sorted(w["name"] for w in client.scheduler_info()["workers"].values())
    total = sum(client.gather(client.map(abs, range(-50, 50))))
    print(os.environ.get("OMPI_COMM_WORLD_RANK"), names, total)
"""


@pytest.mark.parametrize(
    ("np", "client", "names"),
    [
        (1, 0, ["rank-0"]),
        (2, 1, ["rank-1"]),
        (4, 1, ["rank-2", "rank-3"]),
    ],
)
def test_one_rank_goes_on_and_the_others_serve_it(home, np, client, names):
    home.file("program.py", INITIALIZE)
    command = mpirun(home, np, "python", "program.py", str(len(names)))
    assert command.code() == 0
    assert command.out == f"{client} {names} 2500\n"
    assert ours(command) == []
    command.all_gone(PROMPT)
    assert home.left_in_scratch() == []


@pytest.mark.parametrize("np", [1, 3])
@pytest.mark.parametrize(
    ("end", "code", "err"),
    [
        ("", 0, []),
        ("sys.exit(3)", 3, []),
        ("raise ValueError('boom')", 1, ["ValueError: boom"]),
        ("client.shutdown()", 0, []),
        ("client.submit(time.sleep, 36000)", 0, []),
        # not even Python's own end is left
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL, None),
    ],
)
def test_however_the_program_ends_all_ranks_do(home, np, end, code, err):
    program = "import os, signal, sys, time\nfrom hpcdask import Client, initialize\n"
    home.file("program.py", f"{program}initialize()\nclient = Client()\n{end}\n")
    command = mpirun(home, np, "python", "program.py")
    assert command.code() == code
    if err is not None:
        assert ours(command)[-1:] == err
    command.all_gone(AFTER_A_CRASH)


def test_ranks_that_do_not_exit_go_on_when_the_cluster_has_ended(home):
    home.file(
        "program.py",
        "from hpcdask import Client, initialize\n"
        "is_client = initialize(exit=False)\n"
        "if is_client:\n"
        "    Client().submit(abs, -1).result()\n"
        "print(is_client)\n",
    )
    command = mpirun(home, 3, "python", "program.py")
    assert command.code() == 0
    assert sorted(command.out.split()) == ["False", "False", "True"]
    assert ours(command) == []


EXECUTE = """\
import sys
from hpcdask import Client, execute

def work(n, times=1):
    with Client() as client:
        return times * sum(client.gather(client.map(abs, range(n))))

def fail():
    raise ValueError("boom")

if __name__ == "__main__":
    print(eval(sys.argv[1]))
"""


def test_execute_returns_the_value_on_the_clients_rank(home):
    home.file("program.py", EXECUTE)
    call = "execute(work, [10], {'times': 2}, client_rank=2, exclusive_workers=False)"
    command = mpirun(home, 3, "python", "program.py", call)
    assert command.code() == 0
    assert sorted(command.out.split()) == ["90", "None", "None"]
    assert ours(command) == []


def test_an_error_in_execute_ends_the_job(home):
    home.file("program.py", EXECUTE)
    command = mpirun(home, 3, "python", "program.py", "execute(fail)")
    assert command.code() == 1
    assert "ValueError: boom" in command.err
    command.all_gone(AFTER_A_CRASH)


def test_execute_without_a_function_is_a_cluster_for_others(home):
    home.file("program.py", EXECUTE)
    call = "execute(scheduler_file='s.json', worker_name='w')"
    command = mpirun(home, 2, "python", "program.py", call)
    wait_until((home.folder / "s.json").exists, 30)
    home.file("client.py", "from hpcdask import Client\nClient(scheduler_file='s.json').shutdown()")
    assert home.run("python", "client.py").code() == 0
    assert command.code() == 0
    assert command.out == "None\nNone\n"


def test_execute_joins_a_cluster_that_runs_and_leaves_it(home):
    home.file("program.py", EXECUTE)
    cluster = home.hpc_dask("scheduler", "--port", "0", "--scheduler-file", "s.json")
    cluster.line("Scheduler at")
    call = "execute(work, [10], scheduler=False, scheduler_file='s.json', client_rank=0)"
    command = mpirun(home, 2, "python", "program.py", call)
    assert command.code() == 0
    assert sorted(command.out.split()) == ["45", "None"]
    assert cluster.process.poll() is None
    assert cluster.end() == 0


def test_a_program_that_uses_mpi_itself_may_go_on_with_it(home):
    home.file(
        "program.py",
        "from mpi4py import MPI\n"
        "from hpcdask import Client, execute\n"
        "value = execute(lambda: Client().submit(abs, -7).result(), comm=MPI.COMM_WORLD)\n"
        "print(MPI.COMM_WORLD.allreduce(value or 0))\n",
    )
    command = mpirun(home, 3, "python", "program.py")
    assert command.code() == 0
    assert command.out.split() == ["7", "7", "7"]
    assert ours(command) == []


def test_within_hpc_dask_run_initialize_finds_the_cluster(home):
    home.file("program.py", INITIALIZE.replace("OMPI_COMM_WORLD_RANK", "NO"))
    command = mpirun(home, 2, "hpc-dask", "run", "program.py", "1")
    assert command.code() == 0
    assert command.out == "None ['rank-1'] 2500\n"


@pytest.mark.parametrize("more", ["", ", use_mpi=False"])
def test_a_program_may_execute_one_function_after_the_other(home, more):
    home.file("program.py", EXECUTE)
    call = f"[execute(work, [n]{more}) for n in (10, 11, 12)]"
    command = mpirun(home, 3, "python", "program.py", call)
    assert command.code() == 0, command
    assert sorted(command.out.splitlines()) == ["[45, 55, 66]", *["[None, None, None]"] * 2]
    assert ours(command) == []
    command.all_gone(AFTER_A_CRASH)
    assert not list((home.folder / ".cache").rglob("ranks-*"))


def test_a_cluster_that_is_there_is_not_made_again(home):
    home.file(
        "program.py",
        "import mpi4py\nmpi4py.rc.initialize = False\n"  # as of who starts MPI where they want it
        "from hpcdask import Client, execute, initialize\n"
        "initialize(), initialize()\n"
        "print(execute(lambda: Client().submit(abs, -7).result()))\n",
    )
    command = mpirun(home, 2, "python", "program.py")
    assert command.code() == 0, command
    assert command.out == "7\n"
    assert ours(command) == []
