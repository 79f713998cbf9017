"""``hpc-dask jobscript`` and ``hpc-dask submit``, without a batch system."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
import pytest

from hpcdask.cli.jobscript import jobscript
from hpcdask.jobqueue.job_script import templates
from hpcdask.jobqueue.job_spec import LAUNCHES
from hpcdask.jobqueue.systems import SYSTEMS

TEMPLATES = dict(templates(SYSTEMS.values()))


def test_the_help_knows_all_systems_and_launches():
    choices = {
        parameter.name: tuple(parameter.type.choices)
        for parameter in jobscript.params
        if isinstance(parameter.type, click.Choice)
    }
    assert choices == {"system": tuple(SYSTEMS), "launch": LAUNCHES}


@pytest.mark.parametrize(
    ("system", "launch"), [("slurm", "mpi"), ("pbs", "cluster"), ("sge", "native")]
)
def test_a_template_is_what_is_printed_without_options(here, system, launch):
    command = here("jobscript", system, "--launch", launch, "--venv", "~/hpcdask-venv")
    assert command.code() == 0, command
    assert command.out == TEMPLATES[SYSTEMS[system].template_name(launch)]


def test_a_script_is_filled_in_with_this_python(home, here):
    words = "--nodes 3 --walltime 1:00:00 --memory 8GiB --interface ib0 --prologue 'module load x'"
    words += " --scheduler-file=~/s.json"
    arguments = ("my script.py", "--nodes", "5", "$x")
    command = here("jobscript", "pbs", *shlex.split(words), *arguments)
    assert command.code() == 0, command
    lines = command.out.splitlines()
    assert "#PBS -l select=3:ncpus=16:mpiprocs=4:mem=8192mb" in lines
    assert "#PBS -l walltime=01:00:00" in lines
    assert "options+=(--interface ib0)" in lines
    assert f"scheduler_file={home.folder}/s.json" in lines
    assert "set -- 'my script.py' --nodes 5 '$x'" in lines
    path = lines.index(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    assert lines[path - 1] == "module load x"


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ("jobscript", 2, "no batch system is here"),
        ("jobscript slurm --walltime 30 x.py", 2, "as in 1:30:00"),
        ("jobscript slurm --memory lots x.py", 2, "'lots' is not a size"),
        ("jobscript slurm --memory 32 x.py", 2, "give a unit, as in 32GiB"),
        ("jobscript sge --memory 1GiB x.py", 2, "-l h_vmem=4G"),
        ("jobscript slurm --launch cluster x.py", 2, "runs no script"),
        ("submit slurm", 2, "--launch mpi runs a script: name it after the options"),
        ("submit pbs missing.py", 2, "there is no script 'missing.py' to run"),
        ("submit slurm --launch cluster", 1, "cannot run sbatch: No such file"),
        ("submit --system sge --launch workers", 1, "cannot run qsub: No such file"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(here, words, code, expected):
    command = here(*words.split(), PATH="/nonexistent")
    assert command.code() == code, command
    [line] = command.err.splitlines()
    assert line.startswith(f"hpc-dask {words.split()[0]}: ")
    assert expected in line
    assert command.out == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("slurm", "--node", "3", "x.py"), "No such option"),
        (("slrum",), "'slrum' is no batch system"),
    ],
)
def test_a_misspelt_word_before_the_script_is_no_script(here, words, expected):
    command = here("jobscript", *words)
    assert command.code() == 2
    assert expected in command.err


def test_grid_engine_is_not_taken_for_pbs(home, here):
    for name in ("qsub", "qconf"):
        home.file(name, "#!/bin/sh\ntouch submitted; echo 7\n").chmod(0o755)
    command = here("submit", "pbs", "--launch", "cluster", PATH=str(home.folder))
    assert command.code() == 2
    assert "is that of Grid Engine" in command.err
    assert not (home.folder / "submitted").exists()


def test_a_job_inherits_no_token_and_nothing_of_the_job_it_is_submitted_from(home):
    home.file("sbatch", "#!/bin/sh\nexport -p >environment; echo 12\n").chmod(0o755)
    mine = {"HPCDASK_TOKEN": "5e" * 32, "SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "99"}
    others = {"HPCDASK_TOKEN_FILE": "~/mine", "SBATCH_ACCOUNT": "abc", "OMPI_MCA_btl": "tcp"}
    command = home.hpc_dask(
        *("submit", "slurm", "--launch", "cluster"), PATH=str(home.folder), **mine, **others
    )
    assert command.code() == 0, command
    found = (home.folder / "environment").read_text()
    assert [name for name in mine if f"{name}=" in found] == []
    assert [name for name in others if f"{name}=" in found] == list(others)
    assert "5e5e" not in found
    assert "HPCDASK_TOKEN is not handed on to the job" in command.err


def test_workers_for_a_scheduler_that_is_not_there_are_told_of(home, here):
    home.file("sbatch", "#!/bin/sh\necho 12\n").chmod(0o755)
    words = ("submit", "slurm", "--launch", "workers")
    early = here(*words, PATH=str(home.folder))
    assert (early.code(), early.out) == (0, "12\n")
    file = home.file("scheduler.json", "")
    late = here(*words, PATH=str(home.folder))
    assert late.code() == 0
    told = f"that file is not there yet: start one with hpc-dask scheduler --scheduler-file {file},"
    assert told in early.err
    assert "not there yet" not in late.err
