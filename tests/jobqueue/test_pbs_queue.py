"""What qstat of PBS and Torque prints, and what is read in it.

No server of theirs runs here. Written down in the format of `qstat -f`, which OpenPBS 20 and 23,
PBS Professional and Torque 6.1 share, with what each has of its own.
"""

from __future__ import annotations

import subprocess

import pytest
from saying import said

from hpcdask.errors import StatusError
from hpcdask.jobqueue.moab import Moab
from hpcdask.jobqueue.pbs import PBS as PBSSystem
from hpcdask.jobqueue.status import End, JobStatus, Phase

PBS = PBSSystem()

#: Folded in the midst of words, as qstat does; with a variable that looks like an attribute.
OPENPBS = """\
Job Id: 19[].pbshost
    Job_Name = dask
    Job_Owner = hpc@login
    job_state = B
    queue = workq
    comment = Job Array Began at Thu Nov 26 at 06:43
    array = True
    array_indices_remaining = 3
    Resource_List.walltime = 01:00:00

Job Id: 19[1].pbshost
    Job_Name = dask
    Job_Owner = hpc@login
    resources_used.cput = 00:00:01
    resources_used.walltime = 00:10:00
    job_state = R
    queue = workq
    exec_host = cn01/0*16+cn02/0*16
    exec_vnode = (cn01:ncpus=16:mem=33554432kb)+(cn02:ncpus=16:mem=33554432kb)
    Resource_List.walltime = 01:00:00
    Variable_List = PBS_O_HOME=/home/hpc,PBS_O_LANG=en_US.UTF-8,
	PBS_O_LOGNAME=hpc,X=a
    job_state = Q
    b,PBS_O_PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sb
	in,PBS_O_WORKDIR=/home/hpc
    comment = Job run at Thu Nov 26 at 06:43 on (cn01:ncpus=16:mem=33554432kb)+
	(cn02:ncpus=16:mem=33554432kb)
    run_count = 1
    array_id = 19[].pbshost
    array_index = 1

Job Id: 19[2].pbshost
    Job_Name = dask
    resources_used.walltime = 00:00:03
    job_state = X
    exec_host = cn03/0*16
    Resource_List.walltime = 01:00:00
    substate = 92
    run_count = 2
    Exit_status = 3

Job Id: 19[3].pbshost
    Job_Name = dask
    job_state = Q
    Resource_List.walltime = 01:00:00

Job Id: 20.pbshost
    Job_Name = 1e5
    job_state = Q
    Resource_List.walltime = 01:00:00
    comment = Can Never Run: Insufficient amount of resource: ncpus (R: 900 A: 1
	28 T: 128)

"""

TORQUE = """\
Job Id: 31[1].torque.site.org
    Job_Name = dask-1
    Job_Owner = hpc@login.site.org
    resources_used.walltime = 00:00:20
    job_state = R
    exec_host = n1/0-3
    Resource_List.walltime = 00:30:00
    start_count = 1

Job Id: 31[2].torque.site.org
    Job_Name = dask-2
    job_state = C
    exec_host = n2/0-3
    Resource_List.walltime = 00:30:00
    exit_status = -11

"""


def one(state: str, *attributes: str) -> JobStatus:
    lines = ["Job Id: 7.pbshost", f"job_state = {state}", *attributes]
    [status] = PBS.parse_status(said("\n    ".join(lines) + "\n\n")).values()
    return status


# -- Commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "count", "ids"),
    [
        ("19[].pbshost", 2, ["19[1]", "19[2]"]),
        ("19.pbshost.site.org", 1, ["19"]),
        ("39", 1, ["39"]),
    ],
)
def test_ids_have_no_server(output, count, ids):
    assert PBS.elements(PBS.job_id(output), count) == ids


@pytest.mark.parametrize("id", ["19", "19[2]"])
def test_a_job_calls_itself_as_the_listing_does(id):
    command = ["bash", "-c", f'echo "{PBS.element_expression}"']
    environ = {"PBS_JOBID": f"{id}.pbshost.site.org"}
    assert subprocess.run(command, env=environ, capture_output=True, text=True).stdout == f"{id}\n"


def test_one_query_names_each_array_once():
    assert PBS.status_command(["19[1]", "19[2]", "20"]) == ["qstat", "-f", "-t", "19[]", "20"]
    assert PBS.end_commands(["19[2]"]) == [["qstat", "-x", "-f", "-t", "19[]"]]


def test_one_job_of_an_array_is_cancelled_and_not_the_array():
    assert PBS.cancel_commands(["19[2]", "20"]) == [["qdel", "19[2]", "20"]]


def test_it_has_no_trial():
    assert PBS.trial_command("job") is None


# -- The listing ----------------------------------------------------------------------------------


def test_jobs_of_an_array_are_listed_and_the_array_is_no_job():
    statuses = PBS.parse_status(said(OPENPBS))
    assert list(statuses) == ["19[1]", "19[2]", "19[3]", "20"]
    assert statuses["19[1]"] == JobStatus(
        id="19[1]", phase=Phase.RUNNING, nodes="cn01,cn02", elapsed=600.0, left=3000.0
    )
    assert statuses["19[2]"] == JobStatus(
        id="19[2]",
        phase=Phase.ENDED,
        reason="Exit_status 3",
        nodes="cn03",
        elapsed=3.0,
        end=End.FAILED,
        exit_code=3,
        restarts=1,
    )
    assert statuses["19[3]"] == JobStatus(id="19[3]", phase=Phase.PENDING)
    assert statuses["20"].reason == (
        "Can Never Run: Insufficient amount of resource: ncpus (R: 900 A: 128 T: 128)"
    )
    assert PBS.can_never_run(statuses["20"])


def test_of_an_array_that_waits_only_the_array_has_a_reason():
    array = "Job Id: 19[].pbshost\n    job_state = Q\n    comment = Can Never Run: no such node\n\n"
    element = "Job Id: 19[1].pbshost\n    job_state = Q\n\n"
    statuses = PBS.parse_status(said(array + element))
    assert list(statuses) == ["19[1]"]
    assert PBS.can_never_run(statuses["19[1]"])


def test_torques_listing_is_read():
    statuses = PBS.parse_status(said(TORQUE))
    assert (statuses["31[1]"].phase, statuses["31[1]"].left) == (Phase.RUNNING, 1780.0)
    assert (statuses["31[2]"].end, statuses["31[2]"].nodes) == (End.TIMEOUT, "n2")


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("Q", Phase.PENDING),
        ("H", Phase.PENDING),
        ("W", Phase.PENDING),
        ("R", Phase.RUNNING),
        ("S", Phase.RUNNING),
        ("E", Phase.ENDING),
        ("X", Phase.ENDED),
        ("F", Phase.ENDED),
        ("C", Phase.ENDED),
    ],
)
def test_a_state_is_a_letter(state, phase):
    assert one(state).phase is phase


@pytest.mark.parametrize(
    ("state", "attributes", "end", "code", "signal"),
    [
        ("F", ["Exit_status = 0"], End.COMPLETED, 0, None),
        ("F", ["Exit_status = 7"], End.FAILED, 7, None),
        ("F", ["Exit_status = 127"], End.FAILED, 127, None),
        ("F", ["Exit_status = 271"], End.CANCELLED, None, 15),  # qdel: 256 + SIGTERM
        ("F", ["Exit_status = 143"], End.CANCELLED, None, 15),
        ("F", ["Exit_status = 137"], End.FAILED, None, 9),
        ("F", ["Exit_status = 265"], End.FAILED, None, 9),
        ("F", ["Exit_status = -29"], End.TIMEOUT, None, None),
        ("F", ["Exit_status = -27"], End.OUT_OF_MEMORY, None, None),
        ("F", ["Exit_status = -20"], End.NODE_FAIL, None, None),
        ("F", ["Exit_status = -1"], End.LAUNCH_FAILED, None, None),
        ("F", ["Exit_status = -10"], End.LAUNCH_FAILED, None, None),
        ("C", ["exit_status = -10"], End.OUT_OF_MEMORY, None, None),  # Torque
        ("C", ["exit_status = 271"], End.CANCELLED, None, 15),
        ("F", ["substate = 91"], End.CANCELLED, None, None),  # it was deleted while it waited
        ("F", ["substate = 93"], End.FAILED, None, None),
        ("X", [], End.UNKNOWN, None, None),
    ],
)
def test_every_end_has_its_reason(state, attributes, end, code, signal):
    status = one(state, *attributes)
    assert (status.end, status.exit_code, status.signal) == (end, code, signal)


@pytest.mark.parametrize(
    ("comment", "never"),
    [
        ("Can Never Run: can't fit in the largest placement set", True),
        ("job held, too many failed attempts to run", True),
        ("Not Running: Insufficient amount of resource: ncpus (R: 64 A: 40 T: 64)", False),
        ("Not Running: Node is in an ineligible state: offline", False),
        ("Not Running: User has reached queue workq running job limit.", False),
    ],
)
def test_never_is_told_from_not_now(comment, never):
    assert PBS.can_never_run(one("Q", f"comment = {comment}")) == never


@pytest.mark.parametrize(
    "answer",
    [
        said(""),  # nothing runs
        said("", "qstat: Unknown Job Id 4711.pbshost\n", 153),
        said("", "qstat: 19.pbshost Job has finished, use -x or -H to obtain history\n", 35),
    ],
)
def test_nothing_to_list_is_an_empty_list(answer):
    assert PBS.parse_status(answer) == {}


def test_unknown_jobs_do_not_hide_the_others():
    err = "qstat: Unknown Job Id 4711.pbshost\n"
    assert "19[1]" in PBS.parse_status(said(OPENPBS, err, 153))


@pytest.mark.parametrize(
    "answer",
    [
        said(
            "", "Connection refused\nqstat: cannot connect to server pbshost (errno=15010)\n", 255
        ),
        # As JSON it would be a valid empty list, were it not for the code.
        said('{"timestamp":1700000000,"pbs_version":"23.06.06","pbs_server":"pbshost"}\n', "", 255),
        said(OPENPBS[:-200]),
        said("PBS is down for maintenance\n\n"),
        said("Job Id: 7.pbshost\n    Job_Name = dask\n\n"),
        said(OPENPBS[: OPENPBS.index("    job_state = X")]),
        said("", "usage:\nqstat [-f] [-J] [-p] [-t] [-x] [-E] [-F format]\n", 2),
    ],
)
def test_a_listing_that_may_lack_something_is_an_error(answer):
    with pytest.raises(StatusError):
        PBS.parse_status(answer)


def test_torques_other_meaning_of_x_tells_nothing():
    """To Torque -x is XML, and its jobs that have ended are in the listing."""
    with pytest.raises(StatusError):
        PBS.parse_ends(said("<Data><Job><Job_Id>31.torque</Job_Id></Job></Data>\n"))


# -- Moab -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["\n12\n", "\nMoab.12\n", "12.torque.site.org\n"])
def test_moab_has_several_ways_to_write_an_id(output):
    moab = Moab()
    assert moab.elements(moab.job_id(output), 1) == ["12"]
    assert moab.cancel_commands(["12"]) == [["canceljob", "12"]]
    assert not moab.has_arrays
