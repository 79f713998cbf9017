"""What plugins are called for, and what becomes of what they raise."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hpcdask import NannyPlugin, SchedulerPlugin, WorkerPlugin
from hpcdask.core.scheduler_state import SchedulerState
from hpcdask.launchers.stock import take_stock
from hpcdask.launchers.units import Unit
from hpcdask.launchers.worth import idle_units
from hpcdask.messages import RegisterWorker
from hpcdask.plugin_hooks import Hooks, hook_of, name_of
from hpcdask.plugins.base import kind_of
from hpcdask.scheduler_plugins import SchedulerPlugins


class OldPlugin(SchedulerPlugin):
    """As in the first documentation of dask: without the keywords that came later."""

    def add_worker(self, scheduler=None, worker=None, **kwargs):
        return scheduler, worker, kwargs

    def remove_worker(self, scheduler=None, worker=None):
        return scheduler, worker


def hooks(*events: str) -> tuple[Hooks, list[tuple[str, str, str]]]:
    reports: list[tuple[str, str, str]] = []
    return Hooks(events, lambda *report: reports.append((*report[:2], repr(report[2])))), reports


def test_methods_that_a_plugin_does_not_override_are_not_called() -> None:
    assert hook_of(OldPlugin(), "transition") is None
    assert hook_of(WorkerPlugin(), "setup") is None
    assert hook_of(object(), "setup") is None
    assert hook_of(OldPlugin(), "add_worker") is not None


def test_a_method_gets_the_keywords_that_it_takes() -> None:
    given = {"scheduler": 1, "worker": 2, "stimulus_id": "x"}
    add, remove = hook_of(OldPlugin(), "add_worker"), hook_of(OldPlugin(), "remove_worker")
    assert add is not None
    assert remove is not None
    assert add(**given) == (1, 2, {"stimulus_id": "x"})
    assert remove(**given) == (1, 2)


def test_all_who_have_something_to_say_are_called_although_one_raises() -> None:
    class Raises:
        def restart(self, scheduler: Any) -> None:
            raise SystemExit(3)

    class Counts:
        n = 0

        def restart(self, scheduler: Any) -> int:
            self.n += 1
            return self.n

    called, reports = hooks("restart", "transition")
    called.add("raises", Raises())
    called.add("counts", Counts())
    assert called.has("restart")
    assert not called.has("transition")
    assert called.call("restart", None) == [("counts", 1)]
    assert called.call("restart", None) == [("counts", 2)]
    assert reports == [("raises", "restart", "SystemExit(3)")]  # once is enough

    called.add("raises", Raises())  # a plugin of that name again: its error is news
    called.call("restart", None)
    assert len(reports) == 2
    called.remove("raises")
    called.remove("counts")
    assert not called.has("restart")


def test_a_plugin_is_known_by_what_it_derives_from() -> None:
    assert [kind_of(p) for p in (WorkerPlugin(), NannyPlugin(), OldPlugin())] == [
        "worker",
        "nanny",
        "scheduler",
    ]
    with pytest.raises(TypeError, match=r"did you mean OldPlugin\(\)"):
        kind_of(OldPlugin)
    with pytest.raises(TypeError, match="a int is no plugin"):
        kind_of(3)


def test_a_plugin_without_a_name_gets_a_new_one() -> None:
    assert name_of(OldPlugin()) != name_of(OldPlugin())
    assert name_of(OldPlugin()).startswith("OldPlugin-")
    named = OldPlugin()
    named.name = "mine"  # type: ignore[attr-defined]
    assert name_of(named) == "mine"


def test_names_are_where_programs_for_distributed_look_for_them() -> None:
    import hpcdask
    from hpcdask.diagnostics import plugin

    for name in plugin.__all__:
        assert getattr(hpcdask, name) is getattr(plugin, name)


def test_a_plugin_may_keep_adaptive_clusters_from_ending_workers() -> None:
    class Keeps(SchedulerPlugin):
        def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
            return [worker for worker in workers if worker.address != "tcp://10.0.0.2:1"]

    class Raises(SchedulerPlugin):
        def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
            raise ValueError

    class Stub:
        def __init__(self) -> None:
            self.state, self.clients, self.address = SchedulerState(), {}, ""

    scheduler: Any = Stub()
    for number in (1, 2, 3):
        address = f"tcp://10.0.0.{number}:1"
        info = RegisterWorker(address, f"w{number}", 1, 0, "host", 7, "/tmp", "", 1, "0.1")
        scheduler.state.worker_joined(0.0, info)
    scheduler.hooks = SchedulerPlugins(scheduler, asyncio.ensure_future)
    assert [worker.is_kept for worker in take_stock(scheduler).workers] == [False] * 3
    scheduler.hooks.add(Keeps(), "keeps")
    scheduler.hooks.add(Raises(), "raises")
    stock = take_stock(scheduler)
    assert [worker.is_kept for worker in stock.workers] == [False, True, False]
    units = [Unit(name, (name,)) for name in ("w1", "w2", "w3")]
    assert idle_units(stock, units) == ["w1", "w3"]
