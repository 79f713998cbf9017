"""Settings of batch jobs: the same keys for each system, in a section of its own."""

from __future__ import annotations

from collections.abc import Iterator

from hpcdask.config import kinds
from hpcdask.config.setting import Setting

#: As `hpcdask.jobqueue.systems` calls them, which configuration must not know.
SYSTEMS = ("slurm", "pbs", "sge")

#: Last part of the key, what it may be, what it means, and the option of ``hpc-dask jobscript``.
_WORDS = (
    ("queue", kinds.TEXT, "Where to wait; Slurm's partition.", "--queue"),
    ("account", kinds.TEXT, "Who pays; Grid Engine's project.", "--account"),
    ("walltime", kinds.TEXT, "How long the job may run: H:MM:SS, or 90min.", "--walltime"),
    ("memory", kinds.SIZE, "Memory of each node.", "--memory"),
    ("tasks-per-node", kinds.POSITIVE, "Processes on each node.", "--tasks-per-node"),
    ("cpus-per-task", kinds.POSITIVE, "CPUs of each process.", "--cpus-per-task"),
    (
        "launch",
        kinds.one_of("mpi", "native", "cluster", "workers"),
        "What the job is, and how its processes are started.",
        "--launch",
    ),
    ("job-name", kinds.TEXT, "Name of the job.", "--job-name"),
    ("output", kinds.TEXT, "The job's log, in the system's own pattern.", "--output"),
    ("parallel-environment", kinds.TEXT, "The rule to spread slots by.", "--pe"),
    ("interface", kinds.TEXT, "Network interface of all processes.", "--interface"),
    ("venv", kinds.TEXT, "Virtual environment of the job.", "--venv"),
    ("job-script-prologue", kinds.LIST, "Lines to run first on each node.", "--prologue"),
    ("job-extra-directives", kinds.LIST, "More lines for the system.", "--directive"),
    (
        "job-directives-skip",
        kinds.LIST,
        "Lines for the system that have any of these in them are left out.",
        "",
    ),
)
#: What only some of them take.
_ONLY = {"memory": ("slurm", "pbs"), "parallel-environment": ("sge",)}


def settings() -> Iterator[Setting]:
    """Those of all systems."""
    for system in SYSTEMS:
        for name, kind, doc, option in _WORDS:
            if system in _ONLY.get(name, SYSTEMS):
                options = (f"jobscript {option}",) if option else ()
                default = () if kind is kinds.LIST else None
                # The command knows the system, and so which of several settings an option has.
                key = f"jobqueue.{system}.{name}"
                yield Setting(key, kind, default, doc, "", options, is_preset=False)


def generic(key: str) -> str:
    """The key of any system, where all of them have one like it; other keys as they are."""
    section, _, rest = key.partition(".")
    name = rest.partition(".")[2]
    is_of_all = section == "jobqueue" and name not in _ONLY
    return f"jobqueue.SYSTEM.{name}" if is_of_all else key
