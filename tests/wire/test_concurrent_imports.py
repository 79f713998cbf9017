"""Pickles that are read while another thread imports what they name."""

from __future__ import annotations

import importlib
import pickle
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from waiting import wait_until

from hpcdask import as_completed
from hpcdask.client.streaming import conditions
from hpcdask.wire.effort import is_quickly_pickled, loads_if_quick
from hpcdask.wire.serialize import dumps, loads

pytestmark = pytest.mark.timeout(60)

#: What the modules under test wait for while they are imported, by name.
events: dict[str, threading.Event] = {}

WAITS = "import test_concurrent_imports as test\ntest.pause({name!r})\n"

#: Fails as in a circle of imports, the first time.
HALF = """
import test_concurrent_imports as test
if not test.failures:
    test.failures.append(1)
    raise ImportError("cannot import name 'x' from partially initialized module 'left'")
thing = "whole"
"""
failures: list[int] = []


def pause(name: str) -> None:
    """Say that the import of a module has come so far, and wait."""
    events[f"{name} began"].set()
    assert events[f"{name} goes on"].wait(30)


def waits_for_an_import(ident: int) -> bool:
    frame = sys._current_frames()[ident]
    return frame.f_code.co_filename == "<frozen importlib._bootstrap>"


class Threads:
    """Two threads, one that imports and one that reads a pickle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(2)

    def write(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        name = file.parent.name if file.name == "__init__.py" else file.stem
        events.update({f"{name} began": threading.Event(), f"{name} goes on": threading.Event()})

    def start(self, function: Any, *args: Any) -> tuple[int, Future[Any]]:
        ident: Future[int] = Future()

        def run() -> Any:
            ident.set_result(threading.get_ident())
            return function(*args)

        running = self._pool.submit(run)
        return ident.result(10), running

    def close(self) -> None:
        for event in events.values():
            event.set()
        self._pool.shutdown()
        events.clear()
        failures.clear()


@pytest.fixture
def threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "test_concurrent_imports", sys.modules[__name__])
    before = set(sys.modules)
    threads = Threads(tmp_path)
    yield threads
    threads.close()
    for name in set(sys.modules) - before:
        del sys.modules[name]


def pickled_name(module: str, name: str) -> bytes:
    """A pickle that names what need not exist yet."""
    fields = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    return b"\x80\x05" + fields + b"\x93."


@pytest.mark.parametrize("polite", [False, True])
def test_a_pickle_may_name_the_inside_of_a_package_that_is_just_imported(
    threads: Threads, polite: bool
) -> None:
    # Numpy's case: the package needs the module that the pickle names.
    threads.write("outer/__init__.py", WAITS.format(name="outer") + "from outer.inner import thing")
    threads.write("outer/inner.py", "import outer\nthing = 'whole'")
    _, importing = threads.start(importlib.import_module, "outer")
    assert events["outer began"].wait(10)
    reader, reading = threads.start(loads, pickled_name("outer.inner", "thing"), polite)
    wait_until(lambda: waits_for_an_import(reader), 10)
    events["outer goes on"].set()
    assert importing.result(10).thing == "whole"
    assert reading.result(10) == "whole"


def test_a_pickle_that_met_half_of_a_module_is_read_again_when_that_is_whole(
    threads: Threads,
) -> None:
    threads.write("left.py", WAITS.format(name="left"))
    threads.write("right.py", HALF)
    _, importing = threads.start(importlib.import_module, "left")
    assert events["left began"].wait(10)
    reader, reading = threads.start(loads, pickled_name("right", "thing"))
    wait_until(lambda: failures and waits_for_an_import(reader), 10)
    events["left goes on"].set()
    assert reading.result(10) == "whole"
    assert importing.result(10).__name__ == "left"


def test_the_event_loop_does_not_wait_for_an_import(threads: Threads) -> None:
    # Numpy stands for any package whose objects are rebuilt at once; it is imported long since.
    numpy = pytest.importorskip("numpy")
    blob = dumps(numpy.arange(3))
    spec: Any = numpy.__spec__
    assert loads_if_quick(blob)[0]
    spec._initializing = True
    try:
        assert loads_if_quick(blob) == (False, None)
    finally:
        spec._initializing = False


def test_a_module_that_does_not_exist_is_said_so() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        loads(pickled_name("no_such_package.inner", "thing"))
    with pytest.raises(AttributeError, match="no_such_name"):
        loads(pickled_name("string", "no_such_name"))


def test_what_another_thread_begins_to_import_is_not_looked_into() -> None:
    names = "cloudpickle", "numpy", "dask.base", "hpcdask.client.actor"
    with mock.patch.dict(sys.modules, {name: ModuleType(name) for name in names}):
        assert pickle.loads(dumps({"a": (len, 1)})) == {"a": (len, 1)}  # type: ignore[arg-type]
        assert not is_quickly_pickled(object())
        assert conditions(1, 0, None, False, None).priority == 1
        with pytest.raises(TypeError, match="expected a future"):
            as_completed([1])  # type: ignore[list-item]
