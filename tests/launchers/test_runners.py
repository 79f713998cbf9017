"""Runners in programs that are started on all ranks, by each launcher at the same time."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import signal

import pytest
from commands import PATIENCE
from mpiruns import AFTER_A_CRASH, MPICH, PROMPT, Runs, mpirun, needs_mpi, ours, srun
from waiting import wait_until

from hpcdask import Client, jobqueue
from hpcdask.errors import ConfigError, LaunchError
from hpcdask.jobqueue import runner as runners

HEAD = """\
import os, signal, stat, sys, time
from hpcdask import Client, jobqueue
Runner = jobqueue.SLURMRunner if "SLURM_JOB_ID" in os.environ else jobqueue.MPIRunner
"""


@pytest.fixture
def runs(new_home, launchers):
    return Runs(new_home, launchers, "python")


# -- The cluster ----------------------------------------------------------------------------------

WORK = """\
with Runner() as runner, Client(runner) as client:
    client.wait_for_workers(runner.n_workers, timeout=60)
    names = sorted(w["name"] for w in client.scheduler_info()["workers"].values())
    print(runner.role, names, sum(client.gather(client.map(abs, range(-50, 50)))))
    if runner.scheduler_file:
        mode = stat.S_IMODE(os.stat(runner.scheduler_file).st_mode)
        print(os.path.relpath(runner.scheduler_file, "."), oct(mode))
"""


@needs_mpi
@pytest.mark.parametrize(("np", "names"), [(2, ["rank-1"]), (4, ["rank-2", "rank-3"])])
def test_one_rank_goes_on_and_the_others_serve_it(runs, np, names):
    runs.file("program.py", HEAD + WORK)
    runs.start(np, "program.py").end(0)
    for launcher, command in runs.each():
        first, *others = command.out.splitlines()
        assert first == f"client {names} 2500"
        assert len(others) == (launcher.name == "srun")
        assert all(re.fullmatch(r"scheduler-\d+\.json 0o600", each) for each in others)
        assert ours(command) == []
        left = [path.name for path in runs.homes[launcher].folder.rglob("*") if path.is_file()]
        assert [name for name in left if "scheduler" in name or "hello" in name] == []
    runs.nothing_is_left()


@needs_mpi
@pytest.mark.skipif(MPICH is None, reason="no MPICH here: `make test` puts it into the environment")
def test_under_srun_ranks_may_meet_by_mpi(home, slurm):
    launcher = srun(slurm)
    home.file("program.py", HEAD + WORK.replace("Runner()", "Runner(use_mpi=True)"))
    argv = [word.replace("--mpi=none", "--mpi=pmi2") for word in launcher.argv]
    env = {**launcher.env, **MPICH.env, "MPI4PY_MPIABI": "mpich"}
    command = home.run(*argv, "-n", "3", "python", "program.py", **env)
    assert command.code() == 0, command
    assert command.out.startswith("client ['rank-2'] 2500\n")
    assert ours(command) == []


def by_hand(home, size, job="77", **env):
    """A program.py on ranks of a Slurm job that nothing but these variables tells of."""
    names = {"HPCDASK_SIZE": str(size), "HPCDASK_LAUNCH_ID": job, "SLURM_JOB_ID": job, **env}
    return [home.run("python", "program.py", **names, HPCDASK_RANK=str(n)) for n in range(size)]


def test_one_rank_alone_does_everything(home):
    home.file("program.py", HEAD + WORK)
    [command] = by_hand(home, 1)
    assert command.code() == 0
    assert command.out == "client ['rank-0'] 2500\nscheduler-77.json 0o600\n"
    assert command.err == ""


def test_what_a_killed_job_has_left_does_not_confuse_the_one_with_its_id(home):
    script = "    print('runs', flush=True)\n    while not os.path.exists('go'): time.sleep(0.1)\n"
    home.file("program.py", HEAD + WORK + script)
    killed = by_hand(home, 3)
    killed[1].line("runs")
    for command in killed:
        command.process.kill()
    for command in killed:
        command.all_gone()
    assert (home.folder / "scheduler-77.json").exists()
    home.file("go", "")
    again = by_hand(home, 3)
    assert [command.code() for command in again] == [0, 0, 0]
    assert again[1].out.startswith("client ['rank-2'] 2500\n")
    assert not (home.folder / "scheduler-77.json").exists()


@needs_mpi
def test_ranks_may_serve_clients_elsewhere_and_join_a_cluster_that_runs(home):
    file = home.folder / "s.json"
    home.file("serve.py", f"{HEAD}Runner(client=False, scheduler_file='s.json')\n")
    serving = mpirun(home, 2, "python", "serve.py")
    wait_until(file.exists, PATIENCE, f"scheduler file of {serving}")
    call = "Runner(scheduler=False, scheduler_file='s.json', client_rank=0, name='mine')"
    join = WORK.replace("Runner()", call).replace("runner.n_workers", "runner.n_workers + 1")
    home.file("join.py", HEAD + join.replace("if runner.scheduler_file", "if False"))
    joining = mpirun(home, 3, "python", "join.py")
    assert joining.code() == 0
    assert joining.out == "client ['mine-1', 'mine-2', 'rank-1'] 2500\n"
    with Client(scheduler_file=file, set_as_default=False) as client:
        wait_until(lambda: len(client.nthreads()) == 1, PATIENCE, "the others have left")
        client.shutdown()
    assert serving.code() == 0
    assert ours(serving) == ours(joining) == []


# -- The end --------------------------------------------------------------------------------------

#: With which exit code. What a program says with its own is below, with asyncio.
ENDS = {
    "raise ValueError('boom')": 1,
    "client.shutdown()": 0,
    "os.kill(os.getpid(), signal.SIGKILL)": None,
}
BLOCK = "with Runner() as runner, Client(runner) as client:\n    {}\n"


@needs_mpi
def test_however_the_block_ends_all_ranks_do(new_home, launchers):
    all_runs = {
        end: Runs(lambda name, n=n: new_home(f"{n}-{name}"), launchers, "python")
        for n, end in enumerate(ENDS)
    }
    for end, runs in all_runs.items():
        runs.file("program.py", HEAD + BLOCK.format(end))
        runs.start(3, "program.py")
    for end, runs in all_runs.items():
        runs.end(ENDS[end], 2 * PATIENCE)
        for _, command in runs.each():
            if "KILL" not in end:
                assert ours(command)[-1:] == (["ValueError: boom"] if "boom" in end else []), end


STUCK = "client.wait_for_workers(1, timeout=60); print('runs', flush=True); time.sleep(36000)"


@needs_mpi
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_all_ranks(runs, number):
    runs.file("program.py", HEAD + BLOCK.format(STUCK))
    runs.start(3, "program.py").line("runs")
    for _, command in runs.each():
        command.process.send_signal(number)
    for launcher, command in runs.each():
        assert command.code(AFTER_A_CRASH) != 0, launcher.name
        command.all_gone(AFTER_A_CRASH)


ASYNCHRONOUS = """\
import asyncio
async def main():
    async with Runner(asynchronous=True) as runner:
        async with Client(runner, asynchronous=True) as client:
            await client.wait_for_workers(runner.n_workers, timeout=60)
            print(await client.submit(sum, [1, 2]), flush=True)
            client.submit(time.sleep, 36000)
            sys.exit(3)
asyncio.run(main())
"""


@needs_mpi
def test_a_program_on_an_event_loop_uses_it_by_async_with(runs):
    runs.file("program.py", HEAD + ASYNCHRONOUS)
    runs.start(3, "program.py").end(3)
    for _, command in runs.each():
        assert command.out == "3\n"
        assert ours(command) == []


# -- What is refused ------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize(
    ("call", "ranks", "message"),
    [
        ("PBSRunner()", 1, "PBSRunner is for a PBS job, and this process belongs to none"),
        ("MPIRunner(scheduler_options={'dashboard': True})", 1, "this version has no dashboard"),
        ("MPIRunner(client_rank=3)", 1, "rank 3 cannot be the client: there are 3 ranks"),
        # by the scheduler's, and by the client's, which may have another way to go on
        ("MPIRunner(scheduler_options={'interface': 'nope0'})", 2, "no network interface 'nope0'"),
    ],
)
def test_what_is_wrong_on_all_ranks_is_said_once(home, call, ranks, message):
    home.file("program.py", f"from hpcdask.jobqueue import *\n{call}\n")
    command = mpirun(home, 3, "python", "program.py")
    assert command.code() == 1
    assert message in command.err
    assert 1 <= command.err.count("in <module>") <= ranks, command
    command.all_gone(PROMPT)


@pytest.fixture
def environ(monkeypatch):
    """An environment without a launcher or a job."""

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return put


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("SLURMRunner", {}, r"is for a Slurm job, .*'srun -n 8 python program.py' in a job; "),
        ("SLURMRunner", {"SLURM_JOB_ID": "7"}, r"finds no other ranks: .*'srun -n 8 python"),
        ("PBSRunner", {"PBS_JOBID": "7.server"}, r"finds no other ranks: .*mpirun or pbsdsh"),
        ("SGERunner", {"JOB_ID": "7"}, r"is for a Grid Engine job .* belongs to none"),
        ("SGERunner", {"JOB_ID": "7", "SGE_ROOT": "/sge"}, r"finds no other .* qrsh -inherit"),
        ("MPIRunner", {}, r"finds no other ranks: .*'mpirun -np 8 python program.py'"),
    ],
)
def test_a_runner_outside_of_its_ranks_says_how_to_start_it(environ, name, variables, message):
    environ(**variables)
    with pytest.raises(LaunchError, match=message):
        getattr(jobqueue, name)()


def test_a_second_runner_of_a_program_is_refused(environ, monkeypatch):
    monkeypatch.setattr(runners, "_have_served", True)
    environ(HPCDASK_RANK="0", HPCDASK_SIZE="1")
    with pytest.raises(LaunchError, match="the other ranks have ended with this program's first"):
        jobqueue.MPIRunner()


def test_a_rank_for_nobody_is_refused(environ):
    environ(HPCDASK_RANK="0", HPCDASK_SIZE="1")
    with pytest.raises(ConfigError, match="got client_rank=0 and client=False: leave one out"):
        jobqueue.MPIRunner(client=False, client_rank=0)


def test_keywords_are_those_of_dask_jobqueue():
    names = list(inspect.signature(jobqueue.SLURMRunner).parameters)
    theirs = "scheduler scheduler_options worker_class worker_options client asynchronous loop"
    assert names[:8] == [*theirs.split(), "scheduler_file"]


def test_joining_needs_a_file_to_find_the_cluster_by(environ):
    environ(HPCDASK_RANK="0", HPCDASK_SIZE="1")
    with pytest.raises(ConfigError, match=r"MPIRunner\(scheduler=False\) joins .*scheduler_file"):
        jobqueue.MPIRunner(scheduler=False)


def test_an_asynchronous_runner_is_not_started_by_with(environ):
    environ(HPCDASK_RANK="0", HPCDASK_SIZE="1", PBS_JOBID="19[2].server")
    runner = jobqueue.PBSRunner(asynchronous=True)
    assert runner.job_id == "19[2]"
    assert runner.scheduler_file == os.path.abspath("scheduler-19[2].json")
    with pytest.raises(TypeError, match="needs 'async with'"), runner:
        pass
    with pytest.raises(LaunchError, match=r"PBSRunner\(job='19\[2\]', .*\) has not started"):
        runner.place  # noqa: B018
    asyncio.run(runner.close())
