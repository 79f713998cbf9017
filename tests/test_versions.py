"""Who has another version is told so when it comes in, and others are told of it."""

from __future__ import annotations

import logging

import pytest
from waiting import on_a_loop

from hpcdask import Client, Scheduler, Worker
from hpcdask.versions import Census, VersionMismatchWarning, software, told

OURS = (("Python", "3.11"), ("hpcdask", "0.2"), ("msgpack", "1.0.5"))
OLD = (("Python", "3.10"), ("hpcdask", "0.2"), ("msgpack", "1.0.5"))
OTHER = (("Python", "3.11"), ("hpcdask", "0.1"), ("msgpack", "1.0.4"))


def test_what_a_process_runs_is_known() -> None:
    assert [name for name, _ in software()] == ["Python", "hpcdask", "msgpack"]
    assert all(version[0].isdigit() for _, version in software())


def test_who_runs_the_same_is_told_nothing() -> None:
    census = Census(OURS)
    assert census.worker_joined("a:1", "worker a", OURS) == ""
    assert census.client_joined(OURS) == ""
    assert census.worker_joined("a:1", "worker a", ()) == "", "nothing is known of it"


def test_a_worker_that_differs_is_told_what_where_and_the_cure() -> None:
    said = Census(OURS).worker_joined("a:1", "worker a (node1)", OLD)
    assert said.startswith(
        "versions differ: Python: 3.11 on the scheduler; 3.10 on worker a (node1). "
    )
    assert "start all from one environment" in said
    assert "hpcdask:" not in said


def test_a_client_is_told_of_workers_that_differ_as_long_as_they_are_there() -> None:
    census = Census(OURS)
    census.worker_joined("a:1", "worker a", OLD)
    census.worker_joined("b:1", "worker b", OTHER)
    said = census.client_joined(OURS)
    for text in ("3.10 on worker a", "hpcdask: 0.2 on", "0.1 on worker b", "1.0.4 on worker b"):
        assert text in said
    census.worker_left("a:1")
    census.worker_left("b:1")
    census.worker_left("c:1")
    assert census.client_joined(OURS) == ""


def test_a_worker_that_has_come_back_with_our_versions_is_not_told_of() -> None:
    census = Census(OURS)
    census.worker_joined("a:1", "worker a", OLD)
    census.worker_joined("a:1", "worker a", OURS)
    assert census.client_joined(OURS) == ""


def test_a_client_that_differs_is_told_so_without_any_worker() -> None:
    said = Census(OURS).client_joined(OLD)
    assert "Python: 3.10 on this client; 3.11 on the scheduler" in said


def test_of_many_two_are_named() -> None:
    workers = {f"worker {i}": OLD for i in range(1000)}
    said = told({"the scheduler": OURS, **workers})
    assert "3.10 on worker 0, worker 1 and 998 more" in said
    assert len(said) < 400


@on_a_loop
async def test_processes_that_differ_work_and_are_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("hpcdask"), "propagate", True)
    async with Scheduler(host="127.0.0.1") as scheduler:
        monkeypatch.setattr("hpcdask.worker.software", lambda: OLD)
        kwargs = {"nthreads": 1, "token": scheduler.token}
        async with (
            Worker(scheduler.address, name="a", **kwargs),
            Worker(scheduler.address, name="b", **kwargs),
        ):
            with pytest.warns(VersionMismatchWarning, match=r"3\.10 on worker a \(.*, worker b"):
                client = await Client(
                    scheduler.address, token=scheduler.token, asynchronous=True, timeout=20
                )
            async with client:
                assert await client.submit(abs, -1) == 1
    records = dict.fromkeys(caplog.records)  # once, of whichever loggers it is the handler
    by_logger = [each.name for each in records if "versions differ" in each.message]
    assert sorted(by_logger) == ["hpcdask.scheduler", "hpcdask.worker", "hpcdask.worker"]
