"""Job scripts as text: the templates, what options do to them, and what cannot be asked for."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hpcdask.errors import ConfigError
from hpcdask.jobqueue.job_script import job_script, scheduler_file, templates
from hpcdask.jobqueue.job_spec import LAUNCHES
from hpcdask.jobqueue.systems import SYSTEMS, WORKER_SYSTEMS

JOBSCRIPTS = Path(__file__).resolve().parents[2] / "jobscripts"
TEMPLATES = dict(templates(SYSTEMS.values()))

HOW_TO_MEND = (
    "the templates are what the code says: hpc-dask jobscript SYSTEM --launch KIND "
    "--venv '~/hpcdask-venv' >jobscripts/{}"
)


def script(system: str, launch: str = "mpi", **changes: object) -> list[str]:
    """Lines of a template of which something is changed."""
    job = replace(WORKER_SYSTEMS[system].template(launch), **changes)
    return job_script(WORKER_SYSTEMS[system], job).splitlines()


def test_directives_that_a_site_does_not_want_are_left_out():
    lines = script("slurm", skip=("--mem", "--partition"), directives=("--mem=0",))
    assert [line for line in lines if "--mem" in line] == ["#SBATCH --mem=0"]
    others = [line for line in script("slurm") if line.startswith("#SBATCH ")]
    assert [line for line in others if "--mem" not in line] == [
        line for line in lines if line.startswith("#SBATCH ") and "--mem" not in line
    ]


# -- The templates --------------------------------------------------------------------------------


def test_there_is_one_file_for_each_system_and_kind_of_launch():
    files = {path.name for path in JOBSCRIPTS.iterdir()} - {"README.md"}
    assert files == set(TEMPLATES)
    assert len(files) == len(SYSTEMS) * len(LAUNCHES)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_file_is_what_the_code_makes(name):
    assert (JOBSCRIPTS / name).read_text() == TEMPLATES[name], HOW_TO_MEND.format(name)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_bash_can_read_a_template(name):
    subprocess.run(["bash", "-n", JOBSCRIPTS / name], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="there is no shellcheck here")
def test_shellcheck_finds_nothing_in_the_templates():
    # It is not to look for the environment of whoever will use them.
    command = ["shellcheck", "--shell=bash", "--exclude=SC1090,SC1091", *sorted(TEMPLATES)]
    found = subprocess.run(command, cwd=JOBSCRIPTS, capture_output=True, text=True)
    assert found.stdout == ""


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_template_is_for_people(name):
    lines = TEMPLATES[name].splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("#  ") and name in line for line in lines), "how it is submitted"
    edits = [line for line in lines if "Edit:" in line]
    assert len(edits) >= 3
    assert not any("token" in line.lower() for line in lines)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_program_takes_the_place_of_the_shell(name):
    """So that signals reach it, and its exit code is the job's."""
    before, _, last = TEMPLATES[name].rpartition("\nexec ")
    assert "\n" not in last.replace("\\\n", "").rstrip()
    assert "\nset -e\n" in before


@pytest.mark.parametrize("name", ["slurm-mpi.sbatch", "slurm-srun.sbatch", "sge-mpi.sge"])
def test_without_a_script_a_template_says_how_it_is_used(name):
    run = subprocess.run(["bash", JOBSCRIPTS / name], capture_output=True, text=True)
    assert run.returncode == 2
    submit = "qsub" if name.endswith(".sge") else "sbatch"
    assert run.stderr == f"usage: {submit} {name} script.py [its arguments]\n"


# -- What options do ------------------------------------------------------------------------------


def on_all(*lines: str) -> dict[str, list[str]]:
    """The same for each system."""
    return {system: list(lines) for system in SYSTEMS}


ASKED_FOR = [
    (
        {"nodes": 3, "tasks_per_node": 2, "cpus_per_task": 8},
        {
            "slurm": [
                "#SBATCH --nodes=3",
                "#SBATCH --ntasks-per-node=2",
                "#SBATCH --cpus-per-task=8",
            ],
            "pbs": ["#PBS -l select=3:ncpus=16:mpiprocs=2:mem=32768mb", "#PBS -l place=scatter"],
            "sge": ["#$ -pe mpi 48"],
        },
    ),
    (
        {"walltime": 100 * 3600 + 61},
        {
            "slurm": ["#SBATCH --time=100:01:01"],
            "pbs": ["#PBS -l walltime=100:01:01"],
            "sge": ["#$ -l h_rt=100:01:01"],
        },
    ),
    (
        {"name": "big"},
        {"slurm": ["#SBATCH --job-name=big"], "pbs": ["#PBS -N big"], "sge": ["#$ -N big"]},
    ),
    (
        {"queue": "long"},
        {"slurm": ["#SBATCH --partition=long"], "pbs": ["#PBS -q long"], "sge": ["#$ -q long"]},
    ),
    (
        {"account": "abc"},
        {"slurm": ["#SBATCH --account=abc"], "pbs": ["#PBS -A abc"], "sge": ["#$ -P abc"]},
    ),
    (
        {"output": "logs/x.log"},
        {
            "slurm": ["#SBATCH --output=logs/x.log"],
            "pbs": ["#PBS -j oe", "#PBS -o logs/x.log"],
            "sge": ["#$ -j y", "#$ -o logs/x.log"],
        },
    ),
    (
        {"directives": ("-x y", "--z")},
        {
            "slurm": ["#SBATCH -x y", "#SBATCH --z"],
            "pbs": ["#PBS -x y", "#PBS --z"],
            "sge": ["#$ -x y", "#$ --z"],
        },
    ),
    ({"interface": "ib*,hsn0"}, on_all("options+=(--interface 'ib*,hsn0')")),
    (
        {"script": ("my script.py", "--n", "$x")},
        on_all("set -- 'my script.py' --n '$x'"),
    ),
    (
        {"scheduler_file": "/shared/my file.json"},
        on_all("scheduler_file='/shared/my file.json'"),
    ),
    (
        {"environment": ("module load python", "source v/bin/activate")},
        on_all("module load python", "source v/bin/activate"),
    ),
]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("changes", "expected"), ASKED_FOR, ids=lambda v: ",".join(v))
def test_every_wish_is_in_the_script_of_every_system(system, changes, expected):
    lines = script(system, **changes)
    assert set(expected[system]) <= set(lines)
    # Directives count only above the first command.
    first_command = lines.index("set -e")
    prefix = SYSTEMS[system].prefix
    assert not any(line.startswith(prefix) for line in lines[first_command:])


@pytest.mark.parametrize(
    ("memory", "slurm", "pbs"),
    [
        (64 * 2**30, "#SBATCH --mem=64G", ":mem=65536mb"),
        (10**9, "#SBATCH --mem=954M", ":mem=954mb"),  # never less than was asked for
        (0, None, None),
    ],
)
def test_memory_is_for_each_node(memory, slurm, pbs):
    lines = script("slurm", memory=memory)
    assert [line for line in lines if "--mem" in line] == [slurm] * bool(slurm)
    [select] = [line for line in script("pbs", memory=memory) if "-l select=" in line]
    assert select.endswith(pbs or ":mpiprocs=4")


@pytest.mark.parametrize(
    ("system", "array"),
    [("slurm", "#SBATCH --array=1-9"), ("pbs", "#PBS -J 1-9"), ("sge", "#$ -t 1-9")],
)
def test_several_jobs_are_one_array_and_one_is_a_plain_job(system, array):
    assert array in script(system, "workers", count=9)
    flag = array.partition("1-9")[0]
    assert not any(line.startswith(flag) for line in script(system, "workers", count=1))


def test_what_is_named_is_not_suggested():
    named = {"queue": "q", "account": "a"}
    for system in SYSTEMS:
        assert not any("NAME" in line for line in script(system, **named) if line.startswith("##"))


# pytest-mpi would take one that is called just "mpi" for one of its own.
@pytest.mark.parametrize("launch", LAUNCHES, ids="launch-{}".format)
def test_pbs_scripts_heed_what_openpbs_does(launch):
    lines = script("pbs", launch)
    # It runs a script by the user's login shell, which may be another, and starts it at home.
    assert "#PBS -S /bin/bash" in lines
    first = [line for line in lines if line and not line.startswith("#")]
    assert first[:2] == ["set -e", 'cd "$PBS_O_WORKDIR" || exit 1']
    # It refuses arguments behind the name of a job script.
    assert "#     qsub " + SYSTEMS["pbs"].template_name(launch) in lines
    assert ("set -- script.py" in lines) == (launch in ("mpi", "native"))
    # Its id has a server's name behind it, which is for no file's name.
    assert not any("$PBS_JOBID" in line for line in lines)
    # What has called setsid outlives the job.
    assert not any(word in line for line in lines for word in ("setsid", "nohup", "disown"))


@pytest.mark.parametrize("launch", ["native", "cluster"])
def test_what_starts_elsewhere_takes_nothing_of_the_shell_for_granted(launch):
    """pbsdsh and qrsh hand neither folder nor variables on, and pbsdsh looks into no PATH."""
    for system in ("pbs", "sge"):
        lines = script(system, launch, environment=("module load x", "export A=1"))
        there = lines[lines.index('cd $(printf %q "$PWD")') - 1 :]
        assert there[0].startswith('there="export HPCDASK_SIZE=')
        assert there[2:4] == ["$(declare -f environment)", "environment"]
        assert "    module load x" in lines[lines.index("environment() {") :]
    assert any("-- /bin/bash -lc" in line for line in script("pbs", launch))


def test_without_mpi_pbs_starts_one_process_on_each_node():
    """pbsdsh follows the node file, which has as many lines as there are mpiprocs."""
    assert "#PBS -l select=2:ncpus=16:mem=32768mb" in script("pbs", "native")
    assert "options+=(--inclusive-workers --nworkers 4 --nthreads 4)" in script("pbs", "native")


def test_workers_of_one_node_are_started_by_one_command():
    for system in SYSTEMS:
        last = script(system, "workers", tasks_per_node=3, cpus_per_task=5)[-1]
        assert last == 'exec hpc-dask worker "${options[@]}" --nworkers 3 --nthreads 5'
    assert "#SBATCH --cpus-per-task=15" in script(
        "slurm", "workers", tasks_per_node=3, cpus_per_task=5
    )


@pytest.mark.parametrize(
    ("system", "launch", "words"),
    [
        ("slurm", "mpi", "2 nodes with 4 processes each: one runs scheduler and script, which"),
        ("slurm", "cluster", "one runs the scheduler, which leaves 7 workers of 4 threads."),
        ("pbs", "native", "2 nodes with 4 workers of 4 threads each, and scheduler and script on"),
        ("sge", "workers", "4 jobs with 4 workers of 4 threads each."),
    ],
)
def test_the_head_tells_what_the_numbers_make(system, launch, words):
    assert words in " ".join(line.removeprefix("# ") for line in script(system, launch))


# -- Where the scheduler's file is ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "job_id", "name"),
    [
        ("slurm", "12", "hpcdask-12"),
        ("pbs", "12.server", "hpcdask-12"),
        ("sge", "12", "hpcdask-12"),
    ],
)
def test_a_clients_path_is_the_one_that_the_job_writes(system, job_id, name):
    system = SYSTEMS[system]
    job = system.template("native")
    assert scheduler_file(system, job, "/home/me", job_id) == f"/home/me/{name}.json"
    lines = job_script(system, job).splitlines()
    assert f'scheduler_file="$PWD/hpcdask-{system.job_id_expression}.json"' in lines
    shell = {"slurm": "SLURM_JOB_ID", "pbs": "PBS_JOBID", "sge": "JOB_ID"}[system.name]
    echo = f'echo "hpcdask-{system.job_id_expression}"'
    printed = subprocess.run(["bash", "-c", echo], env={shell: job_id}, capture_output=True)
    assert printed.stdout.decode().strip() == name


def test_a_path_of_the_users_own_is_taken_as_it_is():
    system = SYSTEMS["slurm"]
    job = replace(system.template("cluster"), scheduler_file="s.json")
    assert scheduler_file(system, job, "/home/me", "1") == "/home/me/s.json"
    job = replace(job, scheduler_file="/shared/s.json")
    assert scheduler_file(system, job, "/home/me", "1") == "/shared/s.json"


# -- What cannot be asked for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "launch", "changes", "words"),
    [
        ("slurm", "nope", {}, "there is no launch 'nope'; choose mpi, native, cluster, workers"),
        ("slurm", "cluster", {"script": ("x.py",)}, "waits for clients and runs no script"),
        ("slurm", "workers", {"script": ("x.py",)}, "joins a scheduler and runs no script"),
        ("moab", "workers", {"count": 3}, "are submitted one by one: count has to be 1"),
        ("lsf", "workers", {"nodes": 3, "count": 1}, "ask for more jobs in place of nodes"),
        ("lsf", "mpi", {}, "hpcdask starts no cluster within a job of LSF, but workers"),
        ("htcondor", "workers", {"queue": "q"}, "HTCondor has no queues"),
        ("oar", "workers", {"disk": 1}, "only HTCondor is asked for room on a disk; OAR is not"),
        ("pbs", "mpi", {"count": 3}, "--jobs is for --launch workers"),
        ("slurm", "mpi", {"parallel_environment": "smp"}, "are Grid Engine's; Slurm needs none"),
        ("pbs", "mpi", {"parallel_environment": "smp"}, "are Grid Engine's; PBS needs none"),
        ("sge", "mpi", {"memory": 2**30}, "--directive '-l h_vmem=4G'"),
        ("sge", "mpi", {"name": "two words"}, "cannot be the name of a job: it has a blank in it"),
        ("slurm", "mpi", {"queue": "a\n#SBATCH -x"}, "cannot be the queue of a job"),
        ("slurm", "mpi", {"directives": ("a\nb",)}, "is more than one directive"),
    ],
)
def test_what_a_system_cannot_do_is_refused_with_what_to_do(system, launch, changes, words):
    with pytest.raises(ConfigError) as caught:
        script(system, launch, **changes)
    assert words in str(caught.value)
