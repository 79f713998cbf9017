"""What LSF, OAR and HTCondor print, and what is read in it.

None of them runs here: written down after IBM's manual of LSF 10.1, oarstat's source of OAR 2.5 and
outputs of it that users have shown, and the manual of HTCondor 23.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from saying import said

from hpcdask.errors import StatusError
from hpcdask.jobqueue.htcondor import HTCondor
from hpcdask.jobqueue.job_script import job_script
from hpcdask.jobqueue.job_spec import JobSpec
from hpcdask.jobqueue.lsf import LSF
from hpcdask.jobqueue.oar import OAR
from hpcdask.jobqueue.status import Answer, End, JobStatus, Phase
from hpcdask.jobqueue.system import BatchSystem
from hpcdask.jobqueue.systems import WORKER_SYSTEMS

OTHERS = {name: WORKER_SYSTEMS[name] for name in ("lsf", "oar", "htcondor")}
JOB = JobSpec(
    launch="workers",
    name="dask",
    count=3,
    cpus_per_task=4,
    memory=2 * 2**30,
    walltime=3661,
    account="abc",
)


def directives(system: BatchSystem, **changes: object) -> list[str]:
    lines = job_script(system, replace(JOB, **changes)).splitlines()
    return [line for line in lines if line.startswith(system.prefix)]


def expanded(system: BatchSystem, **environ: str) -> str:
    """What a job with these variables calls itself."""
    command = ["bash", "-c", f'echo "{system.element_expression}"']
    environ |= {"PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environ, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("system", OTHERS.values(), ids=list(OTHERS))
def test_their_scripts_are_shell(system):
    text = job_script(system, JOB)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert text.startswith("#!/bin/bash\n")
    assert "\nexec hpc-dask worker " in text


@pytest.mark.parametrize(
    ("system", "output", "ids"),
    [
        ("lsf", "Job <12> is submitted to queue <normal>.\n", ["12[1]", "12[2]", "12[3]"]),
        ("lsf", "esub: hello\nJob <12> is submitted to default queue <normal>.\n", None),
        (
            "oar",
            "[ADMISSION RULE] Modify resource description\nOAR_JOB_ID=7\nOAR_JOB_ID=9\n"
            "OAR_JOB_ID=10\nOAR_ARRAY_ID=7\n",
            ["7", "9", "10"],
        ),
        ("htcondor", "18.0 - 18.2\n", ["18.0", "18.1", "18.2"]),
    ],
)
def test_ids_are_found_in_what_a_submission_prints(system, output, ids):
    system = OTHERS[system]
    job_id = system.job_id(output)
    assert system.elements(job_id, 3) == (ids or ["12[1]", "12[2]", "12[3]"])


@pytest.mark.parametrize("system", OTHERS.values(), ids=list(OTHERS))
def test_an_answer_without_an_id_is_no_id(system):
    with pytest.raises(ValueError):
        system.job_id("Your request could not be parsed\n")


# -- LSF ------------------------------------------------------------------------------------------


def test_what_lsf_is_asked_for():
    assert directives(LSF()) == [
        '#BSUB -J "dask[1-3]"',
        "#BSUB -n 4",
        '#BSUB -R "span[hosts=1]"',
        "#BSUB -M 2097152",
        "#BSUB -W 1:02",  # in minutes, never less than asked for
        '#BSUB -P "abc"',
        "#BSUB -o dask-%J_%I.log",
        "#BSUB -wa TERM -wt 1",
    ]
    assert "#BSUB -M 2" in directives(LSF(units="gb"), queue="q", count=1)


def test_lsf_reads_the_script_as_its_input(tmp_path: Path):
    (tmp_path / "bsub").write_text("#!/bin/sh\ncat\n")
    (tmp_path / "bsub").chmod(0o755)
    (tmp_path / "a job").write_text("#BSUB -n 4\n")
    command = [*LSF().submit_command, str(tmp_path / "a job")]
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.check_output(command, env=environ, text=True) == "#BSUB -n 4\n"


def test_an_lsf_job_calls_itself_as_the_listing_does():
    assert expanded(LSF(), LSB_JOBID="12", LSB_JOBINDEX="0") == "12"
    assert expanded(LSF(), LSB_JOBID="12", LSB_JOBINDEX="2") == "12[2]"
    assert expanded(LSF(), LSB_JOBID="12", LSB_JOBINDEX="2", LSB_RESTART="Y") == "12[2]r1"


HEADER = "JOBID^JOBINDEX^STAT^EXEC_HOST^RUN_TIME^TIME_LEFT^EXIT_CODE^EXIT_REASON^PEND_REASON\n"


def bjobs(*rows: str) -> Answer:
    return said(HEADER + "".join(f"{row}\n" for row in rows))


def test_lsf_lists_jobs_that_wait_run_and_have_ended():
    statuses = LSF().parse_status(
        bjobs(
            "12^1^RUN^4*hostA:4*hostB^12 second(s)^0:29 L^-^-^-",
            "12^2^PEND^-^0 second(s)^-^-^-^New job is waiting for scheduling;",
            "12^3^DONE^hostA^3 second(s)^-^-^-^-",
            "13^0^EXIT^hostA^3 second(s)^-^3^-^-",
            "14^0^USUSP^hostA^3 second(s)^0:10 L^-^-^-",
        )
    )
    assert statuses["12[1]"] == JobStatus(
        id="12[1]", phase=Phase.RUNNING, nodes="hostA,hostB", elapsed=12.0, left=29 * 60.0
    )
    assert statuses["12[2]"].reason == "New job is waiting for scheduling;"
    assert (statuses["12[3]"].end, statuses["12[3]"].exit_code) == (End.COMPLETED, 0)
    assert (statuses["13"].end, statuses["13"].exit_code) == (End.FAILED, 3)
    assert (statuses["14"].phase, statuses["14"].reason) == (Phase.RUNNING, "USUSP")


@pytest.mark.parametrize(
    ("code", "reason", "end"),
    [
        ("140", "TERM_RUNLIMIT: job killed after reaching LSF run time limit", End.TIMEOUT),
        (
            "137",
            "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit",
            End.OUT_OF_MEMORY,
        ),
        ("130", "TERM_OWNER: job killed by owner", End.CANCELLED),
        ("-", "TERM_OWNER: job killed by owner", End.CANCELLED),
        ("143", "TERM_ADMIN: job killed by root or LSF administrator", End.CANCELLED),
        ("137", "TERM_PREEMPT: job killed after preemption", End.PREEMPTED),
        ("139", "TERM_UNKNOWN: unknown reason", End.FAILED),
        ("-", "-", End.FAILED),
    ],
)
def test_lsf_says_why_a_job_was_ended(code, reason, end):
    row = f"13^0^EXIT^hostA^3 second(s)^-^{code}^{reason}^-"
    assert LSF().parse_status(bjobs(row))["13"].end is end


def test_jobs_that_lsf_does_not_know_do_not_hide_the_others():
    err = "Job <99> is not found\nJob <98> is not found\n"
    assert LSF().parse_status(said("", err, 255)) == {}
    rows = bjobs("12^0^RUN^hostA^12 second(s)^-^-^-^-").out
    assert list(LSF().parse_status(said(rows, err, 255))) == ["12"]


@pytest.mark.parametrize(
    "answer",
    [
        said(""),
        said("", "LSF is down. Please wait ...\n", 255),
        said("", "Job <99> is not found\nbatch daemon not responding\n", 255),
        said(f"{HEADER}12^1^RUN^hostA\n"),
        bjobs("13^0^EXIT^hostA^3 second(s)^-^three^-^-"),
    ],
)
def test_a_listing_of_lsf_that_may_lack_something_is_an_error(answer):
    with pytest.raises(StatusError):
        LSF().parse_status(answer)


# -- OAR ------------------------------------------------------------------------------------------


def test_what_oar_is_asked_for():
    assert directives(OAR(memory_property="memnode"), queue="q", output="x.log") == [
        "#OAR -n dask",
        "#OAR --array 3",
        "#OAR -l /nodes=1/core=4,walltime=01:01:01",
        '#OAR -p "memnode>=2048"',
        "#OAR -q q",
        "#OAR --project abc",
        "#OAR -O x.log",
        "#OAR -E x.log",
        "#OAR --checkpoint 60",
        "#OAR --signal 15",
    ]
    assert not any("-p" in line.split() for line in directives(OAR()))


def test_oar_runs_a_file_which_is_made_executable(tmp_path: Path):
    (tmp_path / "oarsub").write_text('#!/bin/sh\n[ "$1" = -S ] && "$2"\n')
    (tmp_path / "oarsub").chmod(0o755)
    (tmp_path / "job").write_text("#!/bin/sh\necho it runs\n")
    command = [*OAR().submit_command, str(tmp_path / "job")]
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.check_output(command, env=environ, text=True) == "it runs\n"


def oarstat(**jobs: dict[str, object]) -> Answer:
    common = {
        "message": "R=16,W=12:0:0,J=B (Karma=0.087,quota_ok)",
        "exit_code": None,
        "assigned_network_address": ["gengar-1", "gengar-2"],
        "events": [],
        "startTime": 1751979909,
    }
    return said(json.dumps({id.strip("_"): {**common, **job} for id, job in jobs.items()}))


def event(kind: str, words: str) -> list[dict[str, object]]:
    return [{"type": kind, "description": words, "date": 1751979909}]


@pytest.mark.parametrize(
    ("job", "phase", "end", "reason"),
    [
        ({"state": "Waiting", "message": "no room"}, Phase.PENDING, None, "no room"),
        ({"state": "Hold", "message": ""}, Phase.PENDING, None, "Hold"),
        ({"state": "Running"}, Phase.RUNNING, None, ""),
        ({"state": "Suspended"}, Phase.RUNNING, None, "Suspended"),
        ({"state": "Finishing", "message": ""}, Phase.ENDING, None, "Finishing"),
        (
            {"state": "Terminated", "exit_code": 0, "message": ""},
            Phase.ENDED,
            End.COMPLETED,
            "",
        ),
        ({"state": "Terminated", "exit_code": "768", "message": ""}, Phase.ENDED, End.FAILED, ""),
        (
            {"state": "Error", "events": event("WALLTIME", "Job [7] from 1 to 2 reached its end")},
            Phase.ENDED,
            End.TIMEOUT,
            "Error, Job [7] from 1 to 2 reached its end",
        ),
        (
            {"state": "Error", "events": event("FRAG_JOB_REQUEST", "User hpc requested to frag 7")},
            Phase.ENDED,
            End.CANCELLED,
            "Error, User hpc requested to frag 7",
        ),
        (
            {"state": "Error", "events": event("BESTEFFORT_KILL", "")},
            Phase.ENDED,
            End.PREEMPTED,
            "Error, BESTEFFORT_KILL",
        ),
        ({"state": "Error", "message": ""}, Phase.ENDED, End.LAUNCH_FAILED, "Error"),
    ],
)
def test_states_of_oar(job, phase, end, reason):
    status = OAR().parse_status(oarstat(_7=job))["7"]
    assert (status.phase, status.end, status.reason) == (phase, end, reason)
    assert status.nodes == "gengar-1,gengar-2"


def test_oar_tells_of_jobs_by_their_own_ids():
    assert OAR().status_command(["7", "9"]) == ["oarstat", "-f", "-J", "-j", "7", "-j", "9"]
    assert expanded(OAR(), OAR_JOB_ID="9", OAR_ARRAY_ID="7") == "9"
    assert OAR().parse_status(said("null\n")) == {}
    with pytest.raises(StatusError):
        OAR().parse_status(said('{"7": {"state": "Runn'))


# -- HTCondor -------------------------------------------------------------------------------------


def test_what_htcondor_is_asked_for():
    lines = directives(HTCondor(), disk=3 * 2**20)
    assert lines == [
        "#HTCONDOR universe = vanilla",
        "#HTCONDOR batch_name = dask",
        "#HTCONDOR n_jobs = 3",
        "#HTCONDOR request_cpus = 4",
        "#HTCONDOR request_memory = 2048",
        "#HTCONDOR request_disk = 3072",
        "#HTCONDOR accounting_group = abc",
        "#HTCONDOR output = dask-$(ClusterId).$(ProcId).log",
        "#HTCONDOR error = dask-$(ClusterId).$(ProcId).log.err",
        "#HTCONDOR periodic_remove = JobStatus == 2 && time() - EnteredCurrentStatus > 3661",
        "#HTCONDOR job_max_vacate_time = 60",
        "#HTCONDOR copy_to_spool = true",
        '#HTCONDOR environment = "HPCDASK_JOB=$(ClusterId).$(ProcId)"',
    ]


def test_the_submit_description_of_htcondor_is_taken_out_of_the_script(tmp_path: Path):
    (tmp_path / "condor_submit").write_text('#!/bin/sh\necho "$@"\ncat\n')
    (tmp_path / "condor_submit").chmod(0o755)
    path = tmp_path / "job"
    path.write_text(job_script(HTCondor(), replace(JOB, directives=('requirements = x == "y"',))))
    command = [*HTCondor().submit_command, str(path)]
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    lines = subprocess.check_output(command, env=environ, text=True).splitlines()
    assert lines[0] == "-terse -"
    assert lines[1] == "universe = vanilla"
    assert lines[-3:] == ['requirements = x == "y"', f"executable = {path}", "queue $(n_jobs)"]
    assert not any(line.startswith("#") for line in lines)


def test_an_htcondor_job_calls_itself_as_the_listing_does(tmp_path: Path):
    ad = tmp_path / "ad"
    names = {"HPCDASK_JOB": "18.2", "_CONDOR_JOB_AD": str(ad)}
    ad.write_text("ClusterId = 18\nNumShadowStarts = 1\nProcId = 2\n")
    assert expanded(HTCondor(), **names) == "18.2"
    ad.write_text("NumShadowStarts = 3\n")
    assert expanded(HTCondor(), **names) == "18.2r2"
    ad.unlink()
    assert expanded(HTCondor(), **names) == "18.2"


def condor(*jobs: dict[str, object]) -> Answer:
    return said(json.dumps([{"ClusterId": 18, **job} for job in jobs]))


HELD = "Error from slot1@n1: Failed to execute '/x/job': Permission denied"


def test_htcondors_queue_is_read():
    statuses = HTCondor().parse_status(
        condor(
            {
                "ProcId": 0,
                "JobStatus": 2,
                "RemoteHost": "slot1_2@n1.site.org",
                "NumShadowStarts": 2,
            },
            {"ProcId": 1, "JobStatus": 1},
            {"ProcId": 2, "JobStatus": 5, "HoldReason": HELD, "LastRemoteHost": "slot1@n1"},
            {"ProcId": 3, "JobStatus": 3, "RemoveReason": "via condor_rm (by user hpc)"},
            {"ProcId": 4, "JobStatus": 7, "RemoteHost": "slot1@n2"},
        )
    )
    assert statuses["18.0"] == JobStatus(
        id="18.0", phase=Phase.RUNNING, nodes="n1.site.org", restarts=1
    )
    assert statuses["18.1"] == JobStatus(id="18.1", phase=Phase.PENDING)
    assert statuses["18.2"].reason == f"held: {HELD}"
    assert statuses["18.3"].phase is Phase.ENDING
    assert statuses["18.4"].phase is Phase.RUNNING
    assert [id for id, status in statuses.items() if HTCondor().can_never_run(status)] == ["18.2"]


@pytest.mark.parametrize(
    ("job", "end", "code", "signal"),
    [
        ({"JobStatus": 4, "ExitBySignal": False, "ExitCode": 0}, End.COMPLETED, 0, None),
        ({"JobStatus": 4, "ExitBySignal": False, "ExitCode": 3}, End.FAILED, 3, None),
        ({"JobStatus": 4, "ExitBySignal": True, "ExitSignal": 9}, End.FAILED, None, 9),
        (
            {"JobStatus": 3, "RemoveReason": "via condor_rm (by user hpc)"},
            End.CANCELLED,
            None,
            None,
        ),
        (
            {
                "JobStatus": 3,
                "RemoveReason": "The job attribute PeriodicRemove expression 'JobStatus == 2 && "
                "time() - EnteredCurrentStatus > 60' evaluated to TRUE",
            },
            End.TIMEOUT,
            None,
            None,
        ),
    ],
)
def test_htcondors_history_is_read(job, end, code, signal):
    status = HTCondor().parse_ends(condor({"ProcId": 0, **job}))["18.0"]
    assert (status.end, status.exit_code, status.signal) == (end, code, signal)


def test_an_empty_queue_of_htcondor_may_be_no_text_at_all():
    assert HTCondor().parse_status(said("")) == {}
    assert HTCondor().parse_status(said("[\n]\n")) == {}
    with pytest.raises(StatusError):
        HTCondor().parse_status(said("", "Error: Extra Info: failed to connect to schedd\n", 1))
    with pytest.raises(StatusError):
        HTCondor().parse_status(said('[{"ClusterId": 18, "ProcId": 0}]'))
