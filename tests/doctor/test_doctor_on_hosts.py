"""``hpc-dask doctor`` on hosts in network namespaces, each with a name of its own and an ib0."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator

import pytest
from hosts import Hosts, hosts, needs_hosts
from janitor import ip

pytestmark = needs_hosts
NAMES = ("a", "b", "c")


@pytest.fixture
def three_hosts() -> Iterator[Hosts]:
    with hosts(*NAMES) as made:
        yield made


def examine(home, made: Hosts, *options: str, **env_of_c: str):
    """A rank on each host, as an ssh loop would start them; rank 0 first."""
    # Host names are no part of a network namespace; `exec`, so that it stays one process.
    named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"')
    commands = []
    for rank, name in enumerate(NAMES):
        env = {"HPCDASK_RANK": str(rank), "HPCDASK_SIZE": str(len(NAMES))}
        env |= env_of_c if name == "c" else {}
        words = (*named, name, sys.executable, "-m", "hpcdask", "doctor", *options)
        commands.append(home.run(*made.on(name, *words), HPCDASK_LAUNCH_ID="on-hosts", **env))
    return commands


def document_of(commands, code: int):
    first = commands[0]
    assert first.code(60) == code, "\n".join(map(str, commands))
    for other in commands[1:]:
        assert other.code(10) == 0, other
    return json.loads(first.out)


def reds(document):
    return [each["what"] for each in document["findings"] if each["severity"] == "red"]


def test_hosts_that_are_well_reach_each_other_on_ib0(home, three_hosts):
    document = document_of(examine(home, three_hosts, "--json", "--interface", "ib*"), 0)
    assert list(document["hosts"]) == ["a", "b", "c"]
    reached = {(each["source"], each["target"]): each for each in document["reached"]}
    assert set(reached) == {(a, b) for a in NAMES for b in NAMES}
    for (_, target), each in reached.items():
        assert each["interface"] == "ib0"
        assert each["address"].rpartition(":")[0] == three_hosts.addresses[target]
        assert 0 < each["seconds"] < 1
    carried = {(each["source"], each["target"]): each for each in document["carried"]}
    assert set(carried) == {("a", "b"), ("b", "c"), ("c", "a")}
    assert all(each["bytes_per_second"] > 2**20 for each in carried.values())
    assert set(document["scheduler_file"]["seconds"]) == {"b", "c"}
    assert all(0 <= s < 5 for s in document["scheduler_file"]["seconds"].values())
    assert all(abs(clock["ahead"]) < 0.5 for clock in document["clocks"].values())
    assert set(document["clocks"]) == set(NAMES)
    assert [path.name for path in home.folder.rglob("*doctor*")] == []


def test_a_host_whose_cable_is_pulled_is_named_with_every_direction_that_is_known(
    home, three_hosts
):
    for switch in ("eth", "ib"):
        three_hosts.cut("c", is_seen=False, switch=switch)
    document = document_of(examine(home, three_hosts, "--json", "--fast", "--interface", "ib0"), 1)
    addresses = three_hosts.addresses
    assert document["by_letter"] == ["c"]
    found = " | ".join(reds(document))
    for source, target in (("c", "a"), ("a", "c"), ("b", "c")):
        assert f"{source} cannot reach {target} at {addresses[target]}:" in found
    # Which of them the kernel says depends on whether it has given up on ARP by then.
    assert len(re.findall(r"\(ib0\): (no answer within 3 s|No route to host)", found)) == 3
    assert "a cannot reach b" not in found
    assert set(document["hosts"]) == set(NAMES)


def test_all_that_is_wrong_with_a_host_is_told_though_it_cannot_be_reached(home, three_hosts):
    three_hosts.cut("c")
    info = home.folder / "other" / "numba-0.1.dist-info"  # as if it were installed on one host
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numba\nVersion: 0.1\n")
    path = os.pathsep.join(filter(None, [str(info.parent), os.environ.get("PYTHONPATH")]))
    options = ("--json", "--fast", "--interface", "ib0")
    document = document_of(examine(home, three_hosts, *options, PYTHONPATH=path), 1)
    found = " | ".join(reds(document))
    assert "hosts have different versions of numba: none on a and b; 0.1 on c" in found
    assert "c: network interface 'ib0' on c is down" in found
    assert f"c cannot reach a at {three_hosts.addresses['a']}:" in found


def test_a_firewall_between_two_hosts_is_named_in_both_directions(home, three_hosts):
    a, b, c = three_hosts.addresses.values()
    # As a firewall that answers: packets of b to c are refused, and with them its answers.
    namespace = three_hosts.namespaces[NAMES.index("b") + 1]
    ip("-n", namespace, "route", "add", "prohibit", f"{c}/32")
    command = examine(home, three_hosts, "--interface", "ib0", "--fast")
    assert command[0].code(60) == 1
    text = " ".join(command[0].out.split())
    assert f"FAIL b cannot reach c at {c}:" in text
    assert "(ib0): Permission denied." in text
    assert f"FAIL c cannot reach b at {b}:" in text
    assert "cannot reach a" not in text
    assert f"({a}" not in text
    rows = {line.split()[0]: line.split() for line in command[0].out.splitlines() if line.strip()}
    assert [rows[name].count("fails") for name in NAMES] == [0, 1, 1]


def test_a_folder_that_is_not_shared_is_red(home, three_hosts):
    """Each host has a folder of its own there; they meet by the user's configuration folder."""
    folder = home.folder / "run"
    folder.mkdir()
    own = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs own "$0" && exec "$@"', str(folder))
    commands = []
    for rank, name in enumerate(NAMES):
        env = {"HPCDASK_RANK": str(rank), "HPCDASK_SIZE": "3", "HPCDASK_LAUNCH_ID": "apart"}
        words = (*own, sys.executable, "-m", "hpcdask", "doctor", "--json", "--fast")
        named = ("--interface", "ib0", "--shared-folder", str(folder), "--timeout", "10s")
        commands.append(home.run(*three_hosts.on(name, *words, *named), **env))
    document = document_of(commands, 1)
    (red,) = reds(document)
    assert f"writes into {folder} is not seen on" in red
    assert list(document["scheduler_file"]["seconds"].values()) == [None, None]
    assert len(document["hosts"]) == 3


def test_a_read_only_folder_is_red(home, three_hosts):
    folder = home.folder / "run"
    folder.mkdir()
    read_only = 'mount -t tmpfs -o ro own "$0" && exec "$@"'
    words = ("unshare", "--mount", "sh", "-c", read_only, str(folder), sys.executable, "-m")
    options = ("--json", "--interface", "lo", "--shared-folder", str(folder))
    command = home.run(*words, "hpcdask", "doctor", *options)
    document = document_of([command], 1)
    assert reds(document) == [
        f"a scheduler file cannot be written into {folder} on "
        f"{next(iter(document['hosts']))}: Read-only file system"
    ]
