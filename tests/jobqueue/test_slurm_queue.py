"""What squeue, sacct and sbatch print, and what is read in it.

Recorded from Slurm 22.05.8 where nothing else is said, with columns as wide as here they are made
anew. The source of squeue prints these columns alike in 20.11, 22.05 and 23.11; words that differ
are those of slurm_protocol_defs.c of the version that is named.
"""

from __future__ import annotations

import subprocess

import pytest
from saying import said

from hpcdask.errors import StatusError
from hpcdask.jobqueue.slurm import Slurm
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase

SLURM = Slurm()

HEADER = "JOBID|STATE|EXIT_CODE|RESTART_COUNT|TIME|TIME_LEFT|REASON|NODELIST"
WIDTHS = (40, 20, 12, 14, 20, 20, 200, 40)


def squeue(*rows: str) -> Answer:
    """Rows as squeue sets them: cut and filled up to the width, but for the nodes."""
    lines = []
    for row in (HEADER, *rows):
        *words, nodes = row.split("|")
        cells = [word[:width].ljust(width) for word, width in zip(words, WIDTHS, strict=False)]
        lines.append("".join([*cells, nodes.ljust(WIDTHS[-1])]) + "\n")
    return said("".join(lines))


def one(row: str) -> JobStatus:
    [status] = SLURM.parse_status(squeue(row)).values()
    return status


# -- Commands -------------------------------------------------------------------------------------


def test_ids_of_an_array_are_those_of_squeue():
    assert SLURM.elements("5", 3) == ["5_1", "5_2", "5_3"]
    assert SLURM.elements("5", 1) == ["5"]


@pytest.mark.parametrize(
    ("lines", "largest"),
    [
        ("MaxArraySize            = 1001", 1000),
        ("MaxArraySize            = 0", 1),  # there are none
        ("MaxArraySize            = 75000\nMaxDBDMsgs = 20012", 74999),
        (
            "MaxArraySize            = 1001\n"
            "SchedulerParameters     = bf_interval=1,max_array_tasks=200,sched_interval=2",
            200,
        ),
        ("slurm_load_ctl_conf error: Unable to contact slurm controller", None),
    ],
)
def test_the_largest_array_is_read_from_the_configuration(lines, largest):
    assert SLURM.parse_array(said(f"Configuration data as of now\n{lines}\n")) == largest


@pytest.mark.parametrize(
    ("environ", "id"),
    [
        ({"SLURM_JOB_ID": "7"}, "7"),
        # Of an array SLURM_JOB_ID is a number that nobody else uses.
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "5_2"),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, "7r1"),
    ],
)
def test_a_job_calls_itself_as_the_listing_does(environ, id):
    command = ["bash", "-c", f'echo "{SLURM.element_expression}"']
    assert subprocess.run(command, env=environ, capture_output=True, text=True).stdout == f"{id}\n"


def test_jobs_of_an_array_are_cancelled_by_one_word():
    commands = SLURM.cancel_commands(["5_1", "5_3", "6", "5_2", "8_7"])
    assert commands == [["scancel", "5_[1-3]", "6", "8_[7]"]]


def test_however_many_jobs_of_an_array_are_cancelled_by_one_command():
    ids = [*SLURM.elements("5", 1000), *SLURM.elements("6", 1000)]
    assert SLURM.cancel_commands(ids) == [["scancel", "5_[1-1000]", "6_[1-1000]"]]
    assert [len(c) for c in SLURM.cancel_commands([str(n) for n in range(150)])] == [101, 51]


def test_one_query_names_each_array_once():
    *_, jobs = SLURM.status_command(["5_1", "5_2", "6"])
    assert jobs == "5,6"


def test_a_trial_submits_nothing():
    assert SLURM.trial_command("/x/job.sh") == ["sbatch", "--parsable", "--test-only", "/x/job.sh"]


# -- The listing ----------------------------------------------------------------------------------


def test_each_of_several_clusters_has_a_header():
    one, two = squeue("7|RUNNING|0|0|0:02|9:58|None|node1"), squeue("8|PENDING|0|0|0:00|1:00||")
    listing = said(f"CLUSTER: a\n{one.out}CLUSTER: b\n{two.out}")
    assert list(SLURM.parse_status(listing)) == ["7", "8"]
    assert SLURM.parse_status(said(f"CLUSTER: a\n{squeue().out}")) == {}
    with pytest.raises(StatusError):
        SLURM.parse_status(said("CLUSTER: a\n"))


def test_jobs_that_wait_run_and_have_ended_are_in_one_listing():
    statuses = SLURM.parse_status(
        squeue(
            "7_3|COMPLETED|0|0|0:00|10:00|None|node1",
            "7_2|FAILED|768|0|0:00|10:00|NonZeroExitCode|node1",
            "8|PENDING|0|0|0:00|10:00|PartitionNodeLimit|",
            "10_4|PENDING|0|0|0:00|5:00|Resources|",
            "7_1|RUNNING|0|0|0:02|9:58|None|node1",
        )
    )
    assert list(statuses) == ["7_3", "7_2", "8", "10_4", "7_1"]
    assert statuses["7_1"] == JobStatus(
        id="7_1", phase=Phase.RUNNING, nodes="node1", elapsed=2.0, left=598.0
    )
    assert statuses["10_4"] == JobStatus(id="10_4", phase=Phase.PENDING, reason="Resources")
    assert statuses["7_2"] == JobStatus(
        id="7_2",
        phase=Phase.ENDED,
        reason="FAILED, NonZeroExitCode",
        nodes="node1",
        end=End.FAILED,
        exit_code=3,
    )


@pytest.mark.parametrize(
    ("row", "phase", "reason"),
    [
        ("13|COMPLETING|0|0|0:03|9:57|None|node1", Phase.ENDING, "COMPLETING"),
        ("1|SUSPENDED|0|0|0:04|0:56|None|node1", Phase.RUNNING, "SUSPENDED"),
        ("1|CONFIGURING|0|0|0:00|9:59|None|cloud1", Phase.PENDING, "CONFIGURING"),
        ("6|PENDING|0|1|0:00|10:00|BeginTime|", Phase.PENDING, "BeginTime"),
        ("6|REQUEUED|0|1|0:00|10:00|None|", Phase.PENDING, "REQUEUED"),
        ("6|REQUEUE_HOLD|0|1|0:00|10:00|None|", Phase.PENDING, "REQUEUE_HOLD"),
        ("6|STAGE_OUT|0|0|0:10|0:00|None|n1", Phase.ENDING, "STAGE_OUT"),
        # A state that a later version may bring: it is in the list, so it is there.
        ("6|EXPEDITING|0|0|0:10|9:50|None|n1", Phase.RUNNING, "EXPEDITING"),
    ],
)
def test_states_between_waiting_and_the_end(row, phase, reason):
    status = one(row)
    assert (status.phase, status.reason) == (phase, reason)
    assert status.end is None


@pytest.mark.parametrize(
    ("row", "end", "code", "signal"),
    [
        ("2_1|CANCELLED|15|0|0:04|9:56|None|node1", End.CANCELLED, None, 15),
        ("13|CANCELLED|9|0|0:03|9:57|None|node1", End.CANCELLED, None, 9),
        ("9|CANCELLED|0|0|0:00|10:00|None|", End.CANCELLED, 0, None),
        ("1|TIMEOUT|15|0|1:28|INVALID|TimeLimit|node1", End.TIMEOUT, None, 15),
        ("1|TIMEOUT|0|0|1:02|INVALID|TimeLimit|node1", End.TIMEOUT, 0, None),
        ("1|DEADLINE|0|0|1:02|INVALID|DeadLine|", End.TIMEOUT, 0, None),
        ("5|NODE_FAIL|15|0|0:04|9:56|NodeDown|node4", End.NODE_FAIL, None, 15),
        ("5|BOOT_FAIL|0|0|0:00|10:00|None|", End.NODE_FAIL, 0, None),
        ("5|PREEMPTED|15|0|3:00|7:00|None|n1", End.PREEMPTED, None, 15),
        ("5|OUT_OF_MEMORY|32000|0|3:00|7:00|OutOfMemory|n1", End.OUT_OF_MEMORY, 125, None),
        # No folder for its log. The exit code is Slurm's own.
        ("3|FAILED|4021|0|0:00|10:00|JobLaunchFailure|node1", End.LAUNCH_FAILED, None, None),
        # Killed, by Slurm for its memory or by somebody else.
        ("4|FAILED|9|0|0:02|9:58|JobLaunchFailure|node1", End.FAILED, None, 9),
        ("4|FAILED|6|0|0:02|9:58|RaisedSignal:6(Aborted)|n1", End.FAILED, None, 6),
        ("4|LAUNCH_FAILED|0|0|0:00|9:58|None|n1", End.LAUNCH_FAILED, 0, None),  # 24.05
    ],
)
def test_every_end_has_its_reason(row, end, code, signal):
    status = one(row)
    assert status.phase is Phase.ENDED
    assert (status.end, status.exit_code, status.signal) == (end, code, signal)
    assert status.reason.startswith(row.split("|")[1])


def test_a_job_that_was_requeued_counts_its_lives():
    status = one("6|RUNNING|0|1|0:15|9:45|None|node3")
    assert (status.phase, status.restarts) == (Phase.RUNNING, 1)


def test_nodes_are_read_whole_however_many():
    nodes = "cn[0001-0002,0004,0007,0011-0030,0100,0102,0104,0106,0108]"
    assert one(f"6|RUNNING|0|0|0:15|1-09:45:00|None|{nodes}").nodes == nodes


def test_nothing_to_list_is_an_empty_list():
    assert SLURM.parse_status(squeue()) == {}
    # Of one id that is unknown it complains; of several it does not.
    err = "slurm_load_jobs error: Invalid job id specified\n"
    assert SLURM.parse_status(said("", err, 1)) == {}


WHOLE = squeue("7_1|RUNNING|0|0|0:02|9:58|None|node1", "8|PENDING|0|0|0:00|10:00|Resources|").out


@pytest.mark.parametrize(
    "answer",
    [
        said(""),  # not even a header
        said(WHOLE[:-50]),
        said(WHOLE[: -len("\n")]),
        said(
            "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", 1
        ),
        said("", "slurm_load_jobs error: Socket timed out on send/recv operation\n", 1),
        said(WHOLE, "squeue: error: killed\n", 137),
        squeue("7_1|RUNNING|0|many|0:02|9:58|None|node1"),
    ],
)
def test_a_listing_that_may_lack_something_is_an_error(answer):
    with pytest.raises(StatusError):
        SLURM.parse_status(answer)


# -- The books ------------------------------------------------------------------------------------

# As sacct(1) of 22.05 shows these columns; the books of the Slurm here are closed.
SACCT = """\
JobID|State|ExitCode|NodeList
5_1|COMPLETED|0:0|n1
5_2|FAILED|3:0|n1
5_[3-4%2]|CANCELLED by 1000|0:0|None assigned
6|TIMEOUT|0:15|n[1-2]
7|RUNNING|0:0|n1
8|OUT_OF_MEMORY|0:125|n1
"""


def test_the_books_tell_of_ends_only():
    ends = SLURM.parse_ends(said(SACCT))
    assert {id: status.end for id, status in ends.items()} == {
        "5_1": End.COMPLETED,
        "5_2": End.FAILED,
        "5_3": End.CANCELLED,
        "5_4": End.CANCELLED,
        "6": End.TIMEOUT,
        "8": End.OUT_OF_MEMORY,
    }
    assert (ends["5_2"].exit_code, ends["6"].signal) == (3, 15)
    assert (ends["5_3"].reason, ends["5_3"].nodes) == ("CANCELLED by 1000", "")


@pytest.mark.parametrize(
    "answer",
    [
        said("", "Slurm accounting storage is disabled\n", 1),
        said(),
        said(SACCT[: SACCT.index("3:0|n1")]),
    ],
)
def test_closed_books_tell_nothing(answer):
    with pytest.raises(StatusError):
        SLURM.parse_ends(answer)


def test_the_books_are_asked_for_each_array_once():
    [command] = SLURM.end_commands(["5_1", "5_2", "6"])
    assert command[0] == "sacct"
    assert command[-1] == "5,6"


# -- Never, or not now ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason",
    [
        "PartitionTimeLimit",
        "PartitionNodeLimit",
        "BadConstraints",
        "InvalidAccount",
        "InvalidQOS",
        "AccountNotAllowed",
        "QOSNotAllowed",
        "QOSMaxWallDurationPerJobLimit",
        "QOSMaxCpuPerJobLimit",
        "QOSMaxNodePerJobLimit",
        "QOSMaxMemoryPerJob",
        "QOSMaxGRESPerNode",
        "QOSMinGRES",
        "QOSMinCpuNotSatisfied",
        "AssocMaxWallDurationPerJobLimit",
        "AssocMaxCpuPerNode",
        "MaxMemPerLimit",
        "DependencyNeverSatisfied",
        "launch failed requeued held",  # 22.05
        "launch_failed_requeued_held",  # 23.11
    ],
)
def test_what_a_site_forbids_never_runs(reason):
    assert SLURM.can_never_run(one(f"8|PENDING|0|0|0:00|10:00|{reason}|"))


@pytest.mark.parametrize(
    "reason",
    [
        "None",
        "Priority",
        "Resources",
        "BeginTime",
        "JobArrayTaskLimit",
        "JobHeldUser",
        "JobHeldAdmin",
        "job requeued in held state",  # by somebody who will release it
        "Licenses",
        "ReqNodeNotAvail, UnavailableNodes:node[1-4]",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
        "partitions",
        "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs",  # 23.11
        "PartitionDown",
        "PartitionInactive",
        "QOSMaxJobsPerUserLimit",
        "QOSMaxCpuPerUserLimit",
        "QOSGrpCpuLimit",
        "AssocGrpCPUMinutesLimit",
        "AssocMaxJobsLimit",
        "MaxCpuPerAccount",
    ],
)
def test_what_others_take_or_a_fault_is_only_not_now(reason):
    assert not SLURM.can_never_run(one(f"8|PENDING|0|0|0:00|10:00|{reason}|"))


def test_a_job_that_runs_can_run():
    assert not SLURM.can_never_run(one("8|RUNNING|0|0|0:00|10:00|PartitionTimeLimit|n1"))


ACCEPTED = (
    "sbatch: Job 4 to start at 2026-11-26T06:42:01 using 1 processors on nodes node1 in partition "
    "short\n"
)


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (said("", ACCEPTED), False),
        (
            said(
                "",
                "sbatch: error: invalid partition specified: nope\n"
                "allocation failure: Invalid partition name specified\n",
                1,
            ),
            True,
        ),
        (said("", "sbatch: unrecognized option '--wrong'\n", 255), True),
        (said("", "sbatch: error: Invalid generic resource (gres) specification\n", 1), True),
        # So it speaks of too much memory, and just as well of nodes that are drained today, where a
        # job is taken and waits. If it is too much the submission will say so.
        (said("", "allocation failure: Requested node configuration is not available\n", 1), False),
        (
            said(
                "", "allocation failure: Unable to contact slurm controller (connect failure)\n", 1
            ),
            False,
        ),
    ],
)
def test_a_trial_refuses_what_would_be_refused(answer, refused):
    assert bool(SLURM.refusal(answer)) == refused
    if refused:
        assert SLURM.refusal(answer) == answer.err.strip()


def test_jobs_are_found_by_the_path_of_their_script():
    lines = "7_1|/c/workers-1.sbatch\n7_2|/c/workers-1.sbatch\n8|/c/workers-10.sbatch\n"
    listing = f"JOBID|COMMAND\n{lines}"
    assert SLURM.parse_found(Answer(0, listing, ""), "/c/workers-1.sbatch") == ["7_1", "7_2"]
    assert SLURM.parse_found(Answer(0, "JOBID|COMMAND\n", ""), "/c/workers-1.sbatch") == []
    for answer in (Answer(0, "", ""), Answer(1, "", "slurm_load_jobs error")):
        with pytest.raises(StatusError):
            SLURM.parse_found(answer, "/c/workers-1.sbatch")
