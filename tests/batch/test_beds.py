"""The batch systems that other tests use: what they are good for, and that they vanish."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import janitor
import pytest
from waiting import wait_until

from batch.bed import PATIENCE
from batch.slurm import WHY_NOT

pytestmark = pytest.mark.system

JOB = """\
#!/bin/bash
echo "$GREETING from $(id -un)"
exit 3
"""


@pytest.mark.parametrize("system", ["slurm", "pbs", "sge"])
def test_a_job_runs_and_tells_its_exit_code_and_log(request, tmp_path, system):
    bed = request.getfixturevalue(system)
    (tmp_path / "job.sh").write_text(JOB)
    options = ["-cwd"] if system == "sge" else []
    job = bed.submit(*options, "job.sh", cwd=tmp_path, variables={"GREETING": "greetings"})
    assert job.wait() == 3
    assert job.log == "greetings from root\n"
    assert job.processes() == []


def test_slurm_has_several_nodes_on_which_srun_starts_tasks(slurm):
    names = slurm.srun("-N4", "-n4", "bash", "-c", "echo $SLURMD_NODENAME").stdout.split()
    assert sorted(names) == slurm.nodes == ["node1", "node2", "node3", "node4"]


def test_slurm_starts_ranks_with_pmix(slurm):
    words = ("--mpi=pmix", "-N2", "-n4", "bash", "-c", "echo $PMIX_RANK of $SLURM_NTASKS")
    done = slurm.srun(*words, check=False)
    if "Couldn't find the specified plugin" in done.stderr or "PMIx library" in done.stderr:
        pytest.skip("no PMIx here: as root on Debian run tests/system-packages.sh")
    assert sorted(done.stdout.splitlines()) == [f"{rank} of 4" for rank in range(4)]


def test_slurm_lists_and_cancels_jobs_of_an_array(slurm, tmp_path):
    job = slurm.sbatch("--array=1-2", "--wrap", "sleep 600", cwd=tmp_path)
    wait_until(lambda: job.state == "RUNNING,RUNNING", PATIENCE, "both run")
    jobs = [[id, state] for id, name, state, reason in slurm.squeue()]
    assert [f"{job.id}_1", "RUNNING"] in jobs
    wait_until(lambda: len(job.processes()) >= 2, PATIENCE, "processes of both")
    slurm.scancel(job.id)
    job.wait()
    assert job.state == "CANCELLED,CANCELLED"
    job.all_gone()


def test_a_pbs_job_sees_what_one_of_openpbs_sees(pbs, tmp_path):
    script = "#!/bin/bash\n#PBS -N facts\n#PBS -j oe\n#PBS -l select=2:ncpus=3:mpiprocs=2\n"
    script += 'pwd; env; wc -l <"$PBS_NODEFILE"\n'
    script += "pbsdsh -n 1 -- /bin/bash -c 'echo task $PBS_NODENUM in $(pwd), HANDED=$HANDED'\n"
    (tmp_path / "job.pbs").write_text(script)
    job = pbs.submit("job.pbs", cwd=tmp_path, variables={"HANDED": "on"})
    assert job.wait() == 0
    lines = job.log.splitlines()
    assert lines[0] == os.path.expanduser("~root"), "not the folder of the submission"
    assert f"PBS_O_WORKDIR={tmp_path}" in lines
    assert f"PBS_JOBID={job.id}.pbshost" in lines
    assert "NCPUS=3" in lines
    assert "HANDED=on" in lines
    assert not any(line.startswith("HPCDASK_TEST_RUN=") for line in lines), "no other variable"
    assert not any(line.startswith("SLURM_JOB") for line in lines)
    assert lines[-2:] == ["4", f"task 1 in {lines[0]}, HANDED="]


# -- Their end ------------------------------------------------------------------------------------

START_AND_SAY = """\
import sys
from batch.slurm import Slurm

bed = Slurm()
bed.start()
job = bed.submit(*sys.argv[1:], cwd=bed.folder)
print(bed.folder, bed.mark, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_nothing_is_left_even_when_the_tests_are_killed(tmp_path):
    (tmp_path / "job.sh").write_text("#!/bin/bash\nsetsid sleep 600\n")
    tests = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", START_AND_SAY, str(tmp_path / "job.sh")],
        cwd=tests,
        env={**os.environ, "PYTHONPATH": str(tests)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        folder, mark = process.stdout.readline().split()
        wait_until(lambda: "sleep" in commands(mark), PATIENCE, "the job runs")
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not commands(mark), PATIENCE, "all processes have ended")
    wait_until(lambda: not Path(folder).exists(), PATIENCE, f"{folder} is gone")


def commands(mark: str) -> list[str]:
    """Names of the processes that bear a mark."""
    names = []
    for pid in janitor.marked(mark):
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{pid}/comm").read_text().strip())
    return names
