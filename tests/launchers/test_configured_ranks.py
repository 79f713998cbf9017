"""Ranks of mpirun take what is configured, each role its own."""

from __future__ import annotations

import json

import pytest
from mpiruns import mpirun, needs_mpi, ours

pytest.importorskip("yaml")
pytestmark = needs_mpi

PROFILE = """\
scheduler: {interface: lo, client-grace: 7s, allowed-failures: 1}
worker:
  interface: lo
  nthreads: 3
  resources: {GPU: 1}
nanny: {environ: {SITE_SAYS: hello}}
comm: {timeouts: {stall: 7s}}
"""

SCRIPT = """\
import json, os
from hpcdask import Client, get_worker

def of_worker():
    worker = get_worker()
    return {
        "address": worker.address,
        "nthreads": worker.nthreads,
        "resources": worker.resources,
        "said": os.environ.get("SITE_SAYS"),
        "stall": worker.options.stall_timeout,
    }

def of_scheduler(dask_scheduler):
    return {
        "address": dask_scheduler.address,
        "grace": dask_scheduler.state.unclaimed,
        "allowed": dask_scheduler.state.allowed_failures,
    }

if __name__ == "__main__":
    with Client() as client:
        worker = client.submit(of_worker).result(timeout=60)
        print(json.dumps([worker, client.run_on_scheduler(of_scheduler)]))
"""


def test_ranks_heed_the_configuration_and_options_go_before_it(home):
    home.file("show.py", SCRIPT)
    profile = str(home.file("site.yaml", PROFILE))
    words = ("hpc-dask", "run", "--nthreads", "2", "show.py")
    command = mpirun(home, 2, *words, HPCDASK_SITE_CONFIG=profile)
    assert command.code() == 0, command
    worker, scheduler = json.loads(command.out)
    assert worker.pop("address").startswith("tcp://127.0.0.1:")
    assert worker == {"nthreads": 2, "resources": {"GPU": 1.0}, "said": "hello", "stall": 7.0}
    assert scheduler.pop("address").startswith("tcp://127.0.0.1:")
    assert scheduler == {"grace": 7.0, "allowed": 1}


def test_an_error_in_a_file_is_said_by_one_rank_and_ends_all_with_code_2(home):
    profile = home.file("site.yaml", "worker: {nthread: 3}\n")
    command = mpirun(home, 3, "hpc-dask", HPCDASK_SITE_CONFIG=str(profile))
    assert command.code() == 2, command
    expected = f"hpc-dask: {profile}:1: there is no setting 'worker.nthread'; did you mean "
    assert ours(command) == [f"{expected}'worker.nthreads'?"]
    command.all_gone()
