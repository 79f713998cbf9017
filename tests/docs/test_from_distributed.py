"""The page about distributed has each of its public names, and what it says of them is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hpcdask

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
