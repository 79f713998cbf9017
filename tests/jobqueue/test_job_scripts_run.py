"""Scripts of `Job` classes as a shell runs them: names, signals, exit codes, the user's own lines.

Without a batch system: a program that prints what it is told takes the place of Python.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from hpcdask.jobqueue import Job, PBSJob, SGEJob, SLURMJob

#: Says what it is told; ends with code 3 when it is asked to, after a moment.
WORKER = """\
#!/bin/bash
trap 'echo "${@: -1}: warned"' USR1 USR2
trap 'is_over=1' TERM
echo "token: ${HPCDASK_TOKEN-none} ${HPCDASK_TOKEN_FILE-none}"
echo "told: $*"
until [[ $is_over ]]; do sleep 0.02; done
sleep 0.2
echo "${@: -1}: ended"
exit 3
"""
#: Those of batch systems, which run commands on nodes of their own.
COMMANDS = {
    "srun": """\
#!/bin/bash
shift 2
for node in 0 1; do SLURM_NODEID=$node "$@" & started+=($!); done
trap 'kill -TERM "${started[@]}"' TERM
for process in "${started[@]}"; do
    until wait "$process"; code=$?; ! kill -0 "$process" 2>/dev/null; do :; done
done
exit "$code"
""",
    "pbsdsh": """\
#!/bin/bash
shift 3
cd / && exec env -i PATH=/usr/bin:/bin HPCDASK_TOKEN=of-a-profile "$@"
""",
    "qrsh": """\
#!/bin/bash
shift 2
cd / && exec env -i PATH=/usr/bin:/bin HPCDASK_TOKEN=of-a-profile "$@"
""",
}

IN_A_JOB = {
    SLURMJob: {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"},
    PBSJob: {"PBS_JOBID": "7.server", "PBS_NODEFILE": "nodes"},
    SGEJob: {"JOB_ID": "7", "SGE_TASK_ID": "undefined", "PE_HOSTFILE": "hosts"},
}
by_kind = pytest.mark.parametrize("kind", IN_A_JOB)


class Run:
    """A script that runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def see(self, *words: str) -> None:
        """Wait until there are lines that begin so."""
        for each in words:
            found = f"{each!r} in {self._log}"
            wait_until(lambda each=each: any(e.startswith(each) for e in self.lines), 30, found)

    def told(self) -> list[list[str]]:
        """Words of all commands that were run, by node."""
        return sorted(shlex.split(line)[1:] for line in self.lines if line.startswith("told: "))


@contextmanager
def running(kind: type[Job], folder: Path, more: dict[str, str], **keywords: Any) -> Iterator[Run]:
    """Run a job's script in a session of its own; end what is left of it."""
    for name, text in {"python": WORKER, **COMMANDS}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "nodes").write_text("a\nb\n")
    (folder / "hosts").write_text("a 4 all.q@a UNDEFINED\nb 4 all.q@b UNDEFINED\n")
    size = {"cores": 4, "memory": "8 GiB", "python": str(folder / "python")}
    (folder / "script").write_text(kind(**{**size, **keywords}).job_script())
    environ = {"PATH": f"{folder}:/usr/bin:/bin", "PBS_O_WORKDIR": str(folder)}
    environ |= {"HPCDASK_TOKEN": "of-a-profile", "HPCDASK_TOKEN_FILE": "of-a-profile"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "script"],
            cwd=folder,
            env={**environ, **IN_A_JOB[kind], **more},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield Run(process, folder / "log")
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(30)


@pytest.mark.parametrize(
    ("kind", "more", "name"),
    [
        (SLURMJob, {}, "7"),
        (SLURMJob, {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "5_2"),
        (SLURMJob, {"SLURM_RESTART_COUNT": "1"}, "7r1"),
        (PBSJob, {}, "7"),
        (PBSJob, {"PBS_JOBID": "19[2].server"}, "19[2]"),
        (SGEJob, {}, "7"),
        (SGEJob, {"SGE_TASK_ID": "2", "RESTARTED": "1"}, "7.2r1"),
    ],
)
def test_the_command_takes_the_place_of_the_shell(kind, more, name, tmp_path):
    with running(kind, tmp_path, more) as run:
        run.see("told")
        words = f"-m hpcdask worker --name {name} --scheduler-file scheduler.json"
        size = "--nthreads 2 --nworkers 2 --memory-limit 4032MiB"
        times = "--death-timeout 60s --walltime 00:30:00"
        assert run.told() == [f"{words} {size} {times}".split()]
        assert {line for line in run.lines if line.startswith("token")} == {"token: none none"}
        run.process.terminate()
        assert run.process.wait(30) == 3
        assert run.lines[-1] == "00:30:00: ended"


@by_kind
def test_with_an_epilogue_signals_reach_the_workers_and_the_exit_code_is_theirs(kind, tmp_path):
    lines = ["false", 'echo "prologue in $PWD"']
    epilogue = ['echo "epilogue after $code"', "false"]
    more = {"job_script_prologue": lines, "job_script_epilogue": epilogue}
    with running(kind, tmp_path, {}, **more) as run:
        run.see("told")
        run.process.send_signal(signal.SIGUSR2)
        run.see("00:30:00: warned")
        run.process.terminate()
        assert run.process.wait(30) == 3
        assert f"prologue in {tmp_path}" in run.lines
        assert run.lines[-2:] == ["00:30:00: ended", "epilogue after 3"]


@by_kind
def test_a_signal_in_the_first_moment_leaves_the_epilogue_to_be_run(kind, tmp_path):
    # The worker is not yet what hands over, so it may end by the signal.
    lines = ["trap '[[ $BASH_COMMAND != workers=* ]] || kill $$' DEBUG"]
    epilogue = ['echo "epilogue after $code"']
    more = {"job_script_prologue": lines, "job_script_epilogue": epilogue}
    with running(kind, tmp_path, {}, **more) as run:
        code = run.process.wait(30)
        assert code in (3, 128 + signal.SIGTERM)
        run.see(f"epilogue after {code}")


@by_kind
def test_each_node_has_its_workers_and_all_are_waited_for(kind, tmp_path):
    lines = ["export A='1 2'", 'echo "prologue: $A in $PWD"']
    epilogue = ["echo epilogue"]
    more = {"job_script_prologue": lines, "job_script_epilogue": epilogue, "nodes_per_job": 2}
    # A variable of the user's that is called as one of the script.
    with running(kind, tmp_path, {"workers": "1"}, **more) as run:
        wait_until(lambda: len(run.told()) == 2, 30, f"two nodes in {run.lines}")
        assert [words[-2:] for words in run.told()] == [["--name", "7.0"], ["--name", "7.1"]]
        assert {line for line in run.lines if line.startswith("token")} == {"token: none none"}
        assert all(words[:3] == ["-m", "hpcdask", "worker"] for words in run.told())
        prologues = [line for line in run.lines if line.startswith("prologue")]
        # Slurm hands on what the first shell has.
        n = 1 if kind is SLURMJob else 2
        assert prologues == [f"prologue: 1 2 in {tmp_path}"] * n
        run.process.terminate()
        assert run.process.wait(30) == 3
        assert sorted(run.lines[-3:]) == ["7.0: ended", "7.1: ended", "epilogue"]
        assert run.lines[-1] == "epilogue"


def test_a_launcher_of_the_users_tells_the_number_of_a_node(tmp_path):
    (tmp_path / "launch").write_text(
        '#!/bin/bash\nfor n in 0 1; do PMI_RANK=$n "$@" & done\ntrap "kill 0" TERM\nwait\nwait\n'
    )
    (tmp_path / "launch").chmod(0o755)
    with running(PBSJob, tmp_path, {}, launcher="launch", nodes_per_job=2) as run:
        wait_until(lambda: len(run.told()) == 2, 30, "both nodes")
        assert [words[-1] for words in run.told()] == ["7.0", "7.1"]


def test_grid_engine_refuses_hosts_with_other_numbers_of_slots(tmp_path):
    with running(SGEJob, tmp_path, {}, nodes_per_job=2, cores=8) as run:
        assert run.process.wait(30) == 1
        assert run.lines == ["not 8 slots on each host: use a -pe that gives so many"]


def test_a_job_of_pbs_does_not_run_elsewhere(tmp_path):
    with running(PBSJob, tmp_path, {"PBS_O_WORKDIR": "/not/there"}) as run:
        assert run.process.wait(30) == 1
        assert "/not/there" in run.lines[0]
