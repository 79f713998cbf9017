"""`Job` classes: whole scripts, what keywords do, what a subclass may change, what is refused."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import hpcdask.jobqueue
from hpcdask import config
from hpcdask.config import jobs
from hpcdask.errors import ConfigError
from hpcdask.jobqueue import (
    HTCondorJob,
    Job,
    LSFJob,
    MoabJob,
    OARJob,
    PBSJob,
    SGEJob,
    SLURMCluster,
    SLURMJob,
)
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.keywords import read_walltime
from hpcdask.jobqueue.slurm import Slurm
from hpcdask.launchers.departure import leads

KINDS: list[type[Job]] = [SLURMJob, PBSJob, SGEJob, LSFJob, OARJob, HTCondorJob, MoabJob]
SIZE: dict[str, Any] = {"cores": 16, "memory": "64 GiB"}
#: Of whole scripts: what does not depend on who runs the tests.
FIXED = {**SIZE, "python": "/opt/python", "scheduler_file": "/me/s.json"}

each_kind = pytest.mark.parametrize("kind", KINDS)


def of(kind: type[Job], **keywords: Any) -> Job:
    return kind(**{**FIXED, **keywords})


# -- Whole scripts --------------------------------------------------------------------------------

#: What is the same in all of the scripts of jobs with a node each.
WORKERS = """\
# env: a token that a profile exports would go before the scheduler file's.
# exec: signals reach the workers, which hand over what only they hold before they end.
exec env -u HPCDASK_TOKEN -u HPCDASK_TOKEN_FILE /opt/python -m hpcdask worker \\
    --name "$name" \\
    --scheduler-file /me/s.json \\
    --nthreads 4 --nworkers 4 --memory-limit 16320MiB \\
    --death-timeout 60s --walltime {walltime}
"""

SCRIPTS: dict[type[Job], tuple[dict[str, Any], str]] = {
    SLURMJob: (
        {"queue": "short", "account": "abc", "walltime": "12:00:00"},
        """\
#!/usr/bin/env bash
# A job with 4 workers of 4 threads and 16320 MiB each, for a cluster that is there already.

#SBATCH --job-name=hpcdask
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --partition=short
#SBATCH --account=abc
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:TERM@60

# The workers are called as the job is in the queue.
name="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}\
${SLURM_RESTART_COUNT:+r$SLURM_RESTART_COUNT}"

""",
    ),
    PBSJob: (
        {"queue": "short", "account": "abc", "log_directory": "/me/logs"},
        """\
#!/usr/bin/env bash
# A job with 4 workers of 4 threads and 16320 MiB each, for a cluster that is there already.

#PBS -S /bin/bash
#PBS -N hpcdask
#PBS -l select=1:ncpus=16:mem=65536mb
#PBS -l walltime=00:30:00
#PBS -q short
#PBS -A abc
#PBS -j oe
#PBS -o /me/logs/

# PBS starts a job in your home folder; this is the one from which it was submitted.
cd "$PBS_O_WORKDIR" || exit 1

# The workers are called as the job is in the queue.
name="${PBS_JOBID%%.*}"

""",
    ),
    SGEJob: (
        {"queue": "short", "project": "abc", "resource_spec": "h_vmem=5G"},
        """\
#!/usr/bin/env bash
# A job with 4 workers of 4 threads and 16320 MiB each, for a cluster that is there already.

#$ -S /bin/bash
#$ -cwd
#$ -N hpcdask
#$ -pe smp 16
#$ -l h_rt=00:30:00
#$ -l h_vmem=5G
#$ -q short
#$ -P abc
#$ -j y
#$ -notify

# The workers are called as the job is in the queue.
name="$JOB_ID$([[ $SGE_TASK_ID == undefined ]] || echo ".$SGE_TASK_ID")\
$([[ ${RESTARTED:-0} == 0 ]] || echo r1)"

""",
    ),
    LSFJob: (
        {"queue": "short", "project": "abc", "lsf_units": "gb"},
        """\
#!/usr/bin/env bash
# A job with 4 workers of 4 threads and 16320 MiB each, for a cluster that is there already.

#BSUB -J "hpcdask"
#BSUB -n 16
#BSUB -R "span[hosts=1]"
#BSUB -M 64
#BSUB -W 0:30
#BSUB -q short
#BSUB -P "abc"
#BSUB -o hpcdask-%J.log
#BSUB -wa TERM -wt 1

# The workers are called as the job is in the queue.
name="$LSB_JOBID$([[ ${LSB_JOBINDEX:-0} == 0 ]] || echo "[$LSB_JOBINDEX]")${LSB_RESTART:+r1}"

""",
    ),
    OARJob: (
        {"queue": "short", "project": "abc", "memory_per_core_property_name": "memcore"},
        """\
#!/usr/bin/env bash
# A job with 4 workers of 4 threads and 16320 MiB each, for a cluster that is there already.

#OAR -n hpcdask
#OAR -l /nodes=1/core=16,walltime=00:30:00
#OAR -q short
#OAR --project abc
#OAR -O hpcdask-%jobid%.log
#OAR -E hpcdask-%jobid%.log
#OAR --checkpoint 60
#OAR --signal 15
#OAR -p "memcore>=4096"

# The workers are called as the job is in the queue.
name="$OAR_JOB_ID"

""",
    ),
    MoabJob: (
        {"queue": "short", "resource_spec": "nodes=1:ppn=16"},
        """\
#!/usr/bin/env bash
# A job with 4 workers of 4 threads and 16320 MiB each, for a cluster that is there already.

#PBS -S /bin/bash
#PBS -N hpcdask
#PBS -l nodes=1:ppn=16
#PBS -l walltime=00:30:00
#PBS -q short
#PBS -j oe

# PBS starts a job in your home folder; this is the one from which it was submitted.
cd "$PBS_O_WORKDIR" || exit 1

# The workers are called as the job is in the queue.
name="${PBS_JOBID%%.*}"

""",
    ),
    HTCondorJob: (
        {"disk": "10 GiB", "job_extra_directives": {"+Extra": "True"}},
        """\
#!/usr/bin/env bash
# A job with 4 workers of 4 threads and 16320 MiB each, for a cluster that is there already.

#HTCONDOR universe = vanilla
#HTCONDOR batch_name = hpcdask
#HTCONDOR n_jobs = 1
#HTCONDOR request_cpus = 16
#HTCONDOR request_memory = 65536
#HTCONDOR request_disk = 10485760
#HTCONDOR output = hpcdask-$(ClusterId).$(ProcId).log
#HTCONDOR error = hpcdask-$(ClusterId).$(ProcId).log.err
#HTCONDOR periodic_remove = JobStatus == 2 && time() - EnteredCurrentStatus > 1800
#HTCONDOR job_max_vacate_time = 60
#HTCONDOR copy_to_spool = true
#HTCONDOR environment = "HPCDASK_JOB=$(ClusterId).$(ProcId)"
#HTCONDOR +Extra = True

# The workers are called as the job is in the queue.
name="$HPCDASK_JOB$(awk '/^NumShadowStarts = / && $3 > 1 { print "r" $3 - 1 }' \
"$_CONDOR_JOB_AD" || :)"

""",
    ),
}


@each_kind
def test_a_script_is_short_and_says_what_it_does(kind):
    keywords, expected = SCRIPTS[kind]
    walltime = keywords.get("walltime", "00:30:00")
    assert of(kind, **keywords).job_script() == expected + WORKERS.format(walltime=walltime)


#: What each script has before it starts workers that it waits for, and its end.
NOTING = """\
# A signal that comes while the workers are started is kept until they are.
early=''
trap early=TERM TERM
trap early=USR1 USR1
trap early=USR2 USR2
"""
WAITING = """\
# A signal goes on to the workers, and interrupts nothing but the waiting for them.
hand_on() {
    signal=$1
    kill -s "$1" "${workers[@]}" 2>/dev/null || true
}
trap 'hand_on TERM' TERM
trap 'hand_on USR1' USR1
trap 'hand_on USR2' USR2
[[ ! $early ]] || hand_on "$early"
code=0
for process in "${workers[@]}"; do
    signal=none
    while [[ $signal ]]; do
        signal='' status=0
        wait "$process" || status=$?
    done
    ((status <= code)) || code=$status
done
"""


def below_the_name(script: str) -> str:
    """What a script does, without its directives."""
    return script[script.index("\nname=") :].partition("\n\n")[2]


def test_an_epilogue_is_run_when_the_workers_have_ended():
    job = of(
        SLURMJob,
        processes=1,
        job_script_prologue=["module load x", "export A=1"],
        job_script_epilogue=["echo over", "rm -rf scratch"],
        launcher="jsrun -n 1",
        nanny=True,
        interface="ib*,hsn0",
        protocol="tcp",
        local_directory='~/$TMPDIR/"x"',
        death_timeout="5 min",
        resources={"GPU": 1, "MEM": 2.5},
        worker_extra_args=["--lifetime 55m", "--no-auth"],
    )
    script = job.job_script()
    assert "@60\n\nmodule load x\nexport A=1\n\n# The workers" in script
    assert below_the_name(script) == (
        NOTING
        + """\
# env: a token that a profile exports would go before the scheduler file's.
jsrun -n 1 env -u HPCDASK_TOKEN -u HPCDASK_TOKEN_FILE /opt/python -m hpcdask worker \\
    --name "$name" \\
    --scheduler-file /me/s.json \\
    --nthreads 16 --nworkers 1 --memory-limit 65472MiB \\
    --death-timeout 300s --walltime 00:30:00 \\
    --nanny \\
    --interface 'ib*,hsn0' \\
    --protocol tcp \\
    --local-directory "$HOME/$TMPDIR/\\"x\\"" \\
    --resources 'GPU=1 MEM=2.5' \\
    --lifetime 55m \\
    --no-auth &
workers=($!)

"""
        + WAITING
        + """
echo over
rm -rf scratch

exit "$code"
"""
    )


#: The command of the workers of each node.
WORKER = f"""\
# env: a token that a profile exports would go before the scheduler file's.
worker=(
    env -u HPCDASK_TOKEN -u HPCDASK_TOKEN_FILE /opt/python -m hpcdask worker
    --scheduler-file /me/s.json
    --nthreads 4 --nworkers 4 --memory-limit 16320MiB
    --death-timeout 60s --walltime 00:30:00
)
{NOTING}workers=()
"""
ANEW = """\
there="cd $(printf %q "$PWD")
$(declare -f environment)
environment
exec$(printf ' %q' "${worker[@]}")"
"${worker[@]}" --name "$name.0" &
workers+=($!)
"""

ON_NODES = {
    SLURMJob: (
        "#SBATCH --nodes=3\n#SBATCH --ntasks-per-node=1\n#SBATCH --cpus-per-task=16\n",
        """\
# Since Slurm 22.05 srun does not take the CPUs of a task from the lines above.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# Workers of one node may end without those of the others.
srun --kill-on-bad-exit=0 --wait=0 \\
    bash -c 'exec "$@" --name "$0.$SLURM_NODEID"' "$name" "${worker[@]}" &
workers+=($!)
""",
    ),
    PBSJob: (
        "#PBS -l select=3:ncpus=16:mem=65536mb\n#PBS -l place=scatter\n",
        f"""\
# The workers of the first node are started here; pbsdsh starts those of the others, and hands
# nothing of this shell on.
{ANEW}\
for ((node = 1; node < $(wc -l <"$PBS_NODEFILE"); node++)); do
    pbsdsh -n "$node" -- /bin/bash -lc "$there --name $name.$node" &
    workers+=($!)
done
""",
    ),
    SGEJob: (
        "#$ -pe mpi 48\n",
        f"""\
if awk '$2 != 16 {{ exit 1 }}' "$PE_HOSTFILE"; then
    mapfile -t hosts < <(awk '{{ print $1 }}' "$PE_HOSTFILE")
else
    echo "not 16 slots on each host: use a -pe that gives so many" >&2
    exit 1
fi
# The workers of the first host are started here; qrsh starts those of the others, and hands nothing
# of this shell on.
{ANEW}\
for ((node = 1; node < ${{#hosts[@]}}; node++)); do
    qrsh -inherit "${{hosts[node]}}" bash -l <<<"$there --name $name.$node" &
    workers+=($!)
done
""",
    ),
}


@pytest.mark.parametrize("kind", ON_NODES)
def test_each_node_of_a_job_gets_its_workers(kind):
    asked_for, starting = ON_NODES[kind]
    job = of(kind, nodes_per_job=3, job_script_prologue=["module load x"])
    script = job.job_script()
    assert asked_for in script
    assert "4 workers of 4 threads and 16320 MiB each on each of 3 nodes" in script
    assert "module load x\n" in script
    assert below_the_name(script) == f'{WORKER}{starting}\n{WAITING}\nexit "$code"\n'
    assert job.n_workers == 12


def test_a_launcher_of_the_users_starts_the_workers_of_all_nodes():
    script = of(PBSJob, nodes_per_job=2, launcher="mpiexec -ppn 1").job_script()
    assert (
        f"""{WORKER}\
# Each process is told its number by the launcher, whichever that is.
mpiexec -ppn 1 \\
    bash -c 'exec "$@" --name "$0.${{OMPI_COMM_WORLD_RANK:-${{PMIX_RANK:-${{PMI_RANK:-\
${{JSM_NAMESPACE_RANK:-${{ALPS_APP_PE:-$SLURM_PROCID}}}}}}}}}}"' "$name" "${{worker[@]}}" &
workers+=($!)
"""
        in script
    )
    assert "pbsdsh" not in script


@pytest.mark.parametrize(
    ("kind", "array", "log"),
    [
        (SLURMJob, "#SBATCH --array=1-5", "#SBATCH --output=/me/logs/hpcdask-%A_%a.log"),
        (PBSJob, "#PBS -J 1-5", "#PBS -o /me/logs/"),
        (SGEJob, "#$ -t 1-5", "#$ -o /me/logs/"),
        (LSFJob, '#BSUB -J "hpcdask[1-5]"', "#BSUB -o /me/logs/hpcdask-%J_%I.log"),
        (OARJob, "#OAR --array 5", "#OAR -O /me/logs/hpcdask-%jobid%.log"),
        (
            HTCondorJob,
            "#HTCONDOR n_jobs = 5",
            "#HTCONDOR output = /me/logs/hpcdask-$(ClusterId).$(ProcId).log",
        ),
    ],
)
def test_an_array_differs_in_its_directives_only(kind, array, log):
    job = of(kind, log_directory="/me/logs")
    assert job.script(1) == job.job_script()
    lines, alone = job.script(5).splitlines(), job.job_script().splitlines()
    assert array in lines
    assert array not in alone
    assert log in lines
    assert [line for line in lines if not line.startswith(job.system.prefix)] == [
        line for line in alone if not line.startswith(job.system.prefix)
    ]


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        (SLURMJob, {"5": "hpcdask-5.log", "5_1": "hpcdask-5_1.log"}),
        (PBSJob, {"5": "hpcdask.o5", "19[2]": "hpcdask.o19.2"}),
        (SGEJob, {"5": "hpcdask.o5", "6.2": "hpcdask.o6.2"}),
        (LSFJob, {"5": "hpcdask-5.log", "12[3]": "hpcdask-12_3.log"}),
        (OARJob, {"5": "hpcdask-5.log"}),
        (HTCondorJob, {"5.0": "hpcdask-5.0.log"}),
    ],
)
def test_a_log_is_found_by_the_jobs_id(kind, paths, tmp_path):
    for id, name in paths.items():
        assert of(kind).log_paths(id)[0] == name
        kept = of(kind, log_directory=tmp_path)
        if kind is not PBSJob:
            assert kept.log_paths(id)[0] == str(tmp_path / name)
        else:
            assert kept.log_paths(id) == []
            (tmp_path / f"{id}.server.example.OU").touch()
            assert kept.log_paths(id) == [str(tmp_path / f"{id}.server.example.OU")]
            # Of a thousand jobs not each looks through the folder.
            assert kept.log_paths("7") == [str(tmp_path / "7.server.example.OU")]


def all_scripts() -> Iterator[tuple[str, str]]:
    """Scripts of each system: with a node, with several, and with an epilogue."""
    for kind in KINDS:
        many = {"nodes_per_job": 2} if "nodes_per_job" in words_of(kind) else {}
        for name, more in {
            "alone": {},
            "epilogue": {"job_script_epilogue": ["echo over"]},
            "nodes": {**many, "job_script_prologue": ["export A=1"]},
        }.items():
            yield f"{kind.__name__}-{name}", of(kind, **more).script(1 if kind is MoabJob else 3)


def words_of(kind: type[Job]) -> list[str]:
    return [word.keyword for word in jobs.words_of(kind.system.name)]


def test_shellcheck_and_bash_find_nothing_in_the_scripts(tmp_path):
    names = []
    for name, script in all_scripts():
        (tmp_path / name).write_text(script)
        names.append(name)
        words = set(re.findall(r"\w*token\w*", script, re.IGNORECASE))
        assert words == {"token", "HPCDASK_TOKEN", "HPCDASK_TOKEN_FILE"}  # what workers go without
        subprocess.run(["bash", "-n", name], cwd=tmp_path, check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("there is no shellcheck here")
    # It does not see that a trap calls a function, nor that another shell fills in what it gets.
    command = ["shellcheck", "--shell=bash", "--exclude=SC2317,SC2016", *names]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout == ""


# -- Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "processes", "n_workers", "nthreads"),
    [(1, None, 1, 1), (4, None, 2, 2), (10, None, 3, 3), (16, None, 4, 4), (24, 3, 3, 8)],
)
def test_workers_share_the_cores_of_a_job(cores, processes, n_workers, nthreads):
    job = SLURMJob(cores=cores, memory="1 GiB", processes=processes)
    assert (job.n_workers, job.nthreads) == (n_workers, nthreads)
    assert f"--cpus-per-task={cores}\n" in job.job_header, "also those that have no thread"


@pytest.mark.parametrize(
    ("memory", "more", "limit"),
    [
        ("4 GiB", {"processes": 2}, 2 * 2**30 - 64 * 2**20),
        ("4 GiB", {"processes": 1, "nanny": False}, 4 * 2**30),
        ("100 MiB", {"processes": 1}, 75 * 2**20),
        (10**9, {"processes": 1}, (10**9 - 64 * 2**20) // 2**20 * 2**20),
        (2 * 2**20, {"processes": 1}, 2**20),
    ],
)
def test_nannies_have_a_part_of_the_memory(memory, more, limit):
    """The batch system counts them, and must not be the first that thinks it too much."""
    job = SLURMJob(cores=4, memory=memory, **more)
    assert job.memory_limit == limit
    assert job.n_workers * job.memory_limit <= job.memory


def test_without_a_nanny_by_configuration_no_memory_is_kept_for_one():
    with config.set({"worker.nanny": False}):
        assert SLURMJob(cores=4, memory="4 GiB", processes=1).memory_limit == 4 * 2**30
        assert "--no-nanny" not in SLURMJob(cores=1, memory="4 GiB").job_script()


# -- Walltimes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "seconds"),
    [
        (SLURMJob, "30", 30 * 60),
        (SLURMJob, "1:30", 90),
        (SLURMJob, "1-12", 36 * 3600),
        (SLURMJob, "1-12:30", 36 * 3600 + 1800),
        (PBSJob, "3600", 3600),
        (PBSJob, "30:00", 1800),
        (SGEJob, "3600", 3600),
        (LSFJob, "00:30", 1800),
        (LSFJob, "30", 1800),
        (OARJob, "2", 7200),
        (OARJob, "1:30", 5400),
        (SLURMJob, "2-00:00:00", 172800),
        (LSFJob, "00:30:00", 1800),
        (PBSJob, "90min", 5400),
        (SLURMJob, timedelta(days=1, seconds=1), 86401),
        (PBSJob, 3600, 3600),
    ],
)
def test_a_walltime_is_read_as_the_system_does(kind, text, seconds):
    assert of(kind, walltime=text).walltime == seconds


@pytest.mark.parametrize("text", ["0", "0:00", "0:0:0", "1:2:3:4", "soon"])
def test_what_is_no_walltime_is_refused(text):
    with pytest.raises(ConfigError):
        read_walltime(text, (1, 60))


# -- Names of old, and what is no keyword ---------------------------------------------------------


@each_kind
@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("extra", "worker_extra_args", ["--x"]),
        ("env_extra", "job_script_prologue", ["ml x"]),
        ("header_skip", "job_directives_skip", ["hpcdask"]),
        ("job_extra", "job_extra_directives", ["-x"]),
    ],
)
def test_names_of_old_work_and_warn(kind, old, new, value):
    with pytest.warns(FutureWarning, match=rf"\({old}=\) is deprecated; write {new}= in") as caught:
        script = of(kind, **{old: value}).job_script()
    assert script == of(kind, **{new: value}).job_script()
    assert script != of(kind).job_script()
    with pytest.raises(ConfigError, match=f"{old} is another name of {new}; give one of them"):
        of(kind, **{old: value, new: value})
    assert caught[0].filename == __file__, "it is about the line that makes the job"


def test_a_name_of_old_given_to_a_cluster_warns_of_the_line_that_makes_the_cluster():
    with pytest.warns(FutureWarning) as caught, pytest.raises(ConfigError, match="lives in"):
        SLURMCluster(cores=1, memory="1GB", job_extra=["-x"], scheduler="elsewhere")
    assert {warning.filename for warning in caught} == {__file__}


@each_kind
def test_a_project_is_an_account_and_where_they_say_so_no_warning(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = of(kind, account="abc").job_script()
        if kind in (SGEJob, LSFJob, OARJob):
            assert of(kind, project="abc").job_script() == expected
            return
    with pytest.warns(FutureWarning, match="write account= in its place"):
        assert of(kind, project="abc").job_script() == expected


@pytest.mark.parametrize(
    ("kind", "keyword", "words"),
    [
        (SLURMJob, "coers", "SLURMJob has no keyword 'coers'; did you mean 'cores'?"),
        (SLURMJob, "disk", "SLURMJob has no keyword 'disk', which is for htcondor"),
        (LSFJob, "nodes_per_job", "no keyword 'nodes_per_job', which is for slurm, pbs, moab, sge"),
        (PBSJob, "tasks_per_node", "PBSJob has no keyword 'tasks_per_node'; "),
    ],
)
def test_what_is_no_keyword_is_refused_with_what_was_meant(kind, keyword, words):
    with pytest.raises(TypeError) as caught:
        of(kind, **{keyword: 1})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "keywords", "words"),
    [
        (SLURMJob, {"cores": None}, "SLURMJob has to be told cores of each job, as in SLURMJob("),
        (PBSJob, {"cores": None, "memory": None}, "told cores and memory of each job, as in PBSJ"),
        (SLURMJob, {"memory": None}, "or by jobqueue.slurm.memory"),
        (SLURMJob, {"cores": 0}, "SLURMJob(cores=): 0 is too few: give at least 1"),
        (SLURMJob, {"memory": "much"}, "SLURMJob(memory=): 'much' is not a size"),
        (SLURMJob, {"processes": 17}, "17 processes cannot share 16 CPUs"),
        (SLURMJob, {"nanny": False}, "without nannies a job of SLURMJob is one process, and not 4"),
        (SLURMJob, {"security": True}, "this version has no TLS; leave security out"),
        (SLURMJob, {"protocol": "tls"}, "SLURMJob(protocol=): 'tls' is none of tcp"),
        (SLURMJob, {"job_name": "two words"}, "cannot be the name of a job"),
        (SLURMJob, {"job_name": "a/b"}, "cannot be the name of a job, nor of its log: it has a /"),
        (SLURMJob, {"log_directory": "/a b"}, "cannot be the output of a job: it has a blank"),
        (SLURMJob, {"job_extra_directives": ["a\nb"]}, "is more than one directive"),
        (SLURMJob, {"config_name": "gpu"}, "nothing is configured in a section jobqueue.gpu"),
        (SLURMJob, {"config_name": "pbs"}, "is for another batch system than slurm"),
        (MoabJob, {"resources": {"GPU": -1}}, "MoabJob(resources=): "),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(kind, keywords, words):
    with pytest.raises(ConfigError) as caught:
        of(kind, **keywords)
    assert words in str(caught.value)


def test_jobs_of_moab_come_one_by_one():
    with pytest.raises(ConfigError, match="one by one"):
        of(MoabJob).script(2)


# -- Where the scheduler is, and who the workers are ----------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"scheduler_file": None}, "    --scheduler-file scheduler.json \\\n"),
        ({"scheduler": "tcp://h:1", "scheduler_file": None}, "    tcp://h:1 \\\n"),
        ({"scheduler": "tcp://h:1"}, "    tcp://h:1 --scheduler-file /me/s.json \\\n"),
        ({"scheduler_file": "/with blank/s"}, "    --scheduler-file '/with blank/s' \\\n"),
        ({"scheduler_file": Path("~/s")}, f"    --scheduler-file {Path('~/s').expanduser()} \\\n"),
    ],
)
def test_workers_are_told_where_the_scheduler_is(keywords, words):
    assert words in of(SLURMJob, **keywords).job_script()


def test_where_the_scheduler_is_may_be_known_later():
    job = of(SLURMJob, scheduler_file=None)
    job.scheduler_file, job.log_directory = "/later/s.json", "/later/logs"
    assert "--scheduler-file /later/s.json" in job.script(2)
    assert "--output=/later/logs/" in job.script(2)


def test_workers_may_have_a_name_of_their_own():
    assert "\nname='my worker'\n" in of(SLURMJob, name="my worker").job_script()
    assert SLURMJob("tcp://h:1", "mine", **SIZE).name == "mine"


def test_workers_that_have_an_address_only_have_their_token_from_where_they_are():
    assert "HPCDASK_TOKEN" not in SLURMJob("tcp://h:1", **SIZE).job_script()


def test_by_default_a_job_has_this_python():
    script = SLURMJob(**SIZE).job_script()
    assert f"_FILE {shlex.quote(sys.executable)} -m hpcdask worker \\\n" in script


def test_the_shell_of_the_first_line_is_told_to_systems_that_do_not_look_there():
    for kind, line in ((PBSJob, "#PBS -S"), (SGEJob, "#$ -S")):
        assert f"{line} /bin/bash\n" in of(kind).job_script()
        assert f"{line} /bin/ksh\n" in of(kind, shebang="#!/bin/ksh -l").job_script()


def test_pbs_has_an_account_in_its_environment(monkeypatch):
    monkeypatch.setenv("PBS_ACCOUNT", "abc")
    assert "#PBS -A abc\n" in of(PBSJob).job_script()
    assert "#PBS -A other\n" in of(PBSJob, account="other").job_script()


# -- Commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "submit", "cancel"),
    [
        (SLURMJob, "sbatch --parsable -M a", "scancel -M a"),
        (SGEJob, "qsub -terse -M a", "qdel -M a"),
        (LSFJob, "sh -c 'exec bsub -M a <\"$0\"'", "bkill -M a"),
        (OARJob, 'sh -c \'chmod u+x "$0" && exec oarsub -S -M a "$0"\'', "oardel -M a"),
    ],
)
def test_words_for_the_commands_come_to_them(kind, submit, cancel):
    extra = ["-M", "a"]
    job = of(kind, submit_command_extra=extra, cancel_command_extra=extra)
    assert (job.submit_command, job.cancel_command) == (submit, cancel)
    assert list(job.system.submit_command) == shlex.split(submit)
    assert job.system.cancel_commands(["5"])[0][:3] == shlex.split(cancel)
    assert kind.system.cancel_commands(["5"])[0][1] != "-M", "other jobs have the usual commands"


@pytest.mark.parametrize(
    ("keywords", "variable"),
    [
        ({"job_extra_directives": ["--exclusive", "--clusters=far"]}, ""),
        ({"job_extra_directives": ["-M far"]}, "near"),
        ({"submit_command_extra": ["-M", "far"]}, ""),
        ({}, "far"),
    ],
)
def test_jobs_that_go_to_another_cluster_of_slurm_are_looked_for_there(
    keywords, variable, monkeypatch
):
    monkeypatch.setenv("SBATCH_CLUSTERS", variable)
    slurm = of(SLURMJob, **keywords).system
    for command in (
        slurm.status_command(["5"]),
        slurm.find_command(),
        *slurm.end_commands(["5"]),
        *slurm.cancel_commands(["5"]),
    ):
        assert "-M far" in " ".join(command)
    monkeypatch.setenv("SBATCH_CLUSTERS", "")
    assert "-M" not in of(SLURMJob).system.status_command(["5"])


def test_condor_submit_gets_its_words_where_it_is_run():
    job = of(HTCondorJob, submit_command_extra=["-name", "a b"])
    assert "| condor_submit -name 'a b' -terse -" in job.system.submit_command[-1]


def test_lsf_is_asked_for_memory_in_its_own_units(monkeypatch, tmp_path):
    monkeypatch.setenv("LSF_ENVDIR", str(tmp_path))
    assert "#BSUB -M 67108864\n" in of(LSFJob).job_script(), "KiB where nobody says otherwise"
    (tmp_path / "lsf.conf").write_text('# A comment\nLSF_UNIT_FOR_LIMITS="MB"\nOTHER=1\n')
    assert "#BSUB -M 65536\n" in of(LSFJob).job_script()
    assert "#BSUB -M 64\n" in of(LSFJob, lsf_units="GB").job_script()


def test_lsf_may_be_given_the_path_of_the_script():
    assert of(LSFJob, use_stdin=False).system.submit_command == ("bsub",)


# -- Classes of the user's own --------------------------------------------------------------------


class Mine(SLURMJob):
    submit_command = "ssh login sbatch"
    cancel_command = "ssh login scancel"


def test_a_class_may_have_other_commands():
    job = of(Mine, cancel_command_extra=["-v"])
    assert job.system.submit_command == ("ssh", "login", "sbatch")
    assert job.system.cancel_commands(["5_1", "5_2"]) == [
        ["ssh", "login", "scancel", "-v", "5_[1-2]"]
    ]
    assert (job.submit_command, job.cancel_command) == ("ssh login sbatch", "ssh login scancel -v")
    assert job.system.job_id("Submitted batch job 12\n") == "12"


class WithHeader(SLURMJob):
    @property
    def job_header(self) -> str:
        return super().job_header.replace("--partition", "--clusters")


class WithText(SLURMJob):
    job_header = "#SBATCH --exclusive"  # type: ignore[assignment]


class WithChange(SLURMJob):
    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.job_header += "\n#SBATCH --exclusive"


class WithScript(SLURMJob):
    def job_script(self) -> str:
        return super().job_script().replace("\nexec ", "\ntime ")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (WithHeader, "\n#SBATCH --clusters=q\n"),
        (WithText, "\n\n#SBATCH --exclusive\n\n"),
        (WithChange, "@60\n#SBATCH --exclusive\n"),
        (WithScript, "\ntime env -u HPCDASK_TOKEN"),
    ],
)
def test_a_class_may_have_another_header_or_script(kind, words):
    job = of(kind, queue="q")
    assert words in job.job_script()
    lines, alone = job.script(7).splitlines(), job.job_script().splitlines()
    place = lines.index("#SBATCH --array=1-7")
    assert [*lines[:place], *lines[place + 1 :]] == alone
    assert not any(line.startswith("#SBATCH") for line in alone[place:]), "the last one counts"


def test_the_array_of_a_changed_header_goes_before_what_is_for_one_job():
    job = of(LSFJob)
    job.job_header += "\n#BSUB -x"
    names = [line for line in job.script(3).splitlines() if line.startswith("#BSUB -J")]
    assert names == ['#BSUB -J "hpcdask"', '#BSUB -J "hpcdask[1-3]"']


class Mill(Slurm):
    name, title = "mill", "Mill"

    def directives(self, job: JobSpec) -> Iterator[str]:
        yield f"#SBATCH --mill={job.cpus_per_node}"


class MillJob(Job):
    system = Mill()


def test_a_class_may_be_of_a_batch_system_of_its_own():
    job = of(MillJob, processes=2)
    assert job.job_header == "#SBATCH --mill=16"
    assert job.config_name == "mill"
    with config.set({"jobqueue.mill.cores": 3}):
        assert MillJob(memory="1 GiB").job_header == "#SBATCH --mill=3"


# -- Configuration --------------------------------------------------------------------------------


def test_an_argument_goes_before_the_environment_and_that_before_a_file(monkeypatch):
    site = {"jobqueue": {"slurm": {"queue": "site", "cores": 8, "memory": "8 GiB"}}}
    with config.set(site):
        assert SLURMJob().spec().queue == "site"
        assert SLURMJob(queue="given", cores=2).spec().queue == "given"
        assert SLURMJob(queue="given", cores=2).cores == 2
    monkeypatch.setenv("HPCDASK_JOBQUEUE__SLURM__QUEUE", "environment")
    assert of(SLURMJob).spec().queue == "environment"
    assert of(SLURMJob, queue="given").spec().queue == "given"


class Gpu(SLURMJob):
    config_name = "gpu"


def test_a_site_has_sections_for_other_kinds_of_jobs():
    sections = {
        "slurm": {"queue": "cpu", "account": "abc"},
        "gpu": {"queue": "gpu", "cores": 8, "memory": "64 GiB", "resources": {"GPU": 1}},
    }
    with config.set({"jobqueue": sections}):
        for job in (SLURMJob(config_name="gpu"), Gpu()):
            assert (job.spec().queue, job.spec().account, job.cores) == ("gpu", "", 8)
            assert "--resources GPU=1" in job.job_script()
        assert of(SLURMJob).spec().queue == "cpu"
        with pytest.raises(ConfigError, match=r"there is jobqueue\.gpu, jobqueue\.slurm"):
            of(SLURMJob, config_name="gpuu")


# -- Names and documentation ----------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs/from-dask-jobqueue.md"


def test_every_keyword_is_told_of_where_users_of_dask_jobqueue_look():
    page = PAGE.read_text()
    keywords = {word.keyword for word in jobs.WORDS.values() if word.is_keyword}
    named = {"scheduler", "name", "config_name", "scheduler_file", "security"}
    missing = [each for each in sorted(keywords | named) if f"`{each}`" not in page]
    assert missing == []
    for kind in KINDS:
        assert f"`{kind.__name__}`" in page


def test_the_script_on_that_page_is_one_that_is_made():
    blocks = re.findall(r"^```(?:python|text)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    program, shown = blocks[:2]
    beginning, rest = shown.split("...\n")
    assert rest == ""
    job = SLURMJob(cores=16, memory="64 GiB", processes=4, queue="debug", walltime="1:00:00")
    assert "job = SLURMJob(" in program
    assert job.job_script().startswith(beginning)


def test_the_sections_on_that_page_can_be_used():
    yaml = pytest.importorskip("yaml")
    [text] = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    with config.set(yaml.safe_load(text)):
        assert "--gres=gpu:1" in SLURMJob(config_name="gpu").job_header
        assert SLURMJob().spec().queue == "compute"


@each_kind
def test_every_keyword_is_described_in_its_class(kind):
    texts = "\n".join(str(each.__doc__) for each in kind.__mro__ if issubclass(each, Job))
    described = {
        name.strip() for line in texts.splitlines() for name in line.split(" : ")[0].split(",")
    }
    assert set(words_of(kind)) <= described


def test_names_are_there_when_they_are_asked_for():
    assert set(hpcdask.jobqueue.__all__) <= set(dir(hpcdask.jobqueue))
    assert all(getattr(hpcdask.jobqueue, name) for name in hpcdask.jobqueue.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'CobaltJob'"):
        _ = hpcdask.jobqueue.CobaltJob


def test_a_configuration_of_dask_jobqueue_starts_our_workers():
    theirs = {"jobqueue.slurm.worker-command": "distributed.cli.dask_worker"}
    with config.set(theirs):
        assert " -m hpcdask worker" in SLURMJob(cores=1, memory="1 GiB").job_script()


@pytest.mark.parametrize(
    ("walltime", "notice"),
    [("1:00:00", 60), ("0:30:00", 60), ("0:20:00", 30), ("0:10:00", 1), ("0:00:09", 1)],
)
def test_a_short_job_of_slurm_is_not_warned_as_soon_as_it_has_begun(walltime, notice):
    job = SLURMJob(cores=1, memory="1 GiB", walltime=walltime)
    assert f"#SBATCH --signal=B:TERM@{notice}\n" in job.job_header + "\n"
    # Workers leave before, one after the other; Slurm may be up to 30 s early.
    _, last = leads(job.walltime, None, 30.0)
    assert notice == 1 or last >= notice + 30
