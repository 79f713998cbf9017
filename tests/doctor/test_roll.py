"""Which hosts there are, from what made-up ranks say."""

from __future__ import annotations

import copy

from made_up import examination

from hpcdask._version import __version__
from hpcdask.doctor.options import DoctorOptions
from hpcdask.doctor.roll import beginning, call_roll, targets_of
from hpcdask.world import World

FACTS = examination("a", "b", "c", interfaces=("eth0", "ib0"))["hosts"]


def said(rank, host="a", is_leader=True, identity="", **more):
    facts = copy.deepcopy(FACTS[host])
    facts["software"]["packages"]["hpcdask"] = __version__
    return {
        "rank": rank,
        "hostname": host,
        "identity": identity or host,
        "pid": 100 + rank,
        "python": "3.11.7",
        "is_leader": is_leader,
        "ports": [40000] if is_leader else [],
        "towards": "",
        "facts": facts if is_leader else {"grants": facts["grants"], "errors": {}},
        "attempts": [],
        **more,
    }


def roll_of(*ranks, by_letter=(), interface=""):
    return call_roll({each["rank"]: each for each in ranks}, by_letter, interface)


def test_ranks_of_one_host_are_together_and_its_leader_speaks_for_it():
    roll = roll_of(said(0), said(2, "b", is_leader=False), said(3, "b"), said(1, is_leader=False))
    assert list(roll.facts) == ["a", "b"]
    assert "network" in roll.facts["b"]
    assert [roll.host_of(rank) for rank in range(4)] == ["a", "a", "b", "b"]


def test_two_hosts_of_one_name_are_told_apart():
    roll = roll_of(said(0), said(1, identity="a/other"), said(2, identity="a/third"))
    assert list(roll.facts) == ["a", "a#2", "a#3"]


def test_a_host_uses_the_interface_by_which_it_reaches_rank_0():
    ranks = said(0), said(1, "b", towards="10.2.0.2"), said(2, "c", towards="10.9.9.9")
    roll = roll_of(*ranks)
    chosen = [facts["network"]["chosen"]["interface"] for facts in roll.facts.values()]
    assert chosen == ["eth0", "ib0", "eth0"]
    named = roll_of(*ranks, interface="eth0")
    assert named.facts["b"]["network"]["chosen"]["interface"] == "eth0"


def test_every_address_and_port_is_a_target():
    targets = targets_of(roll_of(said(0), said(1, "b", ports=[9000, 9010])))
    assert [target.address for target in targets["b"]] == [
        "tcp://10.1.0.2:9000",
        "tcp://10.1.0.2:9010",
        "tcp://10.2.0.2:9000",
        "tcp://10.2.0.2:9010",
    ]
    assert {target.host for target in targets["b"]} == {"b"}


def test_of_another_version_of_hpcdask_only_its_versions_are_read():
    other = said(1, "b")
    other["facts"] = {"software": copy.deepcopy(FACTS["b"]["software"]), "spawning": "changed"}
    other["facts"]["software"]["packages"]["hpcdask"] = "99.0"
    roll = roll_of(said(0), other)
    assert set(roll.facts["b"]) == {"software", "errors"}
    assert list(targets_of(roll)) == ["a"]


def test_the_beginning_names_who_is_missing():
    first = said(0)
    first["facts"]["launch"]["nodes"] = ["a.cluster", "b.cluster", "c.cluster"]
    made = beginning(roll_of(first, said(2, "c")), DoctorOptions(), World(0, 4), ["/x: full"])
    assert made["missing_ranks"] == [1, 3]
    assert made["missing_hosts"] == ["b.cluster"]
    assert made["unwritten"] == ["/x: full"]
    assert made["nworkers"] == 3
    assert [each["rank"] for each in made["ranks"]] == [0, 2]


def test_nobody_is_missing_if_all_ranks_are_there_although_the_job_has_more_hosts():
    first = said(0)
    first["facts"]["launch"]["nodes"] = ["a", "b"]
    made = beginning(roll_of(first), DoctorOptions(), World(), [])
    assert made["missing_hosts"] == []
    assert made["nworkers"] == 8  # its CPUs


def test_what_a_letter_says_of_the_way_to_rank_0_is_a_way_that_fails():
    tried = [
        {"address": "tcp://10.1.0.1:40000", "reason": "no answer within 3 s"},
        {"address": "tcp://172.17.0.1:40000", "reason": "Connection refused"},
    ]
    roll = roll_of(said(0), said(1, "b", attempts=tried), by_letter={1})
    made = beginning(roll, DoctorOptions(), World(0, 2), [])
    assert made["by_letter"] == ["b"]
    assert made["reached"] == [
        {
            "source": "b",
            "target": "a",
            "interface": "eth0",
            "address": "10.1.0.1:40000",
            "seconds": None,
            "reason": "no answer within 3 s",
        }
    ]
