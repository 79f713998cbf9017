"""Resources as users write them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hpcdask.errors import ConfigError
from hpcdask.resources import checked_resources, parse_resources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("GPU=1", {"GPU": 1.0}),
        ("GPU=2 MEM=10e9", {"GPU": 2.0, "MEM": 10e9}),
        ("GPU=2,MEM=10e9", {"GPU": 2.0, "MEM": 10e9}),
        (" b=0.5 ,  a=0 ", {"a": 0.0, "b": 0.5}),
    ],
)
def test_resources_are_separated_by_spaces_or_commas(text: str, expected: dict[str, float]) -> None:
    assert parse_resources(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GPU", "'GPU' is no resource; write NAME=NUMBER"),
        ("GPU=", "'GPU=' is no resource"),
        ("GPU=many", "'GPU=many' is no resource"),
        ("GPU=1=2", "'GPU=1=2' is no resource"),
        ("=1", "'' is no name of a resource"),
        ("GPU=-1", "-1.0 is no amount of the resource 'GPU'"),
        ("GPU=nan", "nan is no amount"),
        ("GPU=inf", "inf is no amount"),
        ("GPU=1 GPU=2", "'GPU' is given twice"),
    ],
)
def test_what_is_no_resource_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_resources(text)


def test_messages_carry_them_sorted() -> None:
    assert checked_resources({"MEM": 2, "GPU": 1.5}) == (("GPU", 1.5), ("MEM", 2.0))
    assert checked_resources(None) == ()
    assert checked_resources("MEM=2 GPU=1.5") == (("GPU", 1.5), ("MEM", 2.0))


@pytest.mark.parametrize(
    "given", [{1: 1}, {"a": "1"}, {"a": True}, {"a": None}, {"a": math.nan}, ["GPU=1"]]
)
def test_a_program_may_give_only_names_and_numbers(given: Any) -> None:
    with pytest.raises(ConfigError):
        checked_resources(given)
