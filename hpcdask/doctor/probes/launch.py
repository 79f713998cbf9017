"""MPI and batch system: what is installed, and what of it has started us."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import sys
from collections.abc import Mapping

from hpcdask import host as hosts
from hpcdask.doctor.facts import Launch
from hpcdask.doctor.probes.programs import output
from hpcdask.world import launched_world

#: Loads the MPI library without starting MPI, which could hang, or end the process.
_NAME_LIBRARY = """\
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(MPI.Get_library_version().strip("\\0"))
"""

#: A command of each batch system that says its version; Grid Engine and PBS both have a qstat.
_VERSION_COMMANDS = (("sbatch", "--version"), ("bsub", "-V"), ("qstat", "--version"))
#: What asks the server of a batch system for the jobs of a user, by the command above.
_QUESTIONS = {"sbatch": ("squeue", "--noheader", "--user"), "qstat": ("qstat", "-u")}
#: Seconds that it has for the answer.
_PATIENCE = 3.0


def look(asks: bool = True) -> Launch:
    """Launchers found here.

    Parameters
    ----------
    asks : bool
        Whether to ask batch systems if they answer: not on all hosts of a job at the same time.
    """
    mpirun = shutil.which("mpirun") or shutil.which("mpiexec") or ""
    library, problem = _mpi_library()
    return {
        "launcher": launched_world().launcher,
        "mpirun": mpirun,
        "mpirun_version": _first_line(mpirun, "--version") if mpirun else "",
        "mpi_library": library,
        "mpi4py_problem": problem,
        "batch_systems": list(filter(None, map(_batch_system, _VERSION_COMMANDS))),
        "batch_problems": list(filter(None, map(why_silent, _QUESTIONS))) if asks else [],
        "job": hosts.batch_job(),
        "nodes": job_nodes(os.environ),
    }


def _mpi_library() -> tuple[str, str]:
    """Which MPI mpi4py is built with, and why it cannot be used."""
    if importlib.util.find_spec("mpi4py") is None:
        return "", ""
    try:
        code, text = output(sys.executable, "-c", _NAME_LIBRARY, timeout=10.0)
    except OSError as exc:
        return "", str(exc)
    lines = text.splitlines() or [f"exit code {code}"]
    if code:
        return "", lines[-1]
    return _words(lines[0].partition(",")[0]), ""


def _first_line(*argv: str) -> str:
    try:
        _, text = output(*argv)
    except OSError as exc:
        return str(exc)
    return _words(text.partition("\n")[0])


def _words(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())


def _batch_system(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    if command[0] == "qstat" and os.environ.get("SGE_ROOT"):
        command = ("qstat", "-help")
    try:
        _, text = output(*command)
    except OSError as exc:
        text = str(exc)
    return batch_system_of(command[0], text)


def why_silent(command: str) -> str:
    """Why the batch system of a command gives no answer; empty if it does, or is not here."""
    question = _QUESTIONS[command]
    if shutil.which(command) is None or shutil.which(question[0]) is None:
        return ""
    try:
        code, text = output(*question, _user(), timeout=_PATIENCE)
    except OSError as exc:
        return str(exc)
    last = _words(text.rpartition("\n")[2]) or f"exit code {code}"
    return "" if code == 0 else f"{question[0]}: {last.removeprefix(f'{question[0]}: ')}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # as in some containers
        return str(os.geteuid())


def batch_system_of(command: str, text: str) -> str:
    """Name and version of a batch system, from what a command of it printed.

    Examples
    --------
    >>> batch_system_of("sbatch", "slurm 23.11.4")
    'Slurm 23.11.4'
    >>> batch_system_of("qstat", "pbs_version = 20.0.1")
    'PBS 20.0.1'
    >>> batch_system_of("qstat", "SGE 8.1.9")
    'Grid Engine 8.1.9'
    >>> batch_system_of("sbatch", "sbatch: fatal: no configuration")
    'Slurm (sbatch: fatal: no configuration)'
    """
    first, last = _words(text.partition("\n")[0]), _words(text.rpartition("\n")[2])
    name = {"sbatch": "Slurm", "bsub": "LSF"}.get(command, "PBS")
    if command == "qstat" and (re.match(r"\w*GE ", first) or "qmaster" in text or "sge_" in text):
        name = "Grid Engine"
    match = re.search(r"\d[\w.-]*", first)
    if match is None or re.search(r"\b(error|fatal|did not end)\b", first):
        return f"{name} ({last or 'of unknown version'})"
    return f"{name} {match[0]}"


def job_nodes(environ: Mapping[str, str]) -> list[str]:
    """Hosts of the batch job around us, as far as the batch system lists them."""
    slurm = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    if slurm:
        return expand_node_list(slurm)
    for name in ("PBS_NODEFILE", "PE_HOSTFILE"):
        try:
            with open(environ.get(name, ""), encoding="utf-8") as file:
                # A host per line; in Grid Engine's its slots and queue follow.
                return list(dict.fromkeys(line.split()[0] for line in file if line.strip()))
        except OSError:
            continue
    return []


def expand_node_list(text: str) -> list[str]:
    """Host names in Slurm's short form.

    Examples
    --------
    >>> expand_node_list("n[01-03,7],login")
    ['n01', 'n02', 'n03', 'n7', 'login']
    """
    names: list[str] = []
    for entry in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        found = [""]
        for plain, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", entry):
            parts = [plain] if plain else _numbers(ranges)
            found = [name + part for name in found for part in parts]
        names += found
    return names


def _numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for each in ranges.split(","):
        first, _, last = each.partition("-")
        if not last:
            numbers.append(first)
        else:
            numbers += [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return numbers
