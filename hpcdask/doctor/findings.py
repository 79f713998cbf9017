"""Findings: what is wrong, how badly, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

Severity = Literal["red", "yellow"]


class Finding(NamedTuple):
    """One thing that is wrong.

    Parameters
    ----------
    severity : {"red", "yellow"}
        Something would fail, or would only be slow or surprising.
    subject : str
        What it is about: a key of `HostFacts`, or "ranks", "connections", "bandwidth", "clocks" or
        "scheduler_file".
    what : str
        What is so, in a sentence without its full stop.
    cure : str
        What to do, likewise.
    hosts : tuple of str
        Where.
    """

    severity: Severity
    subject: str
    what: str
    cure: str
    hosts: tuple[str, ...] = ()


def listing(names: Sequence[str], most: int = 4) -> str:
    """Names in a sentence: "a, b and c", or "a, b, c and 14 more".

    Examples
    --------
    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def what_and_cure(error: str, cure: str) -> tuple[str, str]:
    """What an error says that is so, and what it says to do, or `cure` if it does not."""
    what, _, own_cure = error.partition(". ")
    own_cure = own_cure[:1].lower() + own_cure[1:].rstrip(".")
    return what.rstrip("."), own_cure or cure


def by_text(texts: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Hosts by what is said of them, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for host, text in texts.items():
        groups.setdefault(text, []).append(host)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return {text: tuple(hosts) for text, hosts in ordered}


def together(found: Mapping[str, Iterable[Finding]]) -> Iterator[Finding]:
    """One finding for all hosts of which the same is to be said.

    Parameters
    ----------
    found : mapping
        By host its findings, with "{on}" where the hosts belong.
    """
    hosts: dict[Finding, list[str]] = {}
    for host, findings in found.items():
        for finding in findings:
            hosts.setdefault(finding, []).append(host)
    for finding, names in hosts.items():
        # Not str.format: a path may have braces in it.
        what = finding.what.replace("{on}", f"on {listing(names)}")
        yield finding._replace(what=what, hosts=tuple(names))


def most_severe_first(findings: Iterable[Finding]) -> list[Finding]:
    """Red before yellow, otherwise in the order of looking."""
    return sorted(findings, key=lambda finding: finding.severity != "red")
