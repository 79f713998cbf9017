"""Settings of batch jobs: the same keys for each system, in a section of its own.

A section with another name than that of a system is a user's or a site's own: `config_name` of a
`Job` class chooses it. It may have the keys of any system.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from hpcdask.config import kinds
from hpcdask.config.kinds import Kind
from hpcdask.config.setting import Setting

#: As `hpcdask.jobqueue` calls them, which configuration must not know.
SYSTEMS = ("slurm", "pbs", "sge", "lsf", "oar", "htcondor", "moab")
#: Those of ``hpc-dask jobscript``.
_SCRIPTED = ("slurm", "pbs", "sge")
_WITH_QUEUES = tuple(system for system in SYSTEMS if system != "htcondor")
_WITH_NODES = ("slurm", "pbs", "moab", "sge")


class Word(NamedTuple):
    """What a section may say.

    Parameters
    ----------
    name : str
        Last part of the key; with underscores, the keyword of the `Job` classes.
    kind : Kind
    doc : str
    default : object
        As of `Setting`.
    systems : tuple of str
        In whose sections it may be.
    option : str
        Of ``hpc-dask jobscript`` that it is the default of.
    without_option : tuple of str
        Systems for whose scripts that option is refused.
    is_keyword : bool
        False for what only scripts of ``hpc-dask jobscript`` have.
    """

    name: str
    kind: Kind
    doc: str
    default: Any = None
    systems: tuple[str, ...] = SYSTEMS
    option: str = ""
    without_option: tuple[str, ...] = ()
    is_keyword: bool = True

    @property
    def keyword(self) -> str:
        """Of the `Job` classes."""
        return self.name.replace("-", "_")


_ALL = (
    # -- What the system is asked for
    Word(
        "queue",
        kinds.TEXT,
        "Where to wait; Slurm's partition.",
        systems=_WITH_QUEUES,
        option="--queue",
    ),
    Word("account", kinds.TEXT, "Who pays; Grid Engine's project.", option="--account"),
    Word(
        "walltime",
        kinds.TEXT,
        "How long the job may run: H:MM:SS, or 90min.",
        "00:30:00",
        option="--walltime",
    ),
    Word("cores", kinds.POSITIVE, "CPUs of each node of the job."),
    Word(
        "memory",
        kinds.SIZE,
        "Memory of each node.",
        option="--memory",
        without_option=("sge",),
    ),
    Word("nodes-per-job", kinds.POSITIVE, "Nodes of each job.", 1, _WITH_NODES),
    Word("job-cpu", kinds.POSITIVE, "CPUs to ask for, if not `cores`.", None, ("slurm",)),
    Word("job-mem", kinds.TEXT, "Memory to ask for, as --mem takes it.", None, ("slurm",)),
    Word("ncpus", kinds.POSITIVE, "CPUs to ask for, if not `cores`.", None, ("lsf",)),
    Word("mem", kinds.SIZE, "Memory to ask for, if not `memory`.", None, ("lsf",)),
    Word(
        "lsf-units",
        kinds.one_of("kb", "mb", "gb", "tb"),
        "What LSF counts memory in. Default: LSF_UNIT_FOR_LIMITS of its lsf.conf, or kb.",
        None,
        ("lsf",),
    ),
    Word("use-stdin", kinds.SWITCH, "Whether bsub reads the script as its input.", True, ("lsf",)),
    Word("disk", kinds.SIZE, "Scratch on the node, which HTCondor requires.", None, ("htcondor",)),
    Word(
        "memory-per-core-property-name",
        kinds.TEXT,
        "Property of the site's nodes with the MiB of each core.",
        None,
        ("oar",),
    ),
    Word(
        "resource-spec",
        kinds.TEXT,
        "What stands behind -l in place of CPUs and memory; with Grid Engine beside them.",
        None,
        ("pbs", "moab", "sge"),
    ),
    Word(
        "parallel-environment",
        kinds.TEXT,
        "The rule to spread slots by. Default: smp, and mpi for jobs of several nodes.",
        None,
        ("sge",),
        "--pe",
    ),
    Word("job-name", kinds.TEXT, "Name of the job.", "hpcdask", option="--job-name"),
    Word("log-directory", kinds.PATH, "Folder of the jobs' logs."),
    Word(
        "output",
        kinds.TEXT,
        "The job's log, in the system's own pattern.",
        None,
        _SCRIPTED,
        "--output",
        is_keyword=False,
    ),
    Word(
        "job-extra-directives", kinds.LIST, "More lines for the system.", (), option="--directive"
    ),
    Word(
        "job-directives-skip",
        kinds.LIST,
        "Lines for the system that have any of these in them are left out.",
        (),
    ),
    Word("submit-command-extra", kinds.LIST, "More words for the submit command.", ()),
    Word("cancel-command-extra", kinds.LIST, "More words for the cancel command.", ()),
    # -- What the script does
    Word("shebang", kinds.TEXT, "First line of the script.", "#!/usr/bin/env bash"),
    Word(
        "job-script-prologue",
        kinds.LIST,
        "Lines of shell to run before all else.",
        (),
        option="--prologue",
    ),
    Word("job-script-epilogue", kinds.LIST, "Lines to run when the workers have ended.", ()),
    Word(
        "launch",
        kinds.one_of("mpi", "native", "cluster", "workers"),
        "What the job is, and how its processes are started.",
        None,
        _SCRIPTED,
        "--launch",
        is_keyword=False,
    ),
    Word(
        "tasks-per-node",
        kinds.POSITIVE,
        "Processes on each node.",
        None,
        _SCRIPTED,
        "--tasks-per-node",
        is_keyword=False,
    ),
    Word(
        "cpus-per-task",
        kinds.POSITIVE,
        "CPUs of each process.",
        None,
        _SCRIPTED,
        "--cpus-per-task",
        is_keyword=False,
    ),
    Word(
        "venv",
        kinds.TEXT,
        "Virtual environment of the job.",
        None,
        _SCRIPTED,
        "--venv",
        is_keyword=False,
    ),
    Word(
        "launcher",
        kinds.TEXT,
        "What starts the workers of each node. Default: srun, pbsdsh, qrsh for several nodes.",
    ),
    # -- The workers
    Word("python", kinds.TEXT, "What starts Python in the job. Default: this Python, by its path."),
    Word("worker-command", kinds.TEXT, "What stands behind `python -m`.", "hpcdask worker"),
    Word(
        "processes", kinds.POSITIVE, "Workers on each node. Default: the square root of the CPUs."
    ),
    Word("nanny", kinds.SWITCH, "Whether workers have nannies. Default: as worker.nanny."),
    Word(
        "interface",
        kinds.TEXT,
        "Network interface of all processes.",
        option="--interface",
    ),
    Word("protocol", kinds.one_of("tcp"), "Transport."),
    Word("local-directory", kinds.TEXT, "Folder for scratch; $NAME is filled in on the node."),
    Word(
        "death-timeout",
        kinds.DURATION,
        "How long to look for the scheduler. Default: as worker.death-timeout.",
    ),
    Word("resources", kinds.AMOUNTS, "What tasks may ask for, of each worker.", {}),
    Word("worker-extra-args", kinds.LIST, "More words for the command of the workers.", ()),
    # -- Clusters
    Word(
        "shared-temp-directory",
        kinds.PATH,
        "Where clusters make their folders. Default: ~/.local/state/hpcdask/clusters.",
        is_keyword=False,
    ),
    Word(
        "scheduler-options",
        kinds.VARIABLES,
        "Parameters of the scheduler of a cluster, as `interface` or `port`.",
        {},
        is_keyword=False,
    ),
    Word(
        "poll-interval",
        kinds.INTERVAL,
        "How often a cluster asks for its jobs, at most: less often while nothing happens.",
        "2s",
        is_keyword=False,
    ),
    Word(
        "max-array",
        kinds.POSITIVE,
        "Most jobs that a cluster submits by one command. Default: what Slurm says; else 1000.",
        is_keyword=False,
    ),
)
WORDS = {word.name: word for word in _ALL}


def words_of(system: str) -> list[Word]:
    """What the `Job` class of a system takes; of a system that is not ours, what most have."""
    known = system in SYSTEMS
    return [
        word
        for word in WORDS.values()
        if word.is_keyword and (system in word.systems if known else len(word.systems) > 3)
    ]


#: Other names of these, as dask-jobqueue has or had them.
OTHER_NAMES = {
    "name": "job-name",
    "project": "account",
    "extra": "worker-extra-args",
    "env-extra": "job-script-prologue",
    "header-skip": "job-directives-skip",
    "job-extra": "job-extra-directives",
}


def settings() -> Iterator[Setting]:
    """Those of all systems."""
    for system in SYSTEMS:
        yield from (_setting(system, word) for word in WORDS.values() if system in word.systems)


def aliases() -> dict[str, str]:
    """Other keys for the same, of all systems."""
    return {
        f"jobqueue.{system}.{other}": f"jobqueue.{system}.{name}"
        for system in SYSTEMS
        for other, name in OTHER_NAMES.items()
    }


def _setting(section: str, word: Word) -> Setting:
    has_option = word.option and section in _SCRIPTED and section not in word.without_option
    return Setting(
        f"jobqueue.{section}.{word.name}",
        word.kind,
        word.default,
        word.doc,
        f"Job({word.keyword}=)" if word.is_keyword else "",
        (f"jobscript {word.option}",) if has_option else (),
        # The command knows the system, and so which of several settings an option has.
        is_preset=False,
    )


def generic(key: str) -> str:
    """The key of any system, where several have one like it; other keys as they are."""
    section, _, rest = key.partition(".")
    name = rest.partition(".")[2]
    is_of_several = section == "jobqueue" and len(WORDS[name].systems) > 1
    return f"jobqueue.SYSTEM.{name}" if is_of_several else key


# -- Sections of a user's own ---------------------------------------------------------------------


def own_section(key: str) -> str:
    """The section of a user's own that a key would be in; empty if it is in none."""
    pieces = key.split(".", 2)
    is_own = len(pieces) > 1 and pieces[0] == "jobqueue" and pieces[1] not in ("", *SYSTEMS)
    return ".".join(pieces[:2]) if is_own else ""


def own_keys(section: str) -> list[str]:
    """All keys that a section of a user's own may have."""
    return [f"{section}.{name}" for name in WORDS]


def own_setting(key: str) -> Setting | None:
    """The setting of a key in a section of a user's own, by any of its names."""
    section = own_section(key)
    name = key.removeprefix(f"{section}.")
    word = WORDS.get(OTHER_NAMES.get(name, name)) if section else None
    return _setting(section.partition(".")[2], word) if word else None
