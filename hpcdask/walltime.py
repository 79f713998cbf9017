"""When the batch job ends that this process is part of: what its environment and its system say.

Each system is asked for one job only, with its own command. All but `ask` is pure, with the text
that the commands print going in.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple


class JobEnd(NamedTuple):
    """How long a job may run from now on, in seconds, and who says so."""

    left: float
    source: str  # "squeue", "SLURM_JOB_END_TIME", "--walltime"


class Question(NamedTuple):
    """A command that tells how long a job may run, and how to read what it prints.

    `read` takes that, the job's age in seconds and the seconds since the epoch, and returns those
    that are left; None if there is no limit in it.
    """

    command: tuple[str, ...]
    read: Callable[[str, float, float], float | None]
    variables: Mapping[str, str] = {}  # for the command


#: Each is set in all processes of a job of its system.
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "JOB_ID", "LSB_JOBID", "OAR_JOB_ID", "OAR_JOBID")


# ---------------------------------------------------------------- what the environment says


def told_by_environment(
    environ: Mapping[str, str], age: float, now: float, root: Path = Path("/")
) -> JobEnd | None:
    """The end of the job, if it can be had without asking anybody.

    Parameters
    ----------
    environ : mapping
        Of a process of the job.
    age : float
        Seconds that the job has run.
    now : float
        Seconds since the epoch.
    root : Path
        Where files are read; tests give a folder.
    """
    # Slurm 23.02 and later: seconds since the epoch.
    if end := _number(environ.get("SLURM_JOB_END_TIME", "")):
        return JobEnd(end - now, "SLURM_JOB_END_TIME")
    for name in ("OAR_JOB_WALLTIME_SECONDS", "PBS_WALLTIME"):  # the latter of Torque
        if seconds := _number(environ.get(name, "")):
            return JobEnd(seconds - age, name)
    if seconds := _number(_of_condor(environ, root)):
        return JobEnd(seconds - age, "AllowedJobDuration")
    return None


def _of_condor(environ: Mapping[str, str], root: Path) -> str:
    """What HTCondor allows a job, from the file in which it describes that; in seconds."""
    path = environ.get("_CONDOR_JOB_AD", "")
    try:
        text = (root / path.lstrip("/")).read_text(errors="replace") if path else ""
    except OSError:
        return ""
    found = re.search(r"^AllowedJobDuration *= *(\d+) *$", text, re.M)
    return found[1] if found else ""


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def age_of_job(environ: Mapping[str, str], root: Path = Path("/")) -> float:
    """Seconds that the job has run here, as far as its processes tell.

    That is since this process began, or the first of its session: batch systems start each job in
    one of its own. In an allocation that was made by a login shell that shell is older than the
    job, which shows in its environment.
    """
    age, leader = _age(os.getpid(), root), os.getsid(0)
    mine = {name: environ[name] for name in _JOB_VARIABLES if name in environ}
    if mine and mine.items() <= _environ_of(leader, root).items():
        return max(age, _age(leader, root))
    return age


def _age(pid: int, root: Path) -> float:
    try:
        # Behind the name, which is in parentheses and may have some of its own; see proc(5).
        fields = (root / f"proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 0.0)
    except (OSError, AttributeError, IndexError):  # not Linux, or it has ended
        return 0.0


def _environ_of(pid: int, root: Path) -> dict[str, str]:
    """The environment with which a process of ours began; empty if it is not ours."""
    try:
        entries = (root / f"proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}


# ---------------------------------------------------------------- what the batch system says


def question(environ: Mapping[str, str]) -> Question | None:
    """How to ask the batch system of a job for its end; None if this is no job, or of no such."""
    if job := environ.get("SLURM_JOB_ID"):
        array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        # The last job of an array has the number of the whole, which would be listed.
        element = f"{array}_{task}" if array and task else job
        command = ("squeue", "-h", "-j", element, "-o", "%L %e")
        return Question(command, _read_squeue, {"SLURM_TIME_FORMAT": "%s"})
    if job := environ.get("PBS_JOBID"):
        return Question(("qstat", "-f", job), _read_pbs_qstat)
    if environ.get("JOB_ID") and environ.get("SGE_ROOT"):
        return Question(("qstat", "-j", environ["JOB_ID"]), _read_sge_qstat)
    if job := environ.get("LSB_JOBID"):
        index = environ.get("LSB_JOBINDEX", "0")
        element = job if index == "0" else f"{job}[{index}]"
        return Question(("bjobs", "-noheader", "-o", "time_left", element), _read_bjobs)
    return None


def ask(asked: Question, age: float, timeout: float) -> JobEnd | str:
    """Ask; whatever goes wrong, the answer is why there is none, as the end of a sentence.

    Parameters
    ----------
    age : float
        Seconds that the job has run.
    timeout : float
        Seconds that the command may take.
    """
    name = asked.command[0]
    try:
        done = subprocess.run(
            asked.command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**os.environ, **asked.variables},
        )
    except subprocess.TimeoutExpired:
        return f"{name} gave no answer within {timeout:g} s"
    except FileNotFoundError:
        return f"there is no {name} here"
    except OSError as exc:
        return f"{name} cannot be run: {exc.strerror}"
    if done.returncode:
        words = " ".join(f"{done.stderr} {done.stdout}".split())
        return f"{name} ended with code {done.returncode}: {words[:200]}"
    left = asked.read(done.stdout, age, time.time())
    return f"{name} tells of no limit" if left is None else JobEnd(left, name)


def _read_squeue(text: str, age: float, now: float) -> float | None:
    """What is left, as days-hours:minutes:seconds or UNLIMITED, and the end as a number.

    The end is what Slurm goes by: preemption with a grace moves it, and not the time limit.
    """
    left, _, end = text.strip().partition(" ")
    seconds = _seconds(left)
    return seconds if seconds is None or not end.isdecimal() else int(end) - now


def _read_pbs_qstat(text: str, age: float, now: float) -> float | None:
    """What was asked for, less what the server has seen used: it looks only every few minutes."""
    limit = re.search(r"^\s*Resource_List\.walltime = (\S+)$", text, re.M)
    used = re.search(r"^\s*resources_used\.walltime = (\S+)$", text, re.M)
    seconds = _seconds(limit[1]) if limit else None
    if seconds is None:
        return None
    return seconds - max(age, (_seconds(used[1]) if used else None) or 0.0)


def _read_sge_qstat(text: str, age: float, now: float) -> float | None:
    """What was asked for; at s_rt comes a warning, so that counts as an end as well."""
    limits = []
    for line in re.findall(r"^hard resource_list: +(.*)$", text, re.M):
        for value in re.findall(r"(?:^|,)[hs]_rt=([\d:]+)", line):
            limits.append(_seconds(value))
    known = [limit for limit in limits if limit is not None]
    return min(known) - age if known else None


def _read_bjobs(text: str, age: float, now: float) -> float | None:
    """Hours and minutes, and what they are: "0:29 L" is a limit, "E" only an estimate."""
    found = re.fullmatch(r"(\d+):(\d+) L", text.strip())
    return (int(found[1]) * 60 + int(found[2])) * 60.0 if found else None


def _seconds(text: str) -> float | None:
    """The time in ``[days-][hours:][minutes:]seconds``; None if it is no such thing."""
    clock = re.fullmatch(r"(-?)(?:(\d+)-)?((?:\d+:){0,2}\d+)", text)
    if clock is None:
        return None
    total = 0
    for part in clock[3].split(":"):
        total = total * 60 + int(part)
    total += int(clock[2] or 0) * 86400
    return float(-total if clock[1] else total)
