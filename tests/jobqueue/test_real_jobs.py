"""Jobs of `Job` classes on real Slurm, real Grid Engine and PBS commands, for a scheduler here."""

from __future__ import annotations

import pytest
from batch.bed import Bed
from commands import Home
from jobs_at_work import KINDS, Cluster
from waiting import wait_until

from hpcdask import Client

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

PATIENCE = 60.0


def names(client: Client) -> set[str]:
    return {str(worker["name"]) for worker in client.scheduler_info()["workers"].values()}


def see(client: Client, expected: set[str]) -> None:
    what = f"workers {sorted(expected)}"
    wait_until(lambda: names(client) == expected, PATIENCE, what)


#: The id of a job of an array.
ELEMENT = {"slurm": "{}_{}", "pbs": "{}[{}]", "sge": "{}.{}"}


@pytest.mark.parametrize("system", KINDS)
def test_workers_come_with_the_ids_of_their_jobs_and_end_as_they_are_told(
    home: Home, request: pytest.FixtureRequest, system: str
) -> None:
    cluster = Cluster(request.getfixturevalue(system), home)
    cluster.start()
    try:
        array_job, array = cluster.submit(2)
        several = [] if system == "sge" else [cluster.submit(nodes_per_job=2)]  # it has one host
        epilogue = {"job_script_epilogue": ['echo "over with $code"'], "job_name": "last"}
        last_job, last = cluster.submit(processes=2, cores=2, **epilogue)
        of_array = {ELEMENT[system].format(array.id, n) for n in (1, 2)}
        of_nodes = {f"{job.id}.{n}" for _, job in several for n in (0, 1)}
        of_last = {f"{last.id}-{n}" for n in (0, 1)}
        with Client(scheduler_file=cluster.file, timeout=PATIENCE) as client:
            see(client, of_array | of_nodes | of_last)
            assert client.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3
            assert set(client.nthreads().values()) == {1}
            # The batch system's signal reaches the workers, and then there is more to do.
            cluster.bed.cancel(last)
            see(client, of_array | of_nodes)
            last.wait()
            assert "over with 0\n" in cluster.log(last_job, last.id), last
            client.shutdown()
        for job in (array, *(job for _, job in several)):
            assert job.wait() == 0, job
        for made, id, n in (
            *((array_job, id, 1) for id in of_array),
            *((made, job.id, 2) for made, job in several),
        ):
            assert cluster.log(made, id).count("Registered to: ") == n
    finally:
        cluster.close()


def test_a_job_that_slurm_warns_ends_well(home: Home, slurm: Bed) -> None:
    cluster = Cluster(slurm, home)
    cluster.start()
    try:
        _, alone = cluster.submit()
        _, last = cluster.submit(job_script_epilogue=["echo over"])
        _, nodes = cluster.submit(nodes_per_job=2)
        with Client(scheduler_file=cluster.file, timeout=PATIENCE) as client:
            see(client, {alone.id, last.id, f"{nodes.id}.0", f"{nodes.id}.1"})
            # As --signal does: to the process of the script, or to what srun has started.
            for job in (alone, last):
                slurm.run("scancel", "--batch", "--signal=TERM", job.id)
            slurm.run("scancel", "--signal=TERM", nodes.id)
            for job in (alone, last, nodes):
                assert job.wait() == 0, job
            assert names(client) == set()
    finally:
        cluster.close()
