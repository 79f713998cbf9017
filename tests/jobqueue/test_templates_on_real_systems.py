"""The files in jobscripts/, edited as by a user, on real Slurm, Grid Engine, and PBS commands.

All jobs of a system are submitted at the same time, and then looked at one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from batch.bed import Bed, Job
from editing import needs_mpi, write_template
from waiting import wait_until

from hpcdask import Client
from hpcdask.jobqueue.systems import SYSTEMS

SCRIPT = """\
import os, sys
from helpers import double
from hpcdask import Client

if __name__ == "__main__":
    with Client() as client:
        print(sum(client.gather(client.map(double, range(100)))), os.getcwd(), sys.argv[1:])
        environs = [os.environ, client.submit(os.environ.copy).result()]
    print([name for environ in environs for name in environ if name.startswith("HPCDASK_RANK")])
    sys.exit(7)
"""

#: Workers of the small clusters: where the batch system starts processes, PBS has a rank on each
#: of two nodes with a worker each; all others have two ranks, one of them for the scheduler.
WORKERS = {"slurm": 1, "pbs": 2, "sge": 1}

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@dataclass
class Submitted:
    """Jobs of one system, by the kind of launch, and the folder that they share."""

    system: str
    bed: Bed
    folder: Path
    jobs: dict[str, Job]


@pytest.fixture(scope="module", params=["slurm", "pbs", "sge"])
def submitted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Submitted]:
    """One job of each template."""
    bed = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "project").mkdir()
    (folder / "project/script.py").write_text(SCRIPT)
    (folder / "project/helpers.py").write_text("def double(x):\n    return 2 * x\n")
    system = SYSTEMS[request.param]
    jobs = {}
    for launch in ("mpi", "native", "cluster", "workers"):
        edits = {"set -- script.py": "set -- project/script.py one 'and two'"}
        if launch == "cluster":  # so that the workers find it
            edits[f"hpcdask-{system.job_id_expression}.json"] = "scheduler.json"
        name = write_template(system.name, launch, folder, edits)
        takes_script = launch in ("mpi", "native") and system.takes_arguments
        words = ["project/script.py", "one", "and two"] if takes_script else []
        jobs[launch] = bed.submit(name, *words, cwd=folder)
    yield Submitted(request.param, bed, folder, jobs)
    for job in jobs.values():
        if job.exit_code is None:
            bed.cancel(job)
    for job in jobs.values():
        job.all_gone()


@pytest.mark.parametrize("launch", ["native", pytest.param("mpi", marks=needs_mpi)])
def test_a_script_runs_as_the_client_and_its_exit_code_is_the_jobs(submitted, launch):
    job = submitted.jobs[launch]
    assert job.wait() == 7, job
    assert f"9900 {submitted.folder} ['one', 'and two']" in job.log.splitlines()
    assert "[]" in job.log.splitlines(), "neither script nor task is a rank"
    assert "Traceback" not in job.log
    job.all_gone()
    assert not list(submitted.folder.glob(f"hpcdask-{job.id}*.json"))


def test_a_cluster_takes_clients_and_workers_of_other_jobs_until_it_is_shut_down(submitted):
    cluster, workers = submitted.jobs["cluster"], submitted.jobs["workers"]
    own = WORKERS[submitted.system]
    with Client(scheduler_file=submitted.folder / "scheduler.json", timeout=60) as client:
        client.wait_for_workers(own + 2, timeout=60)
        assert sum(client.gather(client.map(abs, range(-50, 50)))) == 2500

        submitted.bed.cancel(workers)
        workers.wait()
        workers.all_gone()
        wait_until(lambda: len(client.nthreads()) == own, 30, "the other workers are gone")
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3

        client.shutdown()
    assert cluster.wait() == 0, cluster
    cluster.all_gone()
    assert "Attach to this cluster with Client(scheduler_file=" in cluster.log
    assert not (submitted.folder / "scheduler.json").exists()
