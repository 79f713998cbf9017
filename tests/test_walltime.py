"""When a job ends, from what batch systems print and put into the environment."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from fake_trees import fake_root

from hpcdask import walltime
from hpcdask.walltime import JobEnd, Question, age_of_job, ask, question, told_by_environment

ARRAY = {"SLURM_JOB_ID": "5", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
CONDOR = 'Cmd = "/bin/sh"\nAllowedJobDuration = 7200\nJobStatus = 2\n'


def read(environ: dict[str, str], text: str, age: float = 0.0) -> float | None:
    """What is left according to what the system of this environment prints."""
    asked = question(environ)
    assert asked is not None
    return asked.read(text, age, 1000.0)


# ---------------------------------------------------------------- whom to ask


@pytest.mark.parametrize(
    ("environ", "command"),
    [
        ({"SLURM_JOB_ID": "7"}, "squeue -h -j 7 -o %L %e"),
        (ARRAY, "squeue -h -j 5_2 -o %L %e"),
        ({"PBS_JOBID": "19[2].pbshost"}, "qstat -f 19[2].pbshost"),
        ({"JOB_ID": "6", "SGE_ROOT": "/sge", "SGE_TASK_ID": "2"}, "qstat -j 6"),
        ({"LSB_JOBID": "9", "LSB_JOBINDEX": "0"}, "bjobs -noheader -o time_left 9"),
        ({"LSB_JOBID": "9", "LSB_JOBINDEX": "3"}, "bjobs -noheader -o time_left 9[3]"),
    ],
)
def test_each_system_is_asked_for_this_job_alone(environ, command) -> None:
    asked = question(environ)
    assert asked is not None
    assert " ".join(asked.command) == command


@pytest.mark.parametrize("environ", [{}, {"JOB_ID": "17"}, {"OAR_JOB_ID": "3"}])
def test_without_a_job_of_such_a_system_nobody_is_asked(environ) -> None:
    assert question(environ) is None


# ---------------------------------------------------------------- what they answer


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("9:58 1600\n", 600),
        ("10:00 1030\n", 30),  # a job that is to make way
        ("9:58 2026-11-26T06:47:16\n", 598),
        ("1:39:00 N/A\n", 5940),
        ("2-03:04:05\n", 183845),
        ("0:00 990\n", -10),
        ("-1:30\n", -90),
        ("UNLIMITED 31537000\n", None),
        ("NOT_SET N/A\n", None),
        ("INVALID 1000\n", None),
        ("", None),
    ],
)
def test_squeue(text, left) -> None:
    assert read(ARRAY, text, age=5) == left


OPENPBS = """\
Job Id: 19[2].pbshost
    Job_Name = hpcdask
    Job_Owner = me@pbshost
    job_state = R
    Resource_List.ncpus = 2
    Resource_List.select = 1:ncpus=2
    Resource_List.walltime = 00:30:00
    stime = Thu Nov 26 06:11:00 2026
"""
TORQUE = "Job Id: 7.host\n    resources_used.walltime = 00:10:00\n" + OPENPBS.partition("\n")[2]
#: Slurm's commands for those who come from PBS.
WRAPPER = "Job Id:\t37\n\tJob_Name = cl\n\tResource_List.walltime = 00:30:00\n\n"


@pytest.mark.parametrize(
    ("text", "age", "left"),
    [
        (OPENPBS, 60, 1740),
        (TORQUE, 60, 1200),
        (TORQUE, 700, 1100),
        (WRAPPER, 60, 1740),
        ("Job Id: 7.host\n    job_state = R\n", 60, None),
        ("", 60, None),
    ],
)
def test_pbs(text, age, left) -> None:
    assert read({"PBS_JOBID": "7"}, text, age) == left


GRID_ENGINE = """\
==============================================================
job_number:                 6
hard resource_list:         {}
notify:                     TRUE
job_name:                   hpcdask
parallel environment:  smp range: 2
usage    1:                 cpu=00:00:00, mem=0.00000 GBs
"""


@pytest.mark.parametrize(
    ("resources", "left"),
    [
        ("h_rt=1800", 1740),
        ("h_vmem=4G,h_rt=00:30:00", 1740),
        ("h_rt=1800,s_rt=1200,h_vmem=4G", 1140),
        ("my_rt=5,h_vmem=4G", None),
    ],
)
def test_grid_engine(resources, left) -> None:
    environ = {"JOB_ID": "6", "SGE_ROOT": "/sge"}
    assert read(environ, GRID_ENGINE.format(resources), age=60) == left


@pytest.mark.parametrize(
    ("text", "left"), [("0:29 L\n", 1740), ("26:00 L\n", 93600), ("0:29 E\n", None), ("-\n", None)]
)
def test_lsf(text, left) -> None:
    assert read({"LSB_JOBID": "9"}, text, age=60) == left


# ---------------------------------------------------------------- what the environment says


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SLURM_JOB_END_TIME": "10600"}, JobEnd(600.0, "SLURM_JOB_END_TIME")),
        ({"SLURM_JOB_END_TIME": "soon"}, None),
        ({"OAR_JOB_WALLTIME_SECONDS": "3600"}, JobEnd(3540.0, "OAR_JOB_WALLTIME_SECONDS")),
        ({"PBS_WALLTIME": "3600", "PBS_JOBID": "1"}, JobEnd(3540.0, "PBS_WALLTIME")),
        ({"_CONDOR_JOB_AD": "/scratch/.job.ad"}, JobEnd(7140.0, "AllowedJobDuration")),
        ({"_CONDOR_JOB_AD": "/scratch/gone"}, None),
        ({"SLURM_JOB_ID": "7"}, None),
        ({}, None),
    ],
)
def test_some_systems_tell_without_being_asked(environ, expected, tmp_path) -> None:
    root = fake_root(tmp_path, {"scratch/.job.ad": CONDOR})
    assert told_by_environment(environ, 60.0, 10_000.0, root) == expected


# ---------------------------------------------------------------- how old the job is


def process(pid: int, age: float, environ: str) -> dict[str, str]:
    """The files of a process in /proc that began so many seconds ago."""
    began = (time.clock_gettime(time.CLOCK_BOOTTIME) - age) * os.sysconf("SC_CLK_TCK")
    fields = ["S", *["0"] * 18, str(round(began))]
    files = {"stat": f"{pid} (a (name) of) {' '.join(fields)} 0 0", "environ": environ}
    return {f"proc/{pid}/{name}": text for name, text in files.items()}


@pytest.mark.parametrize(
    ("environ_of_leader", "age"),
    [
        ("HOME=/home/me\0SLURM_JOB_ID=7\0", 100),
        ("HOME=/home/me\0", 10),
        ("SLURM_JOB_ID=6\0", 10),
    ],
)
def test_a_job_is_as_old_as_the_first_process_of_its_session(
    environ_of_leader, age, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(os, "getsid", lambda pid: 3)
    mine = process(os.getpid(), 10, "SLURM_JOB_ID=7\0")
    root = fake_root(tmp_path, mine | process(3, 100, environ_of_leader))
    assert age_of_job({"SLURM_JOB_ID": "7"}, root) == pytest.approx(age, abs=5)


def test_outside_of_a_job_the_shell_that_somebody_has_logged_in_to_does_not_count(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(os, "getsid", lambda pid: 3)
    files = process(os.getpid(), 10, "HOME=/home/me\0") | process(3, 100, "HOME=/home/me\0")
    assert age_of_job({"HOME": "/home/me"}, fake_root(tmp_path, files)) == pytest.approx(10, abs=5)


def test_a_leader_that_has_ended_or_is_hidden_is_no_matter(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "getsid", lambda pid: 3)
    root = fake_root(tmp_path, process(os.getpid(), 10, ""))
    assert age_of_job({"SLURM_JOB_ID": "7"}, root) == pytest.approx(10, abs=5)
    assert age_of_job({}, tmp_path / "nothing") == 0.0


def test_this_process_is_younger_than_this_machine() -> None:
    assert 0.0 < age_of_job({}) < time.clock_gettime(time.CLOCK_BOOTTIME)


# ---------------------------------------------------------------- asking


def python(code: str) -> Question:
    return Question((sys.executable, "-c", code), walltime._read_squeue)


def test_the_answer_says_who_gave_it() -> None:
    assert ask(python("print('1:00')"), 0.0, 30) == JobEnd(60.0, sys.executable)


@pytest.mark.parametrize(
    ("asked", "timeout", "why"),
    [
        (python("print('UNLIMITED')"), 30, "tells of no limit"),
        (
            python("import sys; sys.exit('denied: not a\\nsubmit host')"),
            30,
            "ended with code 1: denied: not a submit host",
        ),
        (python("import time; time.sleep(60)"), 0.2, "gave no answer within 0.2 s"),
        (Question(("no-such-command",), walltime._read_squeue), 30, "there is no no-such-command"),
        (Question((str(Path.home()),), walltime._read_squeue), 30, "cannot be run: Permission"),
    ],
)
def test_whatever_goes_wrong_is_told_in_words(asked, timeout, why) -> None:
    answer = ask(asked, 0.0, timeout)
    assert isinstance(answer, str)
    assert why in answer
