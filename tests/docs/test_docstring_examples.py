"""Examples in docstrings run as they stand: with a client, in a folder of their own."""

from __future__ import annotations

import doctest
import inspect
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hpcdask
from hpcdask import Client, LocalCluster

#: What an example may use without saying where it is from, besides all of hpcdask.
NAMES = {"hpcdask": hpcdask, "logging": logging, "os": os, "time": time}
#: Whose examples need no more than a client.
PACKAGES = ("hpcdask.client.", "hpcdask.coordination.", "hpcdask.plugins.")
#: Of these, those that go on from somebody else's example.
ELSEWHERE = {"ActorFuture", "BaseActorFuture"}


def examples() -> Iterator[Any]:
    for name in hpcdask.__all__:
        thing = getattr(hpcdask, name)
        module = getattr(thing, "__module__", "")
        if name in ELSEWHERE or not module.startswith(PACKAGES):
            continue
        if ">>>" in (inspect.getdoc(thing) or ""):
            yield pytest.param(thing.__doc__, id=name)
        for member, value in inspect.getmembers(thing) if inspect.isclass(thing) else ():
            text = getattr(value, "__doc__", None)
            if not member.startswith("_") and isinstance(text, str) and ">>>" in text:
                yield pytest.param(text, id=f"{name}.{member}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=2, memory_limit=0) as cluster:
        yield cluster


@pytest.mark.parametrize("text", list(examples()))
def test_an_example_does_what_it_says(
    text: str,
    request: pytest.FixtureRequest,
    cluster: LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with Client(cluster) as client:
        public = {name: getattr(hpcdask, name) for name in hpcdask.__all__}
        names = {**public, **NAMES, "client": client}
        name = request.node.callspec.id
        test = doctest.DocTestParser().get_doctest(inspect.cleandoc(text), names, name, None, 0)
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        out: list[str] = []
        doctest.DocTestRunner(optionflags=flags).run(test, out=out.append)
        assert not out, "".join(out)
