"""Which line of a job script a batch system complains of: a guess, from its words."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: What a directive's option and what systems call its subject, in words of their complaints.
_SUBJECTS = {
    "mem": ("memory", "mem"),
    "mem-per-cpu": ("memory", "mem"),
    "time": ("time", "walltime"),
    "t": ("time", "walltime"),
    "l": ("walltime", "resource", "resource_list", "select"),
    "partition": ("partition", "queue"),
    "p": ("partition", "priority"),
    "q": ("queue", "qos"),
    "account": ("account", "project"),
    "a": ("account", "project"),
    "qos": ("qos",),
    "gres": ("gres", "generic"),
    "constraint": ("feature", "features", "constraint"),
    "c": ("feature", "features", "constraint"),
    "reservation": ("reservation",),
    "nodes": ("node", "nodes"),
    "ntasks": ("task", "tasks"),
    "cpus-per-task": ("cpu", "cpus"),
    "array": ("array",),
    "j": ("array",),
    "pe": ("parallel",),
    "licenses": ("license", "licenses"),
}


def offending_line(script: str, prefix: str, words: str) -> str:
    """The directive that a refusal is about; empty if none stands out.

    Parameters
    ----------
    script : str
        The job script.
    prefix : str
        What begins a directive, as in ``#SBATCH``.
    words : str
        What the batch system has said.

    Examples
    --------
    >>> script = "#SBATCH --mem=4G\\n#SBATCH --partition=nope"
    >>> offending_line(script, "#SBATCH", "sbatch: error: invalid partition specified: nope")
    '#SBATCH --partition=nope'
    """
    said = set(re.findall(r"[\w.+/-]+", words.lower()))
    scores: dict[str, int] = {}
    for line in _directives(script, prefix):
        name, *values = _parts(line, prefix)
        # A value that is quoted says more than the name of an option; of a number nobody knows.
        score = 4 * sum(value in said for value in values if not value.isdecimal())
        score += 2 * (name in said or f"--{name}" in said)
        score += any(subject in said for subject in _SUBJECTS.get(name, ()))
        scores[line] = score
    best = max(scores.values(), default=0)
    found = [line for line, score in scores.items() if score == best]
    return found[0] if best and len(found) == 1 else ""


def _directives(script: str, prefix: str) -> Iterator[str]:
    for line in script.splitlines():
        if line.startswith(f"{prefix} "):
            yield line


def _parts(line: str, prefix: str) -> list[str]:
    """The option's name, and the words of its value; all in small letters."""
    option, _, value = line[len(prefix) :].strip().lower().partition(" ")
    name, _, attached = option.partition("=")
    return [name.lstrip("-"), *re.findall(r"[\w.+/-]+", f"{attached} {value}")]
