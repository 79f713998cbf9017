"""The user's wishes where tasks run: checked at the call, and the same for equal wishes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpcdask import Client
from hpcdask.client.restrictions import restriction_of
from hpcdask.messages import Restriction

A, B = "tcp://10.0.0.1:4000", "node7"


@pytest.mark.parametrize("workers", [[A, B], (B, A), {A, B}, frozenset([B, A]), [A, B, A]])
def test_equal_wishes_give_equal_records(workers: Any) -> None:
    assert restriction_of(workers) == Restriction((B, A), False, ())


def test_one_name_needs_no_list() -> None:
    assert restriction_of(B) == restriction_of([B]) == Restriction((B,), False, ())


def test_numbers_are_names() -> None:
    assert restriction_of(0) == restriction_of([0]) == restriction_of("0")
    assert restriction_of({0, B}) == Restriction(("0", B), False, ())


def test_resources_are_sorted_and_are_floats() -> None:
    wanted = Restriction((), False, (("GPU", 1.0), ("MEMORY", 2.5)))
    assert restriction_of(resources={"MEMORY": 2.5, "GPU": 1}) == wanted
    assert type(restriction_of(resources={"GPU": 1}).resources[0][1]) is float  # type: ignore[union-attr]


def test_numbers_of_numpy_are_amounts() -> None:
    numpy = pytest.importorskip("numpy")
    wanted = Restriction((), False, (("GPU", 2.0),))
    assert restriction_of(resources={"GPU": numpy.int64(2)}) == wanted
    assert restriction_of(resources={"GPU": numpy.float32(2)}) == wanted


@pytest.mark.parametrize("resources", [None, {}, {"GPU": 0}])
def test_no_wish_is_no_restriction(resources: Any) -> None:
    assert restriction_of(None, False, resources) is None
    assert restriction_of(None, None, resources) is None


def test_others_may_be_allowed() -> None:
    assert restriction_of(A, True) == Restriction((A,), True, ())


BAD = [
    ({"workers": []}, ValueError, "names none"),
    ({"workers": ""}, ValueError, "names none"),
    ({"workers": [A, ""]}, ValueError, "names none"),
    ({"workers": [3.5]}, TypeError, "not 3.5"),
    ({"workers": 3.5}, TypeError, "not 3.5"),
    ({"workers": True}, TypeError, "not True"),
    ({"workers": {A: 1}}, TypeError, "list, tuple or set"),
    ({"allow_other_workers": True}, ValueError, "needs workers="),
    ({"workers": A, "allow_other_workers": "yes"}, TypeError, "True or False"),
    ({"resources": {"GPU": -1}}, ValueError, "at least 0 and finite, not -1"),
    ({"resources": {"GPU": float("nan")}}, ValueError, "at least 0 and finite, not nan"),
    ({"resources": {"GPU": float("inf")}}, ValueError, "at least 0 and finite, not inf"),
    ({"resources": {"GPU": "1"}}, TypeError, "must be a number"),
    ({"resources": {1: 1}}, TypeError, "name of a resource must be a str"),
    ({"resources": "GPU"}, TypeError, "must be a dict"),
    ({"resources": []}, TypeError, "must be a dict"),
]


@pytest.mark.parametrize(("wish", "error", "text"), BAD, ids=[str(row[0]) for row in BAD])
def test_what_is_no_wish_is_refused(wish: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        restriction_of(**wish)


WAYS: dict[str, Callable[..., Any]] = {
    "submit": lambda client, **how: client.submit(abs, -1, **how),
    "map": lambda client, **how: client.map(abs, [-1], **how),
    "get": lambda client, **how: client.get({"x": (abs, -1)}, "x", **how),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("wish", "error", "text"), BAD, ids=[str(row[0]) for row in BAD])
def test_it_is_refused_at_the_call(
    client: Client, way: str, wish: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        WAYS[way](client, **wish)
    assert not client._futures
