"""Jobs that end in each of the ways that batch systems have: what they have computed is kept.

All run at the same time, as some wait for their walltime; each has one worker, which leaves ten
results to a worker that stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from batch.bed import Bed, Job
from batch.slurm import Slurm
from commands import Home
from counted_runs import count_runs, note_and_fill, note_and_wait
from waiting import wait_until

from hpcdask import Client, Future

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

#: Seconds that things may take, beyond those of a walltime of a minute.
PATIENCE = 120.0
N = 10

SLURM = "#SBATCH --ntasks=1 --cpus-per-task=1 --mem=1G --output=%x-%j.log --open-mode=append"
GRID_ENGINE = "#$ -S /bin/bash -cwd -j y -l h_vmem=8G"
#: For workers that only signals are to warn.
STAY = "export HPCDASK_WORKER__WALLTIME__MARGIN=0"


def cancel(bed: Bed, job: Job) -> None:
    bed.cancel(job)


def requeue(bed: Bed, job: Job) -> None:
    bed.run("scontrol", "requeue", job.id)


def shorten(bed: Bed, job: Job) -> None:
    """Let a job of Slurm, which counts in minutes and looks each half of one, end soon."""
    bed.run("scontrol", "update", f"JobId={job.id}", "EndTime=now+40seconds")


def shorten_before_it_asks(bed: Bed, job: Job) -> None:
    job.line("waiting")
    shorten(bed, job)
    (job.folder / "go").touch()


@dataclass(frozen=True)
class Ending:
    """How a job ends, and how it is seen that it was that."""

    script: str
    says: str  # in the log
    end: Callable[[Bed, Job], None] | None = None  # else time does
    prepare: Callable[[Bed, Job], None] | None = None
    start: str = "exec"
    command: str = "worker"
    options: str = ""
    suffix: str = ""  # of the worker's name

    @property
    def system(self) -> str:
        return "slurm" if "#SBATCH" in self.script else "sge"


ENDINGS = {
    "walltime-slurm": Ending(
        f"{SLURM} --time=9\necho waiting; while [[ ! -e go ]]; do sleep 0.1; done",
        r"\(squeue\): leaving at ",
        prepare=shorten_before_it_asks,
    ),
    "walltime-sge": Ending(f"{GRID_ENGINE},h_rt=40", r"\(qstat\): leaving at "),
    "warned-sge": Ending(f"{GRID_ENGINE},s_rt=25,h_rt=600\n{STAY}", "SIGUSR1: leaving; "),
    "warned-slurm": Ending(
        f"{SLURM} --time=9 --signal=B:USR1@10\n{STAY}", "SIGUSR1: leaving; ", shorten
    ),
    "warned-step": Ending(
        f"{SLURM} --time=9 --signal=USR2@10\n{STAY}",
        "SIGUSR2: leaving; ",
        shorten,
        start="exec srun",
    ),
    "scancel": Ending(f"{SLURM} --time=9", "SIGTERM: leaving; ", cancel),
    "scancel-step": Ending(f"{SLURM} --time=9", "SIGTERM: leaving; ", cancel, start="exec srun"),
    "scancel-rank": Ending(
        f"{SLURM} --time=9",
        "SIGTERM: leaving; ",
        cancel,
        start="exec srun",
        command="--no-scheduler --no-mpi",
        suffix="-0",
    ),
    "qdel": Ending(f"{GRID_ENGINE},h_rt=600 -notify", "SIGUSR2: leaving; ", cancel),
    "requeue": Ending(f"{SLURM} --time=9", "SIGTERM: leaving; ", requeue),
    "killed": Ending(
        f"{SLURM} --time=9", "SIGTERM: leaving; ", cancel, options="--drain-timeout 600"
    ),
}
#: As job scripts have it behind the id of a job: the number of its life, if it is not the first.
LIFE = "${SLURM_RESTART_COUNT:+r$SLURM_RESTART_COUNT}"


@dataclass
class Case:
    """One of these jobs."""

    ending: Ending
    bed: Bed
    job: Job
    runs: Path
    futures: list[Future] = field(default_factory=list)


class Cluster:
    """A scheduler and a worker that stays, and the jobs."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.cases: dict[str, Case] = {}
        words = ("--port", "0", "--scheduler-file", "s.json", "--allowed-failures", "0")
        home.hpc_dask("scheduler", *words).line("Scheduler at")
        home.env["PYTHONPATH"] = os.pathsep.join(sys.path)
        home.hpc_dask("worker", "--scheduler-file", "s.json", "--nthreads", "2", "--name", "stays")
        self.client = Client(
            scheduler_file=home.folder / "s.json", set_as_default=False, timeout=PATIENCE
        )
        self.await_worker("stays")

    def submit(self, name: str, bed: Bed) -> None:
        ending = ENDINGS[name]
        folder = self.home.folder / name
        runs = folder / "runs"
        runs.mkdir(parents=True)
        script = folder / f"{name}.sh"
        options = f"--scheduler-file {self.home.folder}/s.json --nthreads 1 {ending.options}"
        # One that is killed cannot clear up its scratch, which goes with the folder of the job.
        options += f" --local-directory {folder}/scratch"
        script.write_text(
            f"#!/bin/bash\n{ending.script}\n"
            f"export PYTHONPATH={self.home.env['PYTHONPATH']}\n"
            f"export XDG_CONFIG_HOME={folder}/config\n"
            f"{ending.start} {sys.executable} -m hpcdask {ending.command} {options} "
            f'--name "{name}{LIFE}"\n'
        )
        self.cases[name] = Case(ending, bed, bed.submit(script.name, cwd=folder), runs)

    def await_worker(self, name: str) -> str:
        """Wait until a worker is there; return its address."""
        found: list[str] = []

        def is_there() -> bool:
            workers = self.client.scheduler_info()["workers"].items()
            found[:] = [address for address, about in workers if about["name"] == name]
            return bool(found)

        wait_until(is_there, PATIENCE, f"worker {name} is there")
        return found[0]

    def fill(self, name: str) -> None:
        """Have results on the worker of a job, and nowhere else."""
        case = self.cases[name]
        worker = name + case.ending.suffix
        address = self.await_worker(worker)
        if name == "killed":
            go_on = self.home.folder / "go on"
            calls: list[tuple[Any, ...]] = [(note_and_wait, case.runs, 0, go_on)]
        else:
            calls = [(note_and_fill, case.runs, x, 10_000) for x in range(N)]
        here = {"workers": [worker], "allow_other_workers": True}
        case.futures = [self.client.submit(*call, **here) for call in calls]
        wait_until(lambda: count_runs(case.runs) == len(calls), PATIENCE, f"{name} runs")
        if name != "killed":
            self.client.gather([self.client.submit(len, f, **here) for f in case.futures])
            assert set(self.client.who_has(case.futures).values()) == {(address,)}

    def close(self) -> None:
        for case in self.cases.values():
            if case.job.exit_code is None:
                case.bed.cancel(case.job)
        for case in self.cases.values():
            case.job.all_gone(PATIENCE)
        self.client.close()
        left = [name for command in reversed(self.home.commands) for name in command.clean_up()]
        assert not left


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """With all jobs under way, and their results there."""
    beds: dict[str, Bed] = {}
    for system in ("slurm", "sge"):
        with contextlib.suppress(pytest.skip.Exception):
            beds[system] = request.getfixturevalue(system)
    cluster = Cluster(Home(tmp_path_factory.mktemp("ends") / "home"))
    possible = {name: ending for name, ending in ENDINGS.items() if ending.system in beds}
    in_time = [name for name, ending in possible.items() if ending.end is None]
    on_request = [name for name in possible if name not in in_time]
    try:
        for names in (in_time, on_request):
            for name in names:
                cluster.submit(name, beds[possible[name].system])
            cases = [cluster.cases[name] for name in names]
            for case in cases:
                if case.ending.prepare is not None:
                    case.ending.prepare(case.bed, case.job)
            for name in names:
                cluster.fill(name)
            for case in cases:
                if case.ending.end is not None:
                    case.ending.end(case.bed, case.job)
        yield cluster
    finally:
        cluster.close()


def case_of(request: pytest.FixtureRequest, cluster: Cluster, name: str) -> Case:
    request.getfixturevalue(ENDINGS[name].system)  # says why it is not here, if so
    return cluster.cases[name]


@pytest.mark.parametrize("name", [n for n in ENDINGS if n not in ("requeue", "killed")])
def test_the_results_of_a_job_outlive_it(request, cluster, name):
    case = case_of(request, cluster, name)
    case.job.wait(PATIENCE)
    case.job.line(case.ending.says)
    expected = [bytes([x]) * 10_000 for x in range(N)]
    assert cluster.client.gather(case.futures, timeout=PATIENCE) == expected
    assert count_runs(case.runs) == N, "nothing is computed twice"


def test_a_job_that_is_requeued_leaves_its_results_and_joins_again(request, cluster):
    case = case_of(request, cluster, "requeue")
    assert isinstance(case.bed, Slurm)
    # It would be due again two minutes later, so that late words about its first life find nothing.
    wait_until(lambda: "PENDING" in case.job.state, PATIENCE, f"end of its first life: {case.job}")
    case.bed.run("scontrol", "update", f"JobId={case.job.id}", "StartTime=now+15")
    cluster.await_worker("requeuer1")
    assert case.ending.says in case.job.log
    here = {"workers": ["requeuer1"]}
    assert cluster.client.submit(sum, [1, 2], **here).result(timeout=PATIENCE) == 3
    expected = [bytes([x]) * 10_000 for x in range(N)]
    assert cluster.client.gather(case.futures, timeout=PATIENCE) == expected
    assert count_runs(case.runs) == N, "nothing is computed twice"


def test_a_job_that_is_killed_while_it_leaves_is_no_failure_of_its_tasks(request, cluster):
    case = case_of(request, cluster, "killed")
    assert case.job.wait(PATIENCE) == 128 + signal.SIGKILL
    (cluster.home.folder / "go on").touch()
    assert cluster.client.gather(case.futures, timeout=PATIENCE) == [0]
    assert count_runs(case.runs) == 2
