"""Runners in jobs of PBS and Grid Engine, with the job scripts of the page on runners."""

from __future__ import annotations

import re

import pytest
from editing import PYTHONS, ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

PROGRAM = """\
import sys
from hpcdask import Client
from hpcdask.jobqueue import {runner} as Runner

with Runner({options}) as runner, Client(runner) as client:
    client.wait_for_workers(runner.n_workers, timeout=60)
    total = sum(client.gather(client.map(abs, range(-50, 50))))
    print(runner.role, runner.n_workers, total, runner.scheduler_file)
    sys.exit(7)
"""

#: Starts all ranks by one pbsdsh, which numbers them.
AT_ONCE = """\
#!/bin/bash
#PBS -S /bin/bash
#PBS -l select=2:ncpus=2:mem=2gb
#PBS -l place=scatter
cd "$PBS_O_WORKDIR"
pbsdsh -- /bin/bash -lc "cd $PWD; source ~/hpcdask-venv/bin/activate; exec python program.py"
"""


def script_of_the_page(mark: str) -> str:
    """The job script in docs/runners.md that has such directives."""
    page = (ROOT / "docs/runners.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.M | re.S)
    [script] = [block for block in blocks if mark in block]
    return script


def write(folder, script, **program):
    """Put program and job script into a folder, with this Python, and sizes for two cores."""
    (folder / "program.py").write_text(PROGRAM.format(**program))
    environment = f"export PATH={PYTHONS}:$PATH PYTHONPATH={ROOT} XDG_CONFIG_HOME={folder}/config"
    edits = {"source ~/hpcdask-venv/bin/activate": environment, "-pe mpi 8": "-pe mpi 3"}
    for old, new in edits.items():
        script = script.replace(old, new)
    (folder / "job.sh").write_text(script)
    return folder / "job.sh"


def check(job, folder, n_workers):
    file = folder / f"scheduler-{job.id}.json"
    assert f"client {n_workers} 2500 {file}" in job.log.splitlines(), job
    assert "Traceback" not in job.log
    job.all_gone()
    assert not file.exists()
    assert not list(folder.glob("ranks-*"))


def test_in_pbs_the_job_script_becomes_the_client_or_pbsdsh_starts_all(pbs, tmp_path):
    scripts = {"each": script_of_the_page("#PBS"), "at-once": AT_ONCE}
    jobs = {}
    for name, script in scripts.items():
        folder = tmp_path / name
        folder.mkdir()
        options = "nworkers=2, exclusive_workers=False"
        path = write(folder, script, runner="PBSRunner", options=options)
        jobs[name] = pbs.submit(path, cwd=folder)
    assert jobs["each"].wait() == 7, jobs["each"]
    assert jobs["at-once"].wait() != 0, jobs["at-once"]  # srun's, here; of a real pbsdsh 0
    for name, job in jobs.items():
        check(job, tmp_path / name, 4)


def test_in_grid_engine_the_job_script_becomes_the_client(sge, tmp_path):
    path = write(tmp_path, script_of_the_page("#$ "), runner="SGERunner", options="")
    job = sge.submit(path, cwd=tmp_path)
    assert job.wait() == 7, job
    check(job, tmp_path, 1)
