"""The examples: their pure functions, and each of them run as a user runs it."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def census() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stdlib_census", EXAMPLES / "stdlib_census.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = b"""\
class Stack:
    def push(self, item):
        self.items.append(item)

    async def drain(self):
        while self.items:
            if self.closed and self.empty or self.broken:
                return [x for x in self.items if x]
            yield self.items.pop()
"""


def test_one_file_is_counted(census):
    assert census.census_of("stack.py", SMALL) == {
        "files": 1,
        "unparsed": 0,
        "lines": 9,
        "functions": 2,
        "classes": 1,
        "names": {"self": 7, "item": 1, "x": 3},
        "longest": (-5, "stack.py", "drain"),
        # push has one path; drain has one, while, if, and, or, and for and if of its list.
        "complex": [(-7, -8, "stack.py", 2)],
    }


def test_a_nested_function_adds_no_path_to_its_outer_one(census):
    source = b"def outer(a):\n  def inner(b):\n    if b: pass\n  if a: pass\n  else: pass\n"
    [(highest, total, _, functions)] = census.census_of("m.py", source)["complex"]
    assert (-highest, -total, functions) == (2, 4, 2)


def test_each_handler_and_case_is_a_path(census):
    source = b"def f(a):\n try: g()\n except A: pass\n except B: pass\n finally: pass\n"
    assert census.census_of("m.py", source)["complex"] == [(-3, -3, "m.py", 1)]
    source = b"def f(a):\n match a:\n  case 1: pass\n  case 2: pass\n"
    assert census.census_of("m.py", source)["complex"] == [(-3, -3, "m.py", 1)]


@pytest.mark.parametrize("source", [b"def f(:", b"# coding: utf-8\n'\xff'", b"x = 1\0"])
def test_a_file_that_is_not_python_is_only_counted_as_such(census, source):
    assert census.census_of("bad.py", source) == {**census.nothing(), "unparsed": 1}


def test_an_empty_file_is_a_file(census):
    assert census.census_of("empty.py", b"") == {**census.nothing(), "files": 1}


def test_the_order_and_grouping_of_a_merge_make_no_difference(census):
    # Equal but for their names: ties everywhere, and more modules than the table shows.
    parts = [census.census_of(f"m{i}.py", SMALL) for i in range(census.TOP + 2)]
    parts.append(census.census_of("bad.py", b"def f(:"))
    expected = census.merge(parts)
    assert expected["files"] == census.TOP + 2
    assert expected["longest"] == (-5, "m0.py", "drain")
    assert [row[2] for row in expected["complex"]] == [f"m{i}.py" for i in range(census.TOP)]

    for size in range(1, len(parts)):
        groups = [parts[i : i + size] for i in range(0, len(parts), size)]
        assert census.merge(census.merge(group) for group in groups) == expected
    for order in itertools.islice(itertools.permutations(parts), 0, 40320, 1009):
        left = functools.reduce(lambda a, b: census.merge([a, b]), order)
        assert left == expected


def test_a_merge_leaves_its_parts_as_they_are(census):
    part = census.census_of("stack.py", SMALL)
    census.merge([part, part])
    assert part == census.census_of("stack.py", SMALL)


def test_the_census_agrees_with_its_serial_pass_on_a_local_cluster():
    run = subprocess.run(
        [sys.executable, EXAMPLES / "stdlib_census.py", "--limit", "60"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert "parsed 60 of 60 files" in run.stderr
    assert "same totals" in run.stdout
