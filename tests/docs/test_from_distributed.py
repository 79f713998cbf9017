"""The page about distributed has each of its public names, and what it says of them is so."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hpcdask
from hpcdask.client.place import OF_CLIENTS, OF_CLUSTERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-distributed.md"
#: Classes whose public names the page has, but for those at the top level.
CLASSES = (
    *("Client", "Future", "as_completed", "LocalCluster", "SpecCluster", "Adaptive"),
    *("Queue", "Variable", "Event", "Lock", "MultiLock", "Semaphore", "Actor", "BaseActorFuture"),
    *("WorkerPlugin", "NannyPlugin", "SchedulerPlugin"),
)
#: What instances have, and their classes do not show.
OF_INSTANCES = {
    *(("Client", "loop"), ("LocalCluster", "loop"), ("SpecCluster", "loop")),
    *(("LocalCluster", "name"), ("SpecCluster", "name")),
}


def rows() -> Iterator[tuple[str, str, str]]:
    """Section, name and judgement of each row."""
    section = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").strip("`")
        elif found := re.match(r"\| `(\w+)` \| (\w+) \| (.*)\|$", line):
            assert found[2] != "absent" or found[3].strip(), f"{line}: say why"
            yield section, found[1], found[2]


ROWS = list(rows())


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_each_public_name_has_a_row() -> None:
    distributed = pytest.importorskip("distributed")
    expected = {("Top level", name) for name in distributed.__all__}
    for kind in CLASSES:
        expected |= {(kind, name) for name in public(getattr(distributed, kind))}
    assert {(section, name) for section, name, _ in ROWS} == expected


@pytest.mark.parametrize(("section", "name", "judgement"), ROWS, ids=lambda part: part)
def test_what_is_there_is_said_to_be_there(section: str, name: str, judgement: str) -> None:
    assert judgement in ("same", "better", "absent")
    home = hpcdask if section == "Top level" else getattr(hpcdask, section)
    is_there = hasattr(home, name) or (section, name) in OF_INSTANCES
    assert is_there == (judgement != "absent")


#: Made by the engine, and by no program.
NOT_FOR_PROGRAMS = {"Actor", "ActorFuture", "BaseActorFuture", "Future", "rpc"}


def keywords(thing: Any) -> set[str]:
    """Names of what is given to something that is called; none if it does not tell."""
    try:
        found = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {each.name for each in found if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}


def taken(name: str) -> set[str]:
    """Keywords that something takes, those too that it hands on."""
    found = keywords(getattr(hpcdask, name) if "." not in name else _of(hpcdask, name))
    if name in ("LocalCluster", "Nanny"):
        found |= keywords(hpcdask.Worker) | keywords(hpcdask.Nanny)
    if name == "LocalCluster":
        found |= OF_CLUSTERS | {"security"}
    elif name == "Client":
        found |= OF_CLIENTS | {"security"}
    elif name == "Client.get":
        found |= {"fifo_timeout"}
    return found


def _of(home: Any, name: str) -> Any:
    kind, _, method = name.partition(".")
    return getattr(getattr(home, kind), method, None)


def test_each_keyword_that_is_absent_is_named() -> None:
    distributed = pytest.importorskip("distributed")
    told = {}
    for line in PAGE.read_text().splitlines():
        if found := re.match(r"\| `([\w.]+)` \| ((?:`\w+`(?:, )?)+) \|", line):
            told[found[1]] = set(re.findall(r"\w+", found[2]))
    absent = {}
    for section, name, judgement in ROWS:
        full = name if section == "Top level" else f"{section}.{name}"
        if judgement == "absent" or full in NOT_FOR_PROGRAMS or (section, name) in OF_INSTANCES:
            continue
        theirs = getattr(distributed, name) if "." not in full else _of(distributed, full)
        if callable(theirs) and (missing := keywords(theirs) - taken(full)):
            absent[full] = missing
    assert told == absent
