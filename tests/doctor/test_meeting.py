"""How ranks find rank 0, with real connections in this process."""

from __future__ import annotations

import asyncio
import json

from made_up import SOUND
from waiting import on_a_loop

from hpcdask.doctor import meeting
from hpcdask.doctor.meeting import Guest, Reception, new_contact
from hpcdask.doctor.station import Station
from hpcdask.rendezvous import new_token, write_scheduler_file
from hpcdask.world import World


def found_on(rank: int, host: str) -> dict:
    return {
        "rank": rank,
        "hostname": host,
        "identity": host,
        "pid": rank,
        "python": "3.11.7",
        "is_leader": True,
        "ports": [],
        "towards": "",
        "facts": SOUND,
        "attempts": [],
    }


class Rank0:
    """A reception with its station; it says that it is at `addresses`, by default where it is."""

    def __init__(self, path, size, *addresses):
        self.reception = Reception([path], World(0, size))
        self.reception.ranks[0] = found_on(0, "a")
        self.token, self.addresses = new_token(), addresses

    async def __aenter__(self):
        self.station = Station("a", self.token, self.reception.on_register)
        port = (await self.station.listen([0]))[0]
        addresses = self.addresses or [f"tcp://127.0.0.1:{port}"]
        await self.reception.open(new_contact(addresses, self.token))
        return self.reception

    async def __aexit__(self, *exc):
        await self.station.close()
        await self.reception.close()


def guest(path, rank, size, host):
    return Guest([path], World(rank, size), found_on(rank, host), [0])


@on_a_loop
async def test_one_rank_of_each_host_stays_and_all_have_said_what_they_know(tmp_path):
    path = tmp_path / "doctor.json"
    guests = [guest(path, n, 4, host) for n, host in ((1, "a"), (2, "b"), (3, "b"))]
    coming = [asyncio.ensure_future(each.take_part(10)) for each in guests]
    async with Rank0(path, 4) as reception:
        await reception.all_there(10)
        assert sorted(reception.ranks) == [0, 1, 2, 3]
        assert len(reception.lines) == 1
        (line,) = reception.lines.values()
        echo = await line.ask("echo", timeout=5)
        assert echo["identity"] == "b"
    assert await asyncio.gather(*coming) == ["", "", ""]
    assert list(tmp_path.iterdir()) == []


@on_a_loop
async def test_who_cannot_come_writes_a_letter_that_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "PAUSE", 0.02)
    path = tmp_path / "doctor.json"
    coming = asyncio.ensure_future(guest(path, 1, 2, "b").take_part(20))
    async with Rank0(path, 2, "tcp://127.0.0.1:1") as reception:
        await reception.all_there(10)
        assert reception.by_letter == {1}
        (attempt,) = reception.ranks[1]["attempts"]
        assert attempt["address"] == "tcp://127.0.0.1:1"
        assert attempt["reason"] == "Connection refused"
        assert reception.ranks[1]["ports"] != []
    assert await coming == ""  # rank 0 knows
    assert list(tmp_path.iterdir()) == []


@on_a_loop
async def test_a_contact_that_a_killed_doctor_left_behind_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "PAUSE", 0.02)
    path = tmp_path / "doctor.json"
    write_scheduler_file(path, new_contact(["tcp://127.0.0.1:1"], new_token()))
    coming = asyncio.ensure_future(guest(path, 1, 2, "b").take_part(20))
    letter = path.with_name(f"{path.name}.rank-1")
    while not letter.exists():
        await asyncio.sleep(0.01)
    async with Rank0(path, 2) as reception:
        await reception.all_there(10)
        assert sorted(reception.ranks) == [0, 1]
        assert reception.by_letter == set()
    assert await coming == ""
    assert list(tmp_path.iterdir()) == []


@on_a_loop
async def test_without_rank_0_a_rank_gives_up_and_says_where_it_looked(tmp_path):
    problem = await guest(tmp_path / "doctor.json", 1, 2, "b").take_part(0.3)
    assert str(tmp_path / "doctor.json") in problem
    assert "does not exist" in problem


@on_a_loop
async def test_ranks_that_do_not_come_are_not_waited_for_longer_than_asked(tmp_path):
    async with Rank0(tmp_path / "doctor.json", 3) as reception:
        await asyncio.wait_for(reception.all_there(0.1), 5)
        assert sorted(reception.ranks) == [0]


@on_a_loop
async def test_a_rank_of_another_launch_is_refused(tmp_path):
    path = tmp_path / "doctor.json"
    async with Rank0(path, 3) as reception:
        problem = ""
        try:
            await guest(path, 1, 2, "b").take_part(10)
        except Exception as exc:
            problem = str(exc)
        assert "rank 1 of 2 and not one of this launch, which has 3" in problem
        assert sorted(reception.ranks) == [0]


@on_a_loop
async def test_a_letter_is_private(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "PAUSE", 0.02)
    path = tmp_path / "doctor.json"
    write_scheduler_file(path, new_contact(["tcp://127.0.0.1:1"], new_token()))
    coming = asyncio.ensure_future(guest(path, 1, 2, "b").take_part(20))
    letter = path.with_name(f"{path.name}.rank-1")
    while not letter.exists():
        await asyncio.sleep(0.01)
    assert letter.stat().st_mode & 0o777 == 0o600
    assert json.loads(letter.read_text())["rank"] == 1
    path.unlink()
    coming.cancel()
    await asyncio.wait({coming})
    assert list(tmp_path.iterdir()) == []
