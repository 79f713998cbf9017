"""Job scripts where nodes are hosts with networks of their own, joined by an ib0."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest
from batch import sge, slurm
from batch.bed import Bed
from batch.sge import GridEngine
from batch.slurm import Slurm
from commands import Home
from editing import calls, needs_mpi, witness, write_template
from hosts import hosts, needs_hosts
from jobs_at_work import Cluster

from hpcdask.jobqueue.job_script import job_script
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.systems import SYSTEMS

pytestmark = [*needs_hosts, pytest.mark.timeout(180)]

HERE, THERE = "a", "b"

SCRIPT = """\
import socket
from hpcdask import Client

if __name__ == "__main__":
    with Client() as client:
        client.wait_for_workers(1, timeout=30)
        [host] = client.run(socket.gethostname).values()
        address = client.scheduler_info()["address"]
        print(f"script on {socket.gethostname()}, worker on {host}, scheduler at {address}")
"""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("slurm", marks=pytest.mark.skipif(bool(slurm.WHY_NOT), reason=slurm.WHY_NOT)),
        pytest.param("sge", marks=pytest.mark.skipif(bool(sge.WHY_NOT), reason=sge.WHY_NOT)),
    ],
)
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with hosts(HERE, THERE) as made:
        # Slots of one host are enough for one rank of four.
        bed = Slurm(made) if request.param == "slurm" else GridEngine(made, slots=4)
        try:
            bed.start()
            yield bed
        finally:
            bed.close()


@pytest.mark.parametrize("launch", ["native", pytest.param("mpi", marks=needs_mpi)])
def test_ranks_are_on_both_hosts_and_meet_on_the_interface_that_is_named(bed, tmp_path, launch):
    (tmp_path / "script.py").write_text(SCRIPT)
    edits = {"#options+=(--interface ib0)": "options+=(--interface ib0)"}
    name = write_template(bed.name, launch, tmp_path, edits)
    job = bed.submit(name, "script.py", cwd=tmp_path)
    assert job.wait() == 0, job
    script, worker, address = job.line(r"script on .*").split(", ")
    here, there = script.removeprefix("script on "), worker.removeprefix("worker on ")
    assert {here, there} == {HERE, THERE}
    assert address.startswith(f"scheduler at tcp://{bed.hosts.addresses[here]}:")


def test_workers_of_one_job_are_on_both_hosts(bed, tmp_path):
    spec = JobSpec(
        launch="workers",
        nodes=2,
        cpus_per_task=4,
        parallel_environment="mpi" if bed.name == "sge" else "",
        environment=(witness(tmp_path, 2),),
        scheduler_file="s",
    )
    (tmp_path / "job").write_text(job_script(SYSTEMS[bed.name], spec))
    job = bed.submit("job", cwd=tmp_path)
    assert job.wait() == 0, job
    names, words = calls(tmp_path)
    assert names == {HERE, THERE}
    worker = "worker --scheduler-file s --nworkers 1 --nthreads 4 --name"
    assert words == [f"{worker} {job.id}.0", f"{worker} {job.id}.1"]
    assert job.log == ""


#: Prints the name of each worker, and its host.
WHERE = """\
import socket
from hpcdask import Client

with Client(scheduler_file="s.json", timeout=60) as client:
    client.wait_for_workers(2, timeout=60)
    hosts = client.run(socket.gethostname)
    workers = client.scheduler_info()["workers"]
    print(sorted((workers[address]["name"], host) for address, host in hosts.items()))
    client.shutdown()
"""


def test_each_host_of_a_job_has_its_workers(bed: Bed, home: Home) -> None:
    cluster = Cluster(bed, home)
    cluster.start(on=HERE)
    try:
        _, job = cluster.submit(nodes_per_job=2, cores=4, interface="ib0", processes=1)
        command = home.run(*bed.on(HERE, sys.executable, home.file("where.py", WHERE)))
        assert command.code(60) == 0, f"{command}\n{job}"
        host_of = dict(ast.literal_eval(command.out))
        assert sorted(host_of) == [f"{job.id}.0", f"{job.id}.1"]
        assert sorted(host_of.values()) == [HERE, THERE]
        assert job.wait() == 0, job
    finally:
        cluster.close()
