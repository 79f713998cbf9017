"""What hosts do for each other, with real connections in this process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest
from waiting import on_a_loop

from hpcdask.doctor.examination import (
    Hosts,
    OwnHost,
    TimeLeft,
    compare_clocks,
    measure_bandwidth,
    try_connections,
    try_scheduler_file,
)
from hpcdask.doctor.meeting import new_contact
from hpcdask.doctor.planning import Target
from hpcdask.doctor.station import Station
from hpcdask.errors import CommClosedError, LaunchError
from hpcdask.rendezvous import new_token


class Stations:
    """Stations by name that hold one token; `asked` ones do what rank 0 would ask."""

    def __init__(self, *names):
        self.token = new_token()
        self.stations = {name: Station(name, self.token) for name in names}
        self.asked = {name: OwnHost(station) for name, station in self.stations.items()}
        self.targets = {}

    def hosts(self, seconds=20.0, **others):
        """All of them as rank 0 has them, some replaced."""
        return Hosts({**self.asked, **others}, TimeLeft(seconds))

    async def __aenter__(self):
        for name, station in self.stations.items():
            (port,) = await station.listen([0])
            self.targets[name] = [Target(name, name, "lo", f"tcp://127.0.0.1:{port}")]
        return self

    async def __aexit__(self, *exc):
        for station in self.stations.values():
            await station.close()


class Silent:
    """A host that never answers, and whose connection ends."""

    def __init__(self, seconds=0.1):
        self._seconds = seconds

    async def ask(self, what, arguments=None, load=b"", *, timeout):
        await asyncio.sleep(min(timeout, self._seconds))
        raise CommClosedError(f"no answer within {timeout:.2g} s")


def ways(reached):
    return {(each["source"], each["target"]): each for each in reached}


@on_a_loop
async def test_all_reach_all():
    async with Stations("a", "b", "c") as made:
        found = ways(await try_connections(made.hosts(), made.targets))
    assert set(found) == {(a, b) for a in "abc" for b in "abc"}
    assert all(0 < each["seconds"] < 5 and each["reason"] == "" for each in found.values())


@on_a_loop
async def test_a_way_that_fails_has_its_reason():
    async with Stations("a", "b") as made:
        address = made.targets["a"][0].address
        made.targets["c"] = [
            Target("c", "c", "ib0", "tcp://127.0.0.1:1"),
            Target("c", "c", "docker0", address),
        ]
        stranger = Station("d", new_token())
        made.targets["d"] = [
            Target("d", "d", "ib0", f"tcp://127.0.0.1:{(await stranger.listen([0]))[0]}")
        ]
        reached = await try_connections(made.hosts(), made.targets)
        await stranger.close()
    reasons = {(e["source"], e["target"], e["interface"]): e["reason"] for e in reached}
    assert reasons["a", "b", "lo"] == ""
    assert reasons["b", "c", "ib0"] == "Connection refused"
    assert reasons["b", "c", "docker0"] == ("a answers there: several hosts have this address")
    assert "another cluster token" in reasons["b", "d", "ib0"]


@on_a_loop
async def test_what_arrives_is_weighed():
    async with Stations("a", "b") as made:
        reached = await try_connections(made.hosts(), made.targets)
        carried = await measure_bandwidth(made.hosts(), reached)
    assert [(each["source"], each["target"]) for each in carried] == [("a", "b"), ("b", "a")]
    assert all(each["bytes_per_second"] > 2**20 for each in carried)


@on_a_loop
async def test_a_way_that_fails_is_not_weighed():
    async with Stations("a", "b") as made:
        made.targets["b"] = [Target("b", "b", "lo", "tcp://127.0.0.1:1")]
        reached = await try_connections(made.hosts(), made.targets)
        carried = await measure_bandwidth(made.hosts(), reached)
    assert [(each["source"], each["target"]) for each in carried] == [("b", "a")]


@on_a_loop
async def test_a_file_is_seen_by_all_and_then_removed(tmp_path):
    path, contact = tmp_path / "file.json", new_contact(["tcp://127.0.0.1:1"], new_token())
    async with Stations("a", "b") as made:
        clocks = await compare_clocks(made.hosts())
        seen = await try_scheduler_file(path, "a", made.hosts(), contact, clocks)
    assert list(seen["seconds"]) == ["b"]
    assert 0 <= seen["seconds"]["b"] < 5
    assert (seen["problem"], seen["problems"]) == ("", {})
    assert list(tmp_path.iterdir()) == []


@on_a_loop
async def test_a_file_that_cannot_be_written_is_not_waited_for(tmp_path):
    path, contact = tmp_path / "x" / "f.json", new_contact(["tcp://127.0.0.1:1"], new_token())
    async with Stations("a", "b") as made:
        clocks = await compare_clocks(made.hosts())
        seen = await asyncio.wait_for(
            try_scheduler_file(path, "a", made.hosts(), contact, clocks), 5
        )
    assert "does not exist" in seen["problem"]
    assert seen["seconds"] == {}


@on_a_loop
async def test_a_clock_is_read_from_afar():
    class Fast:
        async def ask(self, what, arguments=None, load=b"", *, timeout):
            return {"identity": "b", "time": time.time() + 100}

    async with Stations("a") as made:
        clocks = await compare_clocks(made.hosts(b=Fast()))
    assert abs(clocks["a"]["ahead"]) < 1
    assert 99 < clocks["b"]["ahead"] < 101


@on_a_loop
async def test_a_host_that_falls_silent_is_left_out_and_holds_up_nobody(tmp_path):
    async with Stations("a", "b") as made:
        clocks = await compare_clocks(made.hosts())
        reached = await try_connections(made.hosts(), made.targets)
        contact, path = new_contact(["tcp://127.0.0.1:1"], made.token), tmp_path / "f.json"
        silent = Silent()
        start = time.monotonic()
        for stage, wanted in (
            (compare_clocks, ["a"]),
            (lambda hosts: try_connections(hosts, made.targets), ["a", "a"]),
            (lambda hosts: measure_bandwidth(hosts, reached), ["a"]),
            (lambda hosts: try_scheduler_file(path, "a", hosts, contact, clocks), None),
        ):
            hosts = made.hosts(3.0, b=silent)
            found = await stage(hosts)
            assert hosts.silent == ["b"]
            assert list(hosts) == ["a"]
            names = [each["source"] for each in found] if isinstance(found, list) else list(found)
            assert wanted in (None, names)
        assert found["seconds"] == {}
        assert time.monotonic() - start < 10
    assert list(tmp_path.iterdir()) == []


@on_a_loop
async def test_who_has_not_answered_when_the_time_is_over_is_not_called_silent():
    async with Stations("a", "b") as made:
        hosts = made.hosts(0.05, b=Silent(10))
        assert list(await compare_clocks(hosts)) == ["a"]
        assert hosts.silent == []


@on_a_loop
async def test_what_cannot_be_done_is_an_error_of_that_alone(caplog):
    async with Stations("a", "b") as made:
        comm = await made.stations["a"].dial(made.targets["b"][0].address, 5)
        line = made.stations["a"].talk(comm)
        with pytest.raises(LaunchError, match="KeyError"):
            await line.ask("run", ("rm",), timeout=5)
        assert (await line.ask("echo", timeout=5))["identity"] == "b"
    assert "cannot do 'run'" in caplog.text


def test_a_process_ends_whatever_it_is_busy_with():
    code = (
        "import time\n"
        "from hpcdask.doctor.run import certain_end\n"
        "from hpcdask.world import World\n"
        "with certain_end(World(1, 3), 0.1): time.sleep(100)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 1
    assert "rank 1 of 3 on" in run.stderr
    assert "is ended by force" in run.stderr
