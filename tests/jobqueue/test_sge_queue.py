"""What qstat, qacct and qsub of Grid Engine print, and what is read in it.

Recorded from Son of Grid Engine 8.1.9 where nothing else is said; of Univa Grid Engine 8.6 as in
the manuals of sites that run it.
"""

from __future__ import annotations

import subprocess

import pytest
from saying import said

from hpcdask.errors import StatusError
from hpcdask.jobqueue.sge import GridEngine
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase

SGE = GridEngine()

XML = """\
<?xml version='1.0'?>
<job_info  xmlns:xsd="http://arc.liv.ac.uk/repos/darcs/sge/source/dist/util/resources/schemas/qstat/qstat.xsd">
  <queue_info>
{running}
  </queue_info>
  <job_info>
{pending}
  </job_info>
</job_info>
"""

RUNNING = """\
    <job_list state="running">
      <JB_job_number>{number}</JB_job_number>
      <JAT_prio>0.75000</JAT_prio>
      <JB_name>a &amp; b, a long name</JB_name>
      <JB_owner>hpc</JB_owner>
      <state>{state}</state>
      <JAT_start_time>2026-11-26T06:43:14</JAT_start_time>
      <queue_name>all.q@myhost</queue_name>
      <slots>1</slots>{tasks}
    </job_list>"""

PENDING = """\
    <job_list state="pending">
      <JB_job_number>{number}</JB_job_number>
      <JAT_prio>0.50000</JAT_prio>
      <JB_name>dask</JB_name>
      <JB_owner>hpc</JB_owner>
      <state>{state}</state>
      <JB_submission_time>2026-11-26T06:43:15</JB_submission_time>
      <queue_name></queue_name>
      <slots>1</slots>{tasks}
    </job_list>"""


def job(kind: str, number: int, state: str, tasks: str = "") -> str:
    line = f"\n      <tasks>{tasks}</tasks>" if tasks else ""
    return kind.format(number=number, state=state, tasks=line)


def qstat(*jobs: str) -> Answer:
    groups = {
        kind: "\n".join(job for job in jobs if f'"{kind}"' in job)
        for kind in ("running", "pending")
    }
    return said(XML.format(**groups))


# -- Commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "id"),
    [
        ({"JOB_ID": "6", "SGE_TASK_ID": "undefined", "RESTARTED": "0"}, "6"),
        ({"JOB_ID": "6", "SGE_TASK_ID": "2", "RESTARTED": "0"}, "6.2"),
        ({"JOB_ID": "6", "SGE_TASK_ID": "2", "RESTARTED": "1"}, "6.2r1"),
    ],
)
def test_a_job_calls_itself_as_the_listing_does(environ, id):
    command = ["bash", "-c", f'echo "{SGE.element_expression}"']
    assert subprocess.run(command, env=environ, capture_output=True, text=True).stdout == f"{id}\n"


def test_jobs_of_an_array_are_cancelled_one_by_one():
    assert SGE.elements("6", 2) == ["6.1", "6.2"]
    assert SGE.elements("6", 1) == ["6"]
    assert SGE.cancel_commands(["6.2", "7"]) == [["qdel", "6.2", "7"]]


def test_books_and_reasons_are_asked_for_each_array_once():
    assert SGE.end_commands(["6.1", "6.2", "7"]) == [["qacct", "-j", "6"], ["qacct", "-j", "7"]]
    assert SGE.reason_command(["6.1", "6.2", "7"]) == ["qstat", "-j", "6,7"]


# -- The listing ----------------------------------------------------------------------------------


def test_jobs_that_run_and_wait_are_in_one_listing():
    statuses = SGE.parse_status(
        qstat(
            job(RUNNING, 9, "r", "1"),
            job(RUNNING, 13, "r"),
            job(PENDING, 12, "qw", "1-3:1"),
            job(PENDING, 10, "hqw", "1,3,6,8"),
        )
    )
    assert statuses["9.1"] == JobStatus(id="9.1", phase=Phase.RUNNING, nodes="myhost")
    assert statuses["12.2"] == JobStatus(id="12.2", phase=Phase.PENDING)
    assert list(statuses) == [
        *("9.1", "13", "12.1", "12.2", "12.3"),
        *("10.1", "10.3", "10.6", "10.8"),
    ]
    assert statuses["10.6"].reason == "hqw"


@pytest.mark.parametrize(
    ("state", "phase", "restarts"),
    [
        ("r", Phase.RUNNING, 0),
        ("t", Phase.RUNNING, 0),
        ("dr", Phase.ENDING, 0),
        ("dt", Phase.ENDING, 0),
        ("Rr", Phase.RUNNING, 1),
        ("Rt", Phase.RUNNING, 1),
        ("s", Phase.RUNNING, 0),
        ("S", Phase.RUNNING, 0),
        ("T", Phase.RUNNING, 0),
        ("dRr", Phase.ENDING, 1),
        ("qw", Phase.PENDING, 0),
        ("Rq", Phase.PENDING, 1),
        ("hRwq", Phase.PENDING, 1),
        ("Eqw", Phase.PENDING, 0),
    ],
)
def test_a_state_is_a_word_of_letters(state, phase, restarts):
    [status] = SGE.parse_status(qstat(job(RUNNING, 6, state))).values()
    assert (status.phase, status.restarts) == (phase, restarts)


def test_a_job_in_error_never_runs_and_one_on_hold_may():
    statuses = SGE.parse_status(qstat(job(PENDING, 6, "Eqw"), job(PENDING, 7, "hqw")))
    assert [SGE.can_never_run(status) for status in statuses.values()] == [True, False]


def test_univas_listing_is_read():
    text = qstat(job(RUNNING, 6, "r", "2")).out
    text = text.replace("06:43:14<", "06:43:14.092<").replace(
        "      <slots>", "      <jclass_name></jclass_name>\n      <slots>"
    )
    assert SGE.parse_status(said(text))["6.2"].nodes == "myhost"


def test_nothing_to_list_is_an_empty_list():
    assert SGE.parse_status(qstat()) == {}


@pytest.mark.parametrize(
    "answer",
    [
        said(""),
        said(qstat(job(RUNNING, 6, "r")).out[:-20]),
        said("<detailed_job_info></detailed_job_info>"),
        said(
            "",
            "error: commlib error: got select error (Connection refused)\n"
            'error: unable to send message to qmaster using port 29126 on host "myhost": got send '
            "error\n",
            1,
        ),
    ],
)
def test_a_listing_that_may_lack_something_is_an_error(answer):
    with pytest.raises(StatusError):
        SGE.parse_status(answer)


# -- The books ------------------------------------------------------------------------------------


def record(**fields: str) -> str:
    """One of qacct's records, of which the fields that are read are given."""
    all_fields = {
        "qname": "all.q",
        "hostname": "myhost",
        "owner": "hpc",
        "jobname": "a b",
        "jobnumber": "9",
        "taskid": "undefined",
        "start_time": "Thu Nov 26 06:43:16 2026",
        "failed": "0    ",
        "exit_status": "0",
        "ru_wallclock": "4s",
        "category": "-l h_rt=3",
        **fields,
    }
    lines = [f"{name:<12} {value:<20}\n" for name, value in all_fields.items()]
    return "=" * 62 + "\n" + "".join(lines)


def ends(*records: str) -> dict[str, JobStatus]:
    return SGE.parse_ends(said("".join(records)))


KILLED = {"failed": "100 : assumedly after job", "exit_status": "137                  (Killed)"}


def test_the_books_tell_of_all_jobs_of_an_array():
    found = ends(
        record(taskid="2", exit_status="3"),
        record(taskid="3"),
        record(taskid="1", **KILLED),
    )
    assert {id: status.end for id, status in found.items()} == {
        "9.2": End.FAILED,
        "9.3": End.COMPLETED,
        "9.1": End.CANCELLED,  # what qdel leaves
    }
    assert found["9.2"].exit_code == 3
    assert (found["9.1"].signal, found["9.1"].reason) == (9, "assumedly after job")


LIMIT = "37  : qmaster enforced h_rt, h_cpu, or h_vmem limit"


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"failed": LIMIT, "exit_status": "137                  (Killed)"}, End.TIMEOUT),
        ({"failed": LIMIT, "exit_status": "0"}, End.TIMEOUT),  # it has left in time
        ({"failed": "28  : changing into working directory"}, End.LAUNCH_FAILED),
        ({"failed": "26  : opening input/output file"}, End.LAUNCH_FAILED),
        # The warning of -notify ends who does not know it.
        (
            {
                "failed": "100 : assumedly after job",
                "exit_status": "140                  (User defined signal 2)",
            },
            End.CANCELLED,
        ),
        (
            {
                "failed": "100 : assumedly after job",
                "exit_status": "139                  (Segmentation fault)",
            },
            End.FAILED,
        ),
        ({"exit_status": "137"}, End.FAILED),  # the exit code of a shell whose child was killed
        # Univa
        ({"pe_taskid": "NONE", "deleted_by": "NONE", "exit_status": "0"}, End.COMPLETED),
        ({"pe_taskid": "NONE", "deleted_by": "hpc@myhost", **KILLED}, End.CANCELLED),
        ({"pe_taskid": "NONE", "deleted_by": "hpc@myhost", "exit_status": "0"}, End.CANCELLED),
    ],
)
def test_every_end_has_its_reason(fields, end):
    assert ends(record(**fields))["9"].end is end


def test_a_job_that_is_rescheduled_has_not_ended():
    again = record(failed="25  : rescheduling")
    assert ends(again) == {}
    assert ends(again, record(exit_status="3"))["9"].exit_code == 3
    assert ends(record(exit_status="99", failed="25  : rescheduling")) == {}


def test_what_runs_on_the_other_hosts_of_a_job_is_no_job():
    own = record(pe_taskid="NONE")
    assert ends(own, record(pe_taskid="1.myhost2", exit_status="1"))["9"].exit_code == 0


def test_books_that_know_nothing_yet_tell_nothing():
    assert SGE.parse_ends(said("", "error: job id 4711 not found\n", 1)) == {}
    with pytest.raises(StatusError):
        SGE.parse_ends(said("", "error: /var/lib/sge/accounting: No such file\n", 1))
    with pytest.raises(StatusError):
        SGE.parse_ends(said(record()[:200]))


# -- Reasons and trials ---------------------------------------------------------------------------

REASONS = """\
==============================================================
job_number:                 2
job-array tasks:            1-3:1
scheduling info:            queue instance "all.q@myhost" dropped because it is disabled
                            All queues dropped because of overload or full
==============================================================
job_number:                 9
job-array tasks:            1-2:1
usage         1:            cpu=00:00:00, mem=0.00000 GB s, io=0.00000 GB, vmem=N/A, maxvmem=N/A
scheduling info:            There are no messages available
==============================================================
job_number:                 11
job-array tasks:            1-2:1
error reason          1:      11/26/2026 06:43:15 [0:18992]: error: can't chdir to /nonexistent
scheduling info:            Job is in error state
==============================================================
job_number:                 12
scheduling info:            (-l h_vmem=900G) cannot run at host "myhost" because it offers only h
Following jobs do not exist:
4711
"""


SCRIPTS = """\
==============================================================
job_number:                 2
script_file:                /c/workers-1.sge
job-array tasks:            1-2:1
==============================================================
job_number:                 3
script_file:                /c/workers-10.sge
"""


def test_jobs_are_found_by_the_path_of_their_script():
    answer = said(f"{SCRIPTS}complete\n")
    assert SGE.parse_found(answer, "/c/workers-1.sge") == ["2.1", "2.2"]
    assert SGE.parse_found(said("complete\n"), "/c/workers-1.sge") == []
    for failure in (said(SCRIPTS), said(f"{SCRIPTS}complete\n", "", 1), said("")):
        with pytest.raises(StatusError):
            SGE.parse_found(failure, "/c/workers-1.sge")


def test_reasons_are_those_of_the_scheduler():
    found = SGE.parse_reasons(said(REASONS, "", 1))
    disabled = (
        'queue instance "all.q@myhost" dropped because it is disabled; '
        "All queues dropped because of overload or full"
    )
    assert found == {
        **dict.fromkeys(["2.1", "2.2", "2.3"], disabled),
        "11.1": "11/26/2026 06:43:15 [0:18992]: error: can't chdir to /nonexistent",
        "11.2": "Job is in error state",
        "12": '(-l h_vmem=900G) cannot run at host "myhost" because it offers only h',
    }


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said("verification: found suitable queue(s)\n"), ""),
        (
            said(
                "",
                'Unable to run job: Job 2 cannot run in PE "smp" because it only offers 0 slots\n'
                "verification: no suitable queues\nExiting.\n",
                1,
            ),
            'cannot run in PE "smp"',
        ),
        (said("", 'Unable to run job: unknown resource "x"\nExiting.\n', 1), "unknown resource"),
        (
            said("", 'Unable to read script file because of error: invalid option "-wrong"\n', 2),
            "invalid option",
        ),
        # Nobody has answered: that is no word against the job.
        (
            said(
                "",
                "error: commlib error: got select error (Connection refused)\n"
                "Unable to run job: unable to send message to qmaster\nExiting.\n",
                1,
            ),
            "",
        ),
    ],
)
def test_a_trial_refuses_what_would_never_run(answer, words):
    refusal = SGE.refusal(answer)
    assert words in refusal
    assert bool(refusal) == bool(words)
